"""The codebook in the Meld: its norm, and codes that nobody uses.

The mean of several codebooks is none yet: their unit vectors average to shorter
ones. And a code that is dead for all clones is moved onto an encoding of one of
them, by one shared key, so that code j means one thing to all.
"""

from typing import Any

import jax
import jax.numpy as jnp

from chimera.system import axes


def tend(
  params: Any,
  unused_V: jax.Array,
  z_XxD: jax.Array,
  rng: jax.Array,
  *,
  quantizer: Any,
  revive_after: int,
) -> tuple[Any, jax.Array]:
  """The melded params with a codebook in order, and unused_V after that.

  A code is dead after revive_after cycles in which no clone used it; 0 is
  never. rng is the same on every clone; the encodings of all are drawn from.
  """
  params = quantizer.renormalize(params)
  if not revive_after:
    return params, unused_V
  dead_V = unused_V >= revive_after
  params, moved_V = quantizer.revive(params, dead_V, axes.gather(z_XxD), rng)
  return params, jnp.where(moved_V, 0, unused_V)


def perplexity(counts_V: jax.Array) -> jax.Array:
  """exp of the entropy of the codes' frequencies, 1 to V."""
  p_V = counts_V / jnp.maximum(jnp.sum(counts_V), 1)
  return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(p_V, p_V)))
