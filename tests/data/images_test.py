"""Images in: crops, splits, modes and colour range; and path_params let in."""

import collections
import csv
import fractions
import os
import pathlib
import pickle
import shutil
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image
import pytest

from chimera.data import images

PLAN = {
  'held_out_source': '',
  'held_out_fraction': 0.25,
  'image_size': 16,
  'train_count': 40,
  'held_out_count': 10,
  'crop': 'random',
  'max_scale': 3.0,
  'seed': 0,
}


def _noise(seed, height=60, width=50):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
  """Eight photographs, some of them deeper, and a text beside them."""
  home = tmp_path / 'folder'
  (home / 'deep' / 'er').mkdir(parents=True)
  for i in range(8):
    where = home / ('', 'deep', 'deep/er')[i % 3]
    Image.fromarray(_noise(i)).save(where / f'photo{i}.png')
  (home / 'notes.txt').write_text('not an image')
  return home


def _sources(crops):
  return {crop.source for crop in crops}


def test_a_whole_crop_is_the_centered_square_of_each_photograph_once(folder):
  plan = images.plan_crops(str(folder), **{**PLAN, 'crop': 'whole'})
  assert len(plan.train) == len(_sources(plan.train)) == 6
  assert len(plan.held_out) == len(_sources(plan.held_out)) == 2
  assert not _sources(plan.train) & _sources(plan.held_out)
  # 60 x 50 pixels.
  assert {crop[1:] for crop in plan.train} == {(5, 0, 50)}
  fewer = {**PLAN, 'crop': 'whole', 'train_count': 4}
  assert images.plan_crops(str(folder), **fewer).train == plan.train[:4]


def test_the_bundled_photographs_are_all_in_the_wheel_and_split():
  plan = images.plan_crops('photos', **PLAN)
  assert plan.skipped == []
  assert len(plan.train) == 40
  assert len(plan.held_out) == 10
  # A quarter of the 16 photographs.
  assert len(_sources(plan.held_out)) == 4
  assert len(_sources(plan.train)) == 12
  assert _sources(plan.train).isdisjoint(_sources(plan.held_out))


def test_no_two_bundled_photographs_share_a_scene():
  assert 'motorcycle_left.png' in images.PHOTOGRAPHS
  assert 'motorcycle_right.png' not in images.PHOTOGRAPHS
  assert len(set(images.PHOTOGRAPHS)) == len(images.PHOTOGRAPHS)


def test_a_folder_is_searched_deeply_and_split_by_photograph(folder):
  plan = images.plan_crops(str(folder), **PLAN)
  everything = _sources(plan.train) | _sources(plan.held_out)
  assert {os.path.basename(s) for s in everything} == {
    f'photo{i}.png' for i in range(8)
  }
  assert _sources(plan.train).isdisjoint(_sources(plan.held_out))
  assert len(_sources(plan.held_out)) == 2
  assert all(os.path.isabs(s) for s in everything)


def test_the_plan_is_a_function_of_the_seed(folder):
  plan = images.plan_crops(str(folder), **PLAN)
  assert images.plan_crops(str(folder), **PLAN) == plan
  others = [
    images.plan_crops(str(folder), **{**PLAN, 'seed': s}) for s in range(1, 6)
  ]
  assert all(other.train != plan.train for other in others)
  # The split moves too, not the crops alone.
  assert len({frozenset(_sources(p.held_out)) for p in (plan, *others)}) > 1


def test_the_plan_does_not_depend_on_the_order_of_the_listing(
  folder, monkeypatch
):
  plan = images.plan_crops(str(folder), **PLAN)
  walk = os.walk
  monkeypatch.setattr(
    os,
    'walk',
    lambda top: reversed([(d, s, n[::-1]) for d, s, n in walk(top)]),
  )
  assert images.plan_crops(str(folder), **PLAN) == plan


def test_the_plan_does_not_depend_on_names_and_places(folder, tmp_path):
  moved = tmp_path / 'moved'
  moved.mkdir()
  for i, path in enumerate(sorted(folder.rglob('*.png'), reverse=True)):
    shutil.copy(path, moved / f'{i}.png')
  plans = [images.plan_crops(str(f), **PLAN) for f in (folder, moved)]
  windows = [[crop[1:] for crop in plan.train] for plan in plans]
  assert windows[0] == windows[1]
  pixels = [images.read_crops(plan.held_out, image_size=16) for plan in plans]
  np.testing.assert_array_equal(*pixels)


def test_a_copy_of_a_photograph_never_reaches_the_other_side(folder):
  for path in list(folder.rglob('*.png')):
    shutil.copy(path, path.with_name('copy_' + path.name))
  for seed in range(5):
    plan = images.plan_crops(str(folder), **{**PLAN, 'seed': seed})
    sides = [
      {pathlib.Path(s).read_bytes() for s in _sources(crops)}
      for crops in (plan.train, plan.held_out)
    ]
    assert sides[0].isdisjoint(sides[1])
    assert [len(side) for side in sides] == [6, 2]


def test_crops_spread_evenly_over_photographs(folder):
  plan = images.plan_crops(str(folder), **{**PLAN, 'train_count': 45})
  counts = collections.Counter(crop.source for crop in plan.train)
  assert sorted(counts.values()) == [7, 7, 7, 8, 8, 8]
  # Those of one photograph stand together, so that it is decoded once.
  runs = [s for i, (s, *_) in enumerate(plan.train)
          if i == 0 or plan.train[i - 1].source != s]  # fmt: skip
  assert len(runs) == len(set(runs))


def test_fewer_crops_than_photographs_are_of_as_many_photographs(folder):
  plan = images.plan_crops(str(folder), **{**PLAN, 'train_count': 4})
  assert len(plan.train) == len(_sources(plan.train)) == 4


def test_crops_lie_inside_and_take_every_side_there_is(folder):
  plan = images.plan_crops(str(folder), **{**PLAN, 'train_count': 3000})
  sizes = {crop.size for crop in plan.train}
  # 60 x 50: from image_size to 3 * 16 = 48, which the short side reaches.
  assert sizes == set(range(16, 49))
  assert min(crop.top for crop in plan.train) == 0
  assert max(crop.top + crop.size for crop in plan.train) == 60
  assert max(crop.left + crop.size for crop in plan.train) == 50
  assert np.mean([c.size for c in plan.train]) == pytest.approx(32, abs=0.6)


def test_a_photograph_smaller_than_a_crop_gives_its_greatest_square(tmp_path):
  for i in range(2):
    Image.fromarray(_noise(i, 9, 12)).save(tmp_path / f'{i}.png')
  plan = images.plan_crops(str(tmp_path), **PLAN)
  assert {crop.size for crop in plan.train} == {9}
  assert images.read_crops(plan.train, image_size=16).shape == (40, 16, 16, 3)


def test_held_out_source_is_held_out_whole(folder, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  for i in range(3):
    Image.fromarray(_noise(100 + i)).save(other / f'{i}.png')
  plan = images.plan_crops(
    str(folder), **{**PLAN, 'held_out_source': str(other)}
  )
  assert len(_sources(plan.train)) == 8
  assert _sources(plan.held_out) == {str(p) for p in other.iterdir()}


def test_a_held_out_photograph_is_not_trained_on(folder, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  Image.fromarray(_noise(100)).save(other / 'new.png')
  shutil.copy(folder / 'photo0.png', other / 'seen.png')
  plan = images.plan_crops(
    str(folder), **{**PLAN, 'held_out_source': str(other)}
  )
  assert str(folder / 'photo0.png') not in _sources(plan.train)
  assert len(_sources(plan.train)) == 7


def test_a_held_out_source_that_is_the_source_is_refused(folder):
  with pytest.raises(ValueError, match=r'held_out_source'):
    images.plan_crops(str(folder), **{**PLAN, 'held_out_source': str(folder)})


def test_corrupt_images_among_many_are_skipped_and_counted(folder, warnings):
  whole = (folder / 'photo0.png').read_bytes()
  (folder / 'a_truncated.png').write_bytes(whole[: len(whole) // 2])
  (folder / 'b_text.jpg').write_text('not a JPEG')
  (folder / 'c_empty.webp').write_bytes(b'')
  plan = images.plan_crops(str(folder), **PLAN)
  assert [os.path.basename(s) for s in plan.skipped] == [
    'a_truncated.png',
    'b_text.jpg',
    'c_empty.webp',
  ]
  assert len(_sources(plan.train) | _sources(plan.held_out)) == 8
  (line,) = warnings
  assert '3 unreadable' in line
  assert 'a_truncated.png' in line


def test_a_corrupt_image_does_not_move_the_crops_of_the_others(folder):
  plan = images.plan_crops(str(folder), **PLAN)
  (folder / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  assert images.plan_crops(str(folder), **PLAN)[:2] == plan[:2]


def test_a_decompression_bomb_is_skipped(folder, monkeypatch):
  Image.new('1', (300, 300)).save(folder / 'bomb.png')
  monkeypatch.setattr(images, 'MAX_PIXELS', 300 * 300 - 1)
  plan = images.plan_crops(str(folder), **PLAN)
  assert [os.path.basename(s) for s in plan.skipped] == ['bomb.png']


def test_a_header_of_a_terapixel_is_skipped(folder):
  png = (folder / 'photo0.png').read_bytes()
  size = struct.pack('>II', 2**20, 2**20)
  (folder / 'huge.png').write_bytes(png[:16] + size + png[24:])
  plan = images.plan_crops(str(folder), **PLAN)
  assert [os.path.basename(s) for s in plan.skipped] == ['huge.png']


def test_what_only_looks_like_an_image_in_the_listing_is_no_trouble(folder):
  plan = images.plan_crops(str(folder), **PLAN)
  (folder / 'folder.png').mkdir()
  (folder / 'loop').symlink_to(folder)
  os.mkfifo(folder / 'pipe.png')  # whoever opens it waits for ever
  (folder / 'nowhere.png').symlink_to(folder / 'gone.png')
  again = images.plan_crops(str(folder), **PLAN)
  assert again[:2] == plan[:2]
  assert [os.path.basename(s) for s in again.skipped] == [
    'nowhere.png',
    'pipe.png',
  ]


def test_photographs_that_are_enlarged_are_counted(folder, warnings):
  Image.fromarray(_noise(50, 3, 90)).save(folder / 'thin.png')
  images.plan_crops(str(folder), **PLAN)
  (line,) = warnings
  assert '1 of 9 photographs are smaller than image_size = 16' in line
  assert 'from 3 pixels' in line


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


def _pack(folder, path):
  """The same files under other names, in another order."""
  files = sorted(folder.rglob('*.*'), reverse=True)
  if path.suffix == '.zip':
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      for i, file in enumerate(files):
        archive.write(file, f'../../inner/{i}!{file.name}')
      archive.writestr('__MACOSX/._a.png', b'of macOS')
      archive.writestr('inner.zip', b'another archive')
  else:
    with tarfile.open(path, 'w') as archive:
      for i, file in enumerate(files):
        archive.add(file, f'../../inner/{i}!{file.name}')
      link = tarfile.TarInfo('link.png')
      link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
      archive.addfile(link)


@pytest.mark.parametrize('suffix', ['zip', 'tar', 'ZIP'])
def test_an_archive_is_split_and_cropped_as_the_folder_of_its_files(
  folder, tmp_path, suffix
):
  path = tmp_path / f'photos.{suffix.lower()}'
  _pack(folder, path)
  path = path.rename(tmp_path / f'photos.{suffix}')
  a, b = (images.plan_crops(str(p), **PLAN) for p in (folder, path))
  assert b.skipped == []
  for ours, theirs in ((a.train, b.train), (a.held_out, b.held_out)):
    assert [c[1:] for c in ours] == [c[1:] for c in theirs]
    np.testing.assert_array_equal(
      images.read_crops(ours, image_size=16),
      images.read_crops(theirs, image_size=16),
    )
  # A row of the manifest leads to the member.
  source = b.train[0].source
  assert source.startswith(f'{path}!../../inner/')
  assert source.endswith(os.path.basename(a.train[0].source))
  assert not (tmp_path.parent / 'inner').exists()


def test_an_archive_can_be_held_out(folder, tmp_path):
  path = tmp_path / 'other.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.write(folder / 'photo0.png', 'seen.png')
  plan = images.plan_crops(
    str(folder), **{**PLAN, 'held_out_source': str(path)}
  )
  assert _sources(plan.held_out) == {f'{path}!seen.png'}
  assert str(folder / 'photo0.png') not in _sources(plan.train)


def test_file_names_that_are_not_utf_8_come_back_from_the_manifest(tmp_path):
  name = os.fsdecode(b'/photos/caf\xe9\n.png')
  crop = images.Crop(name, 0, 0, 1)
  images.write_manifest(tmp_path / 'm.csv', [crop], [1.0])
  assert images.read_manifest(tmp_path / 'm.csv')[0] == [crop]


def test_progress_counts_every_file(folder):
  seen = []
  images.plan_crops(
    str(folder), **PLAN, progress=lambda done, total: seen.append((done, total))
  )
  assert seen == [(i, 8) for i in range(1, 9)]


@pytest.mark.parametrize(
  ('make', 'complaint'),
  [
    (lambda home: None, r'no such folder.*--config\.data\.source'),
    (lambda home: home.write_text('x'), r'no such folder'),
    (lambda home: home.mkdir(), r'No readable image.*--config\.data\.source'),
    (
      lambda home: (home.mkdir(), (home / 'a.png').write_text('x')),
      r'No readable image.*all 1',
    ),
    (
      lambda home: (
        home.mkdir(),
        Image.fromarray(_noise(0)).save(home / 'a.png'),
      ),
      r'at least 2 different.*--config\.data\.held_out_source',
    ),
  ],
)
def test_a_source_that_cannot_be_used_is_one_line(tmp_path, make, complaint):
  home = tmp_path / 'home'
  make(home)
  with pytest.raises(ValueError, match=complaint) as e:
    images.plan_crops(str(home), **PLAN)
  assert '\n' not in str(e.value)


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


def test_crops_are_measured_after_the_rotation(tmp_path):
  for i in range(2):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(_noise(i, 20, 90)).save(tmp_path / f'{i}.png', exif=exif)
  plan = images.plan_crops(str(tmp_path), **{**PLAN, 'train_count': 200})
  assert max(crop.top for crop in plan.train) > 20
  images.read_crops(plan.train, image_size=16)


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


@pytest.mark.parametrize('suffix', ['jpg', 'webp', 'bmp', 'tiff', 'PNG'])
def test_the_formats_people_have_are_read(tmp_path, suffix):
  for i in range(2):
    flat = np.full((20, 20, 3), (200, 100, 50 * i), np.uint8)
    Image.fromarray(flat).save(tmp_path / f'{i}.{suffix}')
  plan = images.plan_crops(str(tmp_path), **PLAN)
  pixels = images.read_crops(plan.train, image_size=16)
  np.testing.assert_allclose(
    pixels[..., :2].astype(int) - [200, 100], 0, atol=3
  )


def test_what_is_not_an_image_is_one_line(tmp_path):
  (tmp_path / 'a.png').write_text('not\nan image')
  with pytest.raises(ValueError, match=r'a\.png is not a readable image') as e:
    images.load_photograph(str(tmp_path / 'a.png'))
  assert '\n' not in str(e.value)


def test_crops_come_back_in_order_and_exact_where_nothing_is_resized(folder):
  names = [str(folder / 'photo0.png'), str(folder / 'photo3.png')]
  crops = [
    images.Crop(names[1], 3, 4, 16),
    images.Crop(names[0], 0, 0, 16),
    images.Crop(names[1], 44, 34, 16),
  ]
  pixels = images.read_crops(crops, image_size=16)
  assert pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels[0], _noise(3)[3:19, 4:20])
  np.testing.assert_array_equal(pixels[1], _noise(0)[:16, :16])
  np.testing.assert_array_equal(pixels[2], _noise(3)[44:, 34:])


def test_a_photograph_is_decoded_once_a_call(folder, monkeypatch):
  decoded = []
  load = images.load_photograph
  monkeypatch.setattr(
    images, 'load_photograph', lambda s: decoded.append(s) or load(s)
  )
  a, b = str(folder / 'photo0.png'), str(folder / 'photo3.png')
  crops = [images.Crop(s, 0, 0, 20) for s in (a, b, a, b)]
  images.read_crops(crops, image_size=16)
  assert sorted(decoded) == sorted((a, b))


def test_resizing_is_antialiased_and_stays_inside_the_window(tmp_path):
  # A checkerboard of single pixels averages to gray; outside it is white.
  board = np.full((64, 64, 3), 255, np.uint8)
  rows, columns = np.indices((32, 32))
  board[:32, :32] = np.where((rows + columns) % 2, 200, 0)[..., None]
  Image.fromarray(board).save(tmp_path / 'a.png')
  crop = images.Crop(str(tmp_path / 'a.png'), 0, 0, 32)
  pixels = images.read_crops([crop], image_size=8)
  np.testing.assert_allclose(pixels, 100, atol=12)


def test_a_crop_that_its_photograph_no_longer_holds_is_refused(folder):
  path = str(folder / 'photo0.png')
  Image.fromarray(_noise(0, 20, 20)).save(path)
  with pytest.raises(ValueError, match=r'no longer holds.*20 x 20'):
    images.read_crops([images.Crop(path, 10, 10, 16)], image_size=16)


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


def test_the_manifest_traces_every_sample(tmp_path):
  crops = [
    images.Crop('/a, "quoted"\nname.png', 1, 2, 64),
    images.Crop('skimage:coffee.png', 3, 4, 65),
  ]
  path = tmp_path / 'manifest.csv'
  images.write_manifest(path, crops, np.float32([0.125, 1 / 3]))
  with open(path, newline='') as f:
    rows = list(csv.DictReader(f))
  assert list(rows[0]) == (
    ['sample_index', 'complexity_score', 'source', 'top', 'left', 'size']
  )
  assert rows[1]['sample_index'] == '1'
  assert rows[1]['source'] == 'skimage:coffee.png'
  read, scores = images.read_manifest(path)
  assert read == crops
  np.testing.assert_array_equal(scores, np.float32([0.125, 1 / 3]))
  assert os.listdir(tmp_path) == ['manifest.csv']


def test_a_manifest_that_fails_half_way_leaves_the_old_one(tmp_path):
  path = tmp_path / 'manifest.csv'
  crop = images.Crop('a', 0, 0, 1)
  images.write_manifest(path, [crop], [1.0])
  before = path.read_bytes()
  with pytest.raises(ValueError, match='shorter'):
    images.write_manifest(path, [crop, crop], [1.0])
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  'text',
  [
    '',
    'a,b\n',
    ','.join(images.MANIFEST_HEADER) + '\n1,0.5,a,0,0,64\n',
    ','.join(images.MANIFEST_HEADER) + '\n0,0.5,a,0,0\n',
    ','.join(images.MANIFEST_HEADER) + '\n0,0.5,a,0,x,64\n',
  ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path, text):
  path = tmp_path / 'manifest.csv'
  path.write_text(text)
  with pytest.raises(ValueError, match=r'not a manifest.*prepare-curriculum'):
    images.read_manifest(path)


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
