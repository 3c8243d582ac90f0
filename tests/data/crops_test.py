"""Crops: planned, split by photograph, read back, written down."""

import collections
import contextlib
import csv
import os
import pathlib
import shutil
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image
import pytest

from chimera.data import crops as crops_lib
from chimera.data import cutting, images

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
  plan = crops_lib.plan_crops(str(folder), **{**PLAN, 'crop': 'whole'})
  assert len(plan.train) == len(_sources(plan.train)) == 6
  assert len(plan.held_out) == len(_sources(plan.held_out)) == 2
  assert not _sources(plan.train) & _sources(plan.held_out)
  # 60 x 50 pixels.
  assert {crop[1:4] for crop in plan.train} == {(5, 0, 50)}
  fewer = {**PLAN, 'crop': 'whole', 'train_count': 4}
  assert crops_lib.plan_crops(str(folder), **fewer).train == plan.train[:4]


def test_the_bundled_photographs_are_all_in_the_wheel_and_split():
  plan = crops_lib.plan_crops('photos', **PLAN)
  assert plan.skipped == {}
  assert len(plan.train) == 40
  assert len(plan.held_out) == 10
  # A quarter of the 16 photographs.
  assert len(_sources(plan.held_out)) == 4
  assert len(_sources(plan.train)) == 12
  assert _sources(plan.train).isdisjoint(_sources(plan.held_out))


def test_a_folder_is_searched_deeply_and_split_by_photograph(folder):
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  everything = _sources(plan.train) | _sources(plan.held_out)
  assert {os.path.basename(s) for s in everything} == {
    f'photo{i}.png' for i in range(8)
  }
  assert _sources(plan.train).isdisjoint(_sources(plan.held_out))
  assert len(_sources(plan.held_out)) == 2
  assert all(os.path.isabs(s) for s in everything)


def test_the_plan_is_a_function_of_the_seed(folder):
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  assert crops_lib.plan_crops(folder, **PLAN) == plan
  assert crops_lib.plan_crops(os.fsencode(folder), **PLAN) == plan
  assert crops_lib.plan_crops(str(folder), **PLAN) == plan
  others = [
    crops_lib.plan_crops(str(folder), **{**PLAN, 'seed': s})
    for s in range(1, 6)
  ]
  assert all(other.train != plan.train for other in others)
  # The split moves too, not the crops alone.
  assert len({frozenset(_sources(p.held_out)) for p in (plan, *others)}) > 1


def test_the_plan_does_not_depend_on_the_order_of_the_listing(
  folder, monkeypatch
):
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  scan = os.scandir
  monkeypatch.setattr(
    os,
    'scandir',
    lambda path: contextlib.nullcontext(list(scan(path))[::-1]),
  )
  assert crops_lib.plan_crops(str(folder), **PLAN) == plan


def test_the_plan_does_not_depend_on_names_and_places(folder, tmp_path):
  moved = tmp_path / 'moved'
  moved.mkdir()
  for i, path in enumerate(sorted(folder.rglob('*.png'), reverse=True)):
    shutil.copy(path, moved / f'{i}.png')
  plans = [crops_lib.plan_crops(str(f), **PLAN) for f in (folder, moved)]
  windows = [[crop[1:] for crop in plan.train] for plan in plans]
  assert windows[0] == windows[1]
  pixels = [cutting.read(plan.held_out, image_size=16) for plan in plans]
  np.testing.assert_array_equal(*pixels)


def test_a_copy_of_a_photograph_never_reaches_the_other_side(folder):
  for path in list(folder.rglob('*.png')):
    shutil.copy(path, path.with_name('copy_' + path.name))
  for seed in range(5):
    plan = crops_lib.plan_crops(str(folder), **{**PLAN, 'seed': seed})
    sides = [
      {pathlib.Path(s).read_bytes() for s in _sources(crops)}
      for crops in (plan.train, plan.held_out)
    ]
    assert sides[0].isdisjoint(sides[1])
    assert [len(side) for side in sides] == [6, 2]


def test_copies_are_held_out_as_likely_as_single_photographs():
  held = collections.Counter()
  for seed in range(60):
    rng = np.random.default_rng(seed)
    lots = [rng.bytes(32).hex() for _ in range(400)]
    # Of 400 photographs 100 pairs and 200 of their own.
    group_of = {lot: i // 2 if i < 200 else i for i, lot in enumerate(lots)}
    pairs = set(lots[:200])
    seen = [crops_lib._Photograph(x, x, 9, 9, b'') for x in sorted(lots)]
    train, held_out = crops_lib._split(seen, group_of, 0.25, 'folder')
    assert len(held_out) == 100
    sides = [{group_of[p.lot] for p in side} for side in (train, held_out)]
    assert sides[0].isdisjoint(sides[1])
    held.update(p.lot in pairs for p in held_out)
  # A share of .25 of 12000 each has a deviation of .006, of pairs.
  shares = [held[kind] / (60 * 200) for kind in (True, False)]
  np.testing.assert_allclose(shares, 0.25, atol=0.02)


def test_single_photographs_are_held_out_by_lot():
  lots = [f'{i:064x}' for i in range(8)]
  seen = [crops_lib._Photograph(x, x, 9, 9, b'') for x in lots]
  group_of = {lot: i for i, lot in enumerate(lots)}
  _, held_out = crops_lib._split(seen, group_of, 0.25, 'folder')
  assert [p.lot for p in held_out] == lots[:2]


def test_many_that_look_alike_are_told(warnings):
  lots = [f'{i:064x}' for i in range(100)]
  seen = [crops_lib._Photograph(x, x, 9, 9, b'') for x in lots]
  for many in (2, 3):
    group_of = {lot: max(i, many - 1) for i, lot in enumerate(lots)}
    crops_lib._split(seen, group_of, 0.25, 'folder')
    assert len(warnings) == (many > 2)
  assert '3 of 100 photographs of folder look alike' in warnings[0]


def test_crops_spread_evenly_over_photographs(folder):
  plan = crops_lib.plan_crops(str(folder), **{**PLAN, 'train_count': 45})
  counts = collections.Counter(crop.source for crop in plan.train)
  assert sorted(counts.values()) == [7, 7, 7, 8, 8, 8]
  # Those of one photograph stand together, so that it is decoded once.
  runs = [s for i, (s, *_) in enumerate(plan.train)
          if i == 0 or plan.train[i - 1].source != s]  # fmt: skip
  assert len(runs) == len(set(runs))


def test_some_are_mirrored_and_change_their_colors_and_none_moves(folder):
  many = {**PLAN, 'train_count': 400}
  plain = crops_lib.plan_crops(str(folder), **many)
  varied = crops_lib.plan_crops(
    str(folder), **many, permuted=0.5, mirrored=0.25
  )
  assert varied.held_out == plain.held_out
  assert [crop[:4] for crop in varied.train] == [c[:4] for c in plain.train]
  assert {crop[4:] for crop in plain.train} == {('rgb', 0)}
  orders = collections.Counter(crop.colors for crop in varied.train)
  assert set(orders) == {'rgb', 'rbg', 'grb', 'gbr', 'brg', 'bgr'}
  assert 160 < orders.pop('rgb') < 240  # six standard deviations are 60
  assert all(15 < count < 65 for count in orders.values())
  assert 60 < sum(crop.mirrored for crop in varied.train) < 140


def test_a_varied_crop_is_read_in_its_colors_and_from_its_right(folder):
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  (seen,) = cutting.read(plan.train[:1], image_size=16)
  crop = plan.train[0]._replace(colors='gbr', mirrored=1)
  (varied,) = cutting.read([crop], image_size=16)
  assert varied[3, 0].tolist() == seen[3, 15, [1, 2, 0]].tolist()
  np.testing.assert_array_equal(varied, seen[:, ::-1][..., [1, 2, 0]])


def test_fewer_crops_than_photographs_are_of_as_many_photographs(folder):
  plan = crops_lib.plan_crops(str(folder), **{**PLAN, 'train_count': 4})
  assert len(plan.train) == len(_sources(plan.train)) == 4


def test_crops_lie_inside_and_take_every_side_there_is(folder):
  plan = crops_lib.plan_crops(str(folder), **{**PLAN, 'train_count': 3000})
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
  plan = crops_lib.plan_crops(str(tmp_path), **PLAN)
  assert {crop.size for crop in plan.train} == {9}
  assert cutting.read(plan.train, image_size=16).shape == (
    40,
    16,
    16,
    3,
  )


def test_held_out_source_is_held_out_whole(folder, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  for i in range(3):
    Image.fromarray(_noise(100 + i)).save(other / f'{i}.png')
  plan = crops_lib.plan_crops(
    str(folder), **{**PLAN, 'held_out_source': str(other)}
  )
  assert len(_sources(plan.train)) == 8
  assert _sources(plan.held_out) == {str(p) for p in other.iterdir()}


def test_a_held_out_photograph_is_not_trained_on(folder, tmp_path, said):
  other = tmp_path / 'other'
  other.mkdir()
  Image.fromarray(_noise(100)).save(other / 'new.png')
  shutil.copy(folder / 'photo0.png', other / 'seen.png')
  plan = crops_lib.plan_crops(
    str(folder), **{**PLAN, 'held_out_source': str(other)}
  )
  assert str(folder / 'photo0.png') not in _sources(plan.train)
  assert len(_sources(plan.train)) == 7
  assert said[-1] == (
    f'1 of 8 photographs of {folder} are near copies of held-out ones and are '
    'not trained on.'
  )


def test_a_held_out_source_that_is_the_source_is_refused(folder):
  with pytest.raises(ValueError, match=r'held_out_source'):
    crops_lib.plan_crops(
      str(folder), **{**PLAN, 'held_out_source': str(folder)}
    )


def test_corrupt_images_among_many_are_skipped_each_with_its_reason(
  folder, warnings
):
  whole = (folder / 'photo0.png').read_bytes()
  (folder / 'a_truncated.png').write_bytes(whole[: len(whole) // 2])
  (folder / 'b_text.jpg').write_text('not a JPEG')
  (folder / 'c_empty.webp').write_bytes(b'')
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  assert {os.path.basename(s): why for s, why in plan.skipped.items()} == {
    'a_truncated.png': 'it ends too soon',
    'b_text.jpg': 'it is no image that Pillow knows, it begins with '
    "b'not a JPEG'",
    'c_empty.webp': 'it is empty',
  }
  assert len(_sources(plan.train) | _sources(plan.held_out)) == 8
  assert not warnings  # whoever has a workdir says it


def test_a_file_that_changes_while_it_is_read_is_skipped(folder, monkeypatch):
  decode = images.decode_image

  def change(f):
    image = decode(f)
    if f.name.endswith('photo4.png'):
      with open(f.name, 'ab') as g:
        g.write(b'more')
    return image

  monkeypatch.setattr(images, 'decode_image', change)
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  assert list(plan.skipped.values()) == ['it changed while it was read']
  assert next(iter(plan.skipped)).endswith('photo4.png')


def test_a_folder_of_nothing_whole_says_why(tmp_path):
  (tmp_path / 'a.png').write_text('<svg xmlns="">')
  with pytest.raises(ValueError, match=r"a\.png: it is no .* b'<svg xmlns"):
    crops_lib.plan_crops(tmp_path, **PLAN)


def test_a_corrupt_image_does_not_move_the_crops_of_the_others(folder):
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  (folder / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  assert crops_lib.plan_crops(str(folder), **PLAN)[:2] == plan[:2]


def test_a_decompression_bomb_is_skipped(folder, monkeypatch):
  Image.new('1', (300, 300)).save(folder / 'bomb.png')
  monkeypatch.setattr(images, 'MAX_PIXELS', 300 * 300 - 1)
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  assert [os.path.basename(s) for s in plan.skipped] == ['bomb.png']


def test_a_header_of_a_terapixel_is_skipped(folder):
  png = (folder / 'photo0.png').read_bytes()
  size = struct.pack('>II', 2**20, 2**20)
  (folder / 'huge.png').write_bytes(png[:16] + size + png[24:])
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  assert [os.path.basename(s) for s in plan.skipped] == ['huge.png']


def test_what_only_looks_like_an_image_in_the_listing_is_no_trouble(folder):
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  (folder / 'folder.png').mkdir()
  (folder / 'loop').symlink_to(folder)
  os.mkfifo(folder / 'pipe.png')  # whoever opens it waits for ever
  (folder / 'nowhere.png').symlink_to(folder / 'gone.png')
  again = crops_lib.plan_crops(str(folder), **PLAN)
  assert again[:2] == plan[:2]
  assert {os.path.basename(s): why for s, why in again.skipped.items()} == {
    'nowhere.png': 'it is a link to a file that is not there',
    'pipe.png': 'it is not a file',
  }


def test_photographs_that_are_enlarged_are_counted(folder, warnings):
  Image.fromarray(_noise(50, 3, 90)).save(folder / 'thin.png')
  crops_lib.plan_crops(str(folder), **PLAN)
  (line,) = warnings
  assert '1 of 9 photographs are smaller than image_size = 16' in line
  assert 'from 3 pixels' in line


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
  a, b = (crops_lib.plan_crops(str(p), **PLAN) for p in (folder, path))
  assert b.skipped == {}
  for ours, theirs in ((a.train, b.train), (a.held_out, b.held_out)):
    assert [c[1:] for c in ours] == [c[1:] for c in theirs]
    np.testing.assert_array_equal(
      cutting.read(ours, image_size=16),
      cutting.read(theirs, image_size=16),
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
  plan = crops_lib.plan_crops(
    str(folder), **{**PLAN, 'held_out_source': str(path)}
  )
  assert _sources(plan.held_out) == {f'{path}!seen.png'}
  assert str(folder / 'photo0.png') not in _sources(plan.train)


def test_file_names_that_are_not_utf_8_come_back_from_the_manifest(tmp_path):
  name = os.fsdecode(b'/photos/caf\xe9\n.png')
  crop = crops_lib.Crop(name, 0, 0, 1)
  crops_lib.write_manifest(tmp_path / 'm.csv', [crop], [1.0])
  assert crops_lib.read_manifest(tmp_path / 'm.csv')[0] == [crop]


def test_progress_counts_every_file(folder):
  seen = []
  crops_lib.plan_crops(
    str(folder), **PLAN, progress=lambda done, total: seen.append((done, total))
  )
  assert seen == [(i, 8) for i in range(1, 9)]


@pytest.mark.parametrize(
  ('make', 'complaint'),
  [
    (lambda home: None, r'no such folder.*--config\.data\.source'),
    (lambda home: home.write_text('x'), r'got the file'),
    (lambda home: home.mkdir(), r'No readable image.*--config\.data\.source'),
    (
      lambda home: (home.mkdir(), (home / 'a.png').write_text('x')),
      r'No readable image.*none of 1 can be used',
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
    crops_lib.plan_crops(str(home), **PLAN)
  assert '\n' not in str(e.value)


def test_crops_are_measured_after_the_rotation(tmp_path):
  for i in range(2):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(_noise(i, 20, 90)).save(tmp_path / f'{i}.png', exif=exif)
  plan = crops_lib.plan_crops(str(tmp_path), **{**PLAN, 'train_count': 200})
  assert max(crop.top for crop in plan.train) > 20
  cutting.read(plan.train, image_size=16)


@pytest.mark.parametrize('suffix', ['jpg', 'webp', 'bmp', 'tiff', 'PNG'])
def test_the_formats_people_have_are_read(tmp_path, suffix):
  for i in range(2):
    flat = np.full((20, 20, 3), (200, 100, 50 * i), np.uint8)
    Image.fromarray(flat).save(tmp_path / f'{i}.{suffix}')
  plan = crops_lib.plan_crops(str(tmp_path), **PLAN)
  pixels = cutting.read(plan.train, image_size=16)
  np.testing.assert_allclose(
    pixels[..., :2].astype(int) - [200, 100], 0, atol=3
  )


def test_the_manifest_traces_every_sample(tmp_path):
  crops = [
    crops_lib.Crop('/a, "quoted"\nname.png', 1, 2, 64),
    crops_lib.Crop('skimage:coffee.png', 3, 4, 65, 'gbr', 1),
  ]
  path = tmp_path / 'manifest.csv'
  crops_lib.write_manifest(path, crops, np.float32([0.125, 1 / 3]))
  with open(path, newline='') as f:
    rows = list(csv.DictReader(f))
  assert list(rows[0]) == (
    ['sample_index', 'complexity_score', 'source', 'top', 'left', 'size']
    + ['colors', 'mirrored']
  )
  assert rows[1]['sample_index'] == '1'
  assert rows[1]['source'] == 'skimage:coffee.png'
  read, scores = crops_lib.read_manifest(path)
  assert read == crops
  np.testing.assert_array_equal(scores, np.float32([0.125, 1 / 3]))
  assert os.listdir(tmp_path) == ['manifest.csv']


def test_a_manifest_from_before_crops_were_varied_is_read(tmp_path):
  path = tmp_path / 'manifest.csv'
  header = 'sample_index,complexity_score,source,top,left,size'
  path.write_text(f'{header}\n0,0.5,a,1,2,64\n')
  ([crop], _) = crops_lib.read_manifest(path)
  assert crop == ('a', 1, 2, 64, 'rgb', 0)


def test_a_manifest_that_fails_half_way_leaves_the_old_one(tmp_path):
  path = tmp_path / 'manifest.csv'
  crop = crops_lib.Crop('a', 0, 0, 1)
  crops_lib.write_manifest(path, [crop], [1.0])
  before = path.read_bytes()
  with pytest.raises(ValueError, match='shorter'):
    crops_lib.write_manifest(path, [crop, crop], [1.0])
  assert path.read_bytes() == before


@pytest.mark.parametrize(
  'text',
  [
    '',
    'a,b\n',
    ','.join(crops_lib.MANIFEST_HEADER) + '\n1,0.5,a,0,0,64,rgb,0\n',
    ','.join(crops_lib.MANIFEST_HEADER) + '\n0,0.5,a,0,0\n',
    ','.join(crops_lib.MANIFEST_HEADER) + '\n0,0.5,a,0,x,64,rgb,0\n',
    ','.join(crops_lib.MANIFEST_HEADER) + '\n0,0.5,a,0,0,64,rrr,0\n',
    ','.join(crops_lib.MANIFEST_HEADER) + '\n0,0.5,a,0,0,64\n',
  ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path, text):
  path = tmp_path / 'manifest.csv'
  path.write_text(text)
  with pytest.raises(ValueError, match=r'not a manifest.*prepare-curriculum'):
    crops_lib.read_manifest(path)


def _count_decoded(monkeypatch):
  """The sources that are decoded from now on."""
  decoded = []
  look = crops_lib._examine
  monkeypatch.setattr(
    crops_lib, '_examine', lambda source: decoded.append(source) or look(source)
  )
  return decoded


def test_what_was_planned_is_not_decoded_again(folder, tmp_path, monkeypatch):
  plan = crops_lib.plan_crops(str(folder), **PLAN)
  notes = tmp_path / 'planned.jsonl'
  decoded = _count_decoded(monkeypatch)

  class KilledError(Exception):
    pass

  def kill(done, total):
    if done == 5:
      raise KilledError

  with pytest.raises(KilledError):
    crops_lib.plan_crops(str(folder), **PLAN, notes=notes, progress=kill)
  lines = notes.read_text().splitlines()
  assert len(lines) == 1 + 5
  # Torn in the middle, as by a power cut: the last one is none.
  notes.write_text('\n'.join(lines)[:-9])
  del decoded[:]
  resumed = crops_lib.plan_crops(str(folder), **PLAN, notes=notes)
  assert resumed == plan
  assert len(decoded) == 4
  # Another seed, another split: of images that are as they were.
  del decoded[:]
  other = crops_lib.plan_crops(str(folder), **{**PLAN, 'seed': 1}, notes=notes)
  assert other == crops_lib.plan_crops(str(folder), **{**PLAN, 'seed': 1})
  assert len(decoded) == 8


def test_what_has_changed_or_was_not_read_is_decoded_again(
  folder, tmp_path, monkeypatch
):
  (folder / 'broken.png').write_bytes(b'nothing')
  notes = tmp_path / 'planned.jsonl'
  crops_lib.plan_crops(str(folder), **PLAN, notes=notes)
  decoded = _count_decoded(monkeypatch)
  Image.fromarray(_noise(77)).save(folder / 'photo0.png')
  plan = crops_lib.plan_crops(str(folder), **PLAN, notes=notes)
  assert sorted(decoded) == [
    str(folder / 'broken.png'),
    str(folder / 'photo0.png'),
  ]
  assert plan == crops_lib.plan_crops(str(folder), **PLAN)
  # And what is known now is the new one.
  del decoded[:]
  again = crops_lib.plan_crops(str(folder), **PLAN, notes=notes)
  assert again == plan
  assert decoded == [str(folder / 'broken.png')]
