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
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import lax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp

from chimera.system import axes


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
  x_BxHxWxC: jax.Array, kernel_KxKxCxD: jax.Array, dtype: str = 'float32'
) -> jax.Array:
  """(B, H, W, D): the correlation with the kernel, zeros beyond the border.

  Of what is rounded to `dtype`, summed in float32; so are its gradients.
  """
  return _convolve(dtype)(x_BxHxWxC, kernel_KxKxCxD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def correlate(
  x_BxHxWxC: jax.Array, y_BxHxWxD: jax.Array, side: int, dtype: str = 'float32'
) -> jax.Array:
  """(K, K, C, D): sum over samples and places of x, moved within K, times y."""
  return _correlate(side, dtype)(x_BxHxWxC, y_BxHxWxD)


def _turned(kernel_KxKxCxD: jax.Array) -> jax.Array:
  """The kernel that takes gradients back: (K, K, D, C)."""
  return kernel_KxKxCxD[::-1, ::-1].swapaxes(2, 3)


convolve.defvjp(
  lambda x, kernel, dtype: (convolve(x, kernel, dtype), (x, kernel)),
  lambda dtype, kept, y: (
    convolve(y, _turned(kept[1]), dtype),
    correlate(kept[0], y, len(kept[1]), dtype),
  ),
)
correlate.defvjp(
  lambda x, y, side, dtype: (correlate(x, y, side, dtype), (x, y)),
  lambda side, dtype, kept, kernel: (
    convolve(kept[1], _turned(kernel), dtype),
    convolve(kept[0], kernel, dtype),
  ),
)


@functools.cache
def _convolve(dtype: str) -> Callable[..., jax.Array]:
  def alone(x_BxHxWxC: jax.Array, kernel_KxKxCxD: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
      *_rounded(dtype, x_BxHxWxC, kernel_KxKxCxD),
      *((1, 1), 'SAME'),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      preferred_element_type=x_BxHxWxC.dtype,
    )

  one_by_one = axes.one_by_one(alone)
  convolve_all = custom_vmap(alone)

  @convolve_all.def_vmap
  def _(size: int, batched: Any, x: jax.Array, kernel: jax.Array) -> Any:
    del size
    if batched[0] and not batched[1]:
      y = convolve_all(x.reshape(-1, *x.shape[2:]), kernel)
      return y.reshape(*x.shape[:2], *y.shape[1:]), True
    mapped = [0 if b else None for b in batched]
    return jax.vmap(one_by_one, mapped)(x, kernel), True

  return convolve_all


@functools.cache
def _correlate(side: int, dtype: str) -> Callable[..., jax.Array]:
  def f(x_BxHxWxC: jax.Array, y_BxHxWxD: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
      *_rounded(dtype, x_BxHxWxC, y_BxHxWxD),
      *((1, 1), [(side // 2, side // 2)] * 2),
      # What is summed over are the samples: they stand where channels stood.
      dimension_numbers=('CHWN', 'IHWO', 'HWNC'),
      preferred_element_type=x_BxHxWxC.dtype,
    )

  return axes.one_by_one(f)


def _rounded(dtype: str, *arrays: jax.Array) -> list[jax.Array]:
  return [x if dtype == 'float32' else x.astype(dtype) for x in arrays]


class Framed(NamedTuple):
  """Images, and the P x P cells, from (0, 0) on, that repeat beyond them."""

  image_BxHxWxC: jax.Array
  beyond_BxPxPxC: jax.Array


class Conv(nn.Module):
  """As `flax.linen.Conv`, its parameters' names too; of images, or framed ones.

  Of framed ones it is that of what differs from what lies beyond, with zeros
  there, and that of what lies beyond.
  """

  features: int
  kernel_size: tuple[int, int]
  dtype: str = 'float32'  # what is multiplied; parameters are float32

  @nn.compact
  def __call__(self, x: jax.Array | Framed) -> jax.Array | Framed:
    channels = jax.tree.leaves(x)[0].shape[-1]
    kernel_KxKxCxD = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (*self.kernel_size, channels, self.features),
    )
    bias_D = self.param('bias', nn.initializers.zeros, (self.features,))
    bias_1x1x1xD = bias_D[None, None, None]
    if not isinstance(x, Framed):
      return convolve(x, kernel_KxKxCxD, self.dtype) + bias_1x1x1xD
    beyond = _endless(x.beyond_BxPxPxC, kernel_KxKxCxD) + bias_1x1x1xD
    rest = _everywhere(jnp.subtract, *x)
    inside = convolve(rest, kernel_KxKxCxD, self.dtype)
    return Framed(_everywhere(jnp.add, inside, beyond), beyond)


def _everywhere(
  f: Callable[..., jax.Array], image_BxHxWxC: jax.Array, x_BxPxPxC: jax.Array
) -> jax.Array:
  """f of images and of what repeats all over them."""
  b, h, w, c = image_BxHxWxC.shape
  p = x_BxPxPxC.shape[1]
  parts = image_BxHxWxC.reshape(b, h // p, p, w // p, p, c)
  return f(parts, x_BxPxPxC[:, None, :, None]).reshape(b, h, w, c)


def _endless(x_BxPxPxC: jax.Array, kernel_KxKxCxD: jax.Array) -> jax.Array:
  """(B, P, P, D): the correlation of what repeats without an end."""
  period, middle = x_BxPxPxC.shape[1], len(kernel_KxKxCxD) // 2
  y = 0
  for down, right in itertools.product(range(period), repeat=2):
    below, beside = (
      slice((middle + n) % period, None, period) for n in (down, right)
    )
    taps_CxD = jnp.sum(kernel_KxKxCxD[below, beside], (0, 1))
    y += jnp.roll(x_BxPxPxC, (-down, -right), (1, 2)) @ taps_CxD
  return y
