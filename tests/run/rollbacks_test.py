"""Going back: the record of it, and runs that diverge."""

import json
import os

import jax
import numpy as np
import pytest

from chimera import step as step_lib
from chimera import train
from chimera.clones import terms
from chimera.optics import stage_1
from chimera.run import checkpoint, engine
from chimera.run import rollbacks as rollbacks_lib
from tests import tiny

NAN = np.nan
BINS, PATHS = tiny.bins_and_paths()


def host(tree):
  return jax.tree.map(np.array, engine.fetch(tree))


def test_the_record_counts_and_changes_the_key(tmp_path):
  rollbacks = rollbacks_lib.Rollbacks(str(tmp_path), 2)
  keys = [rollbacks.key_data(5)]
  np.testing.assert_array_equal(keys[0], jax.random.key_data(jax.random.key(5)))
  for reason in ('one', 'two'):
    rollbacks.add(reason)
    # As a process that was killed finds it.
    rollbacks = rollbacks_lib.Rollbacks(str(tmp_path), 2)
    keys.append(rollbacks.key_data(5))
  assert len({key.tobytes() for key in keys}) == 3
  with pytest.raises(FloatingPointError, match=r'^three, after 2 roll-back'):
    rollbacks.add('three')
  assert rollbacks_lib.Rollbacks(str(tmp_path), 2).reasons == ['one', 'two']


@pytest.mark.parametrize('text', ['{', '7', '"abc"', '{}', '', '[' * 100_000])
def test_a_broken_record_is_one_line_that_says_how_to_mend_it(tmp_path, text):
  (tmp_path / rollbacks_lib.NAME).write_text(text)
  with pytest.raises(ValueError, match=r'rollbacks\.json .* fix by deleting'):
    rollbacks_lib.Rollbacks(str(tmp_path), 2)


@pytest.fixture
def run_of_path_params(tmp_path):
  """(config, workdir, data): checkpoints of cycles 4, 8 and 12."""
  config = tiny.get_config()
  config.basename = 'tiny'
  config.devices = 4
  config.train.cycles = 12
  config.train.log_every = 2
  config.train.eval_every = 12
  config.train.checkpoint_every = 4
  config.train.keep = 3
  config.meld.sick_cycles = 2
  config.eval.batch_size = 20
  config.data.held_out_fraction = 0.25
  config.data.held_out_count = 20
  np.save(tmp_path / 'source.npy', PATHS)
  config.data.source = str(tmp_path / 'source.npy')
  workdir = str(tmp_path / 'workdir')
  os.makedirs(workdir)
  return config, workdir, stage_1.prepare(config, workdir)


def sicken(monkeypatch, sick_with):
  """Clones 0 to 2 lose their gradients where `sick_with(key, cycle)`."""
  make = step_lib.make_train_step

  def make_train_step(spec, devices, **keywords):
    step = make(spec, devices, **keywords)

    def poisoning(state, mission, shard):
      with jax.transfer_guard('allow'):
        key, cycle = host((state.rng, state.step))
        if sick_with(key[0].tobytes(), int(cycle[0])):
          base_MxK = host(mission.pid.base_K)
          base_MxK[:3, terms.TERMS.index('adv')] = NAN
          mission = mission._replace(
            pid=mission.pid._replace(base_K=engine.put(base_MxK, devices))
          )
        return step(state, mission, shard)

    return poisoning

  monkeypatch.setattr(step_lib, 'make_train_step', make_train_step)


def test_a_run_that_diverges_goes_back_with_another_key_and_ends(
  run_of_path_params, warnings, monkeypatch
):
  config, workdir, data = run_of_path_params
  old = np.asarray(jax.random.key_data(jax.random.key(config.seed))).tobytes()
  sicken(monkeypatch, lambda key, cycle: key == old and cycle >= 5)
  figures = train.train(config, workdir, data)
  assert np.isfinite(figures['master/path_l1'])
  with open(os.path.join(workdir, rollbacks_lib.NAME)) as f:
    (reason,) = json.load(f)
  # The sixth cycle was the first; cycle 8 is the first log cycle with two.
  assert 'for 3 cycles in a row, seen at cycle 8 (perceptual sick' in reason
  assert 'latent_purity healthy' in reason
  assert 'Rolled back to cycle 4, with another key.' in warnings
  bins = train.prepare_curriculum(config, workdir, data)
  _, target = train.newborn(config, data, bins)
  done, state, _ = checkpoint.restore(config, workdir, target, bins)
  assert done == 12
  assert state.rng[0].tobytes() != old
  np.testing.assert_array_equal(state.dropped, 0)
  with open(os.path.join(workdir, 'history.jsonl')) as f:
    cycles = [json.loads(line)['cycle'] for line in f]
  assert cycles == sorted(cycles)


def test_a_run_that_keeps_diverging_stops_and_says_what_is_known(
  run_of_path_params, warnings, monkeypatch
):
  config, workdir, data = run_of_path_params
  sicken(monkeypatch, lambda key, cycle: cycle >= 1)
  with pytest.raises(FloatingPointError) as stopped:
    train.train(config, workdir, data)
  message = str(stopped.value)
  assert '\n' not in message
  assert 'after 2 roll-back(s)' in message
  assert 'structural sick' in message
  assert 'seen at cycle 4' in message
  assert '--config.train.learning_rate' in message
  # There was no checkpoint before cycle 4: twice it went back to birth.
  assert (
    sum(line.startswith('Rolled back to cycle 0') for line in warnings) == 2
  )
  assert not os.path.exists(os.path.join(workdir, 'checkpoints', '4'))
  # The same command again stops at once: the count was kept.
  warnings.clear()
  with pytest.raises(FloatingPointError, match=r'after 2 roll-back\(s\)'):
    train.train(config, workdir, data)
  assert not any(line.startswith('Rolled back') for line in warnings)
