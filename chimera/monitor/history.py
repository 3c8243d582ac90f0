"""What was seen of a run: history.jsonl, a line a log cycle.

The live dashboard, the dashboard of another process and the report all read
it; TensorBoard holds the same figures for TensorBoard.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
import math
import os
import sys
import time
from typing import Any, NamedTuple

NAME = 'history.jsonl'
_MOST = 2**63  # of a whole number
_NEWEST = 128  # rows that are kept whole in memory, as the dashboard draws


class Row(NamedTuple):
  """What was seen at one cycle."""

  cycle: int  # done so far
  time: float  # seconds since 1970
  # {clone: {tag: value}}, of training and evaluation alike; its evaluation is
  # that of its own weights before the meld
  clones: dict[str, dict[str, float]]
  master: dict[str, float]  # {tag: value}, likewise

  def of(self, clone: str | None) -> dict[str, float]:
    """Of a clone, empty where it has none, or of the master."""
    return self.master if clone is None else self.clones.get(clone, {})


class History:
  """Appends rows; what a resumed run does again counts as it was done last.

  It begins at the cycle `first`; later rows on the disk are another run's, and
  go with the first new row: whoever ends before it has lost nothing. In memory,
  `rows` are those of `newest`: a long run does not grow by its rows.

  Raises:
    OSError: it cannot be written.
  """

  def __init__(self, workdir: str, first: int = 0):
    self._path = os.path.join(workdir, NAME)
    self.rows = newest(workdir, first)
    self._pending: list[Row] = []
    self._until, self._end = first, math.inf
    with open(self._path, 'ab'):
      pass

  def rewind(self, cycle: int) -> None:
    """Forgets the rows after a cycle; on the disk with the next row."""
    for rows in self.rows, self._pending:
      rows[:] = [row for row in rows if row.cycle <= cycle]
    self._until = min(self._until, cycle)

  def append(
    self,
    cycle: int,
    clones: Mapping[str, Mapping[str, float]],
    master: Mapping[str, float],
  ) -> Row:
    """Adds a row, on the disk too; not an evaluation that a run repeats.

    Raises:
      OSError: it could not be written; the next one that can writes it too.
    """
    of_clones = {name: _shared(values) for name, values in clones.items()}
    row = Row(cycle, time.time(), of_clones, _shared(master))
    for old in self.rows[-2:]:
      if old.cycle == cycle and old.master.keys() == row.master.keys():
        return old
    add(self.rows, row)
    self._pending.append(row)
    self._write()
    return row

  def _write(self) -> None:
    """Puts what is pending behind the whole rows."""
    lines = b''.join(map(_line, self._pending))
    with open(self._path, 'ab') as f:
      if self._until < math.inf or f.tell() < self._end:
        self._end = min(self._end, _end(self._path, self._until))
        self._until = math.inf
      # A row that is torn would take the next one with it.
      f.truncate(self._end)
      f.write(lines)
    self._end += len(lines)
    self._pending.clear()


def _shared(values: Mapping[str, float]) -> dict[str, float]:
  """A copy with the tags of all rows, which take more room than the values."""
  return {sys.intern(tag): value for tag, value in values.items()}


def add(rows: list[Row], row: Row) -> None:
  """Appends a row; of one no longer new the master's evaluation is left."""
  rows.append(row)
  for old in rows[-_NEWEST - 1 : -_NEWEST]:
    judged = {t: v for t, v in old.master.items() if t.startswith('eval/')}
    left = [old._replace(clones={}, master=judged)] if judged else []
    rows[-_NEWEST - 1 : -_NEWEST] = left


def newest(workdir: str, last: float = math.inf) -> list[Row]:
  """The newest rows up to a cycle, and of older ones the evaluations."""
  rows: list[Row] = []
  for row in scan(workdir):
    if row.cycle <= last:
      add(rows, row)
  return rows


def scan(workdir: str) -> Iterator[Row]:
  """All whole rows; none where there is no history. A torn line is skipped."""
  try:
    with open(os.path.join(workdir, NAME), 'rb') as f:
      yield from filter(None, map(_row, f))
  except FileNotFoundError:
    return


def read(workdir: str, last: float = math.inf) -> list[Row]:
  """The same, up to a cycle, in memory.

  What a longer run left behind it is no part of one that was made shorter.
  """
  return [row for row in scan(workdir) if row.cycle <= last]


def series(
  rows: Iterable[Row], tag: str, clone: str | None = None
) -> tuple[list[int], list[float]]:
  """Cycles and values of a tag, of a clone or of the master."""
  found = [
    (row.cycle, row.of(clone)[tag]) for row in rows if tag in row.of(clone)
  ]
  return [c for c, _ in found], [v for _, v in found]


def _line(row: Row) -> bytes:
  return f'{json.dumps(row._asdict(), separators=(",", ":"))}\n'.encode()


def _row(line: bytes) -> Row | None:
  """None where it is no whole one."""
  try:
    row = Row(**json.loads(line))
    tags = {'': row.master, **row.clones}
    numbers = [row.time, *(x for of in tags.values() for x in of.values())]
  except (ValueError, TypeError, AttributeError, RecursionError):
    return None
  is_whole = (
    type(row.cycle) is int
    and 0 <= row.cycle < _MOST
    and all(isinstance(x, int | float) for x in numbers)
    # Whole ones may have any number of digits.
    and all(-_MOST < x < _MOST for x in numbers if isinstance(x, int))
    and abs(row.time) < _MOST  # and no NaN
  )
  return row if is_whole else None


def _end(path: str, cycle: float) -> int:
  """Bytes up to the end of the last whole row of at most that cycle."""
  end = at = 0
  with open(path, 'rb') as f:
    for line in f:
      at += len(line)
      row = _row(line)
      if line.endswith(b'\n') and row and row.cycle <= cycle:
        end = at
  return end


def latest(rows: Sequence[Row], clone: str | None = None) -> dict[str, Any]:
  """The last value of every tag, of a clone or of the master."""
  values: dict[str, Any] = {}
  for row in rows:
    values |= row.of(clone)
  return values
