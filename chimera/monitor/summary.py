"""The table at the end of a run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import re
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from chimera.evaluation import metrics
from chimera.school import curriculum

_WIDTH = 80  # columns that any terminal or log has
_NAME = 20  # of them, at most, of a table's first column


def summary(
  clones: Sequence[Mapping[str, Any]],
  figures: metrics.Figures,
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
  lines = '\n'.join(f'{k}: {v}' for k, v in protocol.items())
  return rich.console.Group(
    *([_clones(clones)] if clones else []),
    *_held_out(figures),
    _bins(figures['master']),
    rich.text.Text(f'\nProtocol\n{lines}\n'),
  )


def clone_cells(row: Mapping[str, Any]) -> dict[str, str]:
  """A clone's row of the table, by the heads of its columns."""
  return {
    'student': row['name'],
    'bins': format_bins(row['bins']),
    'samples': f'{row["samples"]}',
    'g-loss': f'{row["g_loss"]:.4f}',
    'critic loss': f'{row["critic_loss"]:+.4f}',
    'dominant lambda': f'{row["dominant"]} x{row["dominance"]:.2f}',
    'learning rate': f'{row["learning_rate"]:.2e}',
  }


def _clones(clones: Sequence[Mapping[str, Any]]) -> rich.table.Table:
  cells = list(map(clone_cells, clones))
  heads = (re.sub(' (loss|rate)', r'\n\1', head) for head in cells[0])
  return _table('The clones', heads, (row.values() for row in cells))


def _held_out(figures: metrics.Figures) -> Iterator[rich.table.Table]:
  """A row a tokenizer; as many tables as their columns need."""
  master = figures['master']
  names = ['tokenizer', *figures]
  groups: list[list[list[str]]] = []
  room = 0
  for m in metrics.shown('table'):
    if m.name not in master or (m.is_of_paths and 'psnr' in master):
      continue
    cells = (f'{row[m.name]:{m.form}}' for row in figures.values())
    column = [m.narrow_head, *cells]
    width = 1 + max(map(len, '\n'.join(column).split('\n')))
    if width > room:
      groups.append([names])
      room = _WIDTH - max(map(len, names))
    groups[-1].append(column)
    room -= width
  for i, columns in enumerate(groups):
    title = 'Held out, further' if i else 'Held out'
    heads, *rows = zip(*columns)
    table = _table(title, heads, rows)
    table.padding = 0  # as many columns as the width holds
    yield table


def _bins(master: Mapping[str, float]) -> rich.table.Table:
  """A row a bin, and the worst of them, which each figure has its own."""
  shown = [
    m
    for m in metrics.FIGURES
    if m.by_bin is not None and m.worst_bin().name in master
  ]
  rows = {
    'all': shown,
    **{str(b): [m.bin(b) for m in shown] for b in range(curriculum.BINS)},
    'worst': [m.worst_bin() for m in shown],
  }
  return _table(
    'The master by bin, from easy to hard',
    ('bin', *(m.head for m in shown)),
    (
      (title, *(f'{master[m.name]:{m.form}}' for m in row))
      for title, row in rows.items()
      if any(m.name in master for m in row)
    ),
  )


def _table(
  title: str, heads: Iterable[str], rows: Iterable[Iterable[str]]
) -> rich.table.Table:
  table = rich.table.Table(
    title=f'\n{title}',
    title_justify='left',
    box=rich.box.SIMPLE_HEAD,
    show_edge=False,
    pad_edge=False,
    collapse_padding=True,
  )
  for i, head in enumerate(heads):
    if i:
      table.add_column(head, justify='right', no_wrap=True)
    else:
      table.add_column(head, overflow='fold', max_width=_NAME)
  for row in rows:
    table.add_row(*row)
  return table


def show(renderable: rich.console.RenderableType) -> None:
  """Prints to the terminal; 80 columns at least, so that logs keep tables."""
  console = rich.console.Console()
  console.width = max(console.width, _WIDTH)
  console.print(renderable)


def format_bins(bins: Sequence[int]) -> str:
  """(0, 1, 2, 3) as '0-3'."""
  bins = sorted(bins)
  if len(bins) > 1 and bins == list(range(bins[0], bins[-1] + 1)):
    return f'{bins[0]}-{bins[-1]}'
  return ', '.join(map(str, bins))
