"""The codebook in the Meld, with a quantizer that says what it was asked."""

import jax
import jax.numpy as jnp
import numpy as np

from chimera.meld import codebook
from chimera.system import axes


class Quantizer:
  """Doubles a codebook to renormalize it; moves dead codes to the last z.

  But for code 3.
  """

  def renormalize(self, params):
    return 2 * params

  def revive(self, params, dead_V, z_XxD, rng):
    moved_V = dead_V & (jnp.arange(len(dead_V)) != 3)
    return jnp.where(moved_V[:, None], z_XxD[-1], params), moved_V


def tend(unused_V, revive_after):
  """Of two clones with one encoding each, as each receives it."""

  def one(z_XxD):
    return codebook.tend(
      jnp.ones((len(unused_V), 2)),
      jnp.array(unused_V),
      z_XxD,
      jax.random.key(0),
      quantizer=Quantizer(),
      revive_after=revive_after,
    )

  z_MxXxD = jnp.array([[[5.0, 6.0]], [[7.0, 8.0]]])
  return jax.vmap(axes.along(one), axis_name='devices')(z_MxXxD[None])


def test_a_dead_code_goes_to_an_encoding_of_any_clone_and_counts_anew():
  params, unused_V = tend([0, 4, 5], revive_after=5)
  for i in range(2):
    np.testing.assert_array_equal(params[0, i], [[2, 2], [2, 2], [7, 8]])
    np.testing.assert_array_equal(unused_V[0, i], [0, 4, 0])


def test_a_dead_code_that_stayed_is_dead_in_the_next_cycle_too():
  _, unused_V = tend([0, 4, 5, 6], revive_after=5)
  np.testing.assert_array_equal(unused_V, [[[0, 4, 0, 6]] * 2])


def test_without_revival_only_the_norm_is_kept():
  params, unused_V = tend([0, 4, 5], revive_after=0)
  np.testing.assert_array_equal(params, np.full((1, 2, 3, 2), 2.0))
  np.testing.assert_array_equal(unused_V, [[[0, 4, 5]] * 2])


def test_perplexity_is_the_number_of_codes_where_all_are_used_alike():
  np.testing.assert_allclose(codebook.perplexity(jnp.full(8, 3)), 8, rtol=1e-6)
  np.testing.assert_allclose(codebook.perplexity(jnp.array([9, 0])), 1)
  # 3/4 and 1/4: exp(-(.75 ln .75 + .25 ln .25)) = 1.7548
  np.testing.assert_allclose(
    codebook.perplexity(jnp.array([3, 1, 0])), 1.75477, rtol=1e-5
  )
