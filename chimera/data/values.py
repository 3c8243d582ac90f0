"""Any mode of Pillow's to 8-bit sRGB, as people see it.

More than 8 bits are scaled by the range that a file's values span, floats by
theirs; colors of an ICC profile become sRGB's; alpha is laid over white.
"""

import functools
import io
import sys

import numpy as np
from PIL import Image, ImageCms

from chimera.data import skipped
from chimera.system import disk

# Bits that a 16-bit file may have: scanners and cameras fill 10 or 12.
_BITS = (8, 10, 12, 16)
_OVER = 2.0  # up to it floats are of [0, 1], with a filter's overshoot
_DARKEST = 16.0  # from it on they are of [0, 255]
_SAME = 2  # levels of 255 by which a profile of sRGB's may differ from it
# TIFF's tags 258, BitsPerSample, and 284, PlanarConfiguration: TIFF 6.0.
_BITS_EACH, _PLANES = 258, 284
_IN_PLANES = (
  'its channels of more than 8 bits lie one behind the other: save them '
  'interleaved'
)
# How Pillow unpacks the high byte of 16 bits of a color, and how the low one.
_OTHER_BYTE = {
  f'{mode};16{order}': f'{mode};16{other}'
  for mode in ('RGB', 'RGBA', *'RGB')
  for order, other in {
    **{'B': 'L', 'L': 'B'},
    'N': 'B' if sys.byteorder == 'little' else 'L',
  }.items()
}
_SRGB = ImageCms.createProfile('sRGB')


def to_rgb(image: Image.Image) -> Image.Image:
  """An image in RGB.

  Raises:
    ValueError: its values are no light.
  """
  profile = image.info.get('icc_profile')
  if image.mode.startswith('I') or image.mode == 'F':
    image = Image.fromarray(_to_8_bits(np.asarray(image), image.mode))
  if profile:
    image = _to_srgb(image, profile)
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image)
  return image if image.mode == 'RGB' else image.convert('RGB')


def stretch(values: np.ndarray) -> np.ndarray:
  """Whole numbers in [0, 65535] to uint8, by the bits that they need.

  12-bit values would be black by the 16 bits that they are stored in.
  """
  most = int(values.max())
  bits = next(bits for bits in _BITS if most < 2**bits)
  if bits < 16 and most:
    skipped.say_once(
      f'16-bit images whose values span {bits} bits are stretched: '
      f'{2**bits - 1} becomes 255.'
    )
  return _table(bits)[values]


def has_planes(image: Image.Image) -> bool:
  """Whether a TIFF has its channels of over 8 bits one behind the other."""
  tags, many = getattr(image, 'tag_v2', {}), len(image.getbands()) > 1
  return many and tags.get(_PLANES) == 2 and max(tags.get(_BITS_EACH, (1,))) > 8


def take_planes(image: Image.Image) -> None:
  """Has such a file, not loaded yet, read as 16 bits.

  Pillow takes what is not compressed for 8 bits.

  Raises:
    ValueError: channels of other bits or colors.
  """
  if not has_planes(image):
    return
  is_16 = set(image.tag_v2[_BITS_EACH]) == {16}
  if is_16 and not any(tile.codec_name == 'raw' for tile in image.tile):
    return  # libtiff's are right
  if not is_16 or image.mode != 'RGB':
    raise ValueError(_IN_PLANES)
  order = 'B' if image.tag_v2.prefix == b'MM' else 'L'
  image.tile = [
    tile._replace(args=(f'{tile.args[0]};16{order}', *tile.args[1:]))
    for tile in image.tile
  ]


def take_order(image: Image.Image) -> None:
  """Has a compressed TIFF, not loaded yet, read in the order of this machine.

  libtiff gives it so; Pillow turns floats and signed numbers once more.
  """
  if image.format != 'TIFF':
    return
  tiles = []
  for tile in image.tile:
    if tile.codec_name == 'libtiff':
      name, *others = tile.args
      mode, _, bits = name.partition(';')
      if mode in ('F', 'I'):
        name = f'{mode};{bits.replace("B", "N")}'.rstrip(';')
      tile = tile._replace(args=(name, *others))
    tiles.append(tile)
  image.tile = tiles


def low_tiles(image: Image.Image) -> list | None:
  """What has a 16-bit RGB file, not loaded yet, decoded to its low bytes.

  Pillow takes the high ones. None of another file.
  """
  if has_planes(image) and any(t.codec_name != 'raw' for t in image.tile):
    return None  # libtiff gives the high ones at any rate
  tiles = []
  for tile in image.tile:
    is_list = isinstance(tile.args, tuple) and tile.args
    name, *others = tile.args if is_list else [tile.args]
    if name not in _OTHER_BYTE:
      return None
    args = (_OTHER_BYTE[name], *others)
    tiles.append(tile._replace(args=args if others else args[0]))
  return tiles


def check_planes(image: Image.Image) -> None:
  """Of what was loaded without its low bytes: refuses what needs them."""
  if has_planes(image) and is_below_12_bits(image):
    raise ValueError(_IN_PLANES)


def is_below_12_bits(image: Image.Image) -> bool:
  """Whether the high bytes of 16-bit RGB say so: it must be stretched."""
  return max(most for _, most in image.getextrema()[:3]) < 2**4


def join(high: Image.Image, low: Image.Image) -> None:
  """Puts the stretched values of 16-bit RGB(A) in the place of high bytes."""
  high_HxWx3, low_HxWx3 = (np.asarray(x)[..., :3] for x in (high, low))
  color = stretch(high_HxWx3.astype(np.uint16) << 8 | low_HxWx3)
  color = Image.fromarray(color)
  if high.mode == 'RGBA':
    color.putalpha(high.getchannel('A'))
  high.paste(color)


def _to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
  """Gray of more than 8 bits.

  Raises:
    ValueError: not in the range of its mode, or not finite.
  """
  is_float = mode == 'F'
  least, most = values.min(), values.max()
  if not (least >= 0 and most <= (255 if is_float else 65535)):
    ranges = '[0, 1] or [0, 255]' if is_float else '[0, 65535]'
    raise ValueError(
      f'values of mode {mode} must be in {ranges}, got [{least:g}, {most:g}]'
    )
  if not is_float:
    return stretch(values)
  if _OVER < most < _DARKEST:
    raise ValueError(
      f'values of mode F up to {most:g} are neither of [0, 1] nor of [0, 255]'
    )
  scale = np.float64(255.0 if most <= _OVER else 1.0)
  return np.rint(np.minimum(values * scale, 255.0)).astype(np.uint8)


@functools.cache
def _table(bits: int) -> np.ndarray:
  """uint8 of each value of so many bits."""
  top = 2**bits - 1
  return np.rint(np.arange(top + 1) * (255.0 / top)).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
  """By its profile; as it is where that is sRGB's, or cannot be used."""
  alpha, color = None, image
  if image.has_transparency_data:
    alpha = image.convert('RGBA').getchannel('A')
    color = image.convert('L' if image.mode in ('L', 'LA') else 'RGB')
  try:
    space, transform = _transform(profile)
    if transform is None:
      return image
    if color.mode != space:
      # A gray image keeps the profile that it had in color.
      if space != 'RGB' or color.mode == 'CMYK':
        raise ValueError(f'it is of {space}, the image of {color.mode}')
      color = color.convert(space)
    color = ImageCms.applyTransform(color, transform)
  except (ImageCms.PyCMSError, ImportError, *disk.BROKEN) as e:
    skipped.say_once(f'An ICC profile is passed over: {disk.reason(e)}.')
    return image
  color.info.pop('transparency', None)
  if alpha is not None:
    color.putalpha(alpha)
  return color


@functools.lru_cache(maxsize=16)
def _transform(
  profile: bytes,
) -> tuple[str, ImageCms.ImageCmsTransform | None]:
  """The mode that a profile is of, and what makes it sRGB; None if it is."""
  source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
  space = source.profile.xcolor_space.strip()
  mode = {'GRAY': 'L', 'Lab': 'LAB'}.get(space, space)
  # Several threads share it.
  transform = ImageCms.buildTransform(
    source, _SRGB, mode, 'RGB', flags=ImageCms.Flags.NOCACHE
  )
  return mode, None if _is_srgb(mode, transform) else transform


def _is_srgb(mode: str, transform: ImageCms.ImageCmsTransform) -> bool:
  """Whether it leaves grays and pure colors as they are; names may lie."""
  if mode not in ('L', 'RGB'):
    return False
  ramp = np.arange(256, dtype=np.uint8)[:, None, None]
  colors = ramp * np.uint8([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
  before = Image.fromarray(colors if mode == 'RGB' else ramp[..., 0])
  after = ImageCms.applyTransform(before, transform)
  apart = np.asarray(before.convert('RGB'), int) - np.asarray(after, int)
  return np.abs(apart).max() <= _SAME
