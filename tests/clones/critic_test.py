"""The critic: a score a sample."""

import dm_pix
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.clones import convolution
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


class _Before(nn.Module):
  """The critic as it was, for grids of multiples of 4."""

  width: int

  @nn.compact
  def __call__(self, x):
    for i in range(2):
      x = convolution.Conv(self.width << i, (3, 3))(dm_pix.space_to_depth(x, 2))
      x = nn.leaky_relu(x, 0.2)
    x = nn.leaky_relu(convolution.Conv(self.width * 2, (3, 3))(x), 0.2)
    return jnp.mean(convolution.Conv(1, (3, 3))(x), axis=(1, 2, 3))


@pytest.mark.parametrize('shape', [(8, 8), (12, 20), (64, 64)])
def test_on_a_grid_that_folds_it_is_the_program_that_it_was(shape):
  x = jnp.zeros((2, *shape, 3))
  programs = [
    str(jax.make_jaxpr(critic.init_with_output)(jax.random.key(0), x))
    for critic in (CRITIC, _Before(width=4))
  ]
  assert programs[0] == programs[1]


@pytest.mark.parametrize('shape', [(10, 10), (9, 11), (18, 8), (50, 13)])
def test_a_grid_that_does_not_fold_has_zeros_beside_it(shape, critic_params):
  rng = np.random.default_rng(2)
  x = rng.uniform(-1, 1, (2, *shape, 3)).astype(np.float32)

  def fold(x):
    """Channels as dm_pix has them: row, column, then the old ones."""
    b, h, w, c = x.shape
    whole = np.zeros((b, -(-h // 2) * 2, -(-w // 2) * 2, c), x.dtype)
    whole[:, :h, :w] = x
    parts = [whole[:, i::2, j::2] for i in range(2) for j in range(2)]
    return np.concatenate(parts, axis=-1)

  def convolve(x, layer):
    kernel, bias = (
      np.asarray(layer[k], np.float64) for k in ('kernel', 'bias')
    )
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, h, w, _ = x.shape
    return bias + sum(
      padded[:, i : i + h, j : j + w] @ kernel[i, j]
      for i in range(3)
      for j in range(3)
    )

  def leak(x):
    return np.where(x > 0, x, 0.2 * x)

  p = critic_params
  y = leak(convolve(fold(x.astype(np.float64)), p['Conv_0']))
  y = leak(convolve(fold(y), p['Conv_1']))
  y = convolve(leak(convolve(y, p['Conv_2'])), p['Conv_3'])
  np.testing.assert_allclose(
    CRITIC.apply({'params': p}, x), y.mean((1, 2, 3)), rtol=1e-5, atol=1e-6
  )
