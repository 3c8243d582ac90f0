"""Image files that have all their pixels, but not all that belongs around them.

Pillow refuses a file for a checksum of its comments, for more of them than it
cares to unpack, or for an end that is not there. A PNG is rebuilt without what
no pixel depends on. Whether a JPEG lacks pixels is found out, not assumed.

PNG: https://www.w3.org/TR/png-3/#5Chunk-layout. JPEG: ITU-T T.81, annex B.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import re
from typing import BinaryIO
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

from chimera.data import archives

JPEG_FORMATS = ('JPEG', 'MPO')  # Pillow's names
_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8\xff'
_CHECKED = (b'IHDR', b'PLTE', b'tRNS', b'IDAT')
# Of the texts in a PNG those that may say how it is turned, and how they are
# written plainly.
_TURNS = {
  b'XML:com.adobe.xmp': (b'iTXt', b'\0\0\0\0\0'),
  b'Raw profile type exif': (b'tEXt', b'\0'),
}
_TEXT = 2**23  # bytes of each of them, unpacked
_MARKER = re.compile(rb'\xff([\x01-\xcf\xd8-\xfe])')
_RESTART = re.compile(rb'\xff([\xd0-\xd7])')
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_END = bytes((0xFF, _EOI))
_IEND = b'IEND\xaeB`\x82'
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BEYOND = 256  # bytes of bits that stand for those which may be lacking


def read(
  data: bytes, load: Callable[[bytes], Image.Image]
) -> Image.Image | None:
  """The image in a file that could not be read as it is, or has no end.

  Args:
    data: all of the file.
    load: decodes a file that may be whole now.

  Returns:
    None where the file is of a kind that cannot be mended.

  Raises:
    ValueError: pixels are lacking; how much of the image is there.
    what `load` raises: it is not whole now, either.
  """
  if data.startswith(_PNG):
    return load(_rebuild_png(data))
  if data.startswith(b'RIFF') and data[8:12] == b'WEBP':
    # It says how long it is, and has nothing to tell a wrong pixel by.
    promised = int.from_bytes(data[4:8], 'little') + 8
    if promised > len(data):
      raise ValueError(
        f'it ends too soon: {len(data)} of {promised} bytes are there'
      )
  if data.startswith(_JPEG):
    return _read_jpeg(data, load)
  return None


def is_suspect(f: BinaryIO, image: Image.Image) -> bool:
  """Whether pixels may lack that Pillow has not missed in a file.

  It takes what a cut JPEG or PNG was filled up with, often zeros, for its
  pixels; and an end may have been put behind what is lacking.
  """
  if image.format not in ('PNG', *JPEG_FORMATS):
    return False
  f.seek(-len(_IEND), os.SEEK_END)
  end = f.read()
  f.seek(0)
  if image.format == 'PNG':
    return end != _IEND or _is_damaged(f.read(archives.MAX_BYTES))
  if not end.endswith(_END):
    return True
  if 'progressive' in image.info:
    last = _find_last_scan(f.read(archives.MAX_BYTES).removesuffix(_END))
    return last == -1
  # As libjpeg draws what is not there; 127 is that of inverted CMYK.
  w, h = image.size
  corner = image.crop((max(0, w - 2), max(0, h - 2), w, h))
  return {*corner.tobytes()} in ({127}, {128})


def _is_damaged(data: bytes) -> bool:
  """Whether a PNG is not as it was written, where a pixel depends on it."""
  return any(
    kind in _CHECKED and chunk != _chunk(kind, body)
    for kind, body, chunk in _chunks(data)
  )


def _rebuild_png(data: bytes) -> bytes:
  """Its critical chunks as they are, which colors are meant, how it is turned.

  Transparency is as critical as the colors that it is of. Of an animation its
  still remains, which is what its first frame is.
  """
  head, pixels, texts = [_PNG], [], {}
  for kind, body, chunk in _chunks(data):
    if not kind[0] & 0x20 or kind == b'tRNS':
      # Pillow compares no checksum of pixels. But this file is damaged.
      is_whole = len(chunk) == 12 + int.from_bytes(chunk[:4])
      if is_whole and kind in _CHECKED and _chunk(kind, body) != chunk:
        raise ValueError(f'the checksum of its {kind.decode()} is wrong')
      (pixels if pixels or kind == b'IDAT' else head).append(chunk)
    elif kind == b'eXIf':
      texts[kind] = _chunk(kind, body)
    elif kind == b'iCCP' and _holds_profile(body):
      if _chunk(kind, body) == chunk:
        texts[kind] = chunk
    elif kind in (b'tEXt', b'zTXt', b'iTXt'):
      with contextlib.suppress(LookupError, zlib.error):
        key, plain = _plain_text(kind, body)
        texts[key] = plain
  return b''.join([*head, *texts.values(), *pixels])


def _holds_profile(body: bytes) -> bool:
  """Whether Pillow would unpack what says which colors are meant."""
  packed, unpack = body.partition(b'\0')[2][1:], zlib.decompressobj()
  try:
    unpack.decompress(packed, PngImagePlugin.MAX_TEXT_CHUNK)
  except zlib.error:
    return False
  return unpack.eof


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
  """(kind, body, all of it) of each chunk of a PNG; the last may be cut."""
  at = len(_PNG)
  while kind := data[at + 4 : at + 8]:
    end = at + 12 + int.from_bytes(data[at : at + 4])
    yield kind, data[at + 8 : end - 4], data[at:end]
    at = end


def _chunk(kind: bytes, body: bytes) -> bytes:
  size, checksum = len(body), zlib.crc32(kind + body)
  return size.to_bytes(4) + kind + body + checksum.to_bytes(4)


def _plain_text(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
  """(keyword, chunk), not packed, of a text; LookupError if it is no matter."""
  key, _, text = body.partition(b'\0')
  form, start = _TURNS[key]
  is_packed = kind == b'zTXt' or (kind == b'iTXt' and text[0] == 1)
  if kind == b'zTXt':
    text = text[1:]  # behind the method
  elif kind == b'iTXt':
    # Behind whether and how it is packed, its language, and the keyword in it.
    text = text[2:].split(b'\0', 2)[2]
  if is_packed:
    text = zlib.decompressobj().decompress(text, _TEXT)
  return key, _chunk(form, key + start + text[:_TEXT])


def _read_jpeg(
  data: bytes, load: Callable[[bytes], Image.Image]
) -> Image.Image | None:
  """One that lacks its end marker or not, and nothing that a pixel depends on.

  The decoder reads ahead, so it alone does not tell. But where no bit is
  lacking, it does not matter which bits follow.
  """
  if data.endswith(_END):
    data = data.removesuffix(_END)
  else:  # it may have been filled up, and half of the marker may be there
    data = data.rstrip(b'\0\xff')
  last = _find_last_scan(data)
  if last is None:
    return None
  if last < 0:
    raise ValueError('it ends too soon: not all of its scans are there')
  numbers = _RESTART.findall(data, last)
  restart = (numbers[-1][0] + 1) % 8 if numbers else 0
  restart = bytes((0xFF, 0xD0 + restart))
  first = load(data + _END)
  for bits in (b'\0', b'\x55', b'\xb6\x4d', b'\xfe'):
    bits *= _BEYOND
    # Between two restarts, what follows is not read as pixels.
    other = load(data + bits + restart + bits + _END)
    differs = np.asarray(first) != np.asarray(other)
    rows = differs.reshape(first.height, -1).any(1)
    if rows.any():
      raise ValueError(
        f'it ends too soon: {rows.argmax()} of {first.height} rows are there'
      )
  return first


def count_scans(data: bytes) -> int:
  """How many scans a JPEG has, up to its end."""
  count, at = 0, 2
  while match := _MARKER.search(data, at):
    marker, at = match[1][0], match.end()
    if marker == _EOI:
      break
    if marker not in (_SOI, _TEM):
      count += marker == _SOS
      at += int.from_bytes(data[at : at + 2])
  return count


def _find_last_scan(data: bytes) -> int | None:
  """Where the last scan of a JPEG begins.

  None where the image ends. -1 where there must be another scan: a coefficient
  has not all of its bits.
  """
  lacks, at, begins = {}, 2, -1
  while match := _MARKER.search(data, at):
    marker, at = match[1][0], match.end()
    if marker == _EOI:
      return None
    if marker in (_SOI, _TEM):
      continue
    size = int.from_bytes(data[at : at + 2])
    body = data[at + 2 : at + size]
    if at + max(size, 2) > len(data):
      return -1
    if marker in _FRAMES:
      components = body[6 : 6 + 3 * body[5] : 3]
      lacks = {component: np.full(64, 16) for component in components}
    elif marker == _SOS:
      # Which of the 64 coefficients of which components, down to which bit.
      count = body[0]
      low, high, bits = (body[1 + 2 * count + i] for i in range(3))
      for component in body[1 : 1 + 2 * count : 2]:
        lacks[component][low : high + 1] = bits & 15
      begins = at + size
    at += size
  is_whole = lacks and not any(x.any() for x in lacks.values())
  return begins if is_whole else -1
