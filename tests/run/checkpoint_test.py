"""What a run saves is bound to it, and comes back with all beside it."""

import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from chimera.clones import state as state_lib
from chimera.run import checkpoint
from chimera.run import steps as steps_lib
from chimera.system import preemption
from tests import tiny
from tests.run import steps_test


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


def _save(checkpointer, *args):
  """And waits until it is read back."""
  checkpointer.save(*args, preemption.Watch())
  assert not checkpointer._steps.has_failed()


def _full(*_, **__):
  raise OSError('Checkpoint 8 could not be written: it is full.')


def test_what_is_saved_comes_back_with_all_beside_it(
  config, bins, born, tmp_path
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  assert checkpointer.restore(born) is None
  checkpointer.evaluated(6, {'master': {'path_l1': 0.25}})
  checkpointer.extra['rows'] = [{'name': 'a'}]
  specialists = jax.tree.map(lambda x: x + 1, born.generator.params)
  _save(checkpointer, 6, born, specialists)
  again = checkpoint.Checkpointer(config, str(tmp_path), bins)
  done, *there = again.restore(born)
  assert done == 6
  assert again.extra == checkpointer.extra
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
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  _save(checkpointer, 6, born, params)
  with pytest.raises(ValueError, match='of this curriculum'):
    checkpoint.restore(config, str(tmp_path), born, {**bins, 0: bins[0][::-1]})
  other = config.copy_and_resolve_references()
  other.train.keep = 9
  checkpoint.restore(other, str(tmp_path), born, bins)
  other.loss.l1 = 2.0
  with pytest.raises(ValueError, match='of this config'):
    checkpoint.restore(other, str(tmp_path), born, bins)


def test_the_newest_is_restored_whatever_length_the_config_says(
  config, bins, born, tmp_path
):
  params, config = born.generator.params, config.copy_and_resolve_references()
  config.train.update(schedule='wsd', cycles=6)
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  for done in (2, 6):
    _save(checkpointer, done, born, params)
  longer = config.copy_and_resolve_references()
  longer.train.cycles = 60
  # A run goes on from before its decay; who looks at it sees what is there.
  run = checkpoint.Checkpointer(longer, str(tmp_path), bins)
  assert run.restore(born)[0] == 2
  assert checkpoint.restore(longer, str(tmp_path), born, bins)[0] == 6


def test_a_checkpoint_without_specialists_is_refused_in_one_line(
  config, bins, born, tmp_path
):
  checkpoint.open_steps(config, str(tmp_path)).save(6, born, {})
  with pytest.raises(ValueError, match=r'another --workdir\.$') as e:
    checkpoint.restore(config, str(tmp_path), born, bins)
  assert '\n' not in str(e.value)
  # What its run learned can be taken where it was exported.
  (tmp_path / 'tokenizer').mkdir()
  taken = rf'--config\.init_from={tmp_path}/tokenizer to start from'
  with pytest.raises(ValueError, match=taken):
    checkpoint.restore(config, str(tmp_path), born, bins)


def test_without_a_checkpoint_there_is_nothing_to_evaluate(
  config, bins, born, tmp_path
):
  with pytest.raises(ValueError, match='There must be a trained tokenizer'):
    checkpoint.restore(config, str(tmp_path), born, bins)


def test_the_best_is_the_least_and_never_nan(tmp_path):
  config = tiny.get_config()
  config.train.checkpoint_every = 100
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), {})
  for cycle, score in ((1, float('nan')), (2, 0.5), (3, 0.6), (4, 0.5)):
    checkpointer.evaluated(cycle, {'master': {'path_l1': score}})
  assert checkpointer.extra['best'] == {'cycle': 2, 'score': 0.5}
  assert [c for c in range(1, 41) if checkpointer.is_due(c)] == [2, 40]
  config.train.keep_best = False
  assert not checkpointer.is_due(2)


def test_the_last_whole_dispatch_before_a_decay_is_due(tmp_path):
  config = tiny.get_config()  # 40 cycles, of which the last 8 decay
  config.train.schedule = 'wsd'
  config.train.checkpoint_every = 100
  for dispatch, due in ((1, [32, 40]), (5, [30, 40])):
    config.train.cycles_per_dispatch = dispatch
    checkpointer = checkpoint.Checkpointer(config, str(tmp_path), {})
    assert [c for c in range(1, 41) if checkpointer.is_due(c)] == due


def test_sick_clones_are_not_saved_and_it_is_said(
  config, bins, born, tmp_path, warnings
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params = born.generator.params
  _save(checkpointer, 4, born, params)
  checkpointer.save(8, _sick(born), params, preemption.Watch())
  assert checkpoint.open_steps(config, str(tmp_path)).steps() == [4]
  assert warnings == ['Cycles 5 to 8 are not saved: their clones are sick.']
  # The run's end is saved, as there will be no better one.
  checkpointer.save(40, _sick(born), params, preemption.Watch())
  assert checkpoint.open_steps(config, str(tmp_path)).latest() == 40


def test_what_cannot_be_written_is_tried_again_until_the_run_is_over(
  config, bins, born, tmp_path, warnings, monkeypatch
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params = born.generator.params
  _save(checkpointer, 4, born, params)
  monkeypatch.setattr(steps_lib.Steps, 'save', _full)
  _save(checkpointer, 8, born, params)
  [line] = warnings
  assert line.startswith('Cycles 5 to 8 are not saved: Checkpoint 8 could')
  assert line.endswith('it is full. The next one is tried.')
  with pytest.raises(OSError, match=r'to 40 are .* goes on from cycle 4\.$'):
    _save(checkpointer, 40, born, params)


def test_what_cannot_be_read_back_is_said_tried_again_and_ends_the_run(
  config, bins, born, tmp_path, warnings, monkeypatch
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params, watch = born.generator.params, preemption.Watch()
  checkpointer.save(4, born, params, watch)
  steps_test.drop(monkeypatch, [True, False, True, True])
  checkpointer.save(8, born, params, watch)
  checkpointer.save(12, born, params, watch)
  [line] = warnings
  assert line.startswith(f'Checkpoint {tmp_path}/checkpoints/8 cannot be read ')
  assert line.endswith('Training goes on; the next one is tried.')
  # That one was whole: all begins anew.
  checkpointer.save(16, born, params, watch)
  with pytest.raises(OSError, match=r'13 to 20 .* goes on from cycle 12\.$'):
    checkpointer.save(20, born, params, watch)
  assert len(warnings) == 2
  assert checkpoint.restore(config, str(tmp_path), born, bins)[0] == 12


def test_the_last_one_is_tried_twice(
  config, bins, born, tmp_path, warnings, monkeypatch
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params, watch = born.generator.params, preemption.Watch()
  steps_test.drop(monkeypatch, [True, False, True, True])
  checkpointer.save(40, born, params, watch)
  [line] = warnings
  assert line.endswith('It is tried again.')
  shutil.rmtree(tmp_path / 'checkpoints')
  with pytest.raises(OSError, match='Cycles 1 to 40 are not saved'):
    checkpointer.save(40, born, params, watch)


def test_a_signal_during_a_save_does_not_say_that_it_is_saved(
  config, bins, born, tmp_path, monkeypatch, warnings
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  watch, save = preemption.Watch(), ocp.Checkpointer.save

  def signalled(*args, **kwargs):
    save(*args, **kwargs)
    watch.signum = 15

  monkeypatch.setattr(ocp.Checkpointer, 'save', signalled)
  checkpointer.save(4, born, born.generator.params, watch)
  assert checkpoint.open_steps(config, str(tmp_path)).steps() == [4]
  watch.signum = None
  steps_test.drop(monkeypatch, [True])
  with pytest.raises(preemption.Stopped, match=r'Cycles 5 to 8 are not saved'):
    checkpointer.save(8, born, born.generator.params, watch)


def test_a_stopped_run_says_what_is_lost(
  config, bins, born, tmp_path, monkeypatch
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params = born.generator.params
  watch = preemption.Watch()
  watch.signum = 15
  with pytest.raises(preemption.Stopped, match=r'1 to 8 .* clones are sick'):
    checkpointer.save(8, _sick(born), params, watch)
  monkeypatch.setattr(steps_lib.Steps, 'save', _full)
  with pytest.raises(preemption.Stopped, match=r'Cycles 1 to 8 .* it is full'):
    checkpointer.save(8, born, params, watch)
