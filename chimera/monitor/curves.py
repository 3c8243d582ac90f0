"""A finished run drawn: its curves and its last evaluation, as SVG.

Curves come from history.jsonl's rows, figures from evaluation.json. Who shows
them is another's concern.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import io
import itertools
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


def palette(names: Sequence[str]) -> dict[str, str]:
  """Each clone's color, by its place."""
  return {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(names)}


def draw(
  seen: Sequence[history.Row],
  figures: metrics.Figures,
  colors: Mapping[str, str],
  base: Mapping[str, float],
) -> Iterator[tuple[str, bytes]]:
  """Draws every figure of a run, each as it is asked for: (title, SVG file).

  Args:
    seen: rows of the history.
    figures: the last evaluation, 'master' among the tokenizers.
    colors: of each clone, see `palette`.
    base: base weight of each loss term.
  """
  curves = functools.partial(_curves, seen, colors)

  def place(title: str, word: str) -> tuple[str, bytes]:
    return _picture(
      title, {m.label: curves(m.tag) for m in metrics.shown(word)}
    )

  yield place('Losses', 'losses')
  terms = {t: curves(f'loss/{t}') for t in base}
  yield _picture('Loss terms, unweighted', terms, columns=5)
  weights = {t: curves(f'lambda/{t}', v) for t, v in base.items() if v > 0}
  yield _picture('Lambdas against their base', weights, columns=5, mark=1)
  yield place('Learning rates and the agents that trim them', 'agents')
  yield place('Critics', 'critics')
  yield _picture('Held out', _compared(seen, colors))
  master = figures['master']
  judge = metrics.BY_TAG['eval/psnr' if 'psnr' in master else 'eval/path_l1']
  bins = {
    m.title: [*curves(m.tag), (*history.series(seen, m.tag), MASTER)]
    for m in map(judge.bin, range(curriculum.BINS))
    if m.name in master
  }
  yield _picture(f'Held out, by bin: {judge.label}', bins, columns=5)
  yield _picture(
    'Held out, by bin, at the last evaluation',
    dict(_by_bin(figures, colors)),
    columns=len(metrics.FIGURES),
    xlabel='bin, easy to hard',
    xticks=range(curriculum.BINS),
  )


def draw_audition(held: audition.Audition) -> tuple[str, bytes]:
  """What each learning rate came to, and the one that was found."""
  heard = np.array(held.losses, float)
  edges = np.nanmin(heard), np.nanmax(heard)
  found = f'the rate of the run, {held.found:.2g}: higher, for it is longer'
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
  over: float = 1,
) -> list[_Curve]:
  """A tag of each clone, in multiples of `over`."""
  series = ((*history.series(seen, tag, c), colors[c]) for c in colors)
  return [(x, np.divide(y, over), color) for x, y, color in series]


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
