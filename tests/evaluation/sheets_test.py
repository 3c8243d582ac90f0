"""Contact sheets: what was drawn is cut out again, names stay outside."""

import numpy as np
from PIL import Image
import pytest

from chimera.evaluation import sheets

SHEET = sheets.Sheet(
  tile=8, gap=2, header=20, label=50, rows=('original', 'master'), bins=(0, 9)
)


def test_the_tiles_of_a_drawn_sheet_are_those_that_went_in(tmp_path):
  tiles = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), np.uint8)
  picture = sheets.compose(tiles, SHEET)
  assert picture.shape == (20 + 8 + 2 + 8, 50 + 8 + 2 + 8, 3)
  np.testing.assert_array_equal(picture[30:38, 60:68], tiles[1, 1])
  np.testing.assert_array_equal(sheets.cut(picture, SHEET), tiles)
  path = tmp_path / 'sheet.png'
  sheets.save(path, picture, SHEET)
  assert sheets.geometry(path) == SHEET
  np.testing.assert_array_equal(sheets.tiles(path), tiles)
  with Image.open(path) as read:
    np.testing.assert_array_equal(np.asarray(read), picture)


def test_names_and_bins_are_written_outside_the_tiles():
  white = np.full((2, 2, 8, 8, 3), 255, np.uint8)
  picture = sheets.compose(white, SHEET)
  dark = picture.min(-1) < 128
  assert dark[:20, 50:].any()
  assert dark[20:, :50].any()
  assert not dark[20:, 50:].any()


def test_a_picture_without_geometry_is_no_sheet(tmp_path):
  Image.new('RGB', (8, 8)).save(tmp_path / 'plain.png')
  with pytest.raises(ValueError, match='no contact sheet'):
    sheets.tiles(tmp_path / 'plain.png')


def test_the_sheets_of_a_run_are_told_from_other_pictures(tmp_path):
  folder = tmp_path / 'previews'
  assert sheets.previews(tmp_path) == {}
  folder.mkdir()
  names = ('9999999.png', '10000000.png', '0000150.png', 'best.png', '7.jpg')
  for name in names:
    (folder / name).touch()
  found = sheets.previews(tmp_path)
  assert [*found] == [150, 9_999_999, 10_000_000]
  assert found[150] == folder / '0000150.png'


def test_tiles_are_glued_row_by_row():
  tiles = np.zeros((3, 2, 2, 3), np.uint8)
  tiles[:] = np.array([10, 20, 30], np.uint8)[:, None, None, None]
  picture = sheets.glue(tiles, columns=2, gap=1)
  assert picture[..., 0].tolist() == [
    [10, 10, 255, 20, 20],
    [10, 10, 255, 20, 20],
    [255] * 5,
    [30, 30, 255, 255, 255],
    [30, 30, 255, 255, 255],
  ]
