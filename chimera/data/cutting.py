"""Crops cut from their photographs; and kept, to be read again."""

from collections.abc import Callable, Iterable, Iterator
import itertools
import json
import math
import os
import pathlib
import shutil
import threading
from typing import Any, BinaryIO
import zlib

import numpy as np
import PIL

from chimera.data import crops as crops_lib
from chimera.data import images
from chimera.system import disk, journal, threads

_CUT = 32  # crops of a photograph that a thread cuts at a time
_NOTED = 1 << 22  # bytes of kept crops between two notes of them


def read(crops: Iterable[crops_lib.Crop], *, image_size: int) -> np.ndarray:
  """uint8 RGB (n, image_size, image_size, 3); a photograph is decoded once.

  Raises:
    ValueError: a photograph is gone or no longer holds its crop.
  """
  crops = list(crops)
  windows = np.empty((len(crops), image_size, image_size, 3), np.uint8)
  by_source = sorted(range(len(crops)), key=lambda i: crops[i].source)
  parts = cut((crops[i] for i in by_source), image_size=image_size, chunk=_CUT)
  for i, window in zip(by_source, itertools.chain.from_iterable(parts)):
    windows[i] = window
  return windows


def cut(
  crops: Iterable[crops_lib.Crop], *, image_size: int, chunk: int
) -> Iterator[np.ndarray]:
  """uint8 RGB (n, image_size, image_size, 3), n = `chunk` crops at a time.

  A photograph whose crops are next to each other is decoded once. It is done on
  threads, somewhat ahead of who takes them.

  Raises:
    ValueError: a photograph is gone or no longer holds its crop.
  """
  held, count = [], 0
  for part in _cut_ahead(crops, image_size):
    held.append(part)
    count += len(part)
    while count >= chunk:
      joined = np.concatenate(held)
      yield joined[:chunk]
      held, count = [joined[chunk:]], count - chunk
  if count:
    yield np.concatenate(held)


class Kept:
  """Crops in a file, uint8 (N, S, S, 3). It is read, not mapped into memory."""

  def __init__(self, path: pathlib.Path, shape: tuple[int, ...]):
    self._path = path
    self._shape = shape

  def __len__(self) -> int:
    return self._shape[0]

  def read(self, ids: range) -> np.ndarray:
    """Those crops, uint8 (n, S, S, 3)."""
    each = math.prod(self._shape[1:])
    crops = np.empty((len(ids), *self._shape[1:]), np.uint8)
    # What is next to each other comes in one go.
    runs = [crops] if ids.step == 1 else crops
    with open(self._path, 'rb') as f:
      for i, run in zip(ids, runs):
        f.seek(i * each)
        if f.readinto(run.data) != run.nbytes:
          raise OSError(None, 'Crops are gone from it', str(self._path))
    return crops

  def parts(self, chunk: int) -> Iterator[np.ndarray]:
    """All of them, `chunk` at a time."""
    every = range(len(self))
    return (self.read(every[i : i + chunk]) for i in every[::chunk])


class Uncut:
  """Crops that found no room: like `Kept`, but cut each time."""

  def __init__(self, crops: list[crops_lib.Crop], image_size: int):
    self._crops = crops
    self._image_size = image_size

  def read(self, ids: range) -> np.ndarray:
    """Those crops, uint8 (n, S, S, 3)."""
    return read([self._crops[i] for i in ids], image_size=self._image_size)

  def parts(self, chunk: int) -> Iterator[np.ndarray]:
    """All of them, `chunk` at a time."""
    return cut(self._crops, image_size=self._image_size, chunk=chunk)


def keep(
  crops: list[crops_lib.Crop],
  *,
  image_size: int,
  path: str | os.PathLike,
  beside: int,
  made_of: Any,
  report: Callable[[int, str], None],
) -> Kept | Uncut:
  """Cuts all of them into a file, to be read again; see `forget`.

  Where an earlier process was killed at it, what it wrote is not cut again.

  Args:
    crops: those of one photograph are next to each other.
    image_size: pixels.
    path: where its folder has not twice the room, nothing is kept.
    beside: bytes that must find room there afterwards.
    made_of: JSON, which differs where the photographs do.
    report: called with (crops done, '').

  Raises:
    ValueError: a photograph is gone or no longer holds its crop.
  """
  path = pathlib.Path(path)
  shape = (len(crops), image_size, image_size, 3)
  there = path.stat().st_size if path.exists() else 0
  room, size = shutil.disk_usage(path.parent).free + there, math.prod(shape)
  if size + max(size, beside) <= room:
    with disk.spared(path.name):
      _cut_into(path, crops, image_size, made_of, report)
      return Kept(path, shape)
  forget(path)
  return Uncut(crops, image_size)


def _cut_into(
  path: pathlib.Path,
  crops: list[crops_lib.Crop],
  image_size: int,
  made_of: Any,
  report: Callable[[int, str], None],
) -> None:
  """See `keep`; an OSError where it cannot be written."""
  each = 3 * image_size**2
  work = [
    image_size,
    PIL.__version__,
    disk.digest(json.dumps([crops, made_of]).encode()),
  ]
  with journal.Journal(_notes(path), work) as notes:
    mode = 'r+b' if path.exists() else 'w+b'
    with open(path, mode) as f:
      whole = _whole(f, notes.entries)
      done = whole // each
      f.truncate(whole)
      f.seek(whole)
      checksum = 0
      for part in _cut_ahead(crops[done:], image_size):
        f.write(part.data)
        checksum = zlib.crc32(part.data, checksum)
        done += len(part)
        if f.tell() - whole >= _NOTED or done == len(crops):
          f.flush()
          notes.add([f.tell(), checksum])
          whole, checksum = f.tell(), 0
        report(done, '')


def forget(path: str | os.PathLike, *others: pathlib.Path) -> None:
  """Takes away what `keep` has written, and other files."""
  for file in (pathlib.Path(path), _notes(path), *others):
    if file.exists():  # else a file system that is not to be written complains
      file.unlink()


def _notes(path: str | os.PathLike) -> pathlib.Path:
  """Where it is noted how far a file of crops is whole."""
  return pathlib.Path(path).with_suffix('.jsonl')


def _whole(f: BinaryIO, notes: Iterable[tuple[int, int]]) -> int:
  """How many bytes are as they were written."""
  whole = 0
  for end, checksum in notes:
    # What was not whole has been cut, and noted, again.
    if end <= whole:
      continue
    data = f.read(end - whole)
    if whole + len(data) != end or zlib.crc32(data) != checksum:
      break
    whole = end
  return whole


def _cut_ahead(
  crops: Iterable[crops_lib.Crop], image_size: int
) -> Iterator[np.ndarray]:
  """Crops of one photograph at a time, in order, cut by threads."""

  def cut_part(part: tuple['_Pixels', list[crops_lib.Crop]]) -> np.ndarray:
    photograph, some = part
    return photograph.cut(some, image_size)

  # Of large photographs few fit into memory.
  yield from threads.map_ahead(cut_part, _parts(crops), ahead=2)


def _parts(
  crops: Iterable[crops_lib.Crop],
) -> Iterator[tuple['_Pixels', list[crops_lib.Crop]]]:
  """Some crops of one photograph at a time, and its pixels."""
  for source, group in itertools.groupby(crops, lambda crop: crop.source):
    photograph = _Pixels(source)
    while part := list(itertools.islice(group, _CUT)):
      yield photograph, part


class _Pixels:
  """A photograph that several threads cut from; the first one decodes it."""

  def __init__(self, source: str):
    self._source = source
    self._lock = threading.Lock()
    self._image = None

  def cut(self, crops: list[crops_lib.Crop], image_size: int) -> np.ndarray:
    with self._lock:
      if self._image is None:
        self._image = images.load_image(self._source)
    width, height = self._image.size
    windows = np.empty((len(crops), image_size, image_size, 3), np.uint8)
    for i, (source, top, left, size, colors, mirrored) in enumerate(crops):
      if min(top, left) < 0 or top + size > height or left + size > width:
        raise ValueError(
          f'{source} no longer holds the crop {crops[i][1:]}, it is {height} x '
          f'{width}: put the image back or start anew in another --workdir.'
        )
      box = left, top, left + size, top + size
      window = images.crop(self._image, box)
      seen = images.resize(window, image_size)
      seen = seen[..., ['rgb'.index(color) for color in colors]]
      windows[i] = seen[:, ::-1] if mirrored else seen
    return windows
