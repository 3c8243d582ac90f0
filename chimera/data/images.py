"""Images in: photographs, folders and archives of them, path_params of others.

The design document's section 2 starts from images (`crops` plans what is cut
from them), or path_params that were made elsewhere are let in. Colour range:
uint8 RGB in [0, 255] in storage, float32 RGB in [-1, 1] in every model
(`to_float`, `to_uint8`). Host code only.
"""

from collections.abc import Iterator
import contextlib
import importlib.util
import io
import math
import os
import threading
from typing import BinaryIO

from absl import logging
import numpy as np
from PIL import Image, ImageOps

from chimera.data import archives, arrays
from chimera.system import disk

# Real photographs in scikit-image's wheel. motorcycle_right is the scene of
# motorcycle_left and microaneurysms a part of retina: they would leak.
PHOTOGRAPHS = (
  *('astronaut.png', 'brick.png', 'camera.png', 'cell.png', 'chelsea.png'),
  *('clock_motion.png', 'coffee.png', 'coins.png', 'grass.png', 'gravel.png'),
  *('hubble_deep_field.jpg', 'ihc.png', 'moon.png', 'motorcycle_left.png'),
  *('retina.jpg', 'rocket.jpg'),
)
BUNDLED = 'skimage:'  # marks the source of a bundled photograph
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
PATH_PARAMS_SUFFIXES = ('.npy', '.npz', '.pkl')
# More are no photograph but a bomb: a few bytes that decode to gigabytes.
MAX_PIXELS = 2**28
# Pillow's own limit is lower than some cameras', and a warning at first.
Image.MAX_IMAGE_PIXELS = None
_LARGE = 2**24  # pixels from which images are decoded one at a time
_ALONE = threading.Lock()


def load_photograph(source: str) -> np.ndarray:
  """uint8 RGB (height, width, 3) of an image, as people see it.

  EXIF rotation is applied; alpha is composited over white; gray, palette and
  CMYK become RGB; 16-bit gray is scaled (65535 becomes 255), not clipped.

  Args:
    source: absolute path, or 'skimage:' and the name of a bundled photograph,
      or an archive's path, '!' and the name in it.

  Raises:
    ValueError: it is not a readable image, or has more than `MAX_PIXELS`.
  """
  try:
    with open_source(source) as f:
      return decode(f)
  except disk.BROKEN as e:
    said = disk.reason(e)
    raise ValueError(f'{source} is not a readable image: {said}.') from e


def open_source(source: str) -> BinaryIO:
  """A source's file; a member of an archive is in memory.

  Raises:
    one of `disk.BROKEN`: there is no such file.
  """
  if source.startswith(BUNDLED):
    # Where scikit-image keeps its data, without importing it.
    (home,) = importlib.util.find_spec('skimage').submodule_search_locations
    source = os.path.join(home, 'data', source.removeprefix(BUNDLED))
  elif member := archives.split(source):
    return io.BytesIO(archives.read(*member))
  # Whoever opens a pipe waits for ever.
  if os.path.exists(source) and not os.path.isfile(source):
    raise ValueError('it is not a file')
  return open(source, 'rb')


def decode(f: BinaryIO) -> np.ndarray:
  """uint8 RGB (height, width, 3) of an image's file; see `load_photograph`.

  Raises:
    one of `disk.BROKEN`: it is not a readable image.
  """
  with Image.open(f) as image:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
      raise ValueError(f'{pixels} pixels are more than {MAX_PIXELS}')
    with _ALONE if pixels > _LARGE else contextlib.nullcontext():
      image.load()
      return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))


def center(photograph: np.ndarray, size: int) -> np.ndarray:
  """The largest centered square, resized: uint8 (size, size, 3)."""
  height, width = photograph.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return resize(photograph[top : top + side, left : left + side], size)


def resize(square: np.ndarray, size: int) -> np.ndarray:
  """By Lanczos: uint8 (size, size, 3)."""
  image = Image.fromarray(square)
  return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


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


def is_path_params(source: str) -> bool:
  """Whether `source` names path_params rather than images, by its suffix."""
  return source.lower().endswith(PATH_PARAMS_SUFFIXES)


def load_path_params(path: str, *, chunk: int = 4096) -> np.ndarray:
  """Lets in path_params that were made elsewhere: float32 (N, H, W, 3).

  That is delta in [-pi, pi], chi in [-pi/4, pi/4], radius in [0, pi/2].

  Args:
    path: see `arrays.read`: nothing in it is executed.
    chunk: samples checked at a time.

  Raises:
    ValueError: not what its name claims, or a wrong shape, dtype or range.
  """
  with _let_in(path):
    latents = arrays.read(path)
    _check_shape(latents.shape)
    _check_path_params(latents, chunk)
  if latents.dtype == np.float32:
    return latents
  logging.info('%s holds %s, rounded to float32.', path, latents.dtype)
  return latents.astype(np.float32)


def path_params_shape(path: str) -> tuple[int, int, int, int]:
  """(N, H, W, 3) of what `load_path_params` would let in.

  Raises:
    ValueError: not what its name claims, or a wrong shape.
  """
  with _let_in(path):
    shape = arrays.read_shape(path)
    _check_shape(shape)
    return shape


def count_held_out(samples: int, *, fraction: float, most: int) -> int:
  """How many of so many path_params are held out, where they are split."""
  return min(max(round(fraction * samples), 1), most)


@contextlib.contextmanager
def _let_in(path: str) -> Iterator[None]:
  """What is wrong with a file of path_params, in one line."""
  try:
    yield
  except FileNotFoundError as e:
    raise ValueError(f'No such file: {path}. Fix --config.data.source.') from e
  except disk.BROKEN as e:
    raise ValueError(
      f'{path} must hold path_params and nothing that runs: {disk.reason(e)}. '
      'Fix --config.data.source.'
    ) from e


def list_sources(source: str, flag: str) -> list[str]:
  """Every image of 'photos', a folder, a .zip or a .tar, sorted.

  Raises:
    ValueError: there is none, and the `flag` that named it.
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
      raise ValueError(f'{e} Fix {flag}.') from e
  else:
    raise ValueError(
      "Images come from 'photos', a folder, a .zip or a .tar, got no such "
      f'folder: {source}. Fix {flag}.'
    )
  if not sources:
    raise ValueError(
      f'No readable image ({", ".join(SUFFIXES)}) in {source}. Fix {flag}.'
    )
  return sources


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


def _check_shape(shape: tuple[int, ...]) -> None:
  if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
    raise ValueError(f'their shape is (N, H, W, 3), got {shape}')


def _check_path_params(latents: np.ndarray, chunk: int) -> None:
  """Dtype, finiteness and ranges, a chunk at a time."""
  if latents.dtype.kind != 'f':
    raise ValueError(f'they are float32, got {latents.dtype}')
  # delta, chi, radius, in radians; float32(pi) is a little above pi.
  low = np.array([-math.pi, -math.pi / 4, 0.0]) - 1e-5
  high = np.array([math.pi, math.pi / 4, math.pi / 2]) + 1e-5
  for start in range(0, len(latents), chunk):
    part = latents[start : start + chunk].reshape(-1, 3)
    least, most = part.min(0), part.max(0)
    if not (np.all(least >= low) and np.all(most <= high)):
      raise ValueError(
        'they are finite, delta in [-pi, pi], chi in [-pi/4, pi/4], radius in '
        f'[0, pi/2], got {least.tolist()} to {most.tolist()}'
      )
