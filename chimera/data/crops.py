"""Which crop of which photograph a sample is: planned, and written down.

Photographs are split into training and held-out ones **by photograph**: no
crop of one that is trained on, or of a near copy, is ever held out. Host code
only.
"""

import base64
import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import csv
import functools
import hashlib
import itertools
import math
import os
from typing import Any, NamedTuple

from absl import logging
import numpy as np
import PIL

from chimera.data import fingerprints, folders, images, likeness
from chimera.system import disk, journal, threads

_MANY = 0.1  # of the photographs held out: so large a group of copies is told
# How colors can be shown, each by its name.
_ORDERS = {x: x for x in map(''.join, itertools.permutations('rgb'))}


class Crop(NamedTuple):
  """A square window of a photograph, read back resized to image_size."""

  source: str  # see `images.load_photograph`
  top: int  # of the window, in the photograph's own pixels after EXIF rotation
  left: int  # likewise
  size: int  # side of the window, likewise
  colors: str = 'rgb'  # which of its channels are shown as red, green and blue
  mirrored: int = 0  # 1 where left and right are exchanged


MANIFEST_HEADER = ('sample_index', 'complexity_score', *Crop._fields)


class Plan(NamedTuple):
  """What is trained on and what is held out: no photograph is in both."""

  train: list[Crop]  # crops, those of one photograph next to each other
  held_out: list[Crop]  # likewise
  skipped: Mapping[str, str]  # why, by the source of each file not read
  fingerprints: dict[str, fingerprints.Fingerprint]  # of every source
  left_out: Mapping[str, int]  # files that are no images, by kind
  copies: int  # photographs that are near copies of others


class _Photograph(NamedTuple):
  """One readable file; sorted as the seed has it."""

  lot: str  # of the seed and its bytes: uniform, the same on every machine
  source: str
  height: int
  width: int
  look: bytes  # see `likeness.look`


def plan_crops(
  source: images.AnyPath,
  *,
  held_out_source: images.AnyPath,
  held_out_fraction: float,
  image_size: int,
  train_count: int,
  held_out_count: int,
  crop: str,
  max_scale: float,
  seed: int,
  permuted: float = 0.0,
  mirrored: float = 0.0,
  notes: str | os.PathLike | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Plan:
  """Decodes every image once and lays out its crops.

  The split and the crops depend on the seed and on the bytes of the images,
  not on their names, order or place; identical files count as one photograph,
  and near copies are on one side.
  'random' crops spread evenly over photographs, their sides uniform over
  [1, max_scale] * image_size as far as the photograph reaches; a 'whole' crop
  is the largest centered square of a photograph, and there is one of each.

  Args:
    source: 'photos' (bundled with scikit-image), a folder, searched deeply, or
      a .zip or .tar.
    held_out_source: likewise, held out whole; '' splits `source`.
    held_out_fraction: share of the photographs of `source` held out.
    image_size: pixels.
    train_count: crops; at most one a photograph where they are whole.
    held_out_count: likewise.
    crop: 'random' or 'whole'.
    max_scale: at least 1.
    seed: of the split and the crops.
    permuted: share of the crops to train on whose colors change places.
    mirrored: likewise, left and right.
    notes: a file of what is known of each image, which is then not decoded
      again as long as the file system says that it is the same.
    progress: called with (files done, files) as planning goes.

  Raises:
    ValueError: no such folder, no readable image, or too few to split.
  """
  listed = folders.search(source, '--config.data.source')
  train_sources, held_out_sources = listed.sources, []
  unread, left_out = dict(listed.unread), collections.Counter(listed.left_out)
  if held_out_source:
    flag = '--config.data.held_out_source'
    others = folders.search(held_out_source, flag)
    held_out_sources = others.sources
    unread |= others.unread
    left_out += collections.Counter(others.left_out)
  sources = train_sources + held_out_sources
  marks, seen = {}, {}
  for name, mark, image in _examine_all(seed, sources, notes):
    marks[name], seen[name] = mark, image
    if progress is not None:
      progress(len(seen), len(sources))
  skipped = {name: x for name, x in seen.items() if isinstance(x, str)}
  train = _distinct(seen, train_sources, source, 'source')
  held_out = []
  if held_out_source:
    held_out = _distinct(
      seen, held_out_sources, held_out_source, 'held_out_source'
    )
  everything = sorted({p.lot: p for p in train + held_out}.values())
  groups = likeness.group([p.look for p in everything])
  copies = len(groups) - len(set(groups))
  group_of = {p.lot: group for p, group in zip(everything, groups)}
  if held_out_source:
    known = likeness.is_near(
      [p.look for p in train], [p.look for p in held_out]
    )
    if any(known):
      logging.info(
        '%d of %d photographs of %s are near copies of held-out ones and are '
        'not trained on.',
        *(sum(known), len(train), source),
      )
    train = [p for p, is_known in zip(train, known) if not is_known]
    if not train:
      raise ValueError(
        f'No photograph of {source} is absent from {held_out_source}: give '
        'other images with --config.data.held_out_source.'
      )
  else:
    train, held_out = _split(train, group_of, held_out_fraction, source)
  sides = [min(p.height, p.width) for p in train + held_out]
  small = sum(side < image_size for side in sides)
  if small:
    logging.warning(
      '%d of %d photographs are smaller than image_size = %d and are enlarged, '
      'the smallest from %d pixels.',
      small,
      len(sides),
      image_size,
      min(sides),
    )
  lay = _lay_whole
  if crop == 'random':
    lay = functools.partial(
      _lay_crops, image_size=image_size, max_scale=max_scale
    )
  lots = {photograph.source: photograph.lot for photograph in train}
  return Plan(
    _vary(lay(train, train_count), lots, permuted, mirrored),
    lay(held_out, held_out_count),
    unread | skipped,
    marks,
    left_out,
    copies,
  )


def write_manifest(
  path: str | os.PathLike, crops: Iterable[Crop], scores: Iterable[float]
) -> None:
  """Writes which crop every sample is, atomically, as CSV."""
  rows = (
    (i, f'{float(score):.9g}', *crop)
    for i, (crop, score) in enumerate(zip(crops, scores, strict=True))
  )
  disk.write_csv(path, [MANIFEST_HEADER, *rows])


def read_manifest(path: str | os.PathLike) -> tuple[list[Crop], np.ndarray]:
  """The crops by sample index, and their scores, float32 (N,).

  Raises:
    ValueError: it is not a manifest.
  """
  crops, scores = [], []
  try:
    with open(
      path, encoding='utf-8', errors='surrogateescape', newline=''
    ) as f:
      rows = csv.reader(f)
      header = tuple(next(rows, ()))
      # Before crops were varied, the last two were not there.
      if header not in (MANIFEST_HEADER, MANIFEST_HEADER[:-2]):
        raise ValueError(f'the header must be {",".join(MANIFEST_HEADER)}')
      for i, row in enumerate(rows):
        if len(row) != len(header) or int(row[0]) != i:
          raise ValueError(f'row {i} is {",".join(row)[:99]}')
        _, score, source, top, left, size, *varied = row
        crops.append(Crop(source, int(top), int(left), int(size)))
        if varied:
          crops[-1] = crops[-1]._replace(
            colors=_ORDERS[varied[0]], mirrored=int(varied[1])
          )
        scores.append(float(score))
  except (ValueError, KeyError, csv.Error) as e:
    raise ValueError(
      f'{path} is not a manifest: {e}. Make it with `python -m chimera.main '
      'prepare-curriculum`.'
    ) from e
  return crops, np.asarray(scores, np.float32)


def _examine_all(
  seed: int, sources: Iterable[str], path: str | os.PathLike | None
) -> Iterator[tuple[str, fingerprints.Fingerprint, _Photograph | str]]:
  """Of each file its name, its fingerprint, and what it shows, or why not.

  What is noted at `path` of those that are as they were is believed.
  """
  with contextlib.ExitStack() as stack:
    notes, noted = None, {}
    if path is not None:
      work = ['planning', 2, PIL.__version__]
      notes = stack.enter_context(journal.Journal(path, work))
      noted = {entry[0]: entry for entry in notes.entries}

    def look(source: str) -> list[Any]:
      entry = noted.get(source)
      with contextlib.suppress(*disk.BROKEN):
        if entry and fingerprints.look(source) == entry[1]['stat']:
          return entry
      return _examine(source)

    for source, mark, *image in threads.map_ahead(look, sources):
      if len(image) == 1:
        yield source, mark, image[0]
        continue
      if notes and noted.get(source, [source, None])[1] != mark:
        notes.add([source, mark, *image])
      lot = hashlib.sha256(f'{seed}:{mark["sha256"]}'.encode()).hexdigest()
      height, width, cells = image
      cells = base64.b64decode(cells)
      yield source, mark, _Photograph(lot, source, height, width, cells)


def _examine(source: str) -> list[Any]:
  """Decodes one file: its name, fingerprint, height, width and look.

  Or its name, fingerprint, and why it cannot be read; JSON holds either.
  """
  mark = fingerprints.UNREADABLE
  try:
    with fingerprints.opened(source) as (f, mark):
      with images.decode_image(f) as image:
        width, height = image.size
        look = likeness.look(image)
      if fingerprints.look(source) != mark['stat']:
        raise ValueError('it changed while it was read')
  except disk.BROKEN as e:
    return [source, mark, images.why(e)]
  return [source, mark, height, width, base64.b64encode(look).decode()]


def _distinct(
  seen: dict[str, _Photograph | str],
  sources: list[str],
  folder: images.AnyPath,
  key: str,
) -> list[_Photograph]:
  """The readable photographs by lot; of identical ones the first."""
  examined = [seen[name] for name in sources]
  photographs = [x for x in examined if not isinstance(x, str)]
  if not photographs:
    raise ValueError(
      f'No readable image in {folder}: none of {len(sources)} can be used, '
      f'{sources[0]}: {examined[0]}. Fix --config.data.{key}.'
    )
  return sorted({p.lot: p for p in reversed(photographs)}.values())


def _split(
  photographs: list[_Photograph],
  group_of: Mapping[str, int],
  fraction: float,
  folder: images.AnyPath,
) -> tuple[list[_Photograph], list[_Photograph]]:
  """(train, held out), each by lot: the first groups, none on both sides.

  A large group is held out as likely as a small one.
  """
  groups: dict[int, list[_Photograph]] = {}
  for photograph in photographs:
    groups.setdefault(group_of[photograph.lot], []).append(photograph)
  if len(groups) < 2:
    alike = ' (near copies are the same)' if len(photographs) > 1 else ''
    raise ValueError(
      f'A split by photograph needs at least 2 different readable images, '
      f'got 1{alike} in {folder}: add images or give '
      '--config.data.held_out_source.'
    )
  count = min(max(round(fraction * len(photographs)), 1), len(photographs) - 1)
  held_out: list[_Photograph] = []
  largest = max(map(len, groups.values()))
  if largest > max(2, _MANY * count):
    logging.warning(
      '%d of %d photographs of %s look alike, one to the next, and are on one '
      'side of the split: %d are held out. Split them yourself with '
      '--config.data.held_out_source.',
      *(largest, len(photographs), folder, count),
    )
  for group in sorted(groups.values(), key=_lot):
    if len(held_out) + len(group) <= count:
      held_out += group
  held_out = sorted(held_out or min(groups.values(), key=len))
  lots = {p.lot for p in held_out}
  return [p for p in photographs if p.lot not in lots], held_out


def _lot(group: list[_Photograph]) -> str:
  """Uniform for a group of any size; of a single photograph its own."""
  lots = ''.join(sorted(p.lot for p in group))
  return disk.digest(lots.encode()) if len(group) > 1 else lots


def _lay_crops(
  photographs: list[_Photograph],
  count: int,
  *,
  image_size: int,
  max_scale: float,
) -> list[Crop]:
  """`count` crops, as evenly over the photographs as the division goes."""
  crops = []
  each, more = divmod(count, len(photographs))
  for i, (lot, source, height, width, _) in enumerate(photographs):
    rng = np.random.default_rng(int(lot, 16))
    most = min(height, width, math.floor(max_scale * image_size))
    for _ in range(each + (i < more)):
      size = int(rng.integers(min(image_size, most), most, endpoint=True))
      top = int(rng.integers(height - size, endpoint=True))
      left = int(rng.integers(width - size, endpoint=True))
      crops.append(Crop(source, top, left, size))
  return crops


def _vary(
  crops: list[Crop], lots: Mapping[str, str], permuted: float, mirrored: float
) -> list[Crop]:
  """Some with their colors in another order, some mirrored, by lot."""
  orders = [order for order in _ORDERS if order != 'rgb']
  varied = []
  for source, group in itertools.groupby(crops, lambda crop: crop.source):
    rng = np.random.default_rng([int(lots[source], 16), 1])
    for crop in group:
      which, by_color, by_side = rng.random(3)
      order = orders[int(which * len(orders))]
      varied.append(
        crop._replace(
          colors=order if by_color < permuted else 'rgb',
          mirrored=int(by_side < mirrored),
        )
      )
  return varied


def _lay_whole(photographs: list[_Photograph], count: int) -> list[Crop]:
  """The largest centered square of each of at most `count` photographs."""
  crops = []
  for _, source, height, width, _ in photographs[:count]:
    size = min(height, width)
    crops.append(Crop(source, (height - size) // 2, (width - size) // 2, size))
  return crops
