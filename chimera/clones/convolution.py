"""A convolution that several clones do together.

What `vmap` makes of clones with weights of their own is a grouped convolution,
which costs half as much again on one device. Here only what is a clone's own is
written out once for each of them:

  weights in common   all samples are one batch, forwards and backwards to the
                      activations; the weights' gradients are a clone's own
  weights of its own  one convolution a clone

and all that lies between the convolutions is mapped. Stride 1, padding 'SAME',
kernels of odd sides. The three maps of a convolution (to its result, to the
gradient of its input, to that of its kernel) are linear in each argument, and
their derivatives are the same three again; so they are written down here, and
`jax.grad` of any order needs no more.
"""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
from jax import lax
from jax.custom_batching import custom_vmap

from chimera.system import axes


@jax.custom_vjp
def convolve(x_BxHxWxC: jax.Array, kernel_KxKxCxD: jax.Array) -> jax.Array:
  """(B, H, W, D): the correlation with the kernel, zeros beyond the border."""
  return _convolve(x_BxHxWxC, kernel_KxKxCxD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate(
  x_BxHxWxC: jax.Array, y_BxHxWxD: jax.Array, side: int
) -> jax.Array:
  """(K, K, C, D): sum over samples and places of x, moved within K, times y."""
  return _correlate(side)(x_BxHxWxC, y_BxHxWxD)


def _turned(kernel_KxKxCxD: jax.Array) -> jax.Array:
  """The kernel that takes gradients back: (K, K, D, C)."""
  return kernel_KxKxCxD[::-1, ::-1].swapaxes(2, 3)


convolve.defvjp(
  lambda x, kernel: (convolve(x, kernel), (x, kernel)),
  lambda kept, y: (
    convolve(y, _turned(kept[1])),
    correlate(kept[0], y, len(kept[1])),
  ),
)
correlate.defvjp(
  lambda x, y, side: (correlate(x, y, side), (x, y)),
  lambda side, kept, kernel: (
    convolve(kept[1], _turned(kernel)),
    convolve(kept[0], kernel),
  ),
)


def _alone(x_BxHxWxC: jax.Array, kernel_KxKxCxD: jax.Array) -> jax.Array:
  return lax.conv_general_dilated(
    *(x_BxHxWxC, kernel_KxKxCxD, (1, 1), 'SAME'),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


_one_by_one = axes.one_by_one(_alone)
_convolve = custom_vmap(_alone)


@_convolve.def_vmap
def _(size: int, batched: Any, x: jax.Array, kernel: jax.Array) -> Any:
  del size
  if batched[0] and not batched[1]:
    y = _convolve(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(*x.shape[:2], *y.shape[1:]), True
  mapped = [0 if b else None for b in batched]
  return jax.vmap(_one_by_one, mapped)(x, kernel), True


@functools.cache
def _correlate(side: int) -> Callable[..., jax.Array]:
  def f(x_BxHxWxC: jax.Array, y_BxHxWxD: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
      *(x_BxHxWxC, y_BxHxWxD, (1, 1), [(side // 2, side // 2)] * 2),
      # What is summed over are the samples: they stand where channels stood.
      dimension_numbers=('CHWN', 'IHWO', 'HWNC'),
    )

  return axes.one_by_one(f)


def _as_flax_calls_it(
  x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
  del options  # as they are where nothing is said
  assert (set(strides), padding) == ({1}, 'SAME'), (strides, padding)
  return convolve(x, kernel)


Conv = functools.partial(nn.Conv, conv_general_dilated=_as_flax_calls_it)
