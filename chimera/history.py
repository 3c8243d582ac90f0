"""What was seen of a run: history.jsonl, a line a log cycle.

The live dashboard, the dashboard of another process and the report all read
it; TensorBoard holds the same figures for TensorBoard.
"""

from collections.abc import Mapping, Sequence
import json
import os
import time
from typing import Any, NamedTuple

from chimera import disk

NAME = 'history.jsonl'


class Row(NamedTuple):
  """What was seen at one cycle.

  Attributes:
    cycle: done so far.
    time: seconds since 1970.
    clones: {clone: {tag: value}}, of training and evaluation alike; its
      evaluation is that of its own weights before the meld.
    master: {tag: value}, likewise.
  """

  cycle: int
  time: float
  clones: dict[str, dict[str, float]]
  master: dict[str, float]


class History:
  """Appends rows; what a resumed run does again counts as it was done last.

  Args:
    workdir: that exists.
    first: cycle from which the run goes on; later rows are another's.
  """

  def __init__(self, workdir: str, first: int = 0):
    self._path = os.path.join(workdir, NAME)
    self.rows = [row for row in read(workdir) if row.cycle <= first]
    self._rewrite()

  def rewind(self, cycle: int) -> None:
    """Forgets the rows after a cycle; on the disk with the next row."""
    self.rows[:] = [row for row in self.rows if row.cycle <= cycle]
    self._is_whole = False

  def append(
    self,
    cycle: int,
    clones: Mapping[str, Mapping[str, float]],
    master: Mapping[str, float],
  ) -> Row:
    """Adds a row, on the disk too.

    Raises:
      OSError: it could not be written; the next one that can writes it too.
    """
    row = Row(
      cycle,
      time.time(),
      {name: dict(values) for name, values in clones.items()},
      dict(master),
    )
    self.rows.append(row)
    if not self._is_whole:
      self._rewrite()
      return row
    # A row that is torn would take the next one with it.
    self._is_whole = False
    with open(self._path, 'a') as f:
      f.write(_line(row))
    self._is_whole = True
    return row

  def _rewrite(self) -> None:
    """Puts exactly `rows` on the disk."""
    self._is_whole = False
    disk.write(self._path, ''.join(map(_line, self.rows)).encode())
    self._is_whole = True


def read(workdir: str) -> list[Row]:
  """All whole rows; none where there is no history. A torn line is skipped."""
  try:
    with open(os.path.join(workdir, NAME), encoding='utf-8') as f:
      lines = f.read().splitlines()
  except FileNotFoundError:
    return []
  rows = []
  for line in lines:
    try:
      rows.append(Row(**json.loads(line)))
    except (ValueError, TypeError):
      continue
  return rows


def series(
  rows: Sequence[Row], tag: str, clone: str | None = None
) -> tuple[list[int], list[float]]:
  """Cycles and values of a tag, of a clone or of the master."""
  found = [
    (row.cycle, values[tag])
    for row in rows
    if tag
    in (values := row.master if clone is None else row.clones.get(clone, {}))
  ]
  return [c for c, _ in found], [v for _, v in found]


def _line(row: Row) -> str:
  return f'{json.dumps(row._asdict(), separators=(",", ":"))}\n'


def latest(rows: Sequence[Row], clone: str | None = None) -> dict[str, Any]:
  """The last value of every tag, of a clone or of the master."""
  values: dict[str, Any] = {}
  for row in rows:
    values |= row.master if clone is None else row.clones.get(clone, {})
  return values
