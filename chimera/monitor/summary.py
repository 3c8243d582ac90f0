"""The table at the end of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

# Held-out figures in the order in which the table shows them: title, format.
_FIGURES = {
  'psnr': ('PSNR\n(dB)', '.2f'),
  'ssim': ('SSIM', '.3f'),
  'ms_ssim': ('MS-\nSSIM', '.3f'),
  'pixel_l1': ('L1\npixels', '.4f'),
  'edge': ('edge', '.3f'),
  'spectrum': ('spec-\ntrum', '.3f'),
  'rfd-random': ('rfd-\nrandom', '.3g'),
  'rfid': ('rFID', '.2f'),
}
# Where there are no pixels.
_OF_PATHS = {
  'path_l1': ('L1\npath', '.4f'),
  'path_psnr': ('PSNR\npath', '.2f'),
  'path_ssim': ('SSIM\npath', '.3f'),
  'path_edge': ('edge\npath', '.3f'),
  'path_spectrum': ('spectrum\npath', '.3f'),
}
_CODES = {
  'codes_used': ('codes\nused', '.0f'),
  'perplexity': ('perp-\nlexity', '.1f'),
}
_OF_BINS = ('psnr', 'ssim', 'pixel_l1', 'path_l1')
_WORST = 'worst_bin'


def summary(
  clones: Sequence[Mapping[str, Any]],
  figures: Mapping[str, Mapping[str, float]],
  protocol: Mapping[str, Any],
) -> rich.console.Group:
  """The tables at the end of a run or of an evaluation.

  Args:
    clones: a row each, or none: name; bins, their numbers; samples, enrolled;
      g_loss; critic_loss; dominant, the loss term whose weight rose most;
      dominance, that weight over its base; learning_rate.
    figures: of each tokenizer, the master first, as `evaluate.evaluate` names
      them; those that are not there (pixels, where the data are path_params)
      are left out.
    protocol: what they were taken by.
  """
  tables = [_clones(clones)] if clones else []
  lines = '\n'.join(f'{k}: {v}' for k, v in protocol.items())
  return rich.console.Group(
    *tables,
    _held_out(figures),
    _bins(figures['master']),
    rich.text.Text(f'Protocol\n{lines}\n'),
  )


def _clones(clones: Sequence[Mapping[str, Any]]) -> rich.table.Table:
  table = _table('The four clones')
  table.add_column('student', no_wrap=True)
  for header in (
    'bins',
    'samples',
    'g-loss',
    'critic\nloss',
    'dominant lambda',
    'learning\nrate',
  ):
    table.add_column(header, justify='right')
  for row in clones:
    table.add_row(
      row['name'],
      format_bins(row['bins']),
      f'{row["samples"]}',
      f'{row["g_loss"]:.4f}',
      f'{row["critic_loss"]:+.4f}',
      f'{row["dominant"]} x{row["dominance"]:.2f}',
      f'{row["learning_rate"]:.2e}',
    )
  return table


def _held_out(
  figures: Mapping[str, Mapping[str, float]],
) -> rich.table.Table:
  """A row a tokenizer."""
  table = _table('Held out')
  table.padding = 0  # as many columns as 80 characters hold
  table.add_column('tokenizer', no_wrap=True)
  named = _FIGURES if 'psnr' in figures['master'] else _OF_PATHS
  named = {**named, **_CODES}
  shown = {k: v for k, v in named.items() if k in figures['master']}
  for header, _ in shown.values():
    table.add_column(header, justify='right')
  for name, row in figures.items():
    table.add_row(name, *(f'{row[k]:{form}}' for k, (_, form) in shown.items()))
  return table


def _bins(master: Mapping[str, float]) -> rich.table.Table:
  """A row a bin, and the worst of them, which each figure has its own."""
  table = _table('The master by bin, from easy to hard')
  table.add_column('bin')
  named = {k: (_FIGURES | _OF_PATHS)[k] for k in _OF_BINS}
  shown = {k: v for k, v in named.items() if f'{k}_{_WORST}' in master}
  for header, _ in shown.values():
    table.add_column(header.replace('\n', ' '), justify='right')
  tails = {'': 'all', **{f'_bin_{b}': str(b) for b in range(10)}}
  for tail, title in {**tails, f'_{_WORST}': 'worst'}.items():
    if any(f'{key}{tail}' in master for key in shown):
      values = (f'{master[k + tail]:{form}}' for k, (_, form) in shown.items())
      table.add_row(title, *values)
  return table


def show(renderable: rich.console.RenderableType) -> None:
  """Prints to the terminal; 80 columns at least, so that logs keep tables."""
  console = rich.console.Console()
  if console.width < 80:
    console.width = 80
  console.print(renderable)


def _table(title: str) -> rich.table.Table:
  return rich.table.Table(
    title=title,
    title_justify='left',
    box=rich.box.SIMPLE_HEAD,
    pad_edge=False,
    collapse_padding=True,
  )


def format_bins(bins: Sequence[int]) -> str:
  """(0, 1, 2, 3) as '0-3'."""
  bins = sorted(bins)
  if len(bins) > 1 and bins == list(range(bins[0], bins[-1] + 1)):
    return f'{bins[0]}-{bins[-1]}'
  return ', '.join(map(str, bins))
