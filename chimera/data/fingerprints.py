"""What a source holds: whether it is what it was, and which ones are not.

A fingerprint is the SHA-256 of a file, of a member of an archive or of a
bundled photograph, and what the file system said of it. Where that is as it
was, nobody reads the file; where it is not (the file was copied, or touched, or
is another) the digest decides.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import hashlib
import os
from typing import Any, BinaryIO, NamedTuple

from chimera.data import archives, images
from chimera.system import disk, threads

# {'sha256': hex, 'stat': [bytes, mtime, ctime]}, the times in ns; the archive's
# for a member. JSON holds it.
Fingerprint = dict[str, Any]
UNREADABLE = {'sha256': None, 'stat': None}  # of what cannot be opened
_SAID = 3  # names of each kind


class Changes(NamedTuple):
  """What differs from what was, by name."""

  changed: list[str]
  new: list[str]
  gone: list[str]

  def __str__(self) -> str:
    kinds = self._asdict().items()
    return '; '.join(f'{kind}: {several(k)}' for kind, k in kinds if k)


@contextlib.contextmanager
def opened(source: str) -> Iterator[tuple[BinaryIO, Fingerprint]]:
  """A source's file, at its beginning, and its fingerprint.

  Raises:
    one of `disk.BROKEN`: there is no such file.
  """
  # Before it is opened: what comes in its place is noticed the next time.
  seen = None
  with contextlib.suppress(OSError):  # it is for `open_source` to say why
    seen = look(source)
  with images.open_source(source) as f:
    digest = hashlib.file_digest(f, 'sha256').hexdigest()
    f.seek(0)
    yield f, {'sha256': digest, 'stat': seen}


def look_again(
  then: Mapping[str, Fingerprint], sources: Mapping[str, str]
) -> dict[str, Fingerprint]:
  """The fingerprints of sources as they are now, without those that are gone.

  Args:
    then: what they were, by name, where that is known: entries of a dictionary
      that has other keys too may stand for fingerprints.
    sources: by name; see `images.load_photograph`.
  """
  now = {}
  for name, source in sources.items():
    known = then.get(name, UNREADABLE)
    with contextlib.suppress(*disk.BROKEN):
      if look(source) == known['stat']:
        now[name] = {key: known[key] for key in UNREADABLE}
  others = [name for name in sources if name not in now]
  found = threads.map_ahead(_take, [sources[name] for name in others])
  return now | {name: taken for name, taken in zip(others, found) if taken}


def compare(
  then: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]
) -> Changes:
  """What differs in contents between two sets of sources, by name."""
  return Changes(
    [
      name
      for name in then
      if name in now and now[name]['sha256'] != then[name]['sha256']
    ],
    [name for name in now if name not in then],
    [name for name in then if name not in now],
  )


def write(path: str | os.PathLike, taken: Mapping[str, Fingerprint]) -> None:
  """Where `read` finds them."""
  disk.write_sealed(path, {'sources': dict(taken)})


def read(path: str | os.PathLike) -> dict[str, Fingerprint]:
  """What `write` was given; nothing where an earlier Chimera wrote none.

  Raises:
    ValueError: it is not as it was written.
  """
  try:
    return disk.read_sealed(path)['sources']
  except FileNotFoundError:
    return {}
  except OSError as e:
    raise ValueError(disk.reason(e)) from e


def several(names: Iterable[str]) -> str:
  """Up to three names, and how many more there are."""
  names = [name if name.isprintable() else repr(name) for name in names]
  more = len(names) - _SAID
  return ', '.join(names[:_SAID]) + (f' and {more} more' if more > 0 else '')


def _take(source: str) -> Fingerprint | None:
  """A source's fingerprint; None where it is gone."""
  try:
    with opened(source) as (_, taken):
      return taken
  except (FileNotFoundError, NotADirectoryError):
    return None
  except disk.BROKEN:
    return UNREADABLE


def look(source: str) -> list[int]:
  """Size and times of a source's file, or of its archive's."""
  if source.startswith(images.BUNDLED):
    with images.open_source(source) as f:
      seen = os.fstat(f.fileno())
  else:
    member = archives.split(source)
    seen = os.stat(member[0] if member else source)
  # Whoever unpacks or synchronizes sets mtime as it was; nobody can set ctime.
  return [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
