"""The quantizers, by hand, over all codes, and against explicit sums."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.clones import losses, quantizer

VQ = quantizer.VQ(codes=4, code_dim=3)
FSQ = quantizer.FSQ((4, 5))


def fsq(levels, z_ND):
  """(codes, tokens) of one row of cells."""
  module = quantizer.FSQ(levels)
  return jax.jit(module.apply)({}, jnp.asarray(z_ND, jnp.float32)[None, None])


def encoding(place, levels):
  """What FSQ bounds to a place."""
  half = (levels - 1) * 0.999 / 2
  offset = 0.0 if levels % 2 else 0.5
  return np.arctanh((place + offset) / half) - np.tan(offset / half)


def test_three_levels_by_hand():
  # tanh(z) * 0.999: -0.9631, -0.4617, 0, 0.5272, 0.9990.
  codes, tokens = fsq((3,), [[-2.0], [-0.5], [0.0], [0.587], [9.0]])
  np.testing.assert_array_equal(tokens[0, 0], [0, 1, 1, 2, 2])
  np.testing.assert_array_equal(codes.q_BxhxwxD[0, 0, :, 0], [-1, 0, 0, 1, 1])
  np.testing.assert_allclose(
    codes.z_BxhxwxD[0, 0, :, 0],
    [-0.96306, -0.46166, 0, 0.52720, 0.99900],
    atol=2e-5,
  )


def test_four_and_five_levels_by_hand():
  # Of four: half = 1.4985, shift = tan(0.33367) = 0.34666, so that z = 0 is at
  # tanh(0.34666) 1.4985 - 0.5 = -0.00044, near the level 0; z = 9 at 0.9985,
  # the level 1; z = -9 at -1.9985, the level -2. Of five: 2 is the middle.
  codes, tokens = fsq((4, 5), [[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0]])
  np.testing.assert_array_equal(
    codes.q_BxhxwxD[0, 0], [[0, 0], [0.5, 1], [-1, -1]]
  )
  # (level + 2) + 4 (level + 2).
  np.testing.assert_array_equal(tokens[0, 0], [2 + 4 * 2, 3 + 4 * 4, 0])
  np.testing.assert_allclose(codes.z_BxhxwxD[0, 0, 0], [-0.00022, 0], atol=2e-5)


@pytest.mark.parametrize(
  'levels', [(2,), (3,), (4, 5), (8, 5, 5, 5), (2, 7, 3)]
)
def test_every_code_is_reached_and_found_again(levels):
  module = quantizer.FSQ(levels)
  assert module.codes == np.prod(levels)
  assert module.dim == len(levels)
  places = np.array(
    list(itertools.product(*(np.arange(n) - n // 2 for n in levels)))
  )
  z = np.stack(
    # Off by a fifth of a level inward, within every bound.
    [encoding(p * 0.9 - 0.05, n) for p, n in zip(places.T, levels)],
    axis=-1,
  )
  codes, tokens = fsq(levels, z)
  assert tokens.dtype == jnp.int32
  assert sorted(np.asarray(tokens).ravel()) == list(range(module.codes))
  np.testing.assert_array_equal(
    codes.q_BxhxwxD[0, 0], (places / (np.array(levels) // 2)).astype(np.float32)
  )
  np.testing.assert_array_equal(
    module.apply({}, tokens, method='lookup'), codes.q_BxhxwxD
  )


@pytest.mark.parametrize('levels', [(2, 3, 4, 5, 8)])
def test_an_encoding_is_bounded_whatever_the_encoder_says(levels):
  z = np.array([-np.inf, -1e30, -3.0, 0.0, 3.0, 1e30, np.inf])
  codes, tokens = fsq(levels, np.repeat(z[:, None], len(levels), axis=1))
  assert np.abs(codes.z_BxhxwxD).max() <= 1
  assert np.abs(codes.q_BxhxwxD).max() <= 1
  assert 0 <= tokens.min() <= tokens.max() < np.prod(levels)
  # Rounding moves a place by half a level at most.
  apart = np.abs(codes.q_BxhxwxD - codes.z_BxhxwxD) * (np.array(levels) // 2)
  assert apart.max() <= 0.5


def test_straight_through_the_gradient_is_that_of_the_bound():
  z = jnp.array([[[[0.3, -0.7]]]])

  def through(z):
    codes, _ = FSQ.apply({}, z)
    return codes.z_BxhxwxD + jax.lax.stop_gradient(
      codes.q_BxhxwxD - codes.z_BxhxwxD
    )

  q, pull_back = jax.vjp(through, z)
  np.testing.assert_allclose(q, FSQ.apply({}, z)[0].q_BxhxwxD, atol=1e-7)
  (gradient,) = pull_back(jnp.ones_like(z))
  halves = np.array([1.4985, 1.998])
  shifts = np.array([np.tan(0.5 / 1.4985), 0.0])
  expected = halves / 2 / np.cosh(np.asarray(z)[0, 0, 0] + shifts) ** 2
  np.testing.assert_allclose(gradient[0, 0, 0], expected, rtol=1e-5)


def test_the_varentropy_of_independent_choices_is_that_of_the_joint_one():
  z = np.random.default_rng(0).normal(size=(6, 2))
  codes, _ = fsq((4, 5), z)
  got = losses.varentropy(codes, temperature=0.5)
  first, second = (np.asarray(x, np.float64)[0, 0] / 0.5 for x in codes.logits)
  joint_6x20 = (first[:, :, None] + second[:, None, :]).reshape(6, 20)
  p = np.exp(joint_6x20 - joint_6x20.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  surprise = -np.log(p)
  mean = (p * surprise).sum(-1, keepdims=True)
  expected = (p * (surprise - mean) ** 2).sum(-1).mean()
  np.testing.assert_allclose(got, [expected], rtol=1e-5)
  assert expected > 0.1


def test_an_encoding_at_a_level_has_no_varentropy_and_one_aside_has_some():
  def varentropy(place):
    z = encoding(np.array([[place]]), 5)
    return float(losses.varentropy(fsq((5,), z)[0], temperature=0.1)[0])

  # Two neighbors of e^-10 each: 2 e^-10 10^2.
  np.testing.assert_allclose(varentropy(0.0), 0.00906, rtol=1e-2)
  # Log odds of 10 (1 - 0.76): p (1 - p) 2.4^2, p = 1 / (1 + e^-2.4).
  np.testing.assert_allclose(varentropy(0.38), 0.4393, rtol=1e-2)
  np.testing.assert_allclose(varentropy(0.5), 0.0, atol=1e-3)
  towards = jax.grad(
    lambda z: losses.varentropy(
      quantizer.FSQ((5,)).apply({}, z)[0], temperature=0.1
    ).sum()
  )(jnp.full((1, 1, 1, 1), encoding(0.2, 5)))
  assert towards.item() > 0  # down to the level


def test_fsq_has_no_codebook_to_average_or_revive():
  params = {'decoder': {'w': jnp.ones(2)}}
  assert FSQ.renormalize(params) is params
  dead_V = jnp.ones(20, bool)
  kept, moved_V = FSQ.revive(
    params, dead_V, jnp.ones((3, 2)), jax.random.key(0)
  )
  assert kept is params
  assert not moved_V.any()


def test_a_language_is_of_the_codebook_or_of_all_that_was_learned():
  book, w = np.eye(4, 3, dtype=np.float32), np.ones(2, np.float32)
  one, other = {'codebook': book, 'w': w}, {'codebook': book, 'w': 2 * w}
  assert VQ.language(one) == VQ.language(other) == book.tobytes()
  assert FSQ.language({'w': w}) != FSQ.language({'w': 2 * w})
  assert FSQ.language({'w': w}) != quantizer.FSQ((5, 4)).language({'w': w})
  assert FSQ.language({'w': w}) == FSQ.language({'w': w.copy()})


def test_renormalized_codes_have_unit_norm_and_keep_their_direction():
  book = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, -0.1]])
  other = {'w': jnp.ones(2)}
  params = VQ.renormalize({'codebook': book, 'decoder': other})
  np.testing.assert_allclose(
    params['codebook'], [[0.6, 0.8, 0.0], [0.0, 0.0, -1.0]], rtol=1e-6
  )
  assert params['decoder'] is other


def test_the_unit_vector_of_zero_has_a_gradient():
  gradient = jax.grad(lambda x: quantizer.unit(x).sum())(jnp.zeros(3))
  assert np.all(np.isfinite(gradient))


def test_only_dead_codes_move_and_onto_encodings():
  book = jnp.eye(4, 3) + 0.5
  z_XxD = quantizer.unit(
    jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)))
  )
  dead_V = jnp.array([False, True, False, True])
  params, moved_V = VQ.revive(
    {'codebook': book}, dead_V, z_XxD, jax.random.key(2)
  )
  np.testing.assert_array_equal(moved_V, dead_V)
  np.testing.assert_array_equal(params['codebook'][::2], book[::2])
  for code in np.asarray(params['codebook'][1::2]):
    assert np.any(np.all(code == np.asarray(z_XxD), axis=-1))


def test_the_same_key_revives_the_same_codes_everywhere():
  book, z_XxD = (
    jnp.eye(4, 3),
    quantizer.unit(jnp.arange(27.0).reshape(9, 3) - 11),
  )
  dead_V = jnp.array([True, True, False, True])
  one, two = (
    VQ.revive({'codebook': book}, dead_V, z_XxD, jax.random.key(5))[0]
    for _ in range(2)
  )
  np.testing.assert_array_equal(one['codebook'], two['codebook'])


def test_each_dead_code_is_drawn_for_itself_from_all_encodings():
  z_9xD = jnp.eye(9)
  dead_V = jnp.ones(9000, bool)
  params, _ = VQ.revive(
    {'codebook': jnp.zeros((9000, 9))}, dead_V, z_9xD, jax.random.key(0)
  )
  # Binomial: 9000 draws of one in nine, whose deviation is 30.
  np.testing.assert_allclose(params['codebook'].sum(0), 1000, atol=150)


@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_no_code_is_revived_onto_what_is_not_finite(poison):
  book = jnp.eye(4, 3)
  z_XxD = jnp.full((5, 3), poison)
  params, moved_V = VQ.revive(
    {'codebook': book}, jnp.ones(4, bool), z_XxD, jax.random.key(0)
  )
  np.testing.assert_array_equal(params['codebook'], book)
  assert not moved_V.any()


def test_codes_follow_their_encodings_and_nothing_else():
  """What the varentropy asks for moves the encodings alone."""
  keys = jax.random.split(jax.random.key(3))
  params = {'codebook': jax.random.normal(keys[0], (4, 3))}
  z = jax.random.normal(keys[1], (1, 2, 3, 3))

  def varentropy(params, z):
    codes, _ = VQ.apply({'params': params}, z)
    return losses.varentropy(codes, temperature=0.1).mean()

  def vq(params, z):
    codes, _ = VQ.apply({'params': params}, z)
    return losses.vq(codes, commitment=0.25)

  by_params, by_z = jax.jit(jax.grad(varentropy, argnums=(0, 1)))(params, z)
  np.testing.assert_array_equal(by_params['codebook'], 0)
  assert np.abs(by_z).max() > 0.01
  assert np.abs(jax.jit(jax.grad(vq))(params, z)['codebook']).max() > 0.01
