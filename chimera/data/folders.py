"""Which files of a source are images: found, or left out and counted by kind.

A source is 'photos', a folder, a .zip or a .tar. A folder is searched deeply,
links followed, and a .tar in it (a WebDataset's shard) is read as one of its
folders. What is named like an image that Pillow reads is one, and what is named
otherwise, where its first bytes say so.
"""

import collections
from collections.abc import Collection, Mapping
import contextlib
import errno
import heapq
import os
import re
import stat
from typing import NamedTuple

from chimera.data import archives, images, skipped
from chimera.system import disk

# Real photographs in scikit-image's wheel. motorcycle_right is the scene of
# motorcycle_left and microaneurysms a part of retina: they would leak.
PHOTOGRAPHS = (
  *('astronaut.png', 'brick.png', 'camera.png', 'cell.png', 'chelsea.png'),
  *('clock_motion.png', 'coffee.png', 'coins.png', 'grass.png', 'gravel.png'),
  *('hubble_deep_field.jpg', 'ihc.png', 'moon.png', 'motorcycle_left.png'),
  *('retina.jpg', 'rocket.jpg'),
)
_HIDDEN = ('__MACOSX', '@eaDir')  # beside what begins with a dot
_SUFFIX = re.compile(r'\.[\w~+-]{1,15}', re.ASCII)
_NEEDS = {'.heic': ' (needs pillow-heif)', '.heif': ' (needs pillow-heif)'}
_KINDS = 20  # that are said by name
_FIRST = 16  # bytes that tell an image


class Listing(NamedTuple):
  """What a source holds."""

  sources: list[str]  # images, sorted; see `images.load_photograph`
  # How many others, by kind: '.txt', 'hidden', '' for what has no such name.
  left_out: Mapping[str, int]
  unread: Mapping[str, str]  # folders and archives in it, and why not


def list_sources(source: images.AnyPath, flag: str) -> list[str]:
  """Every image of a source, sorted; what is left out is said, once.

  Raises:
    ValueError: there is none, and the `flag` that named it.
  """
  found = search(source, flag)
  if found.left_out:
    skipped.say_once(
      f'Left out of {os.fsdecode(source)}: {words(found.left_out)}.'
    )
  for path, why in found.unread.items():
    skipped.say_once(f'{path} is not searched for images: {why}.')
  return found.sources


def search(source: images.AnyPath, flag: str) -> Listing:
  """`list_sources`, and what else is there.

  Raises:
    ValueError: there is no image, and the `flag` that named it.
  """
  source = os.fsdecode(source)
  if source == 'photos':
    sources = [images.BUNDLED + name for name in PHOTOGRAPHS]
    if there := [name for name in sources if os.path.exists(name)]:
      raise ValueError(
        f"A file here is named {there[0]}, as one of 'photos' is: rename it."
      )
    if os.path.isdir(source):
      skipped.say_once(
        "'photos' are the photographs that are bundled; the folder here of "
        'that name is ./photos.'
      )
    return Listing(sources, {}, {})
  found = _Found()
  if os.path.isdir(source):
    found.search(os.path.abspath(source))
  elif os.path.exists(source) and archives.is_archive(source):
    try:
      found.open(source)
    except ValueError as e:
      raise ValueError(f'{e} Fix {flag}.') from e
  else:
    got = 'the file' if os.path.exists(source) else 'no such folder:'
    raise ValueError(
      "Images come from 'photos', a folder, a .zip or a .tar, got "
      f'{got} {source}. Fix {flag}.'
    )
  if not found.sources:
    others = f'; left out: {words(found.left_out)}' if found.left_out else ''
    why = ''.join(f'; {path}: {why}' for path, why in found.unread.items())
    raise ValueError(f'No readable image in {source}{others}{why}. Fix {flag}.')
  return Listing(sorted(found.sources), found.left_out, found.unread)


def words(left_out: Mapping[str, int]) -> str:
  """What was left out: '3 .txt, 1 .mp4', the most first."""
  kinds = sorted(left_out, key=lambda kind: (not kind, -left_out[kind], kind))
  said = [
    f'{left_out[kind]} {kind}{_NEEDS.get(kind, "")}'
    for kind in kinds[:_KINDS]
    if kind
  ]
  if more := sum(left_out[kind] for kind in kinds[len(said) :]):
    said.append(f'{more} of other kinds')
  return ', '.join(said)


def _is_workdir(names: Collection[str]) -> bool:
  """Whether a folder of these is a run's, whose pictures are no photographs."""
  made = {'optics', 'checkpoints', 'previews', 'latents.npy'}
  return 'config.json' in names and not made.isdisjoint(names)


class _Found:
  """What has been found so far."""

  def __init__(self):
    self.sources: list[str] = []
    self.left_out: collections.Counter[str] = collections.Counter()
    self.unread: dict[str, str] = {}

  def search(self, top: str) -> None:
    """A folder and all below it, each once, whatever links there are.

    A folder that is there itself has that name, not a link's. Folders above
    the source are none of it.
    """
    folders, links, seen, above = [top], [], set(), _above(top)
    while folders or links:
      # Links come last, in an order that no file system changes.
      folder = folders.pop() if folders else heapq.heappop(links)
      try:
        place = _place(folder)
        if place in seen or place in above:
          self.left_out['link back'] += 1
          continue
        seen.add(place)
        with os.scandir(folder) as listed:
          entries = list(listed)
          if folder != top and _is_workdir({entry.name for entry in entries}):
            self.left_out['workdir'] += 1
            continue
          for entry in entries:
            if _is_hidden(entry.name):
              self.left_out['hidden'] += 1
            elif entry.is_dir(follow_symlinks=False):
              folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
              heapq.heappush(links, entry.path)
            else:
              self._take(entry.path)
      except OSError as e:
        self.unread[folder] = e.strerror or disk.reason(e)

  def open(self, path: str) -> None:
    """An archive.

    Raises:
      ValueError: it is broken.
    """
    path = os.path.abspath(path)
    names = archives.members(path)
    self.left_out.update(archives.others(path))
    for name in names:
      if any(map(_is_hidden, name.split('/'))):
        self.left_out['hidden'] += 1
      elif _is_named_image(name):
        self.sources.append(f'{path}!{name}')
      else:
        start = b''
        with contextlib.suppress(ValueError):
          start = archives.read(path, name, most=_FIRST)
        self._judge(f'{path}!{name}', name, start)

  def _take(self, path: str) -> None:
    """What is no folder: an image, a shard, or left out."""
    if _is_named_image(path):
      self.sources.append(path)  # if it is none, whoever reads it says why
      return
    if not os.path.isfile(path):
      kind = 'broken link' if os.path.islink(path) else 'no file'
      self.left_out[kind] += 1
    elif path.lower().endswith('.tar'):
      try:
        self.open(path)
      except ValueError as e:
        self.unread[path] = disk.reason(e).removeprefix(f'{path} ')
    else:
      start = b''
      with contextlib.suppress(OSError), open(path, 'rb') as f:
        start = f.read(_FIRST)
      self._judge(path, path, start)

  def _judge(self, source: str, name: str, start: bytes) -> None:
    """By how a file begins."""
    if images.begins_like_image(start):
      self.sources.append(source)
    else:
      self.left_out[_kind(name)] += 1


def _place(folder: str) -> tuple[int, int]:
  """What tells a folder from others, whatever links lead to it."""
  found = os.stat(folder)
  if not stat.S_ISDIR(found.st_mode):
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
  return found.st_dev, found.st_ino


def _above(top: str) -> set[tuple[int, int]]:
  """The folders that hold this one."""
  above, folder = set(), os.path.realpath(top)
  while (parent := os.path.dirname(folder)) != folder:
    folder = parent
    with contextlib.suppress(OSError):
      above.add(_place(folder))
  return above


def _is_hidden(name: str) -> bool:
  return name in _HIDDEN or (name[:1] == '.' and name not in ('.', '..'))


def _is_named_image(path: str) -> bool:
  return os.path.splitext(path)[1].lower() in images.suffixes()


def _kind(name: str) -> str:
  suffix = os.path.splitext(name)[1].lower()
  if not suffix:
    return 'without a suffix'
  return suffix if _SUFFIX.fullmatch(suffix) else ''
