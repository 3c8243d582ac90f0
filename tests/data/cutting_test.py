"""Crops: cut, each photograph decoded once, and kept in a file."""

import errno
import os
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from chimera.data import crops as crops_lib
from chimera.data import cutting, images
from chimera.system import journal


def _noise(seed, height=60, width=50):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
  home = tmp_path / 'folder'
  home.mkdir()
  for i in range(8):
    Image.fromarray(_noise(i)).save(home / f'photo{i}.png')
  return home


def _plan(folder, each=5):
  """Crops of each of the photographs, some of another size."""
  rng = np.random.default_rng(0)
  return [
    crops_lib.Crop(str(folder / f'photo{i}.png'), *map(int, place), 16 + i)
    for i in range(8)
    for place in rng.integers(0, 20, (each, 2))
  ]


@pytest.fixture
def decoded(monkeypatch):
  """The sources that are decoded."""
  sources = []
  load = images.load_image
  monkeypatch.setattr(
    images, 'load_image', lambda s: sources.append(s) or load(s)
  )
  return sources


def test_crops_come_back_in_order_and_exact_where_nothing_is_resized(folder):
  names = [str(folder / 'photo0.png'), str(folder / 'photo3.png')]
  crops = [
    crops_lib.Crop(names[1], 3, 4, 16),
    crops_lib.Crop(names[0], 0, 0, 16),
    crops_lib.Crop(names[1], 44, 34, 16),
  ]
  pixels = cutting.read(crops, image_size=16)
  assert pixels.dtype == np.uint8
  np.testing.assert_array_equal(pixels[0], _noise(3)[3:19, 4:20])
  np.testing.assert_array_equal(pixels[1], _noise(0)[:16, :16])
  np.testing.assert_array_equal(pixels[2], _noise(3)[44:, 34:])


def test_a_photograph_is_decoded_once_a_call(folder, decoded):
  a, b = str(folder / 'photo0.png'), str(folder / 'photo3.png')
  crops = [crops_lib.Crop(s, 0, 0, 20) for s in (a, b, a, b)]
  cutting.read(crops, image_size=16)
  assert sorted(decoded) == sorted((a, b))


@pytest.mark.parametrize('chunk', [1, 7, 45, 100])
def test_crops_are_cut_in_chunks_and_a_photograph_is_decoded_once(
  folder, monkeypatch, decoded, chunk
):
  crops = _plan(folder)
  expected = cutting.read(crops, image_size=16)
  del decoded[:]
  # Less than there are of a photograph: several threads share its pixels.
  monkeypatch.setattr(cutting, '_CUT', 2)
  parts = list(cutting.cut(crops, image_size=16, chunk=chunk))
  assert {len(part) for part in parts[:-1]} <= {chunk}
  np.testing.assert_array_equal(np.concatenate(parts), expected)
  assert sorted(decoded) == sorted({crop.source for crop in crops})


def test_resizing_is_antialiased_and_stays_inside_the_window(tmp_path):
  # A checkerboard of single pixels averages to gray; outside it is white.
  board = np.full((64, 64, 3), 255, np.uint8)
  rows, columns = np.indices((32, 32))
  board[:32, :32] = np.where((rows + columns) % 2, 200, 0)[..., None]
  Image.fromarray(board).save(tmp_path / 'a.png')
  crop = crops_lib.Crop(str(tmp_path / 'a.png'), 0, 0, 32)
  pixels = cutting.read([crop], image_size=8)
  np.testing.assert_allclose(pixels, 100, atol=12)


def test_a_crop_that_its_photograph_no_longer_holds_is_refused(folder):
  path = str(folder / 'photo0.png')
  Image.fromarray(_noise(0, 20, 20)).save(path)
  with pytest.raises(ValueError, match=r'no longer holds.*20 x 20'):
    cutting.read([crops_lib.Crop(path, 10, 10, 16)], image_size=16)


def _keep(crops, path, report=lambda done, said: None, made_of=None, beside=0):
  return cutting.keep(
    crops,
    image_size=16,
    path=path,
    beside=beside,
    made_of=made_of,
    report=report,
  )


def test_kept_crops_are_read_as_they_were_cut(folder, tmp_path):
  crops, done = _plan(folder), []
  kept = _keep(crops, tmp_path / 'crops.bin', lambda n, _: done.append(n))
  expected = cutting.read(crops, image_size=16)
  assert len(kept) == len(crops) == 40
  for ids in (range(40), range(3, 9), range(0, 40, 7), range(39, 40)):
    np.testing.assert_array_equal(kept.read(ids), expected[ids])
  parts = list(kept.parts(7))
  assert [len(part) for part in parts] == [7] * 5 + [5]
  np.testing.assert_array_equal(np.concatenate(parts), expected)
  assert done[-1] == 40
  assert done == sorted(done)
  cutting.forget(tmp_path / 'crops.bin')
  assert os.listdir(tmp_path) == ['folder']


def test_without_twice_the_room_they_are_not_kept(
  folder, tmp_path, monkeypatch
):
  usage = shutil.disk_usage(tmp_path)
  little = usage._replace(free=2 * 40 * 16 * 16 * 3 - 1)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: little)
  crops = _plan(folder)
  uncut = _keep(crops, tmp_path / 'crops.bin')
  expected = cutting.read(crops, image_size=16)
  np.testing.assert_array_equal(uncut.read(range(2, 40, 5)), expected[2::5])
  parts = list(uncut.parts(7))
  assert [len(part) for part in parts] == [7] * 5 + [5]
  np.testing.assert_array_equal(np.concatenate(parts), expected)
  assert os.listdir(tmp_path) == ['folder']
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda _: usage._replace(free=3 * 40 * 16 * 16 * 3)
  )
  much = _keep(crops, tmp_path / 'crops.bin', beside=2 * 40 * 16 * 16 * 3 + 1)
  assert isinstance(much, cutting.Uncut)
  much = _keep(crops, tmp_path / 'crops.bin', beside=2 * 40 * 16 * 16 * 3)
  assert isinstance(much, cutting.Kept)


class _KilledError(Exception):
  pass


def _kill_at(count):
  def report(done, _):
    if done >= count:
      raise _KilledError

  return report


# The fourth photograph's were cut, but not noted: two at a time are.
@pytest.mark.parametrize(
  ('spoil', 'anew'), [('nothing', 6), ('the end', 7), ('a byte', 8)]
)
def test_whoever_was_killed_at_it_goes_on(
  folder, tmp_path, monkeypatch, decoded, spoil, anew
):
  each = 5 * 16 * 16 * 3
  monkeypatch.setattr(
    cutting, '_NOTED', each if spoil == 'the end' else 2 * each
  )
  crops, path = _plan(folder), tmp_path / 'crops.bin'
  expected = cutting.read(crops, image_size=16)
  with pytest.raises(_KilledError):
    _keep(crops, path, _kill_at(15))
  data = bytearray(path.read_bytes())
  if spoil == 'the end':
    data = data[: 2 * each - 1]
  elif spoil == 'a byte':
    data[each] ^= 1
  path.write_bytes(data)
  del decoded[:]
  kept = _keep(crops, path)
  assert len(decoded) == anew
  np.testing.assert_array_equal(kept.read(range(40)), expected)


def test_after_a_broken_byte_it_may_be_killed_again(
  folder, tmp_path, monkeypatch, decoded
):
  each = 5 * 16 * 16 * 3
  monkeypatch.setattr(cutting, '_NOTED', 2 * each)
  crops, path = _plan(folder), tmp_path / 'crops.bin'
  expected = cutting.read(crops, image_size=16)
  for spoilt, done in ((3 * each, 35), (0, 25), (each, 15)):
    with pytest.raises(_KilledError):
      _keep(crops, path, _kill_at(done))
    data = bytearray(path.read_bytes())
    data[spoilt] ^= 1
    path.write_bytes(data)
  _keep(crops, path)
  del decoded[:]
  kept = _keep(crops, path)
  assert not decoded
  np.testing.assert_array_equal(kept.read(range(40)), expected)


def test_a_disk_that_fills_up_keeps_none(
  folder, tmp_path, monkeypatch, warnings
):
  crops, path = _plan(folder), tmp_path / 'crops.bin'
  write = journal.Journal.add

  def fill_up(self, entry):
    if self._path.stat().st_size:
      raise OSError(28, 'No space left on device')
    write(self, entry)

  monkeypatch.setattr(journal.Journal, 'add', fill_up)
  kept = _keep(crops, path)
  (said,) = warnings
  assert said.startswith('crops.bin could not be written')
  np.testing.assert_array_equal(
    kept.read(range(40)), cutting.read(crops, image_size=16)
  )
  assert os.listdir(tmp_path) == ['folder']


def test_other_crops_and_other_photographs_are_cut_anew(
  folder, tmp_path, decoded
):
  crops, path = _plan(folder), tmp_path / 'crops.bin'
  _keep(crops, path, made_of={'a': '1'})
  del decoded[:]
  kept = _keep(crops, path, made_of={'a': '1'})
  assert not decoded
  _keep(crops, path, made_of={'a': '2'})
  assert len(decoded) == 8
  others = [crop._replace(top=1) for crop in crops[:20]]
  kept = _keep(others, path, made_of={'a': '2'})
  np.testing.assert_array_equal(
    kept.read(range(20)), cutting.read(others, image_size=16)
  )


def test_crops_that_are_gone_from_the_file_are_an_error(folder, tmp_path):
  kept = _keep(_plan(folder), tmp_path / 'crops.bin')
  os.truncate(tmp_path / 'crops.bin', 100)
  with pytest.raises(OSError, match=r'Crops are gone from it.*crops\.bin'):
    kept.read(range(40))


def test_what_is_not_there_is_not_taken_away(tmp_path, monkeypatch):
  def refuse(self, missing_ok=False):
    raise OSError(errno.EROFS, 'Read-only file system')

  (tmp_path / 'planned').write_text('')
  cutting.forget(tmp_path / 'crops', tmp_path / 'planned')
  assert not [*tmp_path.iterdir()]
  # Linux refuses on such a disk even where there is nothing.
  monkeypatch.setattr(pathlib.Path, 'unlink', refuse)
  cutting.forget(tmp_path / 'crops', tmp_path / 'planned')
