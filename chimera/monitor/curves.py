"""A finished run drawn: its curves and its last evaluation, as SVG.

Curves come from history.jsonl's rows, figures from evaluation.json. Who shows
them is another's concern.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from chimera.monitor import history
from chimera.school import curriculum

if TYPE_CHECKING:
  from matplotlib import axes

MASTER = '#222222'
# Okabe and Ito, Color Universal Design, 2008: told apart by the color-blind.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')


def palette(names: Sequence[str]) -> dict[str, str]:
  """Each clone's color, by its place."""
  return {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(names)}


def draw(
  seen: Sequence[history.Row],
  figures: Mapping[str, Mapping[str, float]],
  colors: Mapping[str, str],
  base: Mapping[str, float],
  titles: Mapping[str, str],
) -> Iterator[tuple[str, bytes]]:
  """Draws every figure of a run, each as it is asked for.

  Args:
    seen: rows of the history.
    figures: the last evaluation, {tokenizer: {figure: value}}, 'master' among
      them.
    colors: of each clone, see `palette`.
    base: base weight of each loss term.
    titles: what 'psnr' and 'path_l1' are called.

  Yields:
    (title, SVG file).
  """
  tags = functools.partial(_draw_tags, seen, colors)
  yield tags(
    'Losses',
    {
      'loss/base': ('Every clone by the base weights', 'loss'),
      'loss/total': ('Each clone by its own lambdas', 'loss'),
    },
  )
  yield tags(
    'Loss terms', {f'loss/{t}': (t, 'unweighted') for t in base}, columns=5
  )
  yield tags(
    'Lambdas against their base',
    {f'lambda/{t}': (t, 'lambda / base') for t, v in base.items() if v > 0},
    columns=5,
    over={f'lambda/{t}': v for t, v in base.items() if v > 0},
  )
  yield tags(
    'Learning rates and the agents that trim them',
    {
      'agent/lr': ('Learning rate', 'Adam step size'),
      'agent/trim': ('Trim by the Q-agent', 'factor'),
      'agent/reward': ('Reward', 'reward (1: a rapid descent)'),
    },
  )
  yield tags(
    'Critics',
    {
      'critic/wasserstein': ('Wasserstein estimate', 'score difference'),
      'critic/penalty': ('Gradient penalty', 'squared norm error'),
      'loss/adv_share': ('Share of the gradient at the output', 'share'),
    },
  )
  yield _held_out(seen, colors)
  key, unit = (
    ('psnr', 'dB') if 'psnr' in figures['master'] else ('path_l1', 'L1')
  )
  yield tags(
    f'Held out, by bin: {titles[key]}',
    {
      f'eval/{key}_bin_{b}': (f'bin {b}', unit)
      for b in range(curriculum.BINS)
      if f'{key}_bin_{b}' in figures['master']
    },
    columns=5,
    master=True,
  )
  yield _per_bin(figures, colors)


def _draw_tags(
  seen: Sequence[history.Row],
  colors: Mapping[str, str],
  title: str,
  panels: Mapping[str, tuple[str, str]],
  *,
  columns: int = 3,
  over: Mapping[str, float] | None = None,
  master: bool = False,
) -> tuple[str, bytes]:
  """A panel a tag, a curve a clone; divided by `over`, 1 is marked."""
  columns = min(columns, len(panels))
  shared = len({unit for _, unit in panels.values()}) == 1
  lines = -(-len(panels) // columns)
  with _Drawing(title, lines, columns) as drawing:
    for i, (tag, (name, unit)) in enumerate(panels.items()):
      ax = drawing.axes[i]
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
      if not shared or i % columns == 0:
        ax.set_ylabel(unit)
  return drawing.picture


def _held_out(
  seen: Sequence[history.Row], colors: Mapping[str, str]
) -> tuple[str, bytes]:
  """Clones and master at each evaluation; dashed, what to compare them with."""
  panels = {
    'psnr': ('PSNR', 'dB', 'optics_psnr', 'the optics alone'),
    'path_l1': (
      'L1 of path_params',
      'L1',
      'path_l1_worst_bin',
      "master's worst bin",
    ),
    'codes_used': ('Codes used', 'codes', 'perplexity', "master's perplexity"),
  }
  there = history.latest(seen)
  panels = {k: v for k, v in panels.items() if f'eval/{k}' in there}
  with _Drawing('Held out', 1, len(panels)) as drawing:
    for ax, (key, (name, unit, other, label)) in zip(
      drawing.axes, panels.items()
    ):
      for clone, color in colors.items():
        _line(ax, *history.series(seen, f'eval/{key}', clone), color)
      _line(ax, *history.series(seen, f'eval/{key}'), MASTER, '-', 'master')
      compared = history.series(seen, f'eval/{other}')
      _line(ax, *compared, '#888', '--', label)
      ax.set(title=name, xlabel='cycle', ylabel=unit)
      ax.legend(frameon=False, fontsize=8)
  return drawing.picture


def _per_bin(
  figures: Mapping[str, Mapping[str, float]], colors: Mapping[str, str]
) -> tuple[str, bytes]:
  """The last evaluation of master and clones, from easy to hard."""
  panels = {
    'path_l1': ('L1 of path_params', 'L1'),
    'pixel_l1': ('L1 of pixels', 'L1'),
    'psnr': ('PSNR', 'dB'),
    'ssim': ('SSIM', 'SSIM'),
  }
  panels = {
    k: v
    for k, v in panels.items()
    if any(key.startswith(f'{k}_bin_') for key in figures['master'])
  }
  with _Drawing(
    'Held out, by bin, at the last evaluation', 1, len(panels)
  ) as drawing:
    for ax, (key, (name, unit)) in zip(drawing.axes, panels.items()):
      for who, color in {**colors, 'master': MASTER}.items():
        of = figures.get(who, {})
        bins = [b for b in range(curriculum.BINS) if f'{key}_bin_{b}' in of]
        _line(ax, bins, [of[f'{key}_bin_{b}'] for b in bins], color)
      ax.set(title=name, xlabel='bin, easy to hard', ylabel=unit)
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
