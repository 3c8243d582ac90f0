"""A folder of sixty oddities: what is taken, what is left, and why."""

import os
import re

import pytest

from chimera.data import crops, folders
from chimera.doctor import dry_run
from configs import chimera as chimera_config
from tests.data import odd_folder


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return tmp_path_factory.mktemp('odd') / 'folder'


@pytest.fixture(scope='module')
def made(home):
  return odd_folder.write(home)


def _plan(home, seed=8):
  c = chimera_config.get_config()
  c.data.source = str(home)
  c.data.seed = seed
  c.data.train_count = 200
  c.data.held_out_count = 100
  return crops.plan_crops(**c.data)


def test_there_are_forty_kinds_and_more(made):
  assert len(odd_folder._FORMATS) + len(made.skipped) + len(made.left_out) > 40


def test_a_dry_run_says_what_was_taken_what_was_left_and_why(home, made):
  config = chimera_config.get_config()
  config.data.source = str(home)
  found = dry_run.survey(config, str(home / 'none'))
  lines = list(dry_run._data(config, found))
  # Of those of the same bytes one counts.
  different = len(made.photographs) - 2
  assert found.photographs + found.held_out_photographs == different
  assert found.copies == 6
  assert '6 near copies, on the side of what they copy' in lines
  assert f'Left out: {folders.words(made.left_out)}' in lines
  said = lines[lines.index(f'Skipped {len(made.skipped)} image(s):') + 1 :]
  assert len(said) == len(made.skipped)
  for line in said:
    path, _, why = line.partition(': ')
    assert re.search(
      re.escape(made.skipped[os.path.relpath(path, home)]), why
    ), line


@pytest.mark.parametrize('seed', range(6))
def test_no_near_copy_is_on_the_other_side(home, made, seed):
  plan = _plan(home, seed)
  sides = [
    {made.photographs[os.path.relpath(crop.source, home)] for crop in side}
    for side in (plan.train, plan.held_out)
  ]
  assert sides[0].isdisjoint(sides[1])
  assert len(sides[0] | sides[1]) == len({*made.photographs.values()})
