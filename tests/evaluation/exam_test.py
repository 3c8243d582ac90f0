"""What a run is judged by: its pictures, what is on disk."""

import errno
import json
import os

import jax
import numpy as np
import pytest

from chimera.clones import state as state_lib
from chimera.evaluation import evaluate, exam, sheets
from chimera.meld import average
from tests import tiny


def test_each_clone_has_its_picture_below_the_originals():
  config = tiny.get_config()
  rows = ('original', 'master', *config.clone_names)
  tiles = np.arange(6, dtype=np.uint8)[:, None, None, None, None]
  found = exam.Exam(
    {},
    np.zeros(1),
    np.broadcast_to(tiles, (6, 3, 2, 2, 3)),
    sheets.Sheet(2, 0, 0, 0, rows, (0, 1, 2)),
  )
  of_clones, of_master = exam.reconstructions(config, found)
  for i, pictures in enumerate((of_master, *of_clones)):
    [(tag, picture)] = pictures.items()
    assert tag == 'reconstructions'
    assert picture.shape == (4, 6, 3)
    assert (picture[:2] == 0).all()
    assert (picture[2:] == i + 1).all()


def test_even_use_of_all_codes_is_a_share_of_one():
  assert exam.even_shares(np.array([3, 3, 3])).tolist() == [1, 1, 1]
  assert exam.even_shares(np.array([0, 9, 3])).tolist() == [0, 2.25, 0.75]
  assert exam.even_shares(np.zeros(2)).tolist() == [0, 0]


def test_figures_are_flat_on_disk_with_their_protocol(tmp_path):
  figures = {'master': {'psnr': 20.5, 'ssim': 0.5}, 'ema': {'psnr': 21.0}}
  assert exam.flat(figures) == {
    'master/psnr': 20.5,
    'master/ssim': 0.5,
    'ema/psnr': 21.0,
  }
  exam.save_figures(str(tmp_path), figures, {'cycles': 7})
  assert json.loads((tmp_path / 'evaluation.json').read_text()) == {
    **exam.flat(figures),
    'protocol': {'cycles': 7},
  }
  assert exam.read_figures(tmp_path) == (figures, {'cycles': 7})


@pytest.fixture
def found():
  """An exam of two rows of three pictures."""
  tiles = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
  sheet = sheets.Sheet(16, 2, 20, 90, ('original', 'master'), (0, 4, 9))
  return exam.Exam({}, np.zeros(1), tiles, sheet)


def test_a_preview_is_drawn_into_its_folder_by_its_cycle(tmp_path, found):
  picture = exam.save_preview(str(tmp_path), found, 42)
  path = tmp_path / 'previews' / '0000042.png'
  np.testing.assert_array_equal(sheets.tiles(path), found.tiles)
  np.testing.assert_array_equal(sheets.cut(picture, found.sheet), found.tiles)


def test_previews_of_cycles_that_are_learned_anew_are_forgotten(
  tmp_path, found
):
  exam.forget_previews(str(tmp_path), 0)
  for done in (20, 40, 1000):
    exam.save_preview(str(tmp_path), found, done)
  (tmp_path / 'previews' / 'mine.png').write_bytes(b'')
  exam.forget_previews(str(tmp_path), 40)
  there = sorted(os.listdir(tmp_path / 'previews'))
  assert there == ['0000020.png', '0000040.png', 'mine.png']


def test_a_preview_that_cannot_be_written_is_a_warning(
  tmp_path, found, warnings, monkeypatch
):
  def fsync(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', fsync)
  picture = exam.save_preview(str(tmp_path), found, 42)
  assert picture.shape[2] == 3
  [line] = warnings
  assert line.startswith('The preview could not be written, the run goes')
  assert '0000042.png' in line
  assert os.listdir(tmp_path / 'previews') == []


def test_master_and_average_are_examined_each_by_its_own_weights():
  config = tiny.get_config()
  spec = state_lib.create_spec(config)
  _, paths = tiny.bins_and_paths()
  held_out = evaluate.HeldOut(paths[:10], None, np.arange(10))
  one, other = (
    np.asarray(
      spec.generator_layout.vector(
        jax.jit(spec.tokenizer.init)(jax.random.key(i), paths[:1])['params']
      )
    )[None]
    for i in (0, 1)
  )

  def figures(params, ema):
    master = average.Master(params=params, outer=None, ema=ema, unused_V=None)
    specialists = np.repeat(one, len(config.clone_names), 0)
    return exam.examine(
      config, spec, held_out, None, master, specialists
    ).figures

  there, swapped = figures(one, other), figures(other, one)
  assert there['master'] == swapped['ema'] == there['perceptual']
  assert there['ema'] == swapped['master']
  assert there['ema']['path_l1'] != there['master']['path_l1']
