"""Quarantine: which clones are too sick for the meld.

A clone is healthy when its sizes (loss, gradients, step) are finite and within
bounds of their median over the clones. Pure functions, for use inside the
compiled step.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from chimera.system import axes

# Healthy clones without which a cycle counts as sick: the median of one is
# itself, and nothing would speak against it. A run of one clone has no better.
QUORUM = 2


@dataclasses.dataclass(frozen=True)
class Spec:
  """The bounds of health; the config's `meld` explains each."""

  loss_bound: float
  update_bound: float
  sick_cycles: int
  every: int  # cycles from meld to meld

  @property
  def bounds(self) -> tuple[float, ...]:
    """Of a clone's loss, its networks' two gradients, and its path.

    That one is of up to `every` steps, where another clone's may be of one.
    """
    once, path = self.update_bound, self.update_bound * self.every
    return (self.loss_bound, once, once, path)


class Health(NamedTuple):
  """What is remembered of the clones' health, the same on every clone."""

  # the clones' median sizes when a quorum was last healthy, float32; 0 before
  # that
  baseline_S: jax.Array
  # cycles in a row without a quorum. It stays, once it has come to the number
  # that calls for a roll-back. int32.
  sick: jax.Array


def healthy_at_birth(sizes: int) -> Health:
  return Health(jnp.zeros(sizes, jnp.float32), jnp.int32(0))


def global_norm(tree: Any) -> jax.Array:
  """Euclidean norm of all leaves but integers, scalar.

  Not finite where a leaf is not, nor where one is beyond some 1e19, whose
  square float32 does not hold.
  """
  return optax.tree.norm(
    [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  )


def is_whole(trees: Any) -> jax.Array:
  """Whether the `global_norm` is finite, scalar bool."""
  return jnp.isfinite(global_norm(trees))


def l1_norm(step: Any) -> jax.Array:
  """Sum of the absolute values of all leaves, scalar.

  What a step is measured by: over a second moment in common a few entries,
  where the clones' gradients cancel, are a thousand times the rest, and would
  be all that a Euclidean norm sees.
  """
  return optax.tree.norm(step, ord=1)


def examine(
  sizes: Sequence[jax.Array],
  is_whole: jax.Array,
  baseline_S: jax.Array,
  bounds_S: Sequence[float],
) -> tuple[jax.Array, jax.Array]:
  """`judge` of what each clone has; of one that is not whole no size counts."""
  sizes_S = jnp.where(is_whole, jnp.stack(sizes), jnp.nan)
  return judge(axes.gather(sizes_S[None]), baseline_S, bounds_S)


def judge(
  sizes_MxS: jax.Array, baseline_S: jax.Array, bounds_S: Sequence[float]
) -> tuple[jax.Array, jax.Array]:
  """Compares the clones' sizes, all at least 0.

  A size is within its bound where it is at most bound times the clones' median,
  and that median counts as at most bound times the baseline: four clones that
  leap together have nobody to tell them by. Of an even number of finite sizes
  the median is the lesser of the two in the middle: two absurd ones of four
  must not move it.

  Returns whether each clone's sizes are finite and within all bounds, bool
  (M,), and the medians of the clones that are, (S,). A baseline of 0 is none
  yet, a bound of 0 is none.
  """
  bounds_S = np.asarray(bounds_S, np.float32)
  finite_MxS = jnp.isfinite(sizes_MxS)
  median_S = _lesser_median(sizes_MxS, finite_MxS)
  trusted_S = jnp.where(
    baseline_S > 0, jnp.minimum(median_S, bounds_S * baseline_S), median_S
  )
  within_MxS = sizes_MxS <= (bounds_S * trusted_S)[None]
  within_MxS |= (bounds_S == 0)[None]
  healthy_M = jnp.all(finite_MxS & within_MxS, axis=1)
  return healthy_M, _lesser_median(sizes_MxS, healthy_M[:, None])


def _lesser_median(sizes_MxS: jax.Array, counts_MxS: jax.Array) -> jax.Array:
  """Of those that count, (S,); infinite where none does."""
  rising_MxS = jnp.sort(jnp.where(counts_MxS, sizes_MxS, jnp.inf), axis=0)
  middle_S = jnp.maximum(jnp.sum(counts_MxS, axis=0) - 1, 0) // 2
  middle_1xS = jnp.broadcast_to(middle_S, (1, sizes_MxS.shape[1]))
  return jnp.take_along_axis(rising_MxS, middle_1xS, axis=0)[0]


def remember(
  health: Health, healthy_M: jax.Array, median_S: jax.Array, spec: Spec
) -> Health:
  """Counts the cycle; the medians are remembered where there is a quorum.

  After spec.sick_cycles in a row without one a roll-back is called for.
  """
  quorum = jnp.sum(healthy_M) >= min(QUORUM, len(healthy_M))
  recovered = jnp.where(health.sick < spec.sick_cycles, 0, health.sick)
  return Health(
    jnp.where(quorum, median_S, health.baseline_S),
    jnp.where(quorum, recovered, health.sick + 1),
  )
