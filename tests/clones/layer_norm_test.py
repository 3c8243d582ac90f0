"""Layer normalization against flax's, and its gradient against `jax.grad`'s."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.clones import layer_norm


def _parts(channels: int = 8):
  rng = np.random.default_rng(0)
  x = rng.normal(3.0, 2.0, (4, 2, 5, 3, channels)).astype(np.float32)
  scale_C = rng.normal(1.0, 0.5, channels).astype(np.float32)
  bias_C = rng.normal(size=channels).astype(np.float32)
  pull = rng.normal(size=x.shape).astype(np.float32)
  return x, scale_C, bias_C, pull


def _loss(norm, pull):
  return lambda *args: jnp.sum(pull * norm(*args))


def _of_flax(x, scale_C, bias_C):
  params = {'params': {'scale': scale_C, 'bias': bias_C}}
  return nn.LayerNorm().apply(params, x)


def test_by_hand():
  # Mean 3, variance 4, so (-1, 1); then times 2 and 4, plus 1.
  y = layer_norm.layer_norm(
    jnp.array([[1.0, 5.0]]), jnp.array([2.0, 4.0]), jnp.ones(2)
  )
  np.testing.assert_allclose(y, [[-1.0, 5.0]], atol=1e-5)


def test_a_millionth_is_added_to_the_variance_below_the_root():
  x = jnp.array([[1e-3, -1e-3]])  # a variance of 1e-6, so by sqrt(2e-6)
  y = layer_norm.layer_norm(x, jnp.ones(2), jnp.zeros(2))
  np.testing.assert_allclose(y, [[0.5**0.5, -(0.5**0.5)]], rtol=1e-5)


def test_is_flaxs_and_so_are_its_parameters():
  x, scale_C, bias_C, _ = _parts()
  born = layer_norm.LayerNorm().init(jax.random.key(0), x)
  expected = nn.LayerNorm().init(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, born, expected)
  np.testing.assert_allclose(
    layer_norm.layer_norm(x, scale_C, bias_C),
    _of_flax(x, scale_C, bias_C),
    atol=2e-5,
  )


def test_its_gradients_are_those_of_flaxs():
  *args, pull = _parts()
  ours, flaxs = (
    jax.grad(_loss(norm, pull), argnums=(0, 1, 2))(*args)
    for norm in (layer_norm.layer_norm, _of_flax)
  )
  for a, b in zip(ours, flaxs, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * np.max(np.abs(b)))


@pytest.mark.parametrize('axis', [None, 0])
def test_each_clone_has_a_gradient_of_its_own(axis):
  """Of weights in common (None) and of weights of its own."""
  x, scale_C, bias_C, pull = _parts()
  if axis == 0:
    scale_C, bias_C = (
      np.stack([(i + 1) * p for i in range(len(x))]) for p in (scale_C, bias_C)
    )

  def gradient(x, scale_C, bias_C, pull):
    return jax.grad(_loss(layer_norm.layer_norm, pull), argnums=(0, 1, 2))(
      x, scale_C, bias_C
    )

  mapped = jax.vmap(gradient, (0, axis, axis, 0))(x, scale_C, bias_C, pull)
  for i in range(len(x)):
    own = (p if axis is None else p[i] for p in (scale_C, bias_C))
    alone = gradient(x[i], *own, pull[i])
    for a, b in zip(mapped, alone, strict=True):
      np.testing.assert_allclose(a[i], b, atol=1e-5 * np.max(np.abs(b)))
