"""Images in: what people see, the colour range; and path_params let in."""

import concurrent.futures
import errno
import fractions
import io
import os
import pathlib
import pickle
import re
import struct
import zipfile

import numpy as np
from PIL import Image
import pytest
import tifffile

import chimera
from chimera.data import archives, arrays, folders, images


def _noise(seed, height=60, width=50):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'bmp', 'tiff', 'gif'])
def test_a_mutated_image_is_read_or_is_one_line(tmp_path, suffix):
  path = tmp_path / f'a.{suffix}'
  exif = Image.Exif()
  exif[0x0112] = 6
  options = {} if suffix in ('bmp', 'gif') else {'exif': exif}
  Image.fromarray(_noise(0, 12, 9)).save(path, **options)
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  for _ in range(300):
    data = bytearray(whole)
    for _ in range(rng.integers(1, 6)):
      data[rng.integers(min(len(data), 120))] = rng.integers(256)
    path.write_bytes(data)
    try:
      seen = images.load_photograph(str(path))
    except ValueError as e:
      line = str(e)
      assert 'is not a readable image' in line
    else:
      assert seen.dtype == np.uint8


def test_exif_rotation_is_applied(tmp_path):
  # Stored lying down, marked "rotate 90 degrees clockwise to show" (6).
  stored = np.zeros((20, 30, 3), np.uint8)
  stored[:10, :10] = (255, 0, 0)  # a red corner, top left as stored
  exif = Image.Exif()
  exif[0x0112] = 6
  path = tmp_path / 'a.png'
  Image.fromarray(stored).save(path, exif=exif)
  seen = images.load_photograph(str(path))
  assert seen.shape == (30, 20, 3)
  shown = np.zeros((30, 20, 3), np.uint8)
  shown[:10, 10:] = (255, 0, 0)  # top right as shown
  np.testing.assert_array_equal(seen, shown)


def _save(path, array, mode, **options):
  Image.fromarray(array).convert(mode).save(path, **options)


def test_alpha_is_composited_over_white(tmp_path):
  rgba = np.zeros((1, 3, 4), np.uint8)
  rgba[0, :, 0] = 200
  rgba[0, :, 3] = (255, 0, 102)  # opaque, clear, 40 % red
  Image.fromarray(rgba).save(tmp_path / 'a.png')
  seen = images.load_photograph(str(tmp_path / 'a.png'))
  # 0.4 * (200, 0, 0) + 0.6 * 255 = (233, 153, 153)
  np.testing.assert_allclose(
    seen[0], [(200, 0, 0), (255, 255, 255), (233, 153, 153)], atol=1
  )


def test_gray_with_alpha_is_composited_over_white(tmp_path):
  la = np.array([[[100, 255], [100, 0]]], np.uint8)
  Image.fromarray(la, 'LA').save(tmp_path / 'a.png')
  seen = images.load_photograph(str(tmp_path / 'a.png'))
  np.testing.assert_array_equal(seen[0], [(100,) * 3, (255,) * 3])


def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path):
  values = np.array([[0, 257, 128 * 257, 65535, 300]], np.uint16)
  Image.fromarray(values).save(tmp_path / 'a.png')
  seen = images.load_photograph(str(tmp_path / 'a.png'))
  expected = [0, 1, 128, 255, 1]
  np.testing.assert_array_equal(
    seen[0], np.array(expected)[:, None].repeat(3, 1)
  )


def test_16_bit_gray_tiff_is_scaled_likewise(tmp_path):
  values = np.array([[0, 65535, 32896]], np.uint16)
  Image.fromarray(values).save(tmp_path / 'a.tif')
  seen = images.load_photograph(str(tmp_path / 'a.tif'))
  np.testing.assert_array_equal(seen[0, :, 0], [0, 255, 128])


def test_gray_palette_bilevel_and_cmyk_become_rgb(tmp_path):
  flat = np.full((8, 8, 3), (255, 0, 0), np.uint8)
  _save(tmp_path / 'palette.png', flat, 'P')
  _save(tmp_path / 'gray.png', flat, 'L')
  _save(tmp_path / 'cmyk.jpg', flat, 'CMYK', quality=100)
  _save(tmp_path / 'bilevel.bmp', np.full((8, 8, 3), 255, np.uint8), '1')
  seen = {
    path.stem: images.load_photograph(str(path)) for path in tmp_path.iterdir()
  }
  assert all(x.shape == (8, 8, 3) for x in seen.values())
  assert all(x.dtype == np.uint8 for x in seen.values())
  np.testing.assert_array_equal(seen['palette'], flat)
  # ITU-R 601: 0.299 * 255
  np.testing.assert_allclose(seen['gray'], 76, atol=1)
  np.testing.assert_allclose(seen['cmyk'].astype(int), flat, atol=3)
  np.testing.assert_array_equal(seen['bilevel'], 255)


def test_a_transparent_palette_color_becomes_white(tmp_path):
  image = Image.new('P', (2, 1))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putpixel((1, 0), 1)
  image.save(tmp_path / 'a.png', transparency=1)
  seen = images.load_photograph(str(tmp_path / 'a.png'))
  np.testing.assert_array_equal(seen[0], [(10, 20, 30), (255, 255, 255)])


def test_what_is_not_an_image_is_one_line(tmp_path):
  (tmp_path / 'a.png').write_text('not\nan image')
  with pytest.raises(ValueError, match=r'a\.png is not a readable image') as e:
    images.load_photograph(str(tmp_path / 'a.png'))
  assert '\n' not in str(e.value)


_GRAY = Image.new('L', (9, 7), 100)
_NONE = 'it is no image that Pillow knows, it begins with '
_BROKEN = {
  'empty': (b'', 'it is empty'),
  'a text': (b'a recipe', f"{_NONE}b'a recipe'"),
  'an SVG': (b'<svg xmlns="http:', f"{_NONE}b'<svg"),
  'a page': (b'<!DOCTYPE html><p>', f"{_NONE}b'<!DOC"),
  # Pillow would call Ghostscript.
  'PostScript': (
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n',
    f"{_NONE}b'%!PS-Adobe-3.0 E'",
  ),
  'a header': (b'\x89PNG\r\n\x1a\n' + bytes(30), 'its header is broken'),
  'JPEG': (b'\xff\xd8\xff' * 9, 'it ends too soon: not all of its scans are'),
  'TIFF': (b'II*\0\x99\0\0\0', 'its header is broken'),
  'a BMP of 9 Tpixels': (
    b'BM' + struct.pack('<IIIIiiHHIIiiII', 99, 0, 54, 40, *(3 * 10**6,) * 2,
                        1, 24, 0, 0, 0, 0, 0, 0),
    'it has too many pixels: 3000000 x 3000000 are more than 268435456',
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', _BROKEN)
def test_why_a_file_is_not_read_is_said_in_plain_words(tmp_path, name):
  data, why = _BROKEN[name]
  (tmp_path / 'a.png').write_bytes(data)
  with pytest.raises(ValueError, match=re.escape(why)) as e:
    images.load_photograph(tmp_path / 'a.png')
  line = str(e.value)
  assert line.startswith(f'{tmp_path}/a.png is not a readable image: {why}')
  assert '\n' not in line
  assert ' at 0x' not in line


def test_what_cannot_be_opened_is_said_in_plain_words(tmp_path, monkeypatch):
  (tmp_path / 'link.png').symlink_to('gone.png')
  (tmp_path / 'folder.png').mkdir()
  os.mkfifo(tmp_path / 'pipe.png')
  (tmp_path / 'locked.png').write_bytes(b'x')

  def refuse(path, mode):
    if str(path).endswith('locked.png'):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return io.FileIO(path, mode)

  monkeypatch.setattr(images, 'open', refuse, raising=False)
  for name, why in {
    'link': 'it is a link to a file that is not there',
    'folder': 'it is not a file',
    'pipe': 'it is not a file',
    'locked': 'Permission denied',
    'nothing': 'No such file or directory',
  }.items():
    with pytest.raises(ValueError, match=rf'{name}\.png is not .* {why}\.$'):
      images.load_photograph(tmp_path / f'{name}.png')


def test_no_memory_is_taken_for_pixels_that_cannot_be_there(tmp_path):
  path = tmp_path / 'a.tif'
  _GRAY.save(path, compression='tiff_lzw')
  data = bytearray(path.read_bytes())
  for tag in (256, 257):  # width and height, of 4 bytes
    place = data.index(struct.pack('<HH', tag, 3)) + 2
    struct.pack_into('<HII', data, place, 4, 1, 15_000)
  path.write_bytes(data)
  with pytest.raises(ValueError, match='225000000 pixels cannot be in'):
    images.load_photograph(path)


def test_plain_pictures_are_read_however_small_their_files(tmp_path):
  plain = Image.new('1', (6000, 5000), 1)
  plain.paste(0, (100, 100, 200, 200))
  plain.save(tmp_path / 'a.tif', compression='group4')
  plain.convert('RGB').save(tmp_path / 'a.webp', lossless=True)
  for path in tmp_path.iterdir():
    assert path.stat().st_size * 2**13 < 6000 * 5000
    assert images.load_image(path).size == (6000, 5000)


def test_heic_by_another_name_is_told_what_it_needs(tmp_path):
  path = tmp_path / 'IMG_1.jpg'
  path.write_bytes(b'\0\0\0\x24ftypheic' + bytes(99))
  with pytest.raises(ValueError, match='HEIC, which needs `pip install pillow'):
    images.load_photograph(path)


def test_a_tiff_of_fewer_strips_than_rows_is_no_half_black_image(tmp_path):
  path = tmp_path / 'a.tif'
  _GRAY.save(path)
  data = bytearray(path.read_bytes())
  place = data.index(struct.pack('<HHI', 257, 4, 1)) + 8
  assert data[place] == 7
  data[place] = 9
  path.write_bytes(data)
  with pytest.raises(ValueError, match='too soon: 63 of 81 pixels are there'):
    images.load_photograph(path)


def test_a_tiff_of_one_strip_over_and_over_is_refused_at_once(tmp_path):
  path = tmp_path / 'a.tif'
  _GRAY.save(path)
  data = bytearray(path.read_bytes())
  count = 10_000
  for tag in (273, 279):  # where the strips are, and how long
    place = data.index(struct.pack('<HHI', tag, 4, 1))
    struct.pack_into('<HHII', data, place, tag, 4, count, len(data))
  place = data.index(struct.pack('<HHII', 278, 4, 1, 7))  # rows of a strip
  struct.pack_into('<HHII', data, place, 278, 4, 1, 1)
  path.write_bytes(data + struct.pack('<I', 63) * count)
  with pytest.raises(ValueError, match='90000 values for 63 pixels'):
    images.load_photograph(path)


@pytest.mark.parametrize('byteorder', ['<', '>'])
@pytest.mark.parametrize(
  'layout', [{}, {'tile': (16, 16)}, {'rowsperstrip': 8}]
)
@pytest.mark.parametrize('most', [65535, 4095])
def test_channels_of_16_bits_one_behind_the_other(
  tmp_path, byteorder, layout, most
):
  rng = np.random.default_rng(0)
  values = rng.integers(0, most + 1, (3, 40, 50), np.uint16)
  path = tmp_path / 'a.tif'
  how = {'photometric': 'rgb', 'planarconfig': 'separate', **layout}
  tifffile.imwrite(path, values, byteorder=byteorder, **how)
  seen = images.load_photograph(path).astype(int)
  # The high byte is as near as 16 bits are rounded.
  expected = values.transpose(1, 2, 0) * (255 / most)
  assert np.abs(seen - expected).max() <= (1 if most == 65535 else 0.5)
  tifffile.imwrite(path, values, compression='zlib', **how)
  if most == 65535:
    np.testing.assert_array_equal(images.load_photograph(path), seen)
  else:  # their low bytes are out of reach
    with pytest.raises(ValueError, match='save them interleaved'):
      images.load_photograph(path)


@pytest.mark.parametrize('compression', ['zlib', None])
@pytest.mark.parametrize('byteorder', ['<', '>'])
@pytest.mark.parametrize('dtype', ['f4', 'u2', 'i4'])
def test_gray_of_any_order_is_read(tmp_path, dtype, byteorder, compression):
  values = np.arange(0, 16 * 16, dtype=dtype).reshape(16, 16)
  path = tmp_path / 'a.tif'
  how = dict(photometric='minisblack', compression=compression)
  tifffile.imwrite(path, values, byteorder=byteorder, **how)
  expected = np.repeat(values[..., None], 3, -1)
  np.testing.assert_array_equal(images.load_photograph(path), expected)


def test_what_was_read_may_be_written_to(tmp_path):
  path = tmp_path / 'a.png'
  Image.new('RGB', (4, 6)).save(path)
  for size in (None, 4):
    image = images.read_image(path, size)
    image[...] = 7
    assert image.min() == 7


def test_channels_of_16_bits_and_alpha_behind_are_refused(tmp_path):
  path = tmp_path / 'a.tif'
  how = {'photometric': 'rgb', 'planarconfig': 'separate'}
  rgba = np.full((4, 8, 8), 40_000, np.uint16)
  tifffile.imwrite(path, rgba, extrasamples=['unassalpha'], **how)
  with pytest.raises(ValueError, match='save them interleaved'):
    images.load_photograph(path)
  dark = np.full((3, 8, 8), 9, np.uint8)
  tifffile.imwrite(path, dark, **how)
  np.testing.assert_array_equal(images.load_photograph(path), 9)


@pytest.mark.parametrize('size', [0, -5, 64.0, (8, 8)])
def test_a_size_that_is_none_is_one_line(tmp_path, size):
  _GRAY.save(tmp_path / 'a.png')
  with pytest.raises(ValueError, match='size must be a whole number above 0'):
    images.read_image(tmp_path / 'a.png', size)
  seen = images.read_image(tmp_path / 'a.png', np.int64(6))
  assert seen.shape == (6, 6, 3)


def test_a_jpeg_of_the_same_scan_over_and_over_is_refused_at_once(tmp_path):
  f = io.BytesIO()
  Image.new('L', (4000, 4000)).save(f, 'JPEG', progressive=True)
  data = f.getvalue()
  scan = data[data.rindex(b'\xff\xda') : -2]
  # Half a minute, of 0.1 MB.
  (tmp_path / 'a.jpg').write_bytes(data[:-2] + scan * 1000 + data[-2:])
  with pytest.raises(ValueError, match='16000000 pixels are sent 1006 times'):
    images.load_photograph(tmp_path / 'a.jpg')


def test_what_follows_a_large_jpeg_are_no_scans_of_it(tmp_path):
  f = io.BytesIO()
  Image.new('L', (4000, 4000)).save(f, 'JPEG')
  (tmp_path / 'a.jpg').write_bytes(f.getvalue() + b'\xff\xda' * 10_000)
  assert images.load_photograph(tmp_path / 'a.jpg').shape == (4000, 4000, 3)


def test_pillow_s_limit_is_not_ours_and_stays_for_others(tmp_path, monkeypatch):
  # Of the latter two Pillow asks twice.
  for name in ('a.png', 'a.tif', 'a.icns'):
    Image.new('RGB', (64, 64)).save(tmp_path / name)
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)

  def read(name):
    image = images.load_image(str(tmp_path / name))
    assert images.crop(image, (0, 0, 20, 20)).size == (20, 20)

  names = ['a.png', 'a.tif', 'a.icns'] * 8
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(read, names))
  assert Image.MAX_IMAGE_PIXELS == 10
  with pytest.raises(Image.DecompressionBombError):
    Image.open(tmp_path / 'a.png')


def _exif(*more):
  """Bytes of EXIF that turn an image upside down, and say more."""
  entries = [struct.pack('<HHIHxx', 0x0112, 3, 1, 3), *more]
  tiff = struct.pack('<2sHIH', b'II', 42, 8, len(entries)) + b''.join(entries)
  return b'Exif\0\0' + tiff + bytes(4)


@pytest.mark.parametrize(
  'more',
  [
    struct.pack('<HHII', 0x8769, 4, 1, 2**31),  # more of it, nowhere
    struct.pack('<HHII', 0x927C, 7, 2**32 - 1, 4),  # 4 GB
    struct.pack('<HHII', 0x8298, 99, 1, 4),  # of no type
    struct.pack('<HHII', 0x011A, 5, 1, 20),  # 0 / 0
    struct.pack('<HHII', 0x8769, 4, 1, 8),  # itself
  ],
  ids=range(5),
)
def test_broken_exif_turns_an_image_as_far_as_it_is_read(tmp_path, more):
  _GRAY.putpixel((0, 0), 255)
  _GRAY.save(tmp_path / 'a.png', exif=_exif(more))
  seen = images.load_photograph(tmp_path / 'a.png')
  assert seen[-1, -1].tolist() == [255] * 3
  _GRAY.save(tmp_path / 'a.jpg', exif=_exif(more), quality=100)
  assert images.load_photograph(tmp_path / 'a.jpg')[-1, -1].min() > 200


def test_exif_that_is_none_turns_nothing(tmp_path):
  for exif in (b'Exif\0\0', b'Exif\0\0no TIFF', b'Exif\0\0II*\0', b'x' * 99):
    _GRAY.save(tmp_path / 'a.png', exif=exif)
    assert images.load_photograph(tmp_path / 'a.png').shape == (7, 9, 3)


@pytest.mark.parametrize('kind', [str, os.fsencode, pathlib.Path])
def test_paths_of_any_kind_are_taken(tmp_path, kind):
  name = kind(tmp_path / 'a.png')
  pixels = _noise(0)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  for read in (images.load_photograph, chimera.read_image):
    np.testing.assert_array_equal(read(name), pixels)
  with images.open_source(name) as f:
    np.testing.assert_array_equal(images.decode(f), pixels)
  source = str(tmp_path / 'a.png')
  assert folders.list_sources(kind(tmp_path), '--x') == [source]
  with zipfile.ZipFile(tmp_path / 'b.zip', 'w') as archive:
    archive.write(source, 'c.png')
  packed, member = kind(tmp_path / 'b.zip'), str(tmp_path / 'b.zip!c.png')
  assert archives.is_archive(packed)
  assert folders.list_sources(packed, '--x') == [member]
  assert archives.split(kind(member)) == (str(tmp_path / 'b.zip'), 'c.png')
  assert archives.read(packed, 'c.png') == (tmp_path / 'a.png').read_bytes()
  np.testing.assert_array_equal(images.load_photograph(kind(member)), pixels)
  np.save(tmp_path / 'd.npy', _latents())
  latents = kind(tmp_path / 'd.npy')
  assert images.is_path_params(latents)
  np.testing.assert_array_equal(images.load_path_params(latents), _latents())
  np.testing.assert_array_equal(arrays.read(latents), _latents())


@pytest.mark.parametrize('load', [chimera.load, chimera.load_tokens])
def test_folders_are_paths_or_refused_in_one_line(tmp_path, load):
  for path in (str(tmp_path), tmp_path):
    with pytest.raises(ValueError, match='No toke'):
      load(path)
  with pytest.raises(TypeError, match=r'str.*bytes'):
    load(bytes(tmp_path))


def test_what_is_no_path_is_one_line():
  for read in (images.load_photograph, chimera.read_image):
    with pytest.raises(TypeError, match=r'expected str, bytes or os\.PathL'):
      read(_noise(0))


def test_a_file_wins_over_what_its_name_looks_like(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pixels = [_noise(i) for i in range(4)]
  with zipfile.ZipFile('a.zip', 'w') as archive:
    Image.fromarray(pixels[3]).save('b.png')
    archive.write('b.png')
  names = 'skimage:cat.png', 'skimage:coffee.png', 'a.zip!b.png'
  for name, image in zip(names, pixels):
    Image.fromarray(image).save(name)
    for path in (name, pathlib.Path(name), os.path.abspath(name)):
      np.testing.assert_array_equal(images.load_photograph(path), image)
  # But bundled ones are meant by 'photos'.
  with pytest.raises(ValueError, match=r'named skimage:coffee\.png.*rename'):
    folders.list_sources('photos', '--x')
  for name in names:
    os.remove(name)
  assert images.load_photograph('skimage:coffee.png').shape == (400, 600, 3)
  np.testing.assert_array_equal(
    images.load_photograph('a.zip!b.png'), pixels[3]
  )
  with pytest.raises(
    ValueError, match=r'skimage:cat\.png is not .*No such file'
  ):
    images.load_photograph('skimage:cat.png')


def test_all_256_values_survive_the_models_range():
  values = np.arange(256, dtype=np.uint8)
  x = images.to_float(values)
  assert x.dtype == np.float32
  assert (x[0], x[255]) == (-1.0, 1.0)
  # Affine, by exact arithmetic.
  exact = [float(fractions.Fraction(2 * v, 255) - 1) for v in range(256)]
  np.testing.assert_allclose(x, exact, atol=1.2e-7)
  np.testing.assert_array_equal(images.to_uint8(x), values)


def test_to_uint8_rounds_and_clips():
  x = np.array([-7.0, -1.0, 0.0, 0.9999, 1.0, 3.0, np.nan], np.float32)
  np.testing.assert_array_equal(
    images.to_uint8(x), [0, 0, 128, 255, 255, 255, 0]
  )


def test_the_color_range_is_asserted():
  with pytest.raises(ValueError, match='uint8'):
    images.to_float(np.zeros(3, np.float32))
  with pytest.raises(ValueError, match='floats'):
    images.to_uint8(np.zeros(3, np.uint8))


def _latents(n=6):
  rng = np.random.default_rng(0)
  low = np.array([-np.pi, -np.pi / 4, 0])
  high = np.array([np.pi, np.pi / 4, np.pi / 2])
  return rng.uniform(low, high, (n, 8, 8, 3)).astype(np.float32)


def test_path_params_are_known_by_their_suffix():
  assert images.is_path_params('/x/latents.NPY')
  assert images.is_path_params('a.npz')
  assert images.is_path_params('a.pkl')
  assert not images.is_path_params('photos')
  assert not images.is_path_params('/a.npy/folder')


def test_an_npy_is_mapped_and_not_read(tmp_path):
  path = str(tmp_path / 'a.npy')
  np.save(path, _latents())
  latents = images.load_path_params(path, chunk=4)
  assert isinstance(latents, np.memmap)
  np.testing.assert_array_equal(latents, _latents())


@pytest.mark.parametrize('names', [('anything',), ('latents', 'labels')])
def test_an_npz_holds_one_array_or_names_the_latents(tmp_path, names):
  path = str(tmp_path / 'a.npz')
  others = {name: np.zeros(3) for name in names[1:]}
  np.savez(path, **{names[0]: _latents()}, **others)
  np.testing.assert_array_equal(images.load_path_params(path), _latents())


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
  'change',
  [
    lambda x: x,
    lambda x: x.astype(np.float64),
    lambda x: x.astype('>f4'),
    np.asfortranarray,
    lambda x: np.concatenate([x, x])[::2],
  ],
)
def test_a_pickled_array_of_any_protocol_and_layout_is_read(
  tmp_path, protocol, change
):
  x = change(_latents())
  path = tmp_path / 'a.pkl'
  path.write_bytes(pickle.dumps({'latents': x, 'n': [1]}, protocol))
  latents = images.load_path_params(str(path))
  assert latents.dtype == np.float32
  np.testing.assert_array_equal(latents, x.astype(np.float32))


def test_a_pickle_of_an_older_numpy_is_read(tmp_path):
  data = pickle.dumps({'latents': _latents()}, 2)
  path = tmp_path / 'a.pkl'
  path.write_bytes(data.replace(b'numpy._core', b'numpy.core'))
  np.testing.assert_array_equal(images.load_path_params(str(path)), _latents())


class _Runs:
  """What a pickle runs when it is loaded by those who trust it."""

  def __init__(self, *call):
    self._call = call

  def __reduce__(self):
    return self._call


def _hostile():
  """Pickles that would leave a file `ran` where they were loaded."""
  run = (os.system, ('touch ran',))
  yield 'a call', {'latents': _Runs(*run)}
  yield 'a call beside the array', {'latents': _latents(), 'x': _Runs(*run)}
  yield 'eval', {'latents': _Runs(eval, ("open('ran', 'w')",))}
  yield (
    'objects in the array',
    {'latents': np.array([_Runs(*run)], dtype=object)},
  )
  yield 'numpy itself', {'latents': _Runs(np.load, ('ran',))}
  yield 'a getattr', {'latents': _Runs(getattr, ('ran', 'upper'))}


@pytest.mark.parametrize(
  'contents', [c for _, c in _hostile()], ids=[name for name, _ in _hostile()]
)
@pytest.mark.parametrize('protocol', [0, 2, 5])
def test_a_hostile_pickle_is_refused_and_nothing_runs(
  tmp_path, monkeypatch, contents, protocol
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.pkl').write_bytes(pickle.dumps(contents, protocol))
  with pytest.raises(ValueError, match='nothing that runs') as e:
    images.load_path_params('a.pkl')
  assert '\n' not in str(e.value)
  assert os.listdir(tmp_path) == ['a.pkl']


def test_the_hostile_pickles_run_where_they_are_trusted(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  contents = dict(_hostile())
  pickle.loads(pickle.dumps(contents['a call beside the array']))
  assert os.listdir(tmp_path) == ['ran']


def test_a_codec_other_than_the_plain_one_is_refused(tmp_path):
  # _codecs.encode('x', 'rot13'), by hand.
  data = b"(dS'latents'\nc_codecs\nencode\n(Vx\nVrot13\ntRs."
  (tmp_path / 'a.pkl').write_bytes(data)
  with pytest.raises(ValueError, match='rot13'):
    images.load_path_params(str(tmp_path / 'a.pkl'))


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'not a pickle',
    pickle.dumps({'latents': _latents()})[:-50],
    pickle.dumps([_latents()]),
    pickle.dumps({'latent': _latents()}),
    pickle.dumps({'latents': [[0.0]]}),
    b'\x80\x04' + b'(' * 100,
    b'cnumpy\nndarray\n.',
    b"(dS'latents'\ncnumpy\nndarray\n(tRs.",
  ],
)
def test_a_pickle_that_is_not_what_it_claims_is_one_line(tmp_path, data):
  path = tmp_path / 'a.pkl'
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r'a\.pkl.*--config\.data\.source') as e:
    images.load_path_params(str(path))
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('suffix', ['npy', 'npz'])
def test_numpy_files_with_pickles_inside_are_refused(tmp_path, suffix):
  path = str(tmp_path / f'a.{suffix}')
  save = {'npy': np.save, 'npz': np.savez}[suffix]
  save(path, np.array([{}], dtype=object), allow_pickle=True)
  with pytest.raises(ValueError, match='nothing that runs'):
    images.load_path_params(path)


@pytest.mark.parametrize('suffix', ['npy', 'npz', 'pkl'])
def test_a_file_that_is_not_there_or_broken_is_one_line(tmp_path, suffix):
  path = tmp_path / f'a.{suffix}'
  with pytest.raises(ValueError, match='No such file'):
    images.load_path_params(str(path))
  path.write_bytes(b'PK\x03\x04 broken')
  with pytest.raises(ValueError, match=r'Fix --config\.data\.held_out_source'):
    images.load_path_params('none.npy', 'held_out_source')
  with zipfile.ZipFile(tmp_path / 'empty.npz', 'w'):
    pass
  with pytest.raises(ValueError, match=r"one array or 'latents', got \[\]"):
    images.load_path_params(tmp_path / 'empty.npz')
  with pytest.raises(ValueError, match='must hold path_params') as e:
    images.load_path_params(str(path))
  assert '\n' not in str(e.value)


def _with(index, value):
  x = _latents()
  x[index] = value
  return x


@pytest.mark.parametrize(
  ('x', 'complaint'),
  [
    (_latents()[0], 'shape'),
    (_latents()[..., :2], 'shape'),
    (_latents()[:0], 'shape'),
    (np.zeros((6, 8, 8, 3), np.int32), 'float32, got int32'),
    (np.zeros((6, 8, 8, 3), np.complex64), 'float32, got complex64'),
    (_with((5, 0, 0, 0), np.nan), 'finite'),
    (_with((5, 0, 0, 1), np.inf), 'finite'),
    (_with((5, 0, 0, 0), 3.2), r'delta in \[-pi, pi\]'),
    (_with((5, 0, 0, 1), -0.8), r'chi in \[-pi/4, pi/4\]'),
    (_with((5, 7, 7, 2), -0.01), r'radius in \[0, pi/2\]'),
    (_with((5, 7, 7, 2), 1.6), r'radius in \[0, pi/2\]'),
  ],
)
def test_latents_of_a_wrong_shape_dtype_or_range_are_one_line(
  tmp_path, x, complaint
):
  path = str(tmp_path / 'a.npy')
  np.save(path, x)
  with pytest.raises(ValueError, match=complaint) as e:
    images.load_path_params(path, chunk=2)
  assert '--config.data.source' in str(e.value)
  assert '\n' not in str(e.value)


def test_the_ends_of_the_ranges_are_inside(tmp_path):
  path = str(tmp_path / 'a.npy')
  x = _latents()
  x[0, 0, 0] = np.pi, np.pi / 4, np.pi / 2  # a little above, in float32
  x[0, 0, 1] = -np.pi, -np.pi / 4, 0.0
  np.save(path, x)
  images.load_path_params(path)
