"""A perceptual distance, by the feature maps of a network that the user brings.

As LPIPS without its learned weights: Zhang and others, "The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric", 2018,
https://arxiv.org/abs/1801.03924.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from chimera.evaluation import frechet

NAME = 'features'
KEY = 'eval.features'
_LEAST = 1e-10  # of a length that is divided by

Distance = Callable[[jax.Array, jax.Array], jax.Array]


def distance(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
  """(B,), in [0, 4]: between two maps, each of unit length over channels.

  The squared distance, its mean over the places.
  """

  def unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)  # the squares of halves overflow
    return x / (jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)) + _LEAST)

  apart = jnp.square(unit(a_BxHxWxC) - unit(b_BxHxWxC)).sum(-1)
  return apart.mean((1, 2))


def load_network(path: str, side: int) -> Distance:
  """The distance (B,) of two batches of images (B, side, side, 3) in [-1, 1].

  The file's function is of images (n, side, side, 3) float32, n symbolic, to
  one or more maps (n, h, w, c), of which the mean distance is taken.

  Raises:
    ValueError: it holds nothing of the kind.
    OSError: it cannot be read.
  """
  network, seen, refuse = frechet.open_network(
    path, KEY, side, 'one or more maps (n, h, w, c)'
  )
  if not seen or any(
    len(x.shape) != 4 or x.shape[0] != 2 or 0 in x.shape for x in seen
  ):
    raise refuse(f'which makes {[x.shape for x in seen]} of n = 2')

  @jax.jit
  def between(a_BxSxSx3: jax.Array, b_BxSxSx3: jax.Array) -> jax.Array:
    maps = (jax.tree.leaves(network(x)) for x in (a_BxSxSx3, b_BxSxSx3))
    return jnp.stack([distance(a, b) for a, b in zip(*maps)]).mean(0)

  return between
