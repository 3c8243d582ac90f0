"""Which of somebody's files could not be used, and why: said and listed."""

from collections.abc import Mapping
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
  said = [f'{name}: {reason}' for name, reason in skipped.items()][:_SAID]
  more = len(skipped) - len(said)
  logging.warning(
    'Skipped %d image(s): %s%s. See %s.',
    *(len(skipped), '; '.join(said)),
    *(f'; and {more} more' if more else '', path),
  )
