"""Images in a .zip or .tar, read where they stand: nothing is unpacked.

A member is named `/path/photos.zip!inner/name.jpg`. Names are only compared,
never made into paths, so that none can lead out of anywhere.
"""

import collections
from collections.abc import Mapping
import functools
import os
import re
import stat
import tarfile
import threading
from typing import NamedTuple
import zipfile

from chimera.data import skipped
from chimera.system import disk

SUFFIXES = ('.zip', '.tar')
# They would have to be read from their beginning for each image.
_COMPRESSED = ('.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz')
MAX_BYTES = 2**28  # of a member, as an image file
_SOURCE = re.compile(r'\.(?:zip|tar)!', re.IGNORECASE)


class _Directory(NamedTuple):
  """What is in an archive."""

  file: zipfile.ZipFile | None  # the open .zip, None for a .tar
  # Of each file its size, and where it begins.
  places: dict[str, tuple[int, zipfile.ZipInfo | int]]
  others: Mapping[str, int]  # how many hold no bytes of their own, by kind


_ONE_AT_A_TIME = threading.Lock()  # what reads a .zip moves in its one file


def is_archive(path: str | bytes | os.PathLike) -> bool:
  """Whether a file is meant to hold images, by its suffix."""
  return os.fsdecode(path).lower().endswith(SUFFIXES + _COMPRESSED)


def members(path: str | bytes | os.PathLike) -> list[str]:
  """The names of the files in an archive, sorted.

  Of two files of one name the last counts, as in unpacking. A hard link is
  its file; other links are none.

  Raises:
    ValueError: it is broken, encrypted, or a compressed .tar; one line.
  """
  path = os.path.abspath(os.fsdecode(path))
  if path.lower().endswith(_COMPRESSED):
    raise ValueError(
      f'Images come from a .tar that is not compressed, got {path}: unpack it, '
      'or make it a .tar or .zip.'
    )
  file, places, _ = _open(path)
  if file and any(info.flag_bits & 1 for _, info in places.values()):
    raise ValueError(
      f'{path} must not be encrypted: unpack it, or make it anew without a '
      'password.'
    )
  return sorted(places)


def others(path: str | bytes | os.PathLike) -> Mapping[str, int]:
  """How many entries are no `members`, by kind: 'link', 'sparse file'.

  Raises:
    ValueError: see `members`.
  """
  return _open(os.path.abspath(os.fsdecode(path))).others


def split(source: str | bytes | os.PathLike) -> tuple[str, str] | None:
  """(archive, member) of a member's name; None where it is no member."""
  source = os.fsdecode(source)
  for match in _SOURCE.finditer(source):
    path, member = source[: match.end() - 1], source[match.end() :]
    # A file may be named like a member.
    if os.path.isfile(path) and not os.path.isfile(source):
      return path, member
  return None


def read(
  path: str | bytes | os.PathLike, member: str, *, most: int | None = None
) -> bytes:
  """The bytes of a member, or the first ones; any number of threads may read.

  Raises:
    ValueError: there is no such member, it is broken, or larger than
      `MAX_BYTES`.
  """
  path = os.fsdecode(path)
  file, places, _ = _open(path)
  if member not in places:
    raise ValueError(f'{path} holds no {member!r}')
  size, place = places[member]
  try:
    if size > MAX_BYTES:
      raise ValueError(f'{size} bytes are more than {MAX_BYTES}')
    if file:
      # It gives no more than its directory says, and compares the checksum.
      with _ONE_AT_A_TIME, file.open(place) as f:
        return f.read(most)
    size = size if most is None else min(size, most)
    with open(path, 'rb') as f:
      f.seek(place)
      data = f.read(size)
    if len(data) != size:
      raise ValueError('it ends too soon')
    return data
  except disk.BROKEN as e:
    raise ValueError(f'{member!r} in {path} is broken: {disk.reason(e)}') from e


def _open(path: str) -> _Directory:
  """An archive, whose directory is read once as long as it does not change."""
  try:
    seen = os.stat(path)
    if not stat.S_ISREG(seen.st_mode):
      raise ValueError('it is not a file')
    return _index(path, seen.st_size, seen.st_mtime_ns)
  except disk.BROKEN as e:
    raise ValueError(
      f'{path} is not a readable archive: {disk.reason(e)}. Make it anew.'
    ) from e


@functools.lru_cache(maxsize=2**14)  # the shards of a folder
def _index(path: str, size: int, modified: int) -> _Directory:
  if path.lower().endswith('.zip'):
    file = zipfile.ZipFile(path)
    infos = [i for i in file.infolist() if not i.is_dir()]
    return _Directory(file, {i.filename: (i.file_size, i) for i in infos}, {})
  places, others, last = {}, collections.Counter(), -1
  with tarfile.open(path, 'r:') as file:
    for member in file:
      # tarfile would go back to it, forever (gh-130577).
      if member.size < 0 or member.offset <= last:
        raise ValueError(f'{member.name!r} does not end after it begins')
      last = member.offset
      if member.isreg() and not member.issparse():
        places[member.name] = member.size, member.offset_data
      elif member.islnk() and member.linkname in places:
        places[member.name] = places[member.linkname]
      elif not member.isdir():
        is_link = member.islnk() or member.issym()
        kind = 'sparse file' if member.issparse() else 'no file'
        others['link' if is_link else kind] += 1
    file.fileobj.seek(file.offset)  # where another one would begin
    if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
      skipped.say_once(f'{path} has no end: it may have been cut.')
  return _Directory(None, places, others)
