"""The live dashboard: a column for each specialist, and the master below.

The design document's section 7. A snapshot, drawn by a pure function. Nothing
here imports JAX, so that another process can watch at once.
"""

from collections.abc import Sequence
import functools
import itertools
import math

import rich.cells
from rich.segment import Segment, SegmentLines
import rich.style

from chimera.evaluation import metrics
from chimera.monitor import gallery
from chimera.monitor import snapshot as snapshot_lib
from chimera.system import progress

_HUES = (
  *('cyan', 'green', 'magenta', 'yellow'),
  *('blue', 'red', 'bright_magenta', 'bright_yellow'),
)
# Least cells of a column, whose lambdas have a line each or are bars.
_TALL, _SHORT = 28, 17
_BARS = '▁▂▃▄▅▆▇█'

Line = list[Segment]
_width = Segment.get_line_length
_fit = Segment.adjust_line_length


def sparkline(
  values: Sequence[float], width: int, reach: float | None = None
) -> str:
  """The newest `width` values as bars, a cell each.

  They go from the least value to the greatest, or from -reach to reach. A value
  that is not finite is a '!'; values all alike lie low.
  """
  values = values[-width:] if width > 0 else ()
  finite = [v for v in values if math.isfinite(v)]
  low, high = min(finite, default=0.0), max(finite, default=0.0)
  if reach is not None:
    low, high = -reach, reach
  step = (high - low) / len(_BARS) or math.inf
  return ''.join(
    _BARS[max(0, min(int((v - low) / step), len(_BARS) - 1))]
    if math.isfinite(v)
    else '!'
    for v in values
  )


def _text(text: str, style: str = '') -> Segment:
  return Segment(text, rich.style.Style.parse(style))


_gray = functools.partial(_text, style='bright_black')
_bold = functools.partial(_text, style='bold')


def _ends(left: Line, right: Line, width: int) -> Line:
  """Both ends of a line; the left one gives way."""
  taken = min(width, _width(right))
  return _fit(left, width - taken) + _fit(right, taken)


def _words(words: Sequence[str], width: int) -> str:
  """As many words as fit, and how many do not."""
  for count in range(len(words), 0, -1):
    text = ' '.join(words[:count])
    if count < len(words):
      text += f' +{len(words) - count}'
    if rich.cells.cell_len(text) <= width:
      return text
  return ''


def _number(value: float | None, form: str) -> str:
  if value is None:
    return '-'
  return format(value, form) if math.isfinite(value) else str(value)


def _short(value: float | None, form: str) -> str:
  """In some seven cells, whatever it is."""
  text = _number(value, form)
  return text if len(text) <= 7 else _number(value, '.1e')


def _last(values: Sequence[float]) -> float | None:
  return values[-1] if values else None


def _log(ratio: float | None) -> float:
  return math.log(ratio) if ratio and 0 < ratio < math.inf else math.nan


def _gauge(ratio: float | None, limit: float, half: int) -> Line:
  """A weight over its base on a log scale, from the middle outwards."""
  share = _log(ratio) / max(limit, 1e-9)
  share = 0.0 if math.isnan(share) else max(-1.0, min(1.0, share))
  filled = round(half * share)
  below, above = max(-filled, 0), max(filled, 0)
  return [
    _gray('─' * (half - below)),
    _text('━' * below, 'blue'),
    _gray('┼'),
    _text('━' * above, 'red'),
    _gray('─' * (half - above)),
  ]


def render(
  snapshot: snapshot_lib.Snapshot, width: int, height: int
) -> SegmentLines:
  """The dashboard, of `height` lines of `width` cells.

  From 115x35 on (of four specialists) every lambda has a line of its own, below
  it the row is one of bars; where there is no room for the columns, in one row
  or in several, each specialist has but a line. What is left over goes to the
  pictures.
  """
  rule = [_gray('─' * width)]
  title = [_bold(' Chimera'), _gray(f'  {snapshot.title}')]
  head = [_ends(title, [_text(f'{snapshot.note} ')], width), rule]
  drawn = [
    (student, chr(ord('A') + i), _HUES[i % len(_HUES)])
    for i, student in enumerate(snapshot.students)
  ]
  for tall in (True, False):
    students = _columns(drawn, snapshot.limit, width, tall)
    lines = [*head, *students, rule]
    master = _master(snapshot, width, tall)
    if students and len(lines) + len(master) < height:
      break
  else:
    lines = [*head, *(_summary(*one, width) for one in drawn), rule]
  lines += _below(snapshot, master, width, max(height - len(lines) - 1, 0))
  lines = lines[: height - 1]
  lines += [[]] * (height - 1 - len(lines))
  lines.append(_progress(snapshot, width))
  fitted = [_fit(line, width) for line in lines[len(lines) - height :]]
  return SegmentLines(fitted, new_lines=True)


def _columns(
  drawn: Sequence[tuple[snapshot_lib.Student, str, str]],
  limit: float,
  width: int,
  tall: bool,
) -> list[Line]:
  """The specialists beside each other, in as few rows as hold them.

  A stroke stands between two of them, a rule between two rows. None where they
  are too narrow.
  """
  most = max(1, (width + 1) // (_SHORT + 1))
  rows = -(-len(drawn) // most)
  across = -(-len(drawn) // rows)
  wide, more = divmod(width + 1 - across, across)
  if wide < (_TALL if tall else _SHORT):
    return []
  lines: list[Line] = []
  for start in range(0, len(drawn), across):
    if lines:
      lines.append([_gray('─' * width)])
    some = drawn[start : start + across]
    columns = [_column(*one, limit, wide - 2, tall) for one in some]
    for row in zip(*columns):
      line: Line = []
      for i, cells in enumerate(row):
        w = wide + (i < more)
        stroke = [_gray('│')] if line else []
        line += [*stroke, *_fit([_text(' '), *_fit(cells, w - 2)], w)]
      lines.append(line)
  return lines


def _summary(
  student: snapshot_lib.Student, letter: str, hue: str, width: int
) -> Line:
  """One specialist in a line, with its name where there is room."""
  top = '-'
  if student.dominant:
    top = f'{student.dominant.term} x{_number(student.dominant.ratio, ".2f")}'
  line = [
    _text(f' {letter} ', f'bold {hue}'),
    _bold(f'{_short(_last(student.g_loss), ".4f")} '),
    _text(f'{_short(_last(student.critic), "+.3f")} '),
    *_labelled('lr', _number(student.learning_rate, '.2e')),
    *_labelled(' λ', top),
  ]
  name = _gray(f'  {student.name}')
  return [*line, name] if _width([*line, name]) <= width else line


def _column(
  student: snapshot_lib.Student,
  letter: str,
  hue: str,
  limit: float,
  width: int,
  tall: bool,
) -> list[Line]:
  """One specialist, in lines of at most `width` cells."""
  name = [_text(f'{letter} {student.name}', f'bold {hue}')]
  bins = f'bin{"s" * (len(student.bins) > 1)} {student.bins}'
  if tall:
    head = [
      _ends(name, [_text(bins)], width),
      [_gray(_words(student.mission, width) or '-')],
    ]
  else:
    mission = _words(student.mission, width - len(bins) - 1)
    if student.mission and not mission:
      bins = student.bins
      mission = _words(student.mission, width - len(bins) - 1)
    head = [name, [_text(bins), _gray(f' {mission}')]]
  forms, cells = (('.4f', '+.3f'), 7) if tall else (('.3f', '+.2f'), 5)
  losses = []
  both = {'g-loss': student.g_loss, 'critic': student.critic}
  for (label, values), form in zip(both.items(), forms):
    number = _bold(f'{_short(_last(values), form):>{cells}} ')
    bars = _text(sparkline(values, width - cells - 8), hue)
    losses.append([_gray(f'{label:7}'), number, bars])
  gap = [[]] if tall else []
  lambdas = _lambdas(student, limit, width, tall)
  learning = _learning(student, width, tall)
  return [*head, *gap, *losses, *gap, *lambdas, *gap, *learning]


def _lambdas(
  student: snapshot_lib.Student, limit: float, width: int, tall: bool
) -> list[Line]:
  """The dominant weight with its P, I and D, and the whole row."""
  top, ratio, pid = student.dominant, '-', ''
  if top:
    ratio = f'x{_number(top.ratio, ".2f")}'
    pid = 'PID off'
  if student.pid is not None:
    form, gap = ('+.2f', ' ') if width >= 24 else ('+.1f', '')
    parts = zip('PID', student.pid)
    pid = ' '.join(f'{k}{gap}{_number(v, form)}' for k, v in parts)
  name = [_bold(top.term if top else '-')]
  if _width(name) + 2 <= width:
    name.insert(0, _gray('λ '))
  if not tall:
    logs = [_log(weight.ratio) for weight in student.weights]
    bars = sparkline(logs, width - 7, reach=limit)
    return [name, [_text(f'{ratio:6} '), _text(bars, 'red')], [_text(pid)]]
  lines = [_ends(name, [_bold(ratio)], width), [_text(pid)]]
  longest = max(len(w.term) for w in student.weights)
  half = max(1, (width - longest - 7) // 2)
  for weight in student.weights:
    style = 'bold' if weight is top else 'bright_black'
    term = _text(f'{weight.term:{longest}}', style)
    number = _text(f' {_number(weight.ratio, ".2f"):>4} ')
    lines.append([term, number, *_gauge(weight.ratio, limit, half)])
  return lines


def _learning(
  student: snapshot_lib.Student, width: int, tall: bool
) -> list[Line]:
  """The learning rate and the agent that trims it."""
  rate = _number(student.learning_rate, '.2e')
  trim = f'x{_number(student.lr_scale, ".2f")}'
  action = f'x{_number(student.action, ".2f")}' if student.action else '-'
  reward = _number(student.reward, '+.1f')
  if len(reward) > 4:
    reward = _number(student.reward, '+.0f')
  explores = '-'
  if student.epsilon is not None:
    explores = f'{_number(100 * student.epsilon, ".0f")} %'
  lr = _labelled('lr', rate, 'bold')
  explored = _labelled('explores', explores)
  if not tall:
    return [
      [*lr, _text(f' {trim}')],
      [_text(student.trend)],
      [_text(f'{action} '), *_labelled('reward', reward)],
      explored,
    ]
  zone = f'trim {student.zone}' if student.zone else ''
  if len(student.trend) + 1 + len(zone) > width:
    zone = student.zone
  return [
    _ends(lr, _labelled('trim', trim), width),
    _ends([_text(student.trend)], [_gray(zone)], width),
    _ends(_labelled('action', action), _labelled('reward', reward), width),
    explored,
  ]


def _labelled(label: str, value: str, style: str = '') -> Line:
  return [_gray(f'{label} '), _text(value, style)]


def _master(
  snapshot: snapshot_lib.Snapshot, width: int, tall: bool
) -> list[Line]:
  """The master's figures and what the meld and the machine do."""
  used, perplexity, dropped, cycles, images = (
    _number(snapshot.master.get(tag), metrics.BY_TAG[tag].form)
    for tag in (
      *('codebook/used', 'codebook/perplexity', 'meld/dropped'),
      *('perf/cycles_per_sec', 'perf/images_per_sec'),
    )
  )
  used = f'{used} of {snapshot.codes}'
  speed = f'{cycles} cycles/s  {images} images/s'
  drift = [_gray('drift')]
  for student, hue in zip(snapshot.students, itertools.cycle(_HUES)):
    drift.append(_text(f' {_number(student.drift, ".2f")}', hue))
  title = [_bold(' Master'), _gray(f'  held-out {snapshot.kind}')]
  lines = [title if tall else [_text(' ')]]
  for f in snapshot.figures:
    name = f.metric.title.split()[0]
    value, best = (_number(v, f.metric.form) for v in (_last(f.values), f.best))
    if tall:
      at = '' if f.best_cycle is None else f'at {f.best_cycle}'
      # Of one width, so that the pictures stay where they are.
      lines.append(_labelled(f' {name:10}', f'{value:>6}', 'bold'))
      lines[-1] += _labelled('  best', f'{best:>6} {at:8}')
      lines[-1].append(_text(f' {sparkline(f.values, 6):6}'))
    else:
      lines[0] += _labelled(name, value, 'bold')
      lines[0] += [*_labelled('  best', best), _text('  ')]
  if not tall:
    codes = [*_labelled(' codes', used), *_labelled('  perplexity', perplexity)]
    drift = [_text('  '), *drift]
    fits = _width(codes) + _width(drift) <= width
    lines += [[*codes, *drift]] if fits else [codes, [_text(' '), *drift[1:]]]
    return [*lines, [*_labelled(' dropped', dropped), _text(f'  {speed}')]]
  perplexities = _text(f'  {sparkline(snapshot.perplexity, 20)}')
  return [
    *lines,
    _labelled(' codes used', used),
    [*_labelled(' perplexity', f'{perplexity:>6}', 'bold'), perplexities],
    [_text(' '), *drift, *_labelled('  dropped', dropped)],
    [_text(f' {speed}')],
  ]


def _below(
  snapshot: snapshot_lib.Snapshot, master: list[Line], width: int, height: int
) -> list[Line]:
  """The master, with the pictures beside it or below it."""
  if snapshot.pictures is None or height <= 0:
    return master[:height]
  side = max(map(_width, master)) + 3
  beside = gallery.draw(snapshot.pictures, snapshot.turn, width - side, height)
  rest = height - len(master)
  under = gallery.draw(snapshot.pictures, snapshot.turn, width - 1, rest)
  area, other = (
    max(map(_width, lines), default=0) * len(lines) for lines in (beside, under)
  )
  if area < other:
    return [*master, *([_text(' '), *line] for line in under)]
  pairs = itertools.zip_longest(master, beside, fillvalue=[])
  return [[*_fit(left, side), *right] for left, right in pairs][:height]


def _progress(snapshot: snapshot_lib.Snapshot, width: int) -> Line:
  done = min(1.0, snapshot.cycle / snapshot.cycles)
  text = f' {snapshot.cycle} of {snapshot.cycles}  {int(100 * done)} %'
  if snapshot.left is not None and done < 1:
    text += f'  {progress.format_seconds(snapshot.left)} left'
  room = max(0, width - len(text) - 2)
  filled = round(done * room)
  return [
    _text(' '),
    _text('━' * filled, 'green'),
    _gray('─' * (room - filled)),
    _text(f'{text} '),
  ]


def plain(snapshot: snapshot_lib.Snapshot) -> str:
  """The dashboard in print: no colors, no pictures, no empty lines."""
  lines = render(snapshot._replace(pictures=None), 120, 40).lines
  texts = (''.join(segment.text for segment in line) for line in lines)
  return ''.join(f'{text.rstrip()}\n' for text in texts if text.strip(' │'))
