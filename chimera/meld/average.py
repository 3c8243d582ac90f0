"""The Brain Meld: average the clones, fold into the master, hand it back.

Design document, section 6. Two identities that the tests keep:

- Re-cloning every step makes `master = alpha * master + (1 - alpha) * mean` an
  outer step of size 1 - alpha. `alpha` is an inverse step size, not smoothing:
  0.999 trains a thousand times slower. Smoothing is `average`, a second EMA
  for evaluation only, which is never fed back.
- With a second moment common to the clones, the mean of their destinations is
  the destination of their mean gradient (`descend`).
"""

from typing import Any

import jax
from jax import lax
import jax.flatten_util
import jax.numpy as jnp
import optax

Tree = Any

# Adam's moments that are the same on all clones, by `optimizer_state`.
IN_COMMON = {'local': (), 'shared_v': ('nu',), 'shared': ('mu', 'nu')}


def all_finite(tree: Tree) -> jax.Array:
  """Whether no leaf holds a NaN or an infinity; scalar bool."""
  return jnp.stack(
    [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
  ).all()


def mean(
  tree: Tree, weight: jax.Array, axis: str | tuple[str, ...], fallback: Tree
) -> Tree:
  """The clones' weighted mean over a collective axis.

  A clone of weight 0 is left out by `where`: multiplied by 0, its NaN would
  stay. Where all are left out the mean is `fallback`.

  Args:
    tree: what to average.
    weight: scalar of this clone, >= 0.
    axis: name(s) of the collective axis.
    fallback: like tree.
  """
  # One collective for all leaves: a rendezvous a leaf is what pmap waits for.
  flat, unravel = jax.flatten_util.ravel_pytree(tree)
  total = lax.pmean(weight, axis)
  share = (weight / jnp.where(total > 0, total, 1)).astype(flat.dtype)
  averaged = lax.pmean(jnp.where(weight > 0, share * flat, 0), axis)
  return jax.tree.map(
    lambda x, otherwise: jnp.where(total > 0, x, otherwise),
    unravel(averaged),
    fallback,
  )


def fold(master: Tree, mean_params: Tree, alpha: float) -> Tree:
  """alpha * master + (1 - alpha) * mean (design document 6.2)."""
  return jax.tree.map(
    lambda m, x: alpha * m + (1 - alpha) * x, master, mean_params
  )


def outer(
  learning_rate: float, momentum: float
) -> optax.GradientTransformation:
  """The outer optimizer; its gradient is master - target.

  Douillard et al., DiLoCo, 2023, https://arxiv.org/abs/2311.08105: SGD with
  Nesterov momentum, 0.7 and 0.9. With 1 and 0 the master becomes the target.
  """
  return optax.sgd(learning_rate, momentum or None, nesterov=True)


def average(ema: Tree, master: Tree, decay: float, step: jax.Array) -> Tree:
  """The evaluation-only EMA, its decay rising as (1 + t) / (10 + t)."""
  decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(
    lambda e, m: (e + (1 - decay) * (m - e)).astype(m.dtype), ema, master
  )


def descend(
  adam: optax.GradientTransformation,
  gradient: Tree,
  mean_gradient: Tree,
  state: optax.ScaleByAdamState,
  *,
  mode: str,
  b1: float,
  b2: float,
  eps: float = 1e-8,
) -> tuple[Tree, optax.ScaleByAdamState]:
  """Adam's direction (to be subtracted), its moments private or in common.

  Args:
    adam: `optax.scale_by_adam(b1, b2, eps)`.
    gradient: this clone's.
    mean_gradient: of the healthy clones.
    state: Adam's moments.
    mode: 'local', Adam on the clone's gradient; 'shared', Adam on the mean
      gradient; 'shared_v', the first moment of the clone's gradient over the
      second moment of the mean gradient. Moments are linear but for v, so the
      clones' mean direction under 'shared_v' is the direction of 'shared'.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: as Adam's.
  """
  if mode == 'shared':
    return adam.update(mean_gradient, state)
  direction, own = adam.update(gradient, state)
  if mode == 'local':
    return direction, own
  _, common = adam.update(mean_gradient, state)
  mu_hat = optax.tree.bias_correction(own.mu, b1, own.count)
  nu_hat = optax.tree.bias_correction(common.nu, b2, own.count)
  direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
  return direction, own._replace(nu=common.nu)


def cosine(a: Tree, b: Tree) -> jax.Array:
  """Cosine of the angle between two trees taken as vectors."""
  dot = optax.tree.vdot(a, b)
  norms = optax.tree.norm(a) * optax.tree.norm(b)
  return dot / jnp.maximum(norms, 1e-30)
