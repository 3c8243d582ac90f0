"""The plain learner learns, and alike on any number of devices."""

import jax
import numpy as np

from chimera.benchmarks import plain
from chimera.clones import state as state_lib
from chimera.optics import poincare
from tests import tiny


def test_it_learns_and_its_copies_stay_alike():
  config = tiny.get_config('control')
  config.train.learning_rate *= 8  # a batch of 16 bears it
  spec = state_lib.create_spec(config)
  _, paths = tiny.bins_and_paths()
  learner = plain.Learner(config, spec, paths, jax.devices()[:2], 10)
  x = poincare.normalize(paths[:32])

  @jax.jit
  def error(params):
    x_hat, _, _ = spec.tokenizer.apply({'params': params}, x)
    return abs(x_hat - x).mean()

  before = error(learner.state.generator)
  for _ in range(4):
    learner.dispatch()
  assert error(learner.state.generator) < 0.95 * before
  for leaf in jax.tree.leaves(learner.state):
    copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    assert len(copies) == 2
    np.testing.assert_array_equal(copies[0], copies[-1])
  assert learner.state.step == 40
