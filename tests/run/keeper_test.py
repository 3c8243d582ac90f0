"""Checkpoints: what they are bound to, which are made, what fails."""

import jax
import numpy as np
import pytest

from chimera.clones import state as state_lib
from chimera.run import checkpoint
from chimera.run import keeper as keeper_lib
from chimera.system import preemption
from tests import tiny


@pytest.fixture(scope='module')
def config():
  return tiny.get_config()


@pytest.fixture(scope='module')
def bins():
  return tiny.bins_and_paths()[0]


@pytest.fixture(scope='module')
def born(config, bins):
  spec = state_lib.create_spec(config)
  return state_lib.stack(state_lib.create_states(config, spec, bins, (8, 8)))


def _sick(born):
  health = born.health._replace(sick=np.ones_like(born.health.sick))
  return born.replace(health=health)


def _full(*_):
  raise OSError('Checkpoint 8 could not be written: it is full.')


def test_what_is_saved_comes_back_with_all_beside_it(
  config, bins, born, tmp_path
):
  keeper = keeper_lib.Keeper(config, str(tmp_path), bins)
  assert keeper.restore(born) is None
  keeper.judged(6, {'master': {'path_l1': 0.25}})
  keeper.extra['rows'] = [{'name': 'a'}]
  specialists = jax.tree.map(lambda x: x + 1, born.generator.params)
  keeper.save(6, born, specialists, preemption.Watch())
  again = keeper_lib.Keeper(config, str(tmp_path), bins)
  done, *there = again.restore(born)
  assert done == 6
  assert again.extra == keeper.extra
  assert again.extra['best'] == {'cycle': 6, 'score': 0.25}
  for a, b in zip(jax.tree.leaves(there), jax.tree.leaves([born, specialists])):
    np.testing.assert_array_equal(a, b)
  again.begin()
  assert again.extra['best'] == {'cycle': None, 'score': None}
  assert again.extra['rows'] == []


def test_a_checkpoint_of_another_config_or_curriculum_is_refused(
  config, bins, born, tmp_path
):
  params = born.generator.params
  keeper = keeper_lib.Keeper(config, str(tmp_path), bins)
  keeper.save(6, born, params, preemption.Watch())
  with pytest.raises(ValueError, match='of this curriculum'):
    keeper_lib.restore(config, str(tmp_path), born, {**bins, 0: bins[0][::-1]})
  other = config.copy_and_resolve_references()
  other.train.keep = 9
  keeper_lib.restore(other, str(tmp_path), born, bins)
  other.loss.l1 = 2.0
  with pytest.raises(ValueError, match='of this config'):
    keeper_lib.restore(other, str(tmp_path), born, bins)


def test_a_checkpoint_without_specialists_is_refused_in_one_line(
  config, bins, born, tmp_path
):
  keeper_lib.open_checkpoints(config, str(tmp_path)).save(6, born, {})
  with pytest.raises(ValueError, match=r'another --workdir\.$') as e:
    keeper_lib.restore(config, str(tmp_path), born, bins)
  assert '\n' not in str(e.value)


def test_without_a_checkpoint_there_is_nothing_to_evaluate(
  config, bins, born, tmp_path
):
  with pytest.raises(ValueError, match='There must be a trained tokenizer'):
    keeper_lib.restore(config, str(tmp_path), born, bins)


def test_the_best_is_the_least_and_never_nan(tmp_path):
  config = tiny.get_config()
  config.train.checkpoint_every = 100
  keeper = keeper_lib.Keeper(config, str(tmp_path), {})
  for cycle, score in ((1, float('nan')), (2, 0.5), (3, 0.6), (4, 0.5)):
    keeper.judged(cycle, {'master': {'path_l1': score}})
  assert keeper.extra['best'] == {'cycle': 2, 'score': 0.5}
  assert [c for c in range(1, 41) if keeper.is_due(c)] == [2, 40]
  config.train.keep_best = False
  assert not keeper.is_due(2)


def test_sick_clones_are_not_saved_and_it_is_said(
  config, bins, born, tmp_path, warnings
):
  keeper = keeper_lib.Keeper(config, str(tmp_path), bins)
  params = born.generator.params
  keeper.save(4, born, params, preemption.Watch())
  keeper.save(8, _sick(born), params, preemption.Watch())
  assert keeper_lib.open_checkpoints(config, str(tmp_path)).steps() == [4]
  assert warnings == ['Cycles 5 to 8 are not saved: their clones are sick.']
  # The run's end is saved, as there will be no better one.
  keeper.save(40, _sick(born), params, preemption.Watch())
  assert keeper_lib.open_checkpoints(config, str(tmp_path)).latest() == 40


def test_what_cannot_be_written_is_tried_again_until_the_run_is_over(
  config, bins, born, tmp_path, warnings, monkeypatch
):
  keeper = keeper_lib.Keeper(config, str(tmp_path), bins)
  params = born.generator.params
  keeper.save(4, born, params, preemption.Watch())
  monkeypatch.setattr(checkpoint.Checkpoints, 'save', _full)
  keeper.save(8, born, params, preemption.Watch())
  [line] = warnings
  assert line.startswith('Cycles 5 to 8 are not saved: Checkpoint 8 could')
  assert line.endswith('it is full. The next one is tried.')
  with pytest.raises(OSError, match=r'to 40 are .* goes on from cycle 4\.$'):
    keeper.save(40, born, params, preemption.Watch())


def test_a_stopped_run_says_what_is_lost(
  config, bins, born, tmp_path, monkeypatch
):
  keeper = keeper_lib.Keeper(config, str(tmp_path), bins)
  params = born.generator.params
  watch = preemption.Watch()
  watch.signum = 15
  with pytest.raises(preemption.Stopped, match=r'1 to 8 .* clones are sick'):
    keeper.save(8, _sick(born), params, watch)
  monkeypatch.setattr(checkpoint.Checkpoints, 'save', _full)
  with pytest.raises(preemption.Stopped, match=r'Cycles 1 to 8 .* it is full'):
    keeper.save(8, born, params, watch)
