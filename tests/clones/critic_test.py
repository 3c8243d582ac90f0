"""The critic: a score a sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.clones import critic as critic_lib

CRITIC = critic_lib.Critic(width=4)


def images(seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, (3, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope='module')
def critic_params():
  return jax.jit(CRITIC.init)(jax.random.key(1), images())['params']


@jax.jit
def judge(params, x):
  return CRITIC.apply({'params': params}, x)


def test_a_score_is_of_its_own_sample_alone(critic_params):
  x, others = images(), images(1)
  score_B = judge(critic_params, x)
  np.testing.assert_allclose(
    judge(critic_params, x[::-1]), score_B[::-1], rtol=1e-5, atol=1e-6
  )
  alone = judge(critic_params, jnp.concatenate([x[:1], 1e3 * others[1:]]))
  np.testing.assert_allclose(alone[0], score_B[0], rtol=1e-5, atol=1e-6)


def test_it_keeps_no_batch_statistics():
  variables = jax.eval_shape(CRITIC.init, jax.random.key(0), images())
  assert set(variables) == {'params'}
