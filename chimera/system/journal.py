"""What is done of long work, noted as it is done: a kill loses little.

A file of lines, each the CRC-32 of its text and the text, which is JSON. The
first one says which work it is. What follows a line that was cut short, or is
not as it was written, is not believed.
"""

from collections.abc import Iterator
import errno
import json
import os
import pathlib
from typing import Any
import zlib

_SUM = 9  # characters of a line's checksum and the space behind it


class Journal:
  """Opened, it holds the `entries` of the same work, and takes more.

  An OSError of it has the file's name.
  """

  def __init__(self, path: str | os.PathLike, work: Any):
    """Makes the file, or goes on with it.

    Args:
      path: in a folder that exists.
      work: JSON. Where the file is of another work, it begins anew.
    """
    self._path = pathlib.Path(path)
    lines = list(_lines(self._path))
    work = json.loads(json.dumps(work))
    if lines and lines[0][0] != work:
      lines = []
    self.entries = [entry for entry, _ in lines[1:]]
    # No buffer: what was added is the kernel's, whatever becomes of us.
    self._file = open(self._path, 'ab', buffering=0)  # noqa: SIM115
    self._file.truncate(lines[-1][1] if lines else 0)
    if not lines:
      self.add(work)

  def add(self, entry: Any) -> None:
    """One more thing that is done, as JSON holds it."""
    text = json.dumps(entry).encode()
    line = b'%08x %s\n' % (zlib.crc32(text), text)
    try:
      if self._file.write(line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as e:
      e.filename = e.filename or str(self._path)
      raise

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()


def _lines(path: pathlib.Path) -> Iterator[tuple[Any, int]]:
  """(what it holds, where the next begins) of each line that is whole."""
  if not path.is_file():
    return
  at = 0
  with open(path, 'rb') as f:
    for line in f:
      text = line[_SUM:-1]
      if line != b'%08x %s\n' % (zlib.crc32(text), text):
        return
      at += len(line)
      yield json.loads(text), at
