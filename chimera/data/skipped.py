"""Which of somebody's files could not be used, and why: said and listed."""

from collections.abc import Mapping
import functools
import itertools
import os
import pathlib

from absl import logging

from chimera.system import disk

NAME = 'skipped.csv'
HEADER = ('source', 'reason')
_SAID = 10  # in the log; all of them stand in the file


def tell(skipped: Mapping[str, str], home: str | os.PathLike) -> None:
  """Warns of the files by name and reason, and lists all in `home`, a folder.

  Where none was skipped, no list is left there.
  """
  path = pathlib.Path(home, NAME)
  if not skipped:
    path.unlink(missing_ok=True)
    return
  disk.write_csv(path, [HEADER, *skipped.items()])
  head, *files = lines(skipped)
  logging.warning('%s %s. See %s.', head, '; '.join(files), path)


@functools.cache
def say_once(line: str) -> None:
  """Warns, but the first time only: many files of a folder are alike."""
  logging.warning('%s', line)


def lines(skipped: Mapping[str, str], most: int = _SAID) -> list[str]:
  """How many were skipped, then of up to `most` which and why."""
  said = [
    f'{name if name.isprintable() else ascii(name)}: {reason}'
    for name, reason in itertools.islice(skipped.items(), most)
  ]
  if more := len(skipped) - len(said):
    said.append(f'and {more} more')
  return [f'Skipped {len(skipped)} image(s):', *said]
