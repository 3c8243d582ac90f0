"""A finished run drawn: its curves and its last evaluation, as SVG.

Curves come from history.jsonl's rows, figures from evaluation.json. Who shows
them is another's concern.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from chimera.evaluation import metrics
from chimera.monitor import history
from chimera.school import curriculum

if TYPE_CHECKING:
  from matplotlib import axes

MASTER = '#222222'
# Okabe and Ito, Color Universal Design, 2008: told apart by the color-blind.
_COLORS = (
  *('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'),
  '#F0E442',
)
# Held-out figures that are drawn by cycle, and what each is compared with.
_COMPARED = {
  'eval/psnr': 'eval/optics_psnr',
  'eval/path_l1': 'eval/path_l1_worst_bin',
  'eval/codes_used': 'eval/perplexity',
}


def palette(names: Sequence[str]) -> dict[str, str]:
  """Each clone's color, by its place."""
  return {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(names)}


def draw(
  seen: Sequence[history.Row],
  figures: Mapping[str, Mapping[str, float]],
  colors: Mapping[str, str],
  base: Mapping[str, float],
) -> Iterator[tuple[str, bytes]]:
  """Draws every figure of a run, each as it is asked for.

  Args:
    seen: rows of the history.
    figures: the last evaluation, {tokenizer: {figure: value}}, 'master' among
      them.
    colors: of each clone, see `palette`.
    base: base weight of each loss term.

  Yields:
    (title, SVG file).
  """
  tags = functools.partial(_draw_tags, seen, colors)

  def of(place: str) -> dict[str, str]:
    return {m.tag: m.label for m in metrics.shown(place)}

  yield tags('Losses', of('losses'))
  yield tags(
    'Loss terms, unweighted', {f'loss/{t}': t for t in base}, columns=5
  )
  yield tags(
    'Lambdas against their base',
    {f'lambda/{t}': t for t, v in base.items() if v > 0},
    columns=5,
    over={f'lambda/{t}': v for t, v in base.items() if v > 0},
  )
  yield tags('Learning rates and the agents that trim them', of('agents'))
  yield tags('Critics', of('critics'))
  yield _held_out(seen, colors)
  master = figures['master']
  judge = metrics.BY_TAG['eval/psnr' if 'psnr' in master else 'eval/path_l1']
  bins = (judge.bin(b) for b in range(curriculum.BINS))
  yield tags(
    f'Held out, by bin: {judge.label}',
    {m.tag: m.title for m in bins if m.name in master},
    columns=5,
    master=True,
  )
  yield _per_bin(figures, colors)


def _draw_tags(
  seen: Sequence[history.Row],
  colors: Mapping[str, str],
  title: str,
  panels: Mapping[str, str],
  *,
  columns: int = 3,
  over: Mapping[str, float] | None = None,
  master: bool = False,
) -> tuple[str, bytes]:
  """A panel a tag, a curve a clone; divided by `over`, 1 is marked."""
  columns = min(columns, len(panels))
  lines = -(-len(panels) // columns)
  with _Drawing(title, lines, columns) as drawing:
    for ax, (tag, name) in zip(drawing.axes, panels.items()):
      for clone, color in colors.items():
        cycles, values = history.series(seen, tag, clone)
        if over:
          values = np.divide(values, over[tag])
        _line(ax, cycles, values, color)
      if master:
        _line(ax, *history.series(seen, tag), MASTER)
      if over:
        ax.axhline(1, color='#888', linewidth=1, linestyle='--', zorder=0)
      ax.set(title=name, xlabel='cycle')
  return drawing.picture


def _held_out(
  seen: Sequence[history.Row], colors: Mapping[str, str]
) -> tuple[str, bytes]:
  """Clones and master at each evaluation; dashed, what to compare them with."""
  there = history.latest(seen)
  panels = [
    (metrics.BY_TAG[tag], metrics.BY_TAG[other])
    for tag, other in _COMPARED.items()
    if tag in there
  ]
  with _Drawing('Held out', 1, len(panels)) as drawing:
    for ax, (metric, other) in zip(drawing.axes, panels):
      for clone, color in colors.items():
        _line(ax, *history.series(seen, metric.tag, clone), color)
      _line(ax, *history.series(seen, metric.tag), MASTER, '-', 'master')
      compared = history.series(seen, other.tag)
      _line(ax, *compared, '#888', '--', f'master: {other.head}')
      ax.set(title=metric.label, xlabel='cycle')
      ax.legend(frameon=False, fontsize=8)
  return drawing.picture


def _per_bin(
  figures: Mapping[str, Mapping[str, float]], colors: Mapping[str, str]
) -> tuple[str, bytes]:
  """The last evaluation of master and clones, from easy to hard."""
  there = figures['master']
  panels = [
    m
    for m in metrics.FIGURES
    if m.by_bin is not None
    and any(m.bin(b).name in there for b in range(curriculum.BINS))
  ]
  title = 'Held out, by bin, at the last evaluation'
  with _Drawing(title, 1, len(panels)) as drawing:
    for ax, metric in zip(drawing.axes, panels):
      names = [metric.bin(b).name for b in range(curriculum.BINS)]
      for who, color in {**colors, 'master': MASTER}.items():
        of = figures.get(who, {})
        known = {b: of[name] for b, name in enumerate(names) if name in of}
        _line(ax, list(known), list(known.values()), color)
      ax.set(title=metric.label, xlabel='bin, easy to hard')
      ax.set_xticks(range(curriculum.BINS))
  return drawing.picture


class _Drawing:
  """A figure of panels; `picture`, (title, SVG file), once it is left."""

  def __init__(self, title: str, lines: int, columns: int):
    # A second to import, and only a report needs it. No pyplot: no global
    # state, and no window.
    from matplotlib import figure

    self._title = title
    self._figure = figure.Figure(
      figsize=(11, 0.35 + (2.0 if columns > 3 else 2.7) * lines),
      layout='constrained',
    )
    grid = self._figure.subplots(lines, columns, squeeze=False)
    self.axes: list[axes.Axes] = list(grid.flat)
    self.picture = (title, b'')

  def __enter__(self) -> '_Drawing':
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    if kind is not None:
      return
    self._figure.suptitle(
      self._title, x=0.008, ha='left', fontsize=12, fontweight='bold'
    )
    for ax in self.axes:
      if not ax.get_title():
        ax.remove()
        continue
      ax.title.set_fontsize(10)
      ax.tick_params(labelsize=8, color='#999')
      ax.xaxis.label.set_fontsize(8)
      ax.yaxis.label.set_fontsize(8)
      ax.grid(color='#eee', linewidth=0.8)
      ax.set_axisbelow(True)
      ax.spines[['top', 'right']].set_visible(False)
      ax.spines[['left', 'bottom']].set_color('#999')
    data = io.BytesIO()
    self._figure.savefig(data, format='svg', metadata={'Date': None})
    self.picture = (self._title, data.getvalue())


def _line(
  ax: 'axes.Axes',
  x: Sequence[float],
  y: Sequence[float],
  color: str,
  dashes: str = '-',
  label: str | None = None,
) -> None:
  """A curve; its points too where they are few."""
  marker = 'o' if len(x) <= 30 else None
  ax.plot(
    x,
    y,
    dashes,
    color=color,
    label=label,
    marker=marker,
    markersize=3.5,
    linewidth=1.6,
  )
