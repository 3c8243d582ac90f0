"""Convolutions of several clones, against XLA's own and its derivatives."""

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.clones import convolution


def plain(x, kernel):
  return lax.conv_general_dilated(
    *(x, kernel, (1, 1), 'SAME'), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def test_of_bfloat16_it_multiplies_what_is_rounded_and_sums_in_float32():
  """So with the gradients: of what is handed back, rounded likewise."""
  rng = np.random.default_rng(0)
  x, kernel, y = (
    rng.normal(size=shape).astype(np.float32)
    for shape in ((2, 6, 5, 4), (3, 3, 4, 7), (2, 6, 5, 7))
  )

  def rounded(a):
    return np.asarray(jnp.asarray(a).astype(jnp.bfloat16), np.float32)

  got, back = jax.vjp(
    lambda *a: convolution.convolve(*a, 'bfloat16'), x, kernel
  )
  assert got.dtype == jnp.float32
  expected = convolution.convolve(rounded(x), rounded(kernel))
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)
  assert np.abs(got - convolution.convolve(x, kernel)).max() > 1e-3
  _, plain = jax.vjp(convolution.convolve, rounded(x), rounded(kernel))
  for mine, theirs in zip(back(y), plain(rounded(y)), strict=True):
    assert mine.dtype == jnp.float32
    np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-4)


def penalized(convolve):
  """A gradient penalty, and its derivatives: reverse over reverse."""

  def score(x, kernel):
    return jnp.sum(jnp.tanh(convolve(x, kernel)) ** 2)

  def penalty(x, kernel):
    return jnp.sum(jax.grad(score)(x, kernel) ** 2)

  def all_of_it(x, kernel):
    return (
      convolve(x, kernel),
      jax.grad(score, (0, 1))(x, kernel),
      jax.grad(penalty, (0, 1))(x, kernel),
    )

  return all_of_it


@pytest.mark.parametrize('side', [1, 3])
@pytest.mark.parametrize('axes', [(0, 0), (0, None), (None, 0)])
def test_it_is_xla_s_convolution_with_all_its_derivatives(axes, side):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 2, 6, 5, 2)).astype(np.float32)
  kernel = rng.normal(size=(3, side, side, 2, 4)).astype(np.float32)
  args = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes)]
  actual, expected = (
    jax.jit(jax.vmap(penalized(f), axes))(*args)
    for f in (convolution.convolve, plain)
  )
  for a, e in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=2e-5 * np.abs(e).max())


def convolutions(axes):
  """(samples, features of the kernel) of each convolution in the program."""
  x, kernel = jnp.zeros((4, 2, 6, 6, 3)), jnp.zeros((4, 3, 3, 3, 5))
  args = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes)]
  jaxpr = jax.make_jaxpr(jax.vmap(convolution.convolve, axes))(*args)
  found = []

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == 'conv_general_dilated':
        assert eqn.params['feature_group_count'] == 1
        found.append(eqn.invars[0].aval.shape[0])
      for inner in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
      ):
        if hasattr(inner, 'jaxpr'):
          walk(inner.jaxpr)
        elif hasattr(inner, 'eqns'):
          walk(inner)

  walk(jaxpr.jaxpr)
  return found


def test_with_a_kernel_in_common_all_samples_are_one_batch():
  assert convolutions((0, None)) == [8]


def test_with_kernels_of_their_own_each_clone_has_one_and_none_is_grouped():
  assert convolutions((0, 0)) == [2, 2, 2, 2]


def test_it_is_flax_s_with_its_parameters():
  x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
  ours, theirs = (
    jax.jit(kind(6, (3, 3)).init_with_output)(jax.random.key(1), x)
    for kind in (convolution.Conv, nn.Conv)
  )
  np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
  for a, b in zip(
    *(jax.tree.leaves_with_path(y[1]) for y in (ours, theirs)), strict=True
  ):
    assert a[0] == b[0]
    np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize('period', [1, 2])
@pytest.mark.parametrize('side', [1, 3])
def test_beyond_a_framed_image_its_frame_goes_on(side, period):
  rng = np.random.default_rng(2)
  x = rng.normal(size=(2, 6, 4, 3)).astype(np.float32)
  beyond = rng.normal(size=(2, period, period, 3)).astype(np.float32)
  conv = convolution.Conv(6, (side, side))
  params = jax.jit(conv.init)(jax.random.key(1), x)
  params['params']['bias'] = rng.normal(size=6).astype(np.float32)
  image, frame = jax.jit(conv.apply)(params, convolution.Framed(x, beyond))
  wide = np.tile(beyond, (1, 10 // period, 8 // period, 1))
  alone = np.asarray(jax.jit(conv.apply)(params, wide))
  np.testing.assert_allclose(
    frame, alone[:, 2 : 2 + period, 2 : 2 + period], atol=1e-5
  )
  wide[:, 2:-2, 2:-2] = x
  expected = np.asarray(jax.jit(conv.apply)(params, wide))
  np.testing.assert_allclose(image, expected[:, 2:-2, 2:-2], atol=1e-5)
