"""Files that are whole but for what no pixel depends on; and those that lack
pixels, which never become pictures."""

import contextlib
import io
import re
import struct
import tracemalloc
import zlib

import numpy as np
from PIL import Image, ImageCms
import pytest

from chimera.data import images
from chimera.system import disk

_rng = np.random.default_rng(0)
NOISE = _rng.integers(0, 256, (40, 56, 3), np.uint8)
_ROWS, _COLUMNS = np.mgrid[:40, :56]
SMOOTH = np.stack([_ROWS * 6, _COLUMNS * 4, _ROWS + _COLUMNS], -1)
SMOOTH = SMOOTH.astype(np.uint8)
FLAT = np.full_like(NOISE, (200, 30, 60))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned clockwise to be seen


def _save(pixels, kind, mode='RGB', **options):
  f = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(f, kind, **options)
  return f.getvalue()


class _TooSoon(ValueError):
  """Refused, for it ends too soon."""


def _read(data):
  try:
    return images.decode(io.BytesIO(data))
  except disk.BROKEN as e:
    if images.why(e).startswith('it ends too soon'):
      raise _TooSoon(images.why(e)) from e
    raise


def _refused(data):
  with pytest.raises(disk.BROKEN) as e:
    _read(data)
  return images.why(e.value)


JPEGS = [
  dict(quality=90),
  dict(quality=100, subsampling=0),
  dict(quality=30),
  dict(quality=75, progressive=True),
  dict(quality=100, progressive=True),
  dict(quality=90, restart_marker_rows=1),
  dict(quality=90, restart_marker_blocks=3, progressive=True),
  dict(mode='L'),
  dict(mode='CMYK'),
]


@pytest.mark.parametrize('options', JPEGS, ids=str)
@pytest.mark.parametrize('pixels', [NOISE, SMOOTH, FLAT], ids='nsf')
def test_a_jpeg_is_read_where_only_its_end_marker_lacks(pixels, options):
  whole = _save(pixels, 'JPEG', **options)
  expected = _read(whole)
  for cut in (1, 2):
    np.testing.assert_array_equal(_read(whole[:-cut]), expected)
  # Also at the ends of scans and of what is between two restarts, where a
  # decoder waits for nothing.
  ends = {m.start() for m in re.finditer(rb'\xff[\xc4\xd0-\xd7\xda]', whole)}
  begins = whole.index(b'\xff\xda')
  places = {end + i for end in ends for i in (-1, 0, 1, 2, 3)}
  places |= {len(whole) - cut for cut in range(3, 30)}
  for place in sorted(p for p in places if begins + 20 < p < len(whole) - 2):
    with contextlib.suppress(_TooSoon):
      # Of a flat image the last bytes may say nothing.
      np.testing.assert_array_equal(_read(whole[:place]), expected)
      assert pixels is FLAT, place


def test_it_is_said_how_much_of_a_jpeg_is_there():
  whole = _save(NOISE.repeat(2, 0), 'JPEG', 'L', exif=EXIF)
  begins = whole.index(b'\xff\xda')
  half = begins + (len(whole) - begins) // 2
  said = _refused(whole[:half])
  rows = int(re.fullmatch(r'it ends too soon: (\d+) of 80 rows .*', said)[1])
  # Noise takes as many bytes everywhere.
  assert rows in (32, 40)
  said = 'it ends too soon: not all of its scans are there'
  assert _refused(whole[:begins]) == said


@pytest.mark.parametrize('filling', [b'\0' * 5000, b'\xff' * 7, b'\xff\0\xff'])
def test_a_cut_jpeg_that_was_filled_up_lacks_as_much(filling):
  whole = _save(NOISE, 'JPEG')
  np.testing.assert_array_equal(_read(whole[:-2] + filling), _read(whole))
  assert 'too soon' in _refused(whole[: len(whole) * 3 // 4] + filling)


def test_a_cut_png_that_was_filled_up_lacks_as_much():
  # Its deflate goes on with zeros, to the last row.
  whole = _save(SMOOTH.repeat(6, 0), 'PNG')
  for cut in range(len(whole) // 4, len(whole) - 12, 99):
    _refused(whole[:cut] + bytes(len(whole) - cut))


@pytest.mark.parametrize(
  'options', [o for o in JPEGS if 'progressive' not in o], ids=str
)
def test_an_end_behind_what_a_jpeg_lacks_is_none(options):
  whole = _save(NOISE, 'JPEG', **options)
  begins = whole.index(b'\xff\xda')
  for share in (0.3, 0.5, 0.8):
    cut = whole[: begins + int(share * (len(whole) - begins))]
    assert 'rows are there' in _refused(cut + b'\xff\xd9')


def test_an_end_behind_the_scans_that_are_there_is_none():
  whole = _save(NOISE, 'JPEG', quality=90, progressive=True)
  scans = [m.start() for m in re.finditer(rb'\xff\xda', whole)]
  for end in scans[1:]:
    said = _refused(whole[:end] + b'\xff\xd9')
    assert said == 'it ends too soon: not all of its scans are there'


@pytest.mark.parametrize('options', JPEGS, ids=str)
def test_what_is_as_gray_as_lacking_pixels_is_read(options):
  gray = np.full_like(NOISE, 128)
  whole = _save(gray, 'JPEG', **options)
  expected = np.asarray(Image.open(io.BytesIO(whole)).convert('RGB'))
  np.testing.assert_array_equal(_read(whole), expected)


def test_a_png_of_wrong_bytes_is_refused_though_it_ends():
  whole = _save(SMOOTH.repeat(6, 0), 'PNG')
  begins = whole.index(b'IDAT') + 4
  for place in range(begins + 9, len(whole) - 64, 99):
    wrong = whole[:place] + bytes(32) + whole[place + 32 :]
    if wrong != whole:
      _refused(wrong)
  # What no pixel depends on may be wrong.
  text = b'\0\0\0\3tEXtk\0v\0\0\0\0'
  more = whole[: begins - 8] + text + whole[begins - 8 :]
  np.testing.assert_array_equal(_read(more), _read(whole))


def test_what_follows_a_jpeg_is_not_its_matter():
  whole = _save(NOISE, 'JPEG')
  for more in (b'\0', b'garbage' * 999, whole, whole[:-2], b'\xff\xd8\xff'):
    np.testing.assert_array_equal(_read(whole + more), _read(whole))


def test_a_jpeg_with_a_thumbnail_before_it_is_cut_nowhere_else():
  thumbnail = _save(NOISE[:8, :8], 'JPEG')
  exif = b'Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0' + thumbnail
  whole = _save(NOISE, 'JPEG', exif=exif)
  np.testing.assert_array_equal(_read(whole[:-2]), _read(whole))
  assert 'too soon' in _refused(whole[:-9])


def _chunk(kind, body, checksum=None):
  checksum = zlib.crc32(kind + body) if checksum is None else checksum
  return (
    struct.pack('>I', len(body)) + kind + body + struct.pack('>I', checksum)
  )


def _png(*chunks, after=(), mode='RGB', **options):
  """With more chunks before its pixels, and after them."""
  whole = _save(NOISE, 'PNG', mode, **options)
  begin, end = whole.index(b'IDAT') - 4, len(whole) - 12
  parts = whole[:begin], *chunks, whole[begin:end], *after, whole[end:]
  return b''.join(parts)


_XMP = b'<x:xmpmeta/>' + bytes(range(32, 127)) * 22_000  # 2 MB
_LONG = {
  'iTXt': b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(_XMP),
  'zTXt': b'Comment\0\0' + zlib.compress(bytes(10**7)),
  'tEXt': b'Comment\0' + b'x' * 70_000_000,
  'iCCP': b'Printer\0\0' + zlib.compress(bytes(3 * 10**6)),
}


@pytest.mark.parametrize('kind', _LONG)
@pytest.mark.parametrize('place', ['before', 'after'])
def test_long_texts_are_not_worth_refusing_a_png(kind, place):
  chunk = [_chunk(kind.encode(), _LONG[kind])]
  data = _png(*chunk) if place == 'before' else _png(after=chunk)
  np.testing.assert_array_equal(_read(data), NOISE)


def test_a_long_xmp_turns_a_png_as_a_short_one_does():
  turn = b'<a tiff:Orientation="6"/>'
  for text in (turn, turn + _XMP, _XMP + turn):
    body = b'XML:com.adobe.xmp\0\1\0\0\0' + zlib.compress(text)
    np.testing.assert_array_equal(
      _read(_png(_chunk(b'iTXt', body))), np.rot90(NOISE, -1)
    )


def test_a_bomb_in_a_text_is_not_unpacked():
  text = zlib.compress(b'<a tiff:Orientation="6"/>' + bytes(2**27))
  data = _png(_chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + text))
  tracemalloc.start()
  seen = _read(data)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  np.testing.assert_array_equal(seen, np.rot90(NOISE, -1))
  assert peak < 2**26


@pytest.mark.parametrize(
  'chunk',
  [
    _chunk(b'tEXt', b'Comment\0x', 0),
    _chunk(b'tIME', bytes(7), 0),
    _chunk(b'gAMA', bytes(2)),
    _chunk(b'pHYs', b'\1'),
    _chunk(b'iCCP', b'no end'),
    _chunk(b'zTXt', b'Comment\0\7x'),
    _chunk(b'vpAg', bytes(9), 7),
    _chunk(b'acTL', bytes(3)),
    _chunk(b'acTL', struct.pack('>II', 2, 0)) + _chunk(b'fcTL', bytes(26)),
  ],
  ids=range(9),
)
def test_a_broken_chunk_that_no_pixel_depends_on_is_passed_over(chunk):
  np.testing.assert_array_equal(_read(_png(chunk)), NOISE)


def test_a_mended_png_has_the_colors_that_were_meant():
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB'))
  packed = b'Mine\0\0' + zlib.compress(_swapped(profile.tobytes()))
  chunk = _chunk(b'iCCP', packed)
  whole = _png(chunk)
  meant = _read(whole)
  assert np.abs(meant.astype(int) - NOISE).mean() > 10
  for damaged in (
    whole + b'\0',
    whole[:-12],
    _png(chunk, _chunk(b'tEXt', b'Comment\0x', 0)),
  ):
    np.testing.assert_array_equal(_read(damaged), meant)
  # Of a profile that may be another nothing is believed.
  wrong = _png(_chunk(b'iCCP', packed, 7))
  np.testing.assert_array_equal(_read(wrong), NOISE)


def _swapped(profile):
  """sRGB whose red is green, by the tags of its table."""
  red, green = profile.index(b'rXYZ'), profile.index(b'gXYZ')
  data = bytearray(profile)
  data[red : red + 4], data[green : green + 4] = b'gXYZ', b'rXYZ'
  return bytes(data)


def test_a_png_is_turned_by_exif_whose_checksum_is_wrong():
  body = EXIF.tobytes().removeprefix(b'Exif\0\0')
  data = _png(_chunk(b'eXIf', body, 1))
  np.testing.assert_array_equal(_read(data), np.rot90(NOISE, -1))


def test_a_png_without_its_end_is_read_and_without_pixels_refused():
  text = _chunk(b'tEXt', b'Comment\0' + b'x' * 50)
  whole = _png(after=[text])
  end = whole.index(b'tEXt') - 4
  for place in range(end, len(whole)):  # anywhere in what follows the pixels
    np.testing.assert_array_equal(_read(whole[:place]), NOISE)
  for place in (end - 12 - 30, len(whole) // 2, whole.index(b'IDAT') + 8):
    assert _refused(whole[:place]) == 'it ends too soon', place
  broken = _png(_chunk(b'tEXt', b'Comment\0x', 0))
  assert _refused(broken[:-100]) == 'it ends too soon'


@pytest.mark.parametrize('kind', ['IHDR', 'PLTE', 'tRNS'])
def test_a_png_whose_colors_may_be_others_is_refused(kind):
  data = bytearray(
    _save(NOISE, 'PNG', 'P', transparency=bytes(range(0, 250, 50)))
  )
  data[data.index(kind.encode()) + 5] ^= 64
  assert _refused(bytes(data)) == f'the checksum of its {kind} is wrong'


def test_a_png_of_broken_comments_has_whole_pixels_or_is_refused():
  for place in range(-20, -12):  # the last pixels and their checksums
    data = bytearray(_png(_chunk(b'tEXt', b'Comment\0x', 0)))
    data[place] ^= 1
    assert _refused(bytes(data)) == 'the checksum of its IDAT is wrong'


def test_of_a_webp_it_is_said_how_much_is_there_and_more_does_no_harm():
  f = io.BytesIO()
  frames = [Image.fromarray(NOISE[::step]) for step in (-1, 1)]
  Image.fromarray(NOISE).save(f, 'WEBP', save_all=True, append_images=frames)
  for whole in (_save(NOISE, 'WEBP', exif=EXIF), f.getvalue()):
    pixels = _read(whole)
    for more in (b'\0', b'odd', whole):
      np.testing.assert_array_equal(_read(whole + more), pixels)
    for cut in (1, 30, len(whole) // 2):
      place = len(whole) - cut
      assert _refused(whole[:place]) == (
        f'it ends too soon: {place} of {len(whole)} bytes are there'
      )
