"""Light on the Poincare sphere: closed-form optics, no parameters.

The design document's path_params (section 3.2): each cell of an image holds
(delta, chi, radius), a circular path around the polarization state of
retardance delta and ellipticity chi. An observer behind a co-polarizer sees the
complex transmittance

  t(d, c) = cos(d / 2) + i sin(d / 2) sin(2 c)

along (d, c) = (delta + radius cos u, chi + radius sin u), u in [0, 2 pi), and
keeps the mean and the standard deviation of its two parts. Every product of
sines of d / 2 and 2 c is a sum of waves cos(p d + q c), and the mean of a wave
around the circle is its value at the center times the Bessel function
J0(radius sqrt(p^2 + q^2)) (https://dlmf.nist.gov/10.9#E1), hence no sampling.
"""

import math

import jax
import jax.numpy as jnp

DELTA_MAX = math.pi  # radians; delta lies in [-DELTA_MAX, DELTA_MAX]
CHI_MAX = math.pi / 4  # radians; chi lies in [-CHI_MAX, CHI_MAX]
RADIUS_MAX = math.pi / 2  # radians; radius lies in [0, RADIUS_MAX]

_EPSILON = 1e-8  # keeps the gradient of a vanishing deviation finite
# Of 1 - J0(2 sqrt(x)) = sum_k -(-x)^k / (k!)^2, exact to float32 for x <= 10.5.
_SERIES = tuple(-((-1) ** k) / math.factorial(k) ** 2 for k in range(1, 18))


def transmittance(
  delta: jax.Array, chi: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Re t and Im t of one polarization state, both in [-1, 1].

  Of its retardance and its ellipticity, in radians.
  """
  return jnp.cos(delta / 2), jnp.sin(delta / 2) * jnp.sin(2 * chi)


def observe(paths_BxHxWxC: jax.Array) -> jax.Array:
  """What the observer sees of (delta, chi, radius), radians; shape (..., 4).

  Along each path: the means of Re t and Im t in [-1, 1], their standard
  deviations in [0, 1).
  """
  delta, chi, radius = jnp.moveaxis(paths_BxHxWxC, -1, 0)
  square = radius**2
  real, imaginary = transmittance(delta, chi)
  # Each fade is 1 - J0(radius sqrt(p^2 + q^2)) of the wave (p, q). The
  # variances are written in fades, so that they do not cancel at radius 0.
  half, mixed = _fade(square / 16), _fade(17 * square / 16)  # (1/2, 0 or 2)
  along, across = _fade(square / 4), _fade(4 * square)  # (1, 0), (0, 4)
  both = _fade(17 * square / 4)  # (1, 4)
  cos_delta, cos_4chi = jnp.cos(delta), jnp.cos(4 * chi)
  real_variance = real**2 * (2 - half) * half - cos_delta * along / 2
  imaginary_variance = (
    imaginary**2 * (2 - mixed) * mixed
    + (cos_delta * along + cos_4chi * across - cos_delta * cos_4chi * both) / 4
  )
  means = [real * (1 - half), imaginary * (1 - mixed)]
  variances = [real_variance, imaginary_variance]
  return jnp.stack([*means, *map(_deviation, variances)], axis=-1)


def normalize(paths_BxHxWxC: jax.Array) -> jax.Array:
  """Scales (delta, chi, radius) in radians to [-1, 1] each."""
  scale_C, shift_C = _affine(paths_BxHxWxC)
  return (paths_BxHxWxC - shift_C) / scale_C


def denormalize(x_BxHxWxC: jax.Array) -> jax.Array:
  """The inverse of `normalize`; what lies outside [-1, 1] is clipped to it."""
  scale_C, shift_C = _affine(x_BxHxWxC)
  return jnp.clip(x_BxHxWxC, -1, 1) * scale_C + shift_C


def _affine(like: jax.Array) -> tuple[jax.Array, jax.Array]:
  shape = (1,) * (like.ndim - 1) + (3,)
  scale = jnp.array([DELTA_MAX, CHI_MAX, RADIUS_MAX / 2], jnp.float32)
  shift = jnp.array([0.0, 0.0, RADIUS_MAX / 2], jnp.float32)
  return scale.reshape(shape), shift.reshape(shape)


def _fade(x: jax.Array) -> jax.Array:
  """1 - J0(2 sqrt(x)) for x in [0, 10.5]."""
  total = jnp.zeros_like(x)
  for coefficient in reversed(_SERIES):
    total = (total + coefficient) * x
  return total


def _deviation(variance: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.maximum(variance, 0) + _EPSILON) - math.sqrt(_EPSILON)
