"""The axes that the clones lie along, and what goes along them.

`jax.pmap` runs over the devices, `jax.vmap` over the clones that share one.
Where there are more devices than clones, R devices side by side are one
clone's replicas: each learns from its own part of the clone's batch, and holds
all else alike. Every layout has all axes, so the step has one body.
"""

from collections.abc import Callable
import functools
import operator
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp


def along(
  f: Callable[..., Any], in_axes: Any = 0, *, replicas: int = 1
) -> Callable[..., Any]:
  """f of one clone, for all that share a device; to run over 'devices'.

  The axis of replicas maps nothing: it only tells f how many there are.
  """
  of_clones = jax.vmap(f, in_axes, axis_name='clones')
  return jax.vmap(
    of_clones, None, None, axis_name='replicas', axis_size=replicas
  )


def gather(x: jax.Array) -> jax.Array:
  """All clones' rows (M B, ...) of each clone's (B, ...), in their order."""
  x = lax.all_gather(x, 'clones')
  x = lax.all_gather(x, 'devices', axis_index_groups=_one_of_each())
  return x.reshape(-1, *x.shape[3:])


def total(tree: Any) -> Any:
  """All clones' sum."""

  def of(x: jax.Array) -> jax.Array:
    # Those on a device one by one: XLA is slow to reduce a short first axis.
    here = functools.reduce(operator.add, lax.all_gather(x, 'clones'))
    return lax.psum(here, 'devices', axis_index_groups=_one_of_each())

  return jax.tree.map(of, tree)


def mean(x: jax.Array) -> jax.Array:
  """The mean of all clones' floats, but for what is not finite."""
  finite = jnp.isfinite(x)
  return total(jnp.where(finite, x, 0)) / total(finite.astype(x.dtype))


def part(x: jax.Array) -> jax.Array:
  """A replica's rows (B / R, ...) of its clone's (B, ...)."""
  replicas = lax.axis_size('replicas')
  if replicas == 1:
    return x
  rows = len(x) // replicas
  at = lax.axis_index('devices') % replicas * rows
  return lax.dynamic_slice_in_dim(x, at, rows)


def gather_parts(x: jax.Array) -> jax.Array:
  """A clone's rows (B, ...) of its replicas' (B / R, ...), in their order."""
  if lax.axis_size('replicas') == 1:
    return x
  x = lax.all_gather(x, 'devices', axis_index_groups=_of_one_clone())
  return x.reshape(-1, *x.shape[2:])


def total_of_parts(tree: Any) -> Any:
  """The sum over a clone's replicas."""
  if lax.axis_size('replicas') == 1:
    return tree
  return lax.psum(tree, 'devices', axis_index_groups=_of_one_clone())


def mean_of_parts(tree: Any) -> Any:
  """The mean over a clone's replicas, of floats."""
  replicas = lax.axis_size('replicas')
  return jax.tree.map(lambda x: x / replicas, total_of_parts(tree))


def _of_one_clone() -> list[list[int]]:
  """The devices, by their clone."""
  count, replicas = map(lax.axis_size, ('devices', 'replicas'))
  return [list(range(i, i + replicas)) for i in range(0, count, replicas)]


def _one_of_each() -> list[list[int]] | None:
  """The devices, by which part of their clone's batch they learn from."""
  count, replicas = map(lax.axis_size, ('devices', 'replicas'))
  if replicas == 1:
    return None
  return [list(range(i, count, replicas)) for i in range(replicas)]


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
