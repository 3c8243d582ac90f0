"""Images in: photographs, folders and archives of them, path_params of others.

The design document's section 2 starts from images; here they become crops,
split into training and held-out **by photograph**, or path_params that were
made elsewhere are let in. Colour range: uint8 RGB in [0, 255] in storage,
float32 RGB in [-1, 1] in every model (`to_float`, `to_uint8`). Host code only.
"""

from collections.abc import Callable, Iterable
import concurrent.futures
import contextlib
import csv
import functools
import hashlib
import importlib.util
import io
import math
import os
import struct
import threading
from typing import BinaryIO, NamedTuple
import zlib

from absl import logging
import numpy as np
from PIL import Image, ImageOps

from chimera.data import archives, arrays
from chimera.system import disk

# Real photographs in scikit-image's wheel. motorcycle_right is the scene of
# motorcycle_left and microaneurysms a part of retina: they would leak.
PHOTOGRAPHS = (
  'astronaut.png',
  'brick.png',
  'camera.png',
  'cell.png',
  'chelsea.png',
  'clock_motion.png',
  'coffee.png',
  'coins.png',
  'grass.png',
  'gravel.png',
  'hubble_deep_field.jpg',
  'ihc.png',
  'moon.png',
  'motorcycle_left.png',
  'retina.jpg',
  'rocket.jpg',
)
BUNDLED = 'skimage:'  # marks the source of a bundled photograph
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
PATH_PARAMS_SUFFIXES = ('.npy', '.npz', '.pkl')
MANIFEST_HEADER = (
  'sample_index',
  'complexity_score',
  'source',
  'top',
  'left',
  'size',
)

# More are no photograph but a bomb: a few bytes that decode to gigabytes.
MAX_PIXELS = 2**28
# Pillow's own limit is lower than some cameras', and a warning at first.
Image.MAX_IMAGE_PIXELS = None
_LARGE = 2**24  # pixels from which images are decoded one at a time
_ALONE = threading.Lock()

# What Pillow's decoders raise at bytes that are not the image they claim.
_UNREADABLE = (
  ArithmeticError,
  AssertionError,
  AttributeError,
  MemoryError,
  OSError,
  RuntimeError,
  SyntaxError,
  ValueError,
  EOFError,
  IndexError,
  KeyError,
  TypeError,
  struct.error,
  zlib.error,
)


class Crop(NamedTuple):
  """A square window of a photograph, read back resized to image_size.

  Attributes:
    source: absolute path, or 'skimage:' and the name of a bundled photograph,
      or an archive's path, '!' and the name in it.
    top: of the window, in the photograph's own pixels after EXIF rotation.
    left: likewise.
    size: side of the window, likewise.
  """

  source: str
  top: int
  left: int
  size: int


class Plan(NamedTuple):
  """What is trained on and what is held out: no photograph is in both.

  Attributes:
    train: crops, those of one photograph next to each other.
    held_out: likewise.
    skipped: sources of the files that could not be read.
  """

  train: list[Crop]
  held_out: list[Crop]
  skipped: list[str]


class _Photograph(NamedTuple):
  """One readable file."""

  source: str
  digest: str
  height: int
  width: int


def plan_crops(
  source: str,
  *,
  held_out_source: str,
  held_out_fraction: float,
  image_size: int,
  train_count: int,
  held_out_count: int,
  crop: str,
  max_scale: float,
  seed: int,
  progress: Callable[[int, int], None] | None = None,
) -> Plan:
  """Decodes every image once and lays out its crops.

  The split and the crops depend on the seed and on the bytes of the images,
  not on their names, order or place; identical files count as one photograph.
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
    progress: called with (files done, files) as planning goes.

  Raises:
    ValueError: no such folder, no readable image, or too few to split.
  """
  train_sources = list_sources(source, '--config.data.source')
  held_out_sources = []
  if held_out_source:
    held_out_sources = list_sources(
      held_out_source, '--config.data.held_out_source'
    )
  sources = train_sources + held_out_sources
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    found = {}
    for name, photograph in zip(sources, pool.map(_examine, sources)):
      found[name] = photograph
      if progress is not None:
        progress(len(found), len(sources))
  skipped = [name for name, photograph in found.items() if photograph is None]
  train = _distinct(found, train_sources, source, 'source')
  if held_out_source:
    held_out = _distinct(
      found, held_out_sources, held_out_source, 'held_out_source'
    )
    train = {key: train[key] for key in train.keys() - held_out.keys()}
    if not train:
      raise ValueError(
        f'No photograph of {source} is absent from {held_out_source}: give '
        'other images with --config.data.held_out_source.'
      )
  else:
    if len(train) < 2:
      raise ValueError(
        f'A split by photograph needs at least 2 different readable images, '
        f'got 1 in {source}: add images or give --config.data.held_out_source.'
      )
    ranked = sorted(train, key=lambda key: _draw(seed, key))
    held = round(held_out_fraction * len(ranked))
    held = min(max(held, 1), len(ranked) - 1)
    held_out = {key: train.pop(key) for key in ranked[:held]}
  if skipped:
    logging.warning(
      'Skipped %d unreadable image(s), the first is %s',
      len(skipped),
      skipped[0],
    )
  sides = [min(p[2:]) for p in (train | held_out).values()]
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
  lay = functools.partial(_lay_whole, seed=seed)
  if crop == 'random':
    lay = functools.partial(
      _lay_crops, image_size=image_size, max_scale=max_scale, seed=seed
    )
  return Plan(lay(train, train_count), lay(held_out, held_out_count), skipped)


def load_photograph(source: str) -> np.ndarray:
  """Reads an image as people see it.

  EXIF rotation is applied; alpha is composited over white; gray, palette and
  CMYK become RGB; 16-bit gray is scaled (65535 becomes 255), not clipped.

  Args:
    source: see `Crop`.

  Returns:
    uint8 RGB, (height, width, 3).

  Raises:
    ValueError: it is not a readable image, or has more than `MAX_PIXELS`.
  """
  try:
    with _open(source) as f:
      return _decode(f)
  except _UNREADABLE as e:
    reason = ' '.join(str(e).split()).rstrip('.')
    raise ValueError(f'{source} is not a readable image: {reason}.') from e


def read_crops(crops: Iterable[Crop], *, image_size: int) -> np.ndarray:
  """Reads crops in the given order, decoding each photograph once.

  Returns:
    uint8 RGB, (n, image_size, image_size, 3).

  Raises:
    ValueError: a photograph is gone or no longer holds its crop.
  """
  crops = list(crops)
  images = np.empty((len(crops), image_size, image_size, 3), np.uint8)
  by_source = {}
  for i, crop in enumerate(crops):
    by_source.setdefault(crop.source, []).append(i)
  for source, indices in by_source.items():
    photograph = load_photograph(source)
    for i in indices:
      _, top, left, size = crops[i]
      window = photograph[top : top + size, left : left + size]
      if min(top, left) < 0 or window.shape[:2] != (size, size):
        raise ValueError(
          f'{source} no longer holds the crop {crops[i][1:]}, it is '
          f'{photograph.shape[0]} x {photograph.shape[1]}: put the image back '
          'or start anew in another --workdir.'
        )
      images[i] = _resize(window, image_size)
  return images


def center(photograph: np.ndarray, size: int) -> np.ndarray:
  """The largest centered square, resized: uint8 (size, size, 3)."""
  height, width = photograph.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return _resize(photograph[top : top + side, left : left + side], size)


def read_image(path: str | os.PathLike, size: int | None = None) -> np.ndarray:
  """`load_photograph`, and where `size` is given its `center` of that size."""
  photograph = load_photograph(os.fspath(path))
  return photograph if size is None else center(photograph, size)


def to_float(images: np.ndarray) -> np.ndarray:
  """uint8 in [0, 255] to float32 in [-1, 1]: x / 127.5 - 1.

  Raises:
    ValueError: the images are not uint8.
  """
  if images.dtype != np.uint8:
    raise ValueError(f'Images must be uint8, got dtype = {images.dtype}.')
  return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_uint8(images: np.ndarray) -> np.ndarray:
  """Float in [-1, 1] to uint8, rounded and clipped; inverse of `to_float`.

  Raises:
    ValueError: the images are not floats.
  """
  images = np.asarray(images)
  if not np.issubdtype(images.dtype, np.floating):
    raise ValueError(f'Images must be floats, got dtype = {images.dtype}.')
  scaled = np.rint((images.astype(np.float32) + 1.0) * 127.5)
  return np.nan_to_num(np.clip(scaled, 0, 255)).astype(np.uint8)


def write_manifest(
  path: str | os.PathLike, crops: Iterable[Crop], scores: Iterable[float]
) -> None:
  """Writes which crop every sample is, atomically, as CSV."""
  text = io.StringIO(newline='')
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(MANIFEST_HEADER)
  for i, (crop, score) in enumerate(zip(crops, scores, strict=True)):
    writer.writerow((i, f'{float(score):.9g}', *crop))
  # File names need not be UTF-8.
  disk.write(path, text.getvalue().encode(errors='surrogateescape'))


def read_manifest(
  path: str | os.PathLike,
) -> tuple[list[Crop], np.ndarray]:
  """Reads what `write_manifest` wrote.

  Returns:
    The crops by sample index, and their scores, float32 (N,).

  Raises:
    ValueError: it is not a manifest.
  """
  crops, scores = [], []
  try:
    with open(
      path, encoding='utf-8', errors='surrogateescape', newline=''
    ) as f:
      rows = csv.reader(f)
      if tuple(next(rows, ())) != MANIFEST_HEADER:
        raise ValueError(f'the header must be {",".join(MANIFEST_HEADER)}')
      for i, (index, score, source, top, left, size) in enumerate(rows):
        if int(index) != i:
          raise ValueError(f'row {i} has sample_index {index}')
        crops.append(Crop(source, int(top), int(left), int(size)))
        scores.append(float(score))
  except (ValueError, csv.Error) as e:
    raise ValueError(
      f'{path} is not a manifest: {e}. Make it with `python -m chimera.main '
      'prepare-curriculum`.'
    ) from e
  return crops, np.asarray(scores, np.float32)


def is_path_params(source: str) -> bool:
  """Whether `source` names path_params rather than images, by its suffix."""
  return source.lower().endswith(PATH_PARAMS_SUFFIXES)


def load_path_params(path: str, *, chunk: int = 4096) -> np.ndarray:
  """Lets in path_params (delta, chi, radius) that were made elsewhere.

  Args:
    path: `.npy` (memory-mapped where it is float32), `.npz` (one array, or
      'latents') or `.pkl` holding {'latents': array}. Nothing is executed: a
      pickle that names any global but those of a plain array is refused.
    chunk: samples checked at a time.

  Returns:
    float32 (N, H, W, 3): delta in [-pi, pi], chi in [-pi/4, pi/4], radius in
    [0, pi/2].

  Raises:
    ValueError: not what its name claims, or a wrong shape, dtype or range.
  """
  try:
    latents = arrays.read(path)
  except FileNotFoundError as e:
    raise ValueError(f'No such file: {path}. Mend --config.data.source.') from e
  except arrays.BROKEN as e:
    reason = ' '.join(str(e).split()).rstrip('.') or type(e).__name__
    raise ValueError(
      f'{path} must hold path_params and nothing that runs: {reason}. '
      'Mend --config.data.source.'
    ) from e
  _check_path_params(path, latents, chunk)
  if latents.dtype == np.float32:
    return latents
  logging.info('%s holds %s, rounded to float32.', path, latents.dtype)
  return latents.astype(np.float32)


def _bundled_folder() -> str:
  """Where scikit-image keeps its data, without importing it."""
  spec = importlib.util.find_spec('skimage')
  return os.path.join(spec.submodule_search_locations[0], 'data')


def list_sources(source: str, flag: str) -> list[str]:
  """Every image of a source, sorted.

  Args:
    source: 'photos', a folder, a .zip or a .tar.
    flag: of the command line, which named it.

  Raises:
    ValueError: there is no such thing, or no image in it.
  """
  if source == 'photos':
    return [BUNDLED + name for name in PHOTOGRAPHS]
  if os.path.isdir(source):
    sources = sorted(
      os.path.join(folder, name)
      for folder, _, names in os.walk(os.path.abspath(source))
      for name in names
      if name.lower().endswith(SUFFIXES)
    )
  elif os.path.exists(source) and archives.is_archive(source):
    try:
      sources = archives.members(source, SUFFIXES)
    except ValueError as e:
      raise ValueError(f'{e} Mend {flag}.') from e
  else:
    raise ValueError(
      "Images come from 'photos', a folder, a .zip or a .tar, got no such "
      f'folder: {source}. Mend {flag}.'
    )
  if not sources:
    raise ValueError(
      f'No readable image ({", ".join(SUFFIXES)}) in {source}. Mend {flag}.'
    )
  return sources


def _open(source: str) -> BinaryIO:
  """An image's file; a member of an archive is in memory."""
  if source.startswith(BUNDLED):
    source = os.path.join(_bundled_folder(), source.removeprefix(BUNDLED))
  elif member := archives.split(source):
    return io.BytesIO(archives.read(*member))
  # Whoever opens a pipe waits for ever.
  if os.path.exists(source) and not os.path.isfile(source):
    raise ValueError('it is not a file')
  return open(source, 'rb')


def _decode(f: BinaryIO) -> np.ndarray:
  with Image.open(f) as image:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
      raise ValueError(f'{pixels} pixels are more than {MAX_PIXELS}')
    with _ALONE if pixels > _LARGE else contextlib.nullcontext():
      image.load()
      return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))


def _examine(source: str) -> _Photograph | None:
  """Decodes one file; None where it cannot be read."""
  try:
    with _open(source) as f:
      height, width, _ = _decode(f).shape
      f.seek(0)
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
  except _UNREADABLE as e:
    logging.debug('%s: %s', source, e)
    return None
  return _Photograph(source, digest, height, width)


def _distinct(
  found: dict[str, _Photograph | None],
  sources: list[str],
  folder: str,
  key: str,
) -> dict[str, _Photograph]:
  """The readable photographs by digest."""
  photographs = [found[name] for name in sources if found[name] is not None]
  if not photographs:
    raise ValueError(
      f'No readable image in {folder}: all {len(sources)} are corrupt. '
      f'Mend --config.data.{key}.'
    )
  return {p.digest: p for p in reversed(photographs)}


def _draw(seed: int, digest: str) -> str:
  """A photograph's lot: uniform, and the same on every machine."""
  return hashlib.sha256(f'{seed}:{digest}'.encode()).hexdigest()


def _lay_crops(
  photographs: dict[str, _Photograph],
  count: int,
  *,
  image_size: int,
  max_scale: float,
  seed: int,
) -> list[Crop]:
  """`count` crops, as evenly over the photographs as the division goes."""
  crops = []
  ranked = sorted(photographs, key=lambda key: _draw(seed, key))
  for i, key in enumerate(ranked):
    source, digest, height, width = photographs[key]
    rng = np.random.default_rng(int(_draw(seed, digest), 16))
    most = min(height, width, math.floor(max_scale * image_size))
    for _ in range(count // len(ranked) + (i < count % len(ranked))):
      size = int(rng.integers(min(image_size, most), most, endpoint=True))
      top = int(rng.integers(height - size, endpoint=True))
      left = int(rng.integers(width - size, endpoint=True))
      crops.append(Crop(source, top, left, size))
  return crops


def _lay_whole(
  photographs: dict[str, _Photograph], count: int, *, seed: int
) -> list[Crop]:
  """The largest centered square of each of at most `count` photographs."""
  ranked = sorted(photographs, key=lambda key: _draw(seed, key))
  crops = []
  for source, _, height, width in map(photographs.get, ranked[:count]):
    size = min(height, width)
    crops.append(Crop(source, (height - size) // 2, (width - size) // 2, size))
  return crops


def _resize(square: np.ndarray, size: int) -> np.ndarray:
  """By Lanczos: uint8 (size, size, 3)."""
  image = Image.fromarray(square)
  return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def _to_rgb(image: Image.Image) -> Image.Image:
  """Any mode of Pillow's to 8-bit RGB."""
  if image.mode.startswith('I') or image.mode == 'F':
    values = np.asarray(image, np.float64)
    top = 1.0 if image.mode == 'F' else 65535.0
    if not (values.min() >= 0.0 and values.max() <= top):
      raise ValueError(
        f'values of mode {image.mode} must be in [0, {top:g}], got '
        f'[{values.min():g}, {values.max():g}]'
      )
    gray = np.rint(values * (255.0 / top)).astype(np.uint8)
    return Image.fromarray(gray).convert('RGB')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return image.convert('RGB')


def _check_path_params(path: str, latents: np.ndarray, chunk: int) -> None:
  """Shape, dtype, finiteness and ranges, a chunk at a time."""
  if latents.ndim != 4 or latents.shape[-1] != 3 or 0 in latents.shape:
    raise ValueError(
      f'path_params must have shape (N, H, W, 3), got {latents.shape} in '
      f'{path}. Mend --config.data.source.'
    )
  if latents.dtype.kind != 'f':
    raise ValueError(
      f'path_params must be float32, got {latents.dtype} in {path}. '
      'Mend --config.data.source.'
    )
  # delta, chi, radius, in radians; float32(pi) is a little above pi.
  low = np.array([-math.pi, -math.pi / 4, 0.0]) - 1e-5
  high = np.array([math.pi, math.pi / 4, math.pi / 2]) + 1e-5
  for start in range(0, len(latents), chunk):
    part = latents[start : start + chunk].reshape(-1, 3)
    least, most = part.min(0), part.max(0)
    if not (np.all(least >= low) and np.all(most <= high)):
      raise ValueError(
        'path_params must be finite, delta in [-pi, pi], chi in [-pi/4, pi/4], '
        f'radius in [0, pi/2], got {least.tolist()} to {most.tolist()} in '
        f'{path}. Mend --config.data.source.'
      )
