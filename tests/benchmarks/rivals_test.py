"""The rivals: each goes downhill, and who finds a rate is told none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest

from chimera import ledger
from chimera.benchmarks import rivals
from chimera.clones import state as state_lib
from tests import tiny


def _descend(name, **rates):
  """Where 60 cycles on a bowl of curvatures 1 and 4 end, from (1, 1)."""
  config = tiny.get_config('control')
  config.train.cycles, config.train.warmup = 60, 5
  config.train.learning_rate = 0.05
  config.train.update(rates)
  spec = state_lib.create_spec(config)
  optimizer = rivals.OPTIMIZERS[name](spec)
  bend = jnp.array([1.0, 4.0])

  @jax.jit
  def step(state, _):
    params, moments = state
    update, moments = optimizer.update(bend * params, moments, params)
    return (optax.apply_updates(params, update), moments), None

  params = jnp.ones(2)
  (params, moments), _ = jax.lax.scan(
    step, (params, optimizer.init(params)), length=60
  )
  if name == 'schedule_free_adamw':
    params = contrib.schedule_free_eval_params(moments, params)
  return np.asarray(params)


@pytest.mark.parametrize('name', ledger.RIVALS[1:])
def test_each_goes_downhill(name):
  assert np.abs(_descend(name)).max() < 0.9


def test_the_ledger_names_all_of_them():
  assert tuple(rivals.OPTIMIZERS) == ledger.RIVALS
  assert set(ledger.RIVALS) < set(ledger.METHODS)


@pytest.mark.parametrize('name', ['prodigy', 'dadapt_adamw', 'mechanize'])
def test_who_finds_a_rate_is_told_none(name):
  end = functools.partial(_descend, name)
  np.testing.assert_allclose(
    end(learning_rate=0.005), end(learning_rate=0.5), rtol=1e-4
  )


def test_who_is_told_a_rate_goes_by_it():
  name = 'schedule_free_adamw'
  near, far = _descend(name, learning_rate=1e-3), _descend(name)
  assert np.abs(near - 1).max() < np.abs(far - 1).min()
