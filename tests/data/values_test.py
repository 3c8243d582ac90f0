"""Values as people have them: deep, float, of other colors, clear."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms
import pytest

from chimera.data import images, skipped, values


@pytest.fixture
def said(warnings):
  """Warnings, whatever was said before."""
  skipped.say_once.cache_clear()
  yield warnings
  skipped.say_once.cache_clear()


def _read(path):
  return images.load_photograph(path)


def _png(array):
  """A PNG of 16 bits a channel, which Pillow does not write: (h, w, 3 or 4)."""
  height, width, channels = array.shape
  kind = {3: 2, 4: 6}[channels]
  data = b''.join(b'\0' + row.astype('>u2').tobytes() for row in array)
  chunks = b'\x89PNG\r\n\x1a\n'
  header = struct.pack('>IIBBBBB', width, height, 16, kind, 0, 0, 0)
  for name, body in (
    *((b'IHDR', header), (b'IDAT', zlib.compress(data)), (b'IEND', b'')),
  ):
    checksum = struct.pack('>I', zlib.crc32(name + body))
    chunks += struct.pack('>I', len(body)) + name + body + checksum
  return chunks


def _tiff(array, order):
  """A TIFF of 16-bit RGB in one strip, which Pillow does not write."""
  height, width, _ = array.shape
  data = array.astype(f'{order}u2').tobytes()
  bits = struct.pack(f'{order}3H', 16, 16, 16)
  entries = [
    *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8)),
    *((262, 3, 1, 2), (273, 4, 1, 14), (277, 3, 1, 3)),
    *((278, 4, 1, height), (279, 4, 1, len(data))),
  ]
  start = {'<': b'II', '>': b'MM'}[order] + struct.pack(f'{order}H', 42)
  head = start + struct.pack(f'{order}I', 14 + len(data)) + bits
  directory = struct.pack(f'{order}H', len(entries))
  for tag, kind, count, value in entries:
    is_short = kind == 3 and count == 1
    form = f'{order}HHIHxx' if is_short else f'{order}HHII'
    directory += struct.pack(form, tag, kind, count, value)
  return head + data + directory + bytes(4)


@pytest.mark.parametrize(
  ('most', 'bits'), [(255, 8), (1023, 10), (4000, 12), (4095, 12)]
)
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_16_bit_gray_of_fewer_bits_is_stretched(
  tmp_path, said, suffix, most, bits
):
  gray = np.array([[0, most // 2, most]], np.uint16)
  for name in 'ab':
    Image.fromarray(gray).save(tmp_path / f'{name}.{suffix}')
    seen = _read(tmp_path / f'{name}.{suffix}')
    expected = gray[0] * (255 / (2**bits - 1))
    np.testing.assert_allclose(seen[0, :, 1], expected, atol=0.5)
  assert said == [
    f'16-bit images whose values span {bits} bits are stretched: '
    f'{2**bits - 1} becomes 255.'
  ]


@pytest.mark.parametrize('bits', [8, 16])
def test_a_scan_whose_0_is_white_is_no_negative(tmp_path, bits):
  gray = np.array([[0, 51, 255]], np.uint8)
  stored = gray if bits == 8 else gray.astype(np.uint16) * 257
  path = tmp_path / 'a.tif'
  Image.fromarray(stored).save(path)
  black, white = (b'\x06\1\3\0\1\0\0\0' + n for n in (b'\1\0', b'\0\0'))
  data = path.read_bytes()
  assert data.count(black) == 1
  path.write_bytes(data.replace(black, white))
  assert _read(path)[0, :, 1].tolist() == [255, 204, 0]


@pytest.mark.parametrize('channels', [3, 4])
def test_16_bit_color_of_fewer_bits_is_stretched(tmp_path, said, channels):
  rng = np.random.default_rng(0)
  for bits, calls in ((16, 0), (12, 1), (10, 2)):
    deep = rng.integers(0, 2**bits, (5, 7, channels))
    deep[0, 0, 0] = 2**bits - 1
    if channels == 4:
      deep[..., 3] = 65535
    (tmp_path / 'a.png').write_bytes(_png(deep))
    expected = deep[..., :3] * 255 / (2**bits - 1)
    # Pillow cuts 16 bits off instead of rounding them.
    atol = 1 if bits == 16 else 0.5
    np.testing.assert_allclose(_read(tmp_path / 'a.png'), expected, atol=atol)
    if channels == 3:
      for order in '<>':
        (tmp_path / 'a.tif').write_bytes(_tiff(deep, order))
        seen = _read(tmp_path / 'a.tif')
        np.testing.assert_allclose(seen, expected, atol=atol)
    assert len(said) == calls


def test_the_alpha_of_stretched_color_stays(tmp_path):
  deep = np.full((1, 2, 4), 4095)
  deep[..., :3] = 0
  deep[0, :, 3] = 65535, 0
  (tmp_path / 'a.png').write_bytes(_png(deep))
  np.testing.assert_array_equal(_read(tmp_path / 'a.png')[0, :, 0], [0, 255])


@pytest.mark.parametrize(
  ('floats', 'expected'),
  [
    ([0, 0.5, 1], [0, 128, 255]),
    ([0, 0.5, 1.2], [0, 128, 255]),  # a filter's overshoot
    ([0, 1, 16], [0, 1, 16]),
    ([0, 100.4, 255], [0, 100, 255]),
    ([0, 0, 0], [0, 0, 0]),
  ],
)
def test_floats_are_of_0_to_1_or_of_0_to_255(tmp_path, floats, expected):
  Image.fromarray(np.array([floats], np.float32)).save(tmp_path / 'a.tif')
  np.testing.assert_array_equal(_read(tmp_path / 'a.tif')[0, :, 0], expected)


@pytest.mark.parametrize(
  ('array', 'complaint'),
  [
    (
      np.float32([[0, 256]]),
      r'must be in \[0, 1\] or \[0, 255\], got \[0, 2',
    ),
    (np.float32([[0, 2.5]]), r'up to 2\.5 are neither of \[0, 1\] nor'),
    (np.float32([[-0.1, 1]]), r'got \[-0\.1, 1\]'),
    (np.float32([[0, np.nan]]), r'got \[nan, nan\]'),
    (np.int32([[0, 65536]]), r'I must be in \[0, 65535\], got \[0, 65536\]'),
    (np.int32([[-1, 3]]), r'got \[-1, 3\]'),
  ],
)
def test_values_that_are_no_light_are_refused_by_their_range(
  tmp_path, array, complaint
):
  Image.fromarray(array).save(tmp_path / 'a.tif')
  with pytest.raises(ValueError, match=rf'a\.tif is not .*{complaint}'):
    _read(tmp_path / 'a.tif')


def _profile(space='sRGB'):
  made = ImageCms.ImageCmsProfile(ImageCms.createProfile(space))
  return made.tobytes()


def _swapped():
  """sRGB with red and blue exchanged, under another name."""
  data = bytearray(_profile())
  tags = {}
  for i in range(struct.unpack_from('>I', data, 128)[0]):
    at = 132 + 12 * i
    tags[bytes(data[at : at + 4])] = at
  red, blue = tags[b'rXYZ'], tags[b'bXYZ']
  data[red : red + 4], data[blue : blue + 4] = b'bXYZ', b'rXYZ'
  return (
    bytes(data).replace(b's\0R\0G\0B', b'm\0i\0n\0e').replace(b'sRGB', b'mine')
  )


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'tif', 'webp'])
def test_colors_of_a_profile_become_srgb_s(tmp_path, said, suffix):
  options = {} if suffix == 'tif' else {'quality': 100}
  for name, profile in (('own', _swapped()), ('srgb', _profile())):
    Image.new('RGB', (16, 16), (200, 100, 30)).save(
      tmp_path / f'{name}.{suffix}', icc_profile=profile, **options
    )
  near = {'atol': 3} if suffix in ('jpg', 'webp') else {'atol': 1}
  own, srgb = (_read(tmp_path / f'{n}.{suffix}') for n in ('own', 'srgb'))
  np.testing.assert_allclose(own[8, 8], (30, 100, 200), **near)
  np.testing.assert_allclose(srgb[8, 8], (200, 100, 30), **near)
  assert said == []


def test_srgb_s_own_profile_changes_no_bit(tmp_path):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png', icc_profile=_profile())
  np.testing.assert_array_equal(_read(tmp_path / 'a.png'), pixels)


def _linear():
  """Linear light, under sRGB's name, as GIMP and Krita have one."""
  data = bytearray(_profile())
  for i in range(struct.unpack_from('>I', data, 128)[0]):
    tag, at, _ = struct.unpack_from('>4sII', data, 132 + 12 * i)
    if tag in (b'rTRC', b'gTRC', b'bTRC'):
      data[at : at + 12] = b'curv' + bytes(8)  # of no points: the identity
  return bytes(data)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_linear_light_is_no_srgb_whatever_its_name(tmp_path, said, dtype):
  # 55 / 255 of light is 12.92 c or 1.055 c^(1 / 2.4) - .055: 127.8.
  gray = np.full((4, 4), 55 * (np.iinfo(dtype).max // 255), dtype)
  image = Image.fromarray(gray)
  image.save(tmp_path / 'a.png', icc_profile=_linear())
  np.testing.assert_allclose(_read(tmp_path / 'a.png'), 128, atol=1)
  assert said == []


def test_a_profile_holds_for_alpha_palettes_and_gray(tmp_path, said):
  alpha = Image.new('RGBA', (2, 1), (200, 100, 30, 255))
  alpha.putpixel((1, 0), (200, 100, 30, 0))
  palette = Image.new('RGB', (2, 1), (200, 100, 30)).quantize(2)
  gray = Image.new('L', (2, 1), 100)
  made = {'alpha': alpha, 'palette': palette, 'gray': gray}
  for name, image in made.items():
    image.save(tmp_path / f'{name}.png', icc_profile=_swapped())
  seen = {name: _read(tmp_path / f'{name}.png')[0] for name in made}
  np.testing.assert_allclose(seen['alpha'][0], (30, 100, 200), atol=1)
  np.testing.assert_array_equal(seen['alpha'][1], 255)
  np.testing.assert_allclose(seen['palette'][0], (30, 100, 200), atol=1)
  np.testing.assert_allclose(seen['gray'][0], 100, atol=1)
  assert said == []


@pytest.mark.parametrize(
  'profile', [b'none', bytes(300), _profile()[:200], _profile(space='LAB')]
)
def test_a_profile_that_is_none_is_passed_over_in_one_line(
  tmp_path, said, profile
):
  pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
  for name in 'ab':
    path = tmp_path / f'{name}.png'
    Image.fromarray(pixels).save(path, icc_profile=profile)
    np.testing.assert_array_equal(_read(path), pixels)
  (line,) = said
  assert line.startswith('An ICC profile is passed over: ')
  assert '\n' not in line


def test_a_profile_of_cmyk_is_used(tmp_path, said):
  # There is none here to use: one of RGB is not, and Pillow's way is taken.
  flat = Image.new('RGB', (16, 16), (255, 0, 0)).convert('CMYK')
  flat.save(tmp_path / 'a.jpg', quality=100, icc_profile=_profile())
  flat.save(tmp_path / 'b.jpg', quality=100, icc_profile=_swapped())
  for name in 'ab':
    seen = _read(tmp_path / f'{name}.jpg').astype(int)
    np.testing.assert_allclose(seen[8, 8], (255, 0, 0), atol=3)
  assert said == [
    'An ICC profile is passed over: it is of RGB, the image of CMYK.'
  ]


def test_of_an_animation_the_first_frame_is_read(tmp_path):
  frames = [Image.new('RGB', (8, 8), color) for color in ('red', 'blue')]
  for suffix in ('gif', 'png', 'webp', 'tif'):
    path = tmp_path / f'a.{suffix}'
    options = {'lossless': True} if suffix == 'webp' else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(path), 'n_frames', 1) == 2
    np.testing.assert_array_equal(_read(path)[4, 4], (255, 0, 0))


def test_all_values_of_16_bits_are_rounded():
  gray = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  np.testing.assert_array_equal(
    values.stretch(gray), np.rint(gray.astype(np.float64) * 255 / 65535)
  )
  buffer = io.BytesIO()
  Image.fromarray(gray).save(buffer, 'PNG')
  assert images.decode(buffer)[255, 255].tolist() == [255] * 3
