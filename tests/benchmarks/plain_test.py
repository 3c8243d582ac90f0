"""The plain learner learns, and alike on any number of devices."""

import jax
import numpy as np
import pytest

from chimera.benchmarks import plain
from chimera.clones import state as state_lib
from chimera.optics import poincare
from tests import tiny


@pytest.mark.parametrize('devices', [1, 2])
def test_it_learns_and_its_copies_stay_alike(devices):
  config = tiny.get_config('control')
  config.train.learning_rate *= 8  # a batch of 16 bears it
  spec = state_lib.create_spec(config)
  _, paths = tiny.bins_and_paths()
  learner = plain.Learner(config, spec, paths, jax.devices()[:devices], 10)
  x = poincare.normalize(paths[:32])

  @jax.jit
  def error(params):
    x_hat, _, _ = spec.tokenizer.apply({'params': params}, x)
    return abs(x_hat - x).mean()

  def first():
    return jax.tree.map(lambda x: x[0], jax.device_get(learner.state.generator))

  before = error(first())
  for _ in range(4):
    learner.dispatch()
  assert error(first()) < 0.95 * before
  for leaf in jax.tree.leaves(jax.device_get(learner.state)):
    np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
  np.testing.assert_array_equal(learner.state.step, 40)
