"""A finished run drawn: its curves and its last evaluation, as SVG.

Curves come from history.jsonl's rows, figures from evaluation.json. Who shows
them is another's concern.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import io
import itertools
import statistics
from typing import Any

import numpy as np

from chimera.evaluation import metrics
from chimera.monitor import history
from chimera.run import audition
from chimera.school import curriculum

# x, y, color, and where they are not the usual ones, dashes and label.
_Curve = tuple[Any, ...]

MASTER = '#222222'
# Okabe and Ito, Color Universal Design, 2008: told apart by the color-blind.
_COLORS = (
  *('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'),
  *('#F0E442', '#882255', '#8C564B', '#332288', '#999933', '#44AA99'),
)
# Of a picture, inches: its width, and what is left for words and numbers beside
# each panel and right of all, above and below all, and between two lines.
_WIDTH, _BESIDE, _RIGHT = 11.0, 0.66, 0.12
_ABOVE, _BELOW, _BETWEEN = 0.6, 0.42, 0.7
# Held-out figures that are drawn by cycle, and what each is compared with.
_COMPARED = {
  'eval/psnr': metrics.BY_TAG['eval/optics_psnr'],
  'eval/path_l1': metrics.BY_TAG['eval/path_l1_worst_bin'],
  'eval/codes_used': metrics.BY_TAG['eval/perplexity'],
}


# Of a picture of regrets: percent, as it is ticked and where it ends, and the
# part of a condition's width that methods stand in, at most so far apart.
_MOST = 1000
_TICKS = {
  -5: '-5 %',
  0: '0',
  5: '+5 %',
  10: '+10 %',
  100: '+100 %',
  _MOST: '+1000 %\nor more',
}
_SPREAD, _APART = 0.8, 0.2


def palette(names: Sequence[str]) -> dict[str, str]:
  """Each clone's color, by its place."""
  return {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(names)}


def draw(
  seen: Sequence[history.Row],
  figures: metrics.Figures,
  colors: Mapping[str, str],
  base: Mapping[str, Mapping[str, float]],
) -> Iterator[tuple[str, bytes]]:
  """Draws every figure of a run, each as it is asked for: (title, SVG file).

  Args:
    seen: rows of the history.
    figures: the last evaluation, 'master' among the tokenizers.
    colors: of each clone, see `palette`.
    base: of each clone the base weight of each loss term.
  """
  curves = functools.partial(_curves, seen, colors)

  def place(title: str, word: str) -> tuple[str, bytes]:
    return _picture(
      title, {m.label: curves(m.tag) for m in metrics.shown(word)}
    )

  yield place('Losses', 'losses')
  shown = dict.fromkeys(t for weights in base.values() for t in weights)
  terms = {t: curves(f'loss/{t}') for t in shown}
  yield _picture('Loss terms, unweighted', terms, columns=5)
  bases = {t: {c: base[c][t] for c in colors if base[c][t] > 0} for t in shown}
  weights = {t: curves(f'lambda/{t}', of) for t, of in bases.items() if of}
  yield _picture('Lambdas against their base', weights, columns=5, mark=1)
  yield place('Learning rates and the agents that trim them', 'agents')
  yield place('Critics', 'critics')
  if compared := _compared(seen, colors):
    yield _picture('Held out', compared)
  master = figures['master']
  judge = metrics.BY_TAG['eval/psnr' if 'psnr' in master else 'eval/path_l1']
  bins = {
    m.title: [*curves(m.tag), (*history.series(seen, m.tag), MASTER)]
    for m in map(judge.bin, range(curriculum.BINS))
    if m.name in master
  }
  if bins:
    yield _picture(f'Held out, by bin: {judge.label}', bins, columns=5)
  if by_bin := dict(_by_bin(figures, colors)):
    yield _picture(
      'Held out, by bin, at the last evaluation',
      by_bin,
      columns=len(metrics.FIGURES),
      xlabel='bin, easy to hard',
      xticks=range(curriculum.BINS),
    )


def draw_audition(held: audition.Audition) -> tuple[str, bytes]:
  """What each learning rate came to, and the one that was found."""
  heard = np.array(held.losses, float)
  finite = heard[np.isfinite(heard)]
  if len(finite):
    found = f'the rate of the run, {held.found:.2g}: higher, for it is longer'
  else:
    found = f'the rate of the run, {held.found:.2g}, as given: none learned'
  edges = min(finite, default=0.0), max(finite, default=1.0)
  curves = [
    (held.rates, heard, MASTER),
    ([held.found] * 2, edges, '#D55E00', '--', found),
  ]
  return _picture(
    'The audition',
    {'Loss at the end of a short run, by its learning rate': curves},
    columns=1,
    xlabel='learning rate',
    xscale='log',
  )


def _curves(
  seen: Sequence[history.Row],
  colors: Mapping[str, str],
  tag: str,
  over: Mapping[str, float] | None = None,
) -> list[_Curve]:
  """A tag of each clone, or of those of `over`, in multiples of that."""
  over = dict.fromkeys(colors, 1.0) if over is None else over
  series = ((*history.series(seen, tag, c), c) for c in over)
  return [(x, np.divide(y, over[c]), colors[c]) for x, y, c in series]


def _compared(
  seen: Sequence[history.Row], colors: Mapping[str, str]
) -> dict[str, list[_Curve]]:
  """Clones and master at each evaluation; dashed, what to compare them with."""
  there = history.latest(seen)
  return {
    metrics.BY_TAG[tag].label: [
      *_curves(seen, colors, tag),
      (*history.series(seen, tag), MASTER, '-', 'master'),
      (*history.series(seen, other.tag), '#888', '--', f'master: {other.head}'),
    ]
    for tag, other in _COMPARED.items()
    if tag in there
  }


def _by_bin(
  figures: metrics.Figures, colors: Mapping[str, str]
) -> Iterator[tuple[str, list[_Curve]]]:
  """The last evaluation of master and clones, from easy to hard."""
  for metric in metrics.FIGURES:
    if metric.by_bin is None:
      continue
    names = [metric.bin(b).name for b in range(curriculum.BINS)]
    if not figures['master'].keys() & {*names}:
      continue
    curves = []
    for who, color in {**colors, 'master': MASTER}.items():
      of = figures.get(who, {})
      known = {b: of[name] for b, name in enumerate(names) if name in of}
      curves.append((list(known), list(known.values()), color))
    yield metric.label, curves


def _places(lines: int, columns: int, height: float) -> dict[str, float]:
  """Where the panels of a picture lie, as `GridSpec` takes it.

  Of fixed margins: a layout that measures each word takes as long as drawing.
  """
  across = _WIDTH - _BESIDE - _RIGHT
  along = height - _ABOVE - _BELOW
  return {
    'left': _BESIDE / _WIDTH,
    'right': 1 - _RIGHT / _WIDTH,
    'bottom': _BELOW / height,
    'top': 1 - _ABOVE / height,
    # Of a panel's size.
    'wspace': columns * _BESIDE / (across - (columns - 1) * _BESIDE),
    'hspace': lines * _BETWEEN / (along - (lines - 1) * _BETWEEN),
  }


def _picture(
  title: str,
  panels: Mapping[str, Sequence[_Curve]],
  *,
  columns: int = 3,
  mark: float | None = None,
  **of_axes: Any,
) -> tuple[str, bytes]:
  """Title and SVG file; `mark` is a dashed line across each panel."""
  # A second to import, and only a report needs it. No pyplot: no global
  # state, and no window.
  from matplotlib import figure

  columns = min(columns, len(panels))
  lines = -(-len(panels) // columns)
  drawing = figure.Figure(
    (_WIDTH, 0.35 + (2.0 if columns > 3 else 2.7) * lines)
  )
  drawing.suptitle(title, x=0.008, ha='left', fontsize=12, fontweight='bold')
  axes = drawing.subplots(
    *(lines, columns),
    squeeze=False,
    gridspec_kw=_places(lines, columns, drawing.get_figheight()),
  ).flat
  for ax, panel in itertools.zip_longest(axes, panels):
    if panel is None:
      ax.remove()
      continue
    for x, y, color, *more in panels[panel]:
      dashes, label = more or ('-', None)
      [line] = ax.plot(x, y, dashes, color=color, label=label, linewidth=1.6)
      if len(x) <= 30:
        line.set(marker='o', markersize=3.5)
    if mark is not None:
      ax.axhline(mark, color='#888', linewidth=1, linestyle='--', zorder=0)
    ax.set(title=panel, **{'xlabel': 'cycle', **of_axes})
    if ax.get_legend_handles_labels()[1]:
      ax.legend(frameon=False, fontsize=8)
    ax.title.set_fontsize(10)
    ax.tick_params(labelsize=8, color='#999')
    ax.xaxis.label.set_fontsize(8)
    ax.grid(color='#eee', linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[['top', 'right']].set_visible(False)
    ax.spines[['left', 'bottom']].set_color('#999')
  data = io.BytesIO()
  drawing.savefig(data, format='svg', metadata={'Date': None})
  return title, data.getvalue()


def points(
  found: Mapping[str, Mapping[str, Sequence[float]]],
  conditions: Sequence[str],
) -> dict[str, list[tuple[float, float, float, float]]]:
  """Of each method of `ledger.regrets` its conditions: (place, mean, least,
  most).

  The conditions are at 0, 1, ..., and the methods beside each other there. The
  rest is percent, over the seeds; what is more than 1000, or infinite, is 1000.
  """
  shown: dict[str, list[tuple[float, float, float, float]]] = {}
  apart = min(_APART, _SPREAD / max(len(found), 1))
  for i, (method, of) in enumerate(found.items()):
    beside = apart * (i - (len(found) - 1) / 2)
    for x, condition in enumerate(conditions):
      if shares := of.get(condition):
        point = statistics.mean(shares), min(shares), max(shares)
        percent = (min(100 * share, _MOST) for share in point)
        shown.setdefault(method, []).append((x + beside, *percent))
  return shown


def draw_regrets(
  found: Mapping[str, Mapping[str, Sequence[float]]],
  conditions: Sequence[str],
) -> bytes:
  """An SVG file: a mark a method and condition, a stroke over its seeds."""
  from matplotlib import figure

  drawing = figure.Figure((9, 3.9), layout='constrained')
  ax = drawing.subplots()
  colors, marks = palette(list(found)), 'Do^sv' * len(found)
  for (method, of), mark in zip(points(found, conditions).items(), marks):
    x, mean, low, high = zip(*of)
    ax.vlines(x, low, high, color=colors[method], linewidth=2)
    ax.plot(x, mean, mark, color=colors[method], label=method)
  ax.set_yscale('symlog', linthresh=5, linscale=1.5)
  ax.set_yticks(list(_TICKS), _TICKS.values())
  ax.set_xticks(range(len(conditions)), conditions)
  ax.set_title('Held-out error above that of one tuned learner', loc='left')
  ax.axhline(0, color='#888', linewidth=1, zorder=0)
  ax.grid(axis='y', color='#eee', zorder=0)
  drawing.legend(loc='outside lower center', frameon=False, ncols=5)
  data = io.BytesIO()
  drawing.savefig(data, format='svg', metadata={'Date': None})
  return data.getvalue()
