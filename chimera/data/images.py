"""Images in: photographs, folders and archives of them, path_params of others.

The design document's section 2 starts from images (`crops` plans what is cut
from them), or path_params that were made elsewhere are let in. Colour range:
uint8 RGB in [0, 255] in storage, float32 RGB in [-1, 1] in every model
(`to_float`, `to_uint8`). Host code only.
"""

from collections.abc import Iterator
import contextlib
import functools
import importlib.util
import io
import math
import os
import re
import threading
from typing import BinaryIO, SupportsIndex

from absl import logging
import numpy as np
import PIL
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from chimera.data import archives, arrays, mending, values
from chimera.system import disk, streams

BUNDLED = 'skimage:'  # marks the source of a bundled photograph
PATH_PARAMS_SUFFIXES = ('.npy', '.npz', '.pkl')
# More are no photograph but a bomb: a few bytes that decode to gigabytes.
MAX_PIXELS = 2**28
# Pixels in a byte of a large image: deflate packs 1032 bytes of 8 in one.
_MOST_GROWN = 2**13
# What packs plain areas into nothing: formats, and compressions of a TIFF.
_GROWS_MORE = {'AVIF', 'HEIF', 'WEBP', 'group3', 'group4'}
_MOST_PLANES = 8  # of a TIFF; Pillow reads six
# Pixels times scans of a JPEG: a scan of a few bytes takes as long as any.
_MOST_SCANNED = 2**32
_SCAN = 10  # bytes of the least one's header
# How files begin that are images, whatever they are called.
_IMAGE = re.compile(
  rb'\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP'
  rb'|\0\0\0\x0cjP  \r\n|.{4}ftypavif',
  re.DOTALL,
)
_HEIC = re.compile(rb'.{4}ftyp(hei|hev|mif1)', re.DOTALL)
# And how they may begin: so do cameras' raw files, sounds and a few texts.
_MAYBE = (b'RIFF', b'BM', b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
# Pillow would run Ghostscript for the one, and knows but the other's size.
_NOT_READ = ('EPS', 'MPEG')
_PHOTOMETRIC = ExifTags.Base.PhotometricInterpretation
_LARGE = 2**24  # pixels from which images are decoded one at a time
_ALONE = threading.Lock()
_LIMIT = threading.Lock()
_unlimited: list[int | None] = []  # Pillow's limit, as often as it is lifted
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
AnyPath = str | bytes | os.PathLike


def load_photograph(source: AnyPath) -> np.ndarray:
  """uint8 RGB (height, width, 3) of an image, as people see it.

  EXIF rotation is applied; alpha is composited over white; gray, palette and
  CMYK become RGB; 16-bit gray is scaled (65535 becomes 255), not clipped.

  Args:
    source: a file's path, or 'skimage:' and the name of a bundled photograph,
      or an archive's path, '!' and the name in it. A file of that name wins.

  Raises:
    ValueError: it is not a readable image, or has more than `MAX_PIXELS`.
  """
  with load_image(source) as image:
    return np.asarray(image)


def load_image(source: AnyPath) -> Image.Image:
  """`load_photograph` as Pillow has it."""
  source = os.fsdecode(source)
  try:
    with open_source(source) as f:
      return decode_image(f)
  except disk.BROKEN as e:
    raise ValueError(f'{source} is not a readable image: {why(e)}.') from e


def open_source(source: AnyPath) -> BinaryIO:
  """A source's file; a member of an archive is in memory.

  Raises:
    one of `disk.BROKEN`: there is no such file.
  """
  source = os.fsdecode(source)
  if os.path.islink(source) and not os.path.exists(source):
    raise ValueError('it is a link to a file that is not there')
  # Whoever opens a pipe waits for ever.
  if os.path.exists(source) and not os.path.isfile(source):
    raise ValueError('it is not a file')
  if not os.path.exists(source):
    if source.startswith(BUNDLED):
      # Where scikit-image keeps its data, without importing it.
      (home,) = importlib.util.find_spec('skimage').submodule_search_locations
      source = os.path.join(home, 'data', source.removeprefix(BUNDLED))
    elif member := archives.split(source):
      return io.BytesIO(archives.read(*member))
  return open(source, 'rb')


def decode(f: BinaryIO) -> np.ndarray:
  """uint8 RGB (height, width, 3) of an image's file; see `decode_image`."""
  with decode_image(f) as image:
    return np.asarray(image)


def decode_image(f: BinaryIO) -> Image.Image:
  """An image's file in RGB, as people see it; see `load_photograph`.

  What no pixel depends on may be broken or lacking.

  Raises:
    one of `disk.BROKEN`: it is not a readable image; `why` says it in words.
  """
  image, error = None, None
  try:
    image = _load(f)
  except disk.BROKEN as e:
    error = e
  if error or mending.is_suspect(f, image):
    f.seek(0)
    data = f.read(archives.MAX_BYTES + 1)
    with contextlib.suppress(LookupError):
      if len(data) <= archives.MAX_BYTES:
        image = mending.read(data, lambda x: _load(io.BytesIO(x))) or image
  if image is None:
    raise error
  rgb = values.to_rgb(_turn(image))
  return ImageOps.invert(rgb) if _is_negative(image) else rgb


def why(error: BaseException) -> str:
  """In words that a user knows: why a file is not read as an image."""
  said = disk.reason(error)
  if isinstance(error, OSError) and error.filename:
    return error.strerror
  if 'truncated' in said.lower():
    return 'it ends too soon'
  if isinstance(error, MemoryError):
    return 'there is not enough memory for it'
  if isinstance(error, ValueError):
    return said
  return f'its contents are broken ({said})'


def center(photograph: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
  """The largest centered square, or rectangle like size (h, w), resized."""
  h, w = (size, size) if isinstance(size, int) else size
  height, width = photograph.shape[:2]
  # Of two products, not quotients, lest a square be a pixel short.
  down = min(height, max(1, width * h // w))
  across = min(width, max(1, height * w // h))
  top, left = (height - down) // 2, (width - across) // 2
  window = photograph[top : top + down, left : left + across]
  return resize(Image.fromarray(window), (h, w))


def crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
  """A window (left, top, right, bottom) of an image."""
  with _without_limit():
    return image.crop(box)


@contextlib.contextmanager
def _without_limit() -> Iterator[None]:
  """Pillow's own limit is lower than some cameras', and a warning at first.

  Whoever imports this may count on it elsewhere.
  """
  with _LIMIT:
    _unlimited.append(_unlimited[0] if _unlimited else Image.MAX_IMAGE_PIXELS)
    Image.MAX_IMAGE_PIXELS = None
  try:
    yield
  finally:
    with _LIMIT:
      before = _unlimited.pop()
      Image.MAX_IMAGE_PIXELS = None if _unlimited else before


def resize(window: Image.Image, size: int | tuple[int, int]) -> np.ndarray:
  """By Lanczos: uint8 (size, size, 3), or (*size, 3)."""
  h, w = (size, size) if isinstance(size, int) else size
  return np.asarray(window.resize((w, h), Image.Resampling.LANCZOS))


def read_image(path: AnyPath, size: int | None = None) -> np.ndarray:
  """`load_photograph`, and where `size` is given its `center` of that size.

  Raises:
    ValueError: as `load_photograph`, or the size is no whole number above 0.
  """
  if size is not None and not (isinstance(size, SupportsIndex) and size > 0):
    raise ValueError(f'size must be a whole number above 0, got {size!r}.')
  photograph = load_photograph(path)
  if size is not None:
    photograph = center(photograph, int(size))
  return photograph.copy()  # Pillow's own is not to be written to


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


def is_path_params(source: AnyPath) -> bool:
  """Whether `source` names path_params rather than images, by its suffix."""
  return os.fsdecode(source).lower().endswith(PATH_PARAMS_SUFFIXES)


def load_path_params(
  path: AnyPath, key: str = 'source', *, chunk: int = 4096
) -> np.ndarray:
  """Lets in path_params that were made elsewhere: float32 (N, H, W, 3).

  That is delta in [-pi, pi], chi in [-pi/4, pi/4], radius in [0, pi/2].

  Args:
    path: see `arrays.read`: nothing in it is executed.
    key: of `config.data`, which names the file.
    chunk: samples checked at a time.

  Raises:
    ValueError: not what its name claims, or a wrong shape, dtype or range.
  """
  path = os.fsdecode(path)
  with _let_in(path, key):
    latents = arrays.read(path)
    arrays.check_shape(latents.shape)
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
  with _let_in(path, 'source'):
    shape = arrays.read_shape(path)
    arrays.check_shape(shape)
    return shape


def count_held_out(samples: int, *, fraction: float, most: int) -> int:
  """How many of so many path_params are held out, where they are split."""
  return min(max(round(fraction * samples), 1), most)


@contextlib.contextmanager
def _let_in(path: str, key: str) -> Iterator[None]:
  """What is wrong with a file of path_params, in one line."""
  try:
    yield
  except FileNotFoundError as e:
    raise ValueError(f'No such file: {path}. Fix --config.data.{key}.') from e
  except disk.BROKEN as e:
    raise ValueError(
      f'{path} must hold path_params and nothing that runs: {disk.reason(e)}. '
      f'Fix --config.data.{key}.'
    ) from e


def suffixes() -> frozenset[str]:
  """Of the files that Pillow reads here: '.jpg', '.avif', ..., in small."""
  return _formats()[1]


def reader() -> str:
  """What reads images here: another may read what this one cannot."""
  return f'Pillow {PIL.__version__}, {len(suffixes())} suffixes'


def begins_like_image(start: bytes) -> bool:
  """Whether the first 16 bytes of a file say that it is one."""
  return bool(_IMAGE.match(start))


@functools.cache
def _formats() -> tuple[tuple[str, ...], frozenset[str]]:
  """The formats that are read, by Pillow's names, and their suffixes."""
  with contextlib.suppress(ImportError):
    import pillow_heif  # whoever has HEIC may install it

    pillow_heif.register_heif_opener()
  Image.init()
  formats = tuple(
    name
    for name in Image.ID
    if name not in _NOT_READ
    and not (
      isinstance(Image.OPEN[name][0], type)
      and issubclass(Image.OPEN[name][0], ImageFile.StubImageFile)
    )
  )
  known = Image.registered_extensions().items()
  return formats, frozenset(k.lower() for k, name in known if name in formats)


@_without_limit()
def _load(f: BinaryIO) -> Image.Image:
  """Decodes a file, as it is stored.

  Raises:
    one of `disk.BROKEN`: Pillow cannot, or it is too large.
  """
  size = f.seek(0, os.SEEK_END)
  f.seek(0)
  start = f.read(16)
  try:
    image = Image.open(f, formats=_formats()[0])
  except UnidentifiedImageError as e:
    raise ValueError(_unknown(start)) from e
  pixels = image.width * image.height
  if pixels > MAX_PIXELS:
    raise ValueError(
      f'it has too many pixels: {image.width} x {image.height} are more than '
      f'{MAX_PIXELS}'
    )
  grows_more = {image.format, image.info.get('compression')} & _GROWS_MORE
  if pixels > max(_LARGE, _MOST_GROWN * size) and not grows_more:
    raise ValueError(f'{pixels} pixels cannot be in {size} bytes')
  if image.format == 'TIFF':
    covered = sum((r - x) * (b - y) for _, (x, y, r, b), *_ in image.tile)
    if covered < pixels:
      raise ValueError(
        f'it ends too soon: {covered} of {pixels} pixels are there'
      )
    if covered > _MOST_PLANES * pixels:
      raise ValueError(f'it holds {covered} values for {pixels} pixels')
  is_jpeg = image.format in mending.JPEG_FORMATS
  if is_jpeg and size // _SCAN * pixels > _MOST_SCANNED:
    f.seek(0)
    scans = mending.count_scans(f.read(archives.MAX_BYTES))
    if scans * pixels > _MOST_SCANNED:
      raise ValueError(f'its {pixels} pixels are sent {scans} times')
  # libtiff says on descriptor 2 what it thinks of a file.
  is_tiff = image.format == 'TIFF'
  quiet = streams.muffled() if is_tiff else contextlib.nullcontext()
  with _ALONE if pixels > _LARGE else contextlib.nullcontext(), quiet:
    values.take_planes(image)
    values.take_order(image)
    low_tiles = values.low_tiles(image)
    image.load()
    if not low_tiles:
      values.check_planes(image)
    elif values.is_below_12_bits(image):
      f.seek(0)
      low = Image.open(f, formats=[image.format])
      low.tile = low_tiles
      low.load()
      values.join(image, low)
  return image


def _is_negative(image: Image.Image) -> bool:
  """Whether 0 is white, as in scans. Pillow turns that over in 8 bits only."""
  tags = getattr(image, 'tag_v2', {})
  return image.mode.startswith('I;16') and tags.get(_PHOTOMETRIC) == 0


def _unknown(start: bytes) -> str:
  """Why a file that begins like this was not known by Pillow."""
  if not start:
    return 'it is empty'
  if _HEIC.match(start):
    return 'it is HEIC, which needs `pip install pillow-heif`'
  if begins_like_image(start) or start.startswith(_MAYBE):
    return 'its header is broken, or of a kind that Pillow does not read'
  return f'it is no image that Pillow knows, it begins with {start!r}'


def _turn(image: Image.Image) -> Image.Image:
  """As EXIF or XMP say that people see it.

  Where these are broken, it stays as it is stored.
  """
  try:
    turn = image.getexif().get(ExifTags.Base.Orientation)
  except disk.BROKEN:
    return image
  return image.transpose(_TURNS[turn]) if turn in _TURNS else image


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
