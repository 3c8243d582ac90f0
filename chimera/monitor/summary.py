"""The table at the end of a run."""

from collections.abc import Iterator, Mapping, Sequence
import re
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from chimera.evaluation import metrics
from chimera.school import curriculum

_WIDTH = 80  # columns that any terminal or log has


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
  table = _table('The clones')
  cells = list(map(clone_cells, clones))
  for i, head in enumerate(cells[0]):
    head = re.sub(' (loss|rate)', r'\n\1', head)
    table.add_column(head, justify='right' if i else 'left', no_wrap=not i)
  for row in cells:
    table.add_row(*row.values())
  return table


def _held_out(
  figures: Mapping[str, Mapping[str, float]],
) -> Iterator[rich.table.Table]:
  """A row a tokenizer; as many tables as their columns need."""
  master = figures['master']
  groups: list[list[list[str]]] = []
  room = 0
  for m in metrics.shown('table'):
    if m.name not in master or (m.is_of_paths and 'psnr' in master):
      continue
    column = [f'{row[m.name]:{m.form}}' for row in figures.values()]
    column = [m.narrow_head, *column]
    width = 1 + max(map(len, '\n'.join(column).split('\n')))
    if width > room:
      groups.append([])
      room = _WIDTH - max(map(len, (*figures, 'tokenizer')))
    groups[-1].append(column)
    room -= width
  for i, columns in enumerate(groups):
    table = _table('Held out, further' if i else 'Held out')
    table.padding = 0  # as many columns as the width holds
    table.add_column('tokenizer', no_wrap=True)
    for head, *_ in columns:
      table.add_column(head, justify='right')
    for row in zip(figures, *(cells for _, *cells in columns)):
      table.add_row(*row)
    yield table


def _bins(master: Mapping[str, float]) -> rich.table.Table:
  """A row a bin, and the worst of them, which each figure has its own."""
  table = _table('The master by bin, from easy to hard')
  table.add_column('bin')
  shown = [
    m
    for m in metrics.FIGURES
    if m.by_bin is not None and m.worst_bin().name in master
  ]
  for m in shown:
    table.add_column(m.head, justify='right')
  rows = {
    'all': shown,
    **{str(b): [m.bin(b) for m in shown] for b in range(curriculum.BINS)},
    'worst': [m.worst_bin() for m in shown],
  }
  for title, row in rows.items():
    if any(m.name in master for m in row):
      table.add_row(title, *(f'{master[m.name]:{m.form}}' for m in row))
  return table


def show(renderable: rich.console.RenderableType) -> None:
  """Prints to the terminal; 80 columns at least, so that logs keep tables."""
  console = rich.console.Console()
  console.width = max(console.width, _WIDTH)
  console.print(renderable)


def _table(title: str) -> rich.table.Table:
  return rich.table.Table(
    title=f'\n{title}',
    title_justify='left',
    box=rich.box.SIMPLE_HEAD,
    show_edge=False,
    pad_edge=False,
    collapse_padding=True,
  )


def format_bins(bins: Sequence[int]) -> str:
  """(0, 1, 2, 3) as '0-3'."""
  bins = sorted(bins)
  if len(bins) > 1 and bins == list(range(bins[0], bins[-1] + 1)):
    return f'{bins[0]}-{bins[-1]}'
  return ', '.join(map(str, bins))
