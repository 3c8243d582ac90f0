"""Which of somebody's files could not be used, and why: said and listed."""

from collections.abc import Mapping
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
  logging.warning('%s. See %s.', words(skipped), path)


def words(skipped: Mapping[str, str]) -> str:
  """How many were skipped, and of up to ten which and why; a line."""
  said = [
    f'{name if name.isprintable() else ascii(name)}: {reason}'
    for name, reason in itertools.islice(skipped.items(), _SAID)
  ]
  if more := len(skipped) - len(said):
    said.append(f'and {more} more')
  return f'Skipped {len(skipped)} image(s): {"; ".join(said)}'
