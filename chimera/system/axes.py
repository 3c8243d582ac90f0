"""The two axes that the clones lie along, and what goes along them.

`jax.pmap` runs over the devices, `jax.vmap` over the clones that share one:
both are there on every layout, so the step has one body.
"""

from collections.abc import Callable
import functools
import operator
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp

AXES = ('devices', 'clones')


def gather(x: jax.Array) -> jax.Array:
  """All clones' rows (M B, ...) of each clone's (B, ...), in their order."""
  for axis in reversed(AXES):
    x = lax.all_gather(x, axis)
  return x.reshape(-1, *x.shape[3:])


def total(tree: Any) -> Any:
  """All clones' sum."""

  def of(x: jax.Array) -> jax.Array:
    # Those on a device one by one: XLA is slow to reduce a short first axis.
    here = functools.reduce(operator.add, lax.all_gather(x, 'clones'))
    return lax.psum(here, 'devices')

  return jax.tree.map(of, tree)


def where(condition: jax.Array, a: Any, b: Any) -> Any:
  """Tree a or tree b, by a scalar."""
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def once(x: jax.Array, step: jax.Array) -> jax.Array:
  """A scalar that a long vector is multiplied by, worked out beforehand.

  XLA fuses a scalar's arithmetic into that of the vector, and repeats it for
  every element: the cosine of a schedule cost a fifth of a cycle on the CPU,
  which drops an `optimization_barrier` before it fuses. Across a branch it does
  not fuse. The step is at least 0, and the same on all clones.
  """
  return lax.cond(step >= 0, lambda: x, lambda: 2 * x)


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
  """f, whose `vmap` is f written out once for each clone.

  Mapped weights would turn the clones' convolutions into grouped ones, which
  cost half as much again on one device.
  """
  once = jax.jit(f, inline=True)  # traced once, not once for each clone
  f = custom_vmap(f)

  @f.def_vmap
  def _(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
    def pick(i: int) -> Any:
      return jax.tree.map(lambda x, b: x[i] if b else x, args, tuple(batched))

    outs = [once(*pick(i)) for i in range(size)]
    out = jax.tree.map(lambda *x: jnp.stack(x), *outs)
    return out, jax.tree.map(lambda _: True, out)

  return f


@custom_vmap
def in_common(tree: Any) -> Any:
  """A tree that all clones hold alike: under `vmap`, the first one's, once."""
  return tree


@in_common.def_vmap
def _(size: int, batched: Any, tree: Any) -> tuple[Any, Any]:
  del size
  (batched,) = batched
  first = jax.tree.map(lambda x, b: x[0] if b else x, tree, batched)
  return first, jax.tree.map(lambda _: False, tree)
