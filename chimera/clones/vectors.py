"""A network's parameters as one vector.

Moments, meld and averages are arithmetic on whole networks, and ask of no leaf
which it is: on one vector each is one pass, where a tree of a hundred leaves
would be hundreds of small programs to compile and to run.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where each leaf of a tree lies in a vector: in the tree's own order."""

  structure: Any  # of the tree
  shapes: tuple[tuple[int, ...], ...]  # of its leaves

  def tree(self, vector_P: jax.Array) -> Any:
    """The tree of a vector (..., P): leaves (..., *shape)."""
    bounds = itertools.accumulate(map(math.prod, self.shapes), initial=0)
    leading = vector_P.shape[:-1]
    return self.structure.unflatten(
      [
        vector_P[..., start:end].reshape(*leading, *shape)
        for (start, end), shape in zip(itertools.pairwise(bounds), self.shapes)
      ]
    )

  def vector(self, tree: Any) -> jax.Array:
    """The vector (..., P) of a tree with leaves (..., *shape)."""
    leaves = self.structure.flatten_up_to(tree)
    flat = [
      x.reshape(*x.shape[: x.ndim - len(shape)], -1)
      for x, shape in zip(leaves, self.shapes)
    ]
    is_on_host = all(isinstance(x, np.ndarray) for x in flat)
    return (np if is_on_host else jnp).concatenate(flat, axis=-1)


@functools.cache
def layout(module: nn.Module) -> Layout:
  """Of the parameters of a module that looks at path_params of any grid."""
  born = jax.eval_shape(
    module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), 'f')
  )['params']
  leaves, structure = jax.tree.flatten(born)
  return Layout(structure, tuple(x.shape for x in leaves))
