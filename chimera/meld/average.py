"""The Brain Meld: average the clones, fold into the master, hand it back.

Design document, section 6. Re-cloning every step makes
`master = alpha * master + (1 - alpha) * mean` an outer step of size 1 - alpha:
`alpha` is an inverse step size, not smoothing, and 0.999 trains a thousand
times slower. Smoothing is `Master.ema`, an average over cycles that is never
fed back.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from chimera.meld import codebook
from chimera.system import axes

Tree = Any


@dataclasses.dataclass(frozen=True)
class Spec:
  """The constants of the Meld; the config's `meld` explains each."""

  enabled: bool  # False averages the gradients instead
  every: int
  alpha: float
  outer_learning_rate: float
  outer_momentum: float
  ema: float
  revive_after: int

  @property
  def outer_step(self) -> float:
    """How much of the way to the clones' mean the master goes.

    Where melds are some cycles apart, a clone goes all of it at first.
    """
    part = (1 - self.alpha) * self.outer_learning_rate
    return part if self.every == 1 else 1.0

  @property
  def outer(self) -> optax.GradientTransformation:
    """The outer optimizer; its gradient is master - target.

    Douillard et al., DiLoCo, 2023, https://arxiv.org/abs/2311.08105: SGD with
    Nesterov momentum, 0.7 and 0.9. With 1 and 0 the master becomes the target.
    """
    return optax.sgd(
      self.outer_learning_rate, self.outer_momentum or None, nesterov=True
    )


class Master(flax.struct.PyTreeNode):
  """The melded tokenizer, the same on every clone."""

  params: Any  # the melded generator
  outer: Any  # state of the outer optimizer
  ema: Any  # the average of params over cycles, never fed back
  unused_V: jax.Array  # cycles since any clone used each code, int32


def create_master(params: Tree, codes: int, spec: Spec) -> Master:
  return Master(
    params=params,
    outer=spec.outer.init(params),
    ema=params,
    unused_V=jnp.zeros(codes, jnp.int32),
  )


def all_finite(tree: Tree) -> jax.Array:
  """Whether no leaf holds a NaN or an infinity; scalar bool."""
  return jnp.stack(
    [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
  ).all()


def mean(tree: Tree, weight: jax.Array, fallback: Tree) -> Tree:
  """The clones' weighted mean.

  A clone of weight 0, the least, is left out by `where`: multiplied by 0, its
  NaN would stay. Where all are left out the mean is `fallback`.
  """
  total = axes.total(weight)
  share = weight / jnp.where(total > 0, total, 1)
  parts = jax.tree.map(
    lambda x: jnp.where(weight > 0, share.astype(x.dtype) * x, 0), tree
  )
  return axes.where(total > 0, axes.total(parts), fallback)


def fold(master: Tree, mean_params: Tree, alpha: float) -> Tree:
  """alpha * master + (1 - alpha) * mean (design document 6.2)."""
  return jax.tree.map(
    lambda m, x: alpha * m + (1 - alpha) * x, master, mean_params
  )


def smooth(ema: Tree, master: Tree, decay: float, melds: jax.Array) -> Tree:
  """The EMA of the master, its decay (1 + t) / (10 + t) after t melds."""
  decay = jnp.minimum(decay, (1.0 + melds) / (10.0 + melds))
  return jax.tree.map(
    lambda e, m: (e + (1 - decay) * (m - e)).astype(m.dtype), ema, master
  )


def synthesize(
  master: Master,
  destination: Tree,
  counts_V: jax.Array,
  z_XxD: jax.Array,
  rng: jax.Array,
  step: jax.Array,
  is_meld: jax.Array,
  *,
  spec: Spec,
  quantizer: Any,
  layout: Any,
) -> Master:
  """The clones' destination, folded into the master; without a meld, itself.

  Parameters are vectors, of that layout. counts_V are the uses of each code by
  all clones in this cycle, z_XxD this clone's encodings, NaN where it is left
  out; rng is the same on every clone.
  """
  unused_V = jnp.where(counts_V > 0, 0, master.unused_V + 1)
  target = fold(master.params, destination, spec.alpha)
  update, outer = spec.outer.update(
    jax.tree.map(jnp.subtract, master.params, target), master.outer
  )
  tree, tended_V = codebook.tend(
    layout.tree(optax.apply_updates(master.params, update)),
    unused_V,
    z_XxD,
    rng,
    quantizer=quantizer,
    revive_after=spec.revive_after,
  )
  params = layout.vector(tree)
  melded = Master(
    params=params,
    outer=outer,
    ema=smooth(master.ema, params, spec.ema, step // spec.every),
    unused_V=tended_V,
  )
  return axes.where(is_meld, melded, master.replace(unused_V=unused_V))


def cosine(a: Tree, b: Tree) -> jax.Array:
  """Cosine of the angle between two trees taken as vectors."""
  dot = optax.tree.vdot(a, b)
  norms = optax.tree.norm(a) * optax.tree.norm(b)
  return dot / jnp.maximum(norms, 1e-30)
