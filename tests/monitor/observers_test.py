"""Who is told what happens in a run."""

import os

import numpy as np
import pytest

from chimera.clones import state as state_lib
from chimera.clones import terms
from chimera.evaluation import exam, metrics, sheets
from chimera.monitor import history, observers
from tests import tiny


@pytest.fixture
def config():
  return tiny.get_config()


@pytest.fixture
def told(config, tmp_path):
  """Observers of a run in `tmp_path`, from cycle 0."""
  spec = state_lib.create_spec(config)
  with observers.Observers(config, str(tmp_path), spec, 0) as opened:
    yield opened


def test_a_clone_has_the_scalars_of_its_own():
  seen = tiny.metrics()
  seen['loss'][1, terms.TERMS.index('ssim')] = 0.25
  seen['lambda'][1, terms.TERMS.index('l1')] = 4.0
  seen['loss/total'][1] = 3.0
  seen['meld/dropped'][:] = (0, 2, 0, 1)
  of_it = observers.clone_scalars(seen, 1, terms.TERMS)
  assert {k: v for k, v in of_it.items() if v} == {
    'loss/ssim': 0.25,
    'lambda/l1': 4.0,
    'loss/total': 3.0,
    'meld/dropped': 2.0,
  }
  assert not any(observers.clone_scalars(seen, 0, terms.TERMS).values())


def test_the_master_has_the_rate_in_images_of_all_clones(config):
  seen = tiny.metrics()
  seen['meld/dropped'][:] = (0, 2, 0, 1)
  seen['codebook/perplexity'][:] = 12.5
  spec = state_lib.create_spec(config)
  assert observers.master_scalars(seen, 2.5, spec) == {
    'codebook/perplexity': 12.5,
    'codebook/used': 0.0,
    'school/fence': 0.0,
    'school/outliers': 0.0,
    'meld/dropped': 3.0,
    'perf/cycles_per_sec': 2.5,
    'perf/images_per_sec': 2.5 * 4 * 4,
  }


def test_a_cycle_is_told_under_every_tag_of_training(told, config, tmp_path):
  told.compiling(4)
  told.compiled()
  told.saw(2, tiny.metrics())
  [row] = history.read(str(tmp_path))
  expected = {
    tag
    for m in metrics.TABLE
    if m not in metrics.FIGURES
    for tag in (m.of_term(t).tag for t in terms.TERMS)
  }
  of_clone = row.clones[config.clone_names[0]]
  assert {*of_clone, *row.master} == expected
  assert {*of_clone} & {*row.master} == {'meld/dropped'}


def test_an_evaluation_is_remembered_of_whom_it_was(told, config, tmp_path):
  names = config.clone_names
  figures = {n: {'psnr': 20.0 + i} for i, n in enumerate(names[:2])}
  figures |= {'master': {'psnr': 30.0}, 'ema': {'psnr': 31.0}}
  found = exam.Exam(
    figures,
    np.array([1, 3]),
    np.zeros((2, 3, 4, 4, 3), np.uint8),
    sheets.Sheet(4, 0, 0, 0, ('original', 'master'), (0, 4, 9)),
  )
  told.evaluated(6, found, np.zeros((8, 12, 3), np.uint8))
  [row] = history.read(str(tmp_path))
  assert row.cycle == 6
  assert row.clones == {
    names[0]: {'eval/psnr': 20.0},
    names[1]: {'eval/psnr': 21.0},
  }
  assert row.master == {'eval/psnr': 30.0}


def test_the_compilation_stands_in_the_first_row_only(told, tmp_path):
  told.compiling(4)
  told.compiled()
  for cycle in (2, 4):
    told.saw(cycle, tiny.metrics())
  first, second = history.read(str(tmp_path))
  assert first.master['perf/compile_seconds'] >= 0
  assert 'perf/compile_seconds' not in second.master


def test_what_is_rolled_back_was_not_seen(told, tmp_path):
  for cycle in (2, 4, 6):
    told.saw(cycle, tiny.metrics())
  told.rewind(4)
  told.saw(6, tiny.metrics())
  assert [row.cycle for row in history.read(str(tmp_path))] == [2, 4, 6]


def test_a_history_that_cannot_be_written_is_one_warning(
  told, tmp_path, warnings
):
  os.unlink(tmp_path / history.NAME)
  os.mkdir(tmp_path / history.NAME)
  for cycle in (2, 4, 6):
    told.saw(cycle, tiny.metrics())
  [line] = warnings
  assert line.startswith('history.jsonl lacks rows, training goes on: ')
