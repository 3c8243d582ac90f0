"""Stage 1: image -> path_params -> image.

The modulator turns each cell of an image into a path on the Poincare sphere;
the observer (`poincare.observe`) measures its light; the decoder paints the
cell from what was measured. The School sorts images by their mean radius, which
a free autoencoder fills with anything but complexity. Hence radius='local': the
radius about each cell is computed, not learned,

  m = RADIUS_MAX * (LOW + (HIGH - LOW) * g / (g + HALF))

with g the gradient magnitude of the luminance there, and the modulator is left
the pattern around it: as in an AM radio, a signal z on a carrier s = +1, -1 of
neighboring cells, radius = m (1 + s tanh z). Where z is smooth, the mean of two
neighbors is m. Without the carrier, fixing the mean would take away that of z,
which is the first thing that the decoder must know of a flat image; with it,
only z's checkerboard, which images have little of.

radius='contrast' is earlier: radius = RADIUS_MAX * sigmoid(s z + b), with g and
b of the whole image, b such that the mean is m.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from chimera.optics import poincare

RADII = ('local', 'contrast', 'free')
LOW, HIGH = 0.1, 0.5  # mean radius / RADIUS_MAX of flat and of wild images
HALF = 0.14  # luminance in [-1, 1] a pixel: g of a middling photograph
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_SPREAD = 4  # times that contrast is smoothed
_LOGIT = 4.0  # bound of |z|
_BISECTIONS = 12


def _bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Starts at (pi / 2, pi / 8), where light answers to delta and to chi.

  At (0, 0) it answers to their squares and their product alone: a saddle.
  """
  del key, shape
  return jnp.array([math.atanh(0.5), math.atanh(0.5), 0.0], dtype)


def to_float(images: jax.Array) -> jax.Array:
  """uint8 RGB to float32 in [-1, 1], on the device.

  `images.to_float` divides on the host, and may round another way.
  """
  return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def gradient_magnitude(images_BxSxSx3: jax.Array) -> jax.Array:
  """Mean magnitude of the luminance's gradient, shape (B,).

  Luminance by ITU-R BT.601 in [-1, 1], forward differences, per pixel.
  """
  y = images_BxSxSx3 @ _LUMINANCE
  dy = y[:, 1:, :-1] - y[:, :-1, :-1]
  dx = y[:, :-1, 1:] - y[:, :-1, :-1]
  return jnp.mean(jnp.sqrt(dx**2 + dy**2 + 1e-12), axis=(1, 2))


def mean_radius(images_BxSxSx3: jax.Array) -> jax.Array:
  """The radius, radians, that radius='contrast' gives each image, shape (B,).

  Rises with `gradient_magnitude` from LOW to HIGH of RADIUS_MAX.
  """
  g = gradient_magnitude(images_BxSxSx3)
  return poincare.RADIUS_MAX * (LOW + (HIGH - LOW) * g / (g + HALF))


def local_radius(images_BxSxSx3: jax.Array, cell: int) -> jax.Array:
  """The radius, as a share of RADIUS_MAX, about each cell: (B, H, W).

  As `mean_radius`, of the gradient magnitude in the cell and, ever less, in
  those about it.
  """
  y = images_BxSxSx3 @ _LUMINANCE
  b, height, width = y.shape
  y = mirror(y)[:, 1:, 1:]
  dy = y[:, 1:, :-1] - y[:, :-1, :-1]
  dx = y[:, :-1, 1:] - y[:, :-1, :-1]
  g = jnp.sqrt(dx**2 + dy**2 + 1e-12)
  g = g.reshape(b, height // cell, cell, width // cell, cell).mean((2, 4))
  for _ in range(_SPREAD):
    g = smooth(g)
  return LOW + (HIGH - LOW) * g / (g + HALF)


def _beyond(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  """What lies mirrored before the first cell of an axis and behind the last."""
  n = x.shape[axis]
  if not isinstance(n, int):  # of an artefact, which may be given one cell
    cut = functools.partial(jnp.take, x, axis=axis, mode='clip')
    return cut(jnp.array([1])), cut(jnp.array([n - 2]))
  near = min(n - 1, 1)
  cut = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
  return cut(near, near + 1), cut(n - 1 - near, n - near)


def mirror(x: jax.Array, axes: tuple[int, ...] = (1, 2)) -> jax.Array:
  """x with one more cell at either end of the axes: its second from there.

  A checkerboard goes on. An axis of one cell repeats it.
  """
  for axis in axes:
    before, behind = _beyond(x, axis)
    x = jnp.concatenate([before, x, behind], axis=axis)
  return x


def convolve_mirrored(
  x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
  """A convolution with kernels of 3 x 3, as flax calls it, of `mirror(x)`.

  On the CPU XLA takes twice as long for it as for one with zeros beyond the
  border, so it is that one, and what lies there is added.
  """
  assert (set(strides), padding) == ({1}, 'SAME'), (strides, padding)
  convolve = functools.partial(
    jax.lax.conv_general_dilated, window_strides=(1, 1), **options
  )
  y = convolve(x, kernel, padding='SAME')
  top, bottom = _beyond(mirror(x, (2,)), 1)
  left, right = _beyond(x, 2)
  height = [(1, 1), (0, 0)]
  return (
    y.at[:, :1]
    .add(convolve(top, kernel[:1], padding='VALID'))
    .at[:, -1:]
    .add(convolve(bottom, kernel[2:], padding='VALID'))
    .at[:, :, :1]
    .add(convolve(left, kernel[:, :1], padding=height))
    .at[:, :, -1:]
    .add(convolve(right, kernel[:, 2:], padding=height))
  )


def smooth(x: jax.Array) -> jax.Array:
  """A mean with the neighbors, by 1, 2, 1 along axes 1 and 2, mirrored.

  Of a checkerboard it leaves nothing.
  """
  for axis in (1, 2):
    n = x.shape[axis]
    cut = functools.partial(jax.lax.slice_in_dim, mirror(x, (axis,)), axis=axis)
    x = (cut(0, n) + 2 * x + cut(2, n + 2)) / 4
  return x


def pin_mean(z_BxHxW: jax.Array, mean_B: jax.Array) -> jax.Array:
  """sigmoid(z + b), with each image's b such that its mean is as asked.

  b is found by bisection, then by one Newton step, through which alone the
  gradient flows: at the root it is that of the implicit function. |z| is at
  most 4, the mean in [0.1, 0.9].
  """
  target_B = jnp.log(mean_B / (1 - mean_B))
  fixed_BxHxW = jax.lax.stop_gradient(z_BxHxW)

  def bisect(_, bounds):
    low_B, high_B = bounds
    middle_B = (low_B + high_B) / 2
    seen_BxHxW = jax.nn.sigmoid(fixed_BxHxW + middle_B[:, None, None])
    over_B = jnp.mean(seen_BxHxW, axis=(1, 2)) > mean_B
    low_B = jnp.where(over_B, low_B, middle_B)
    return low_B, jnp.where(over_B, middle_B, high_B)

  bounds = (
    target_B - jnp.max(fixed_BxHxW, axis=(1, 2)),
    target_B - jnp.min(fixed_BxHxW, axis=(1, 2)),
  )
  low_B, high_B = jax.lax.stop_gradient(
    jax.lax.fori_loop(0, _BISECTIONS, bisect, bounds)
  )
  b_B = (low_B + high_B) / 2
  s_BxHxW = jax.nn.sigmoid(z_BxHxW + b_B[:, None, None])
  slope_B = jax.lax.stop_gradient(
    jnp.mean(s_BxHxW * (1 - s_BxHxW), axis=(1, 2))
  )
  b_B += (mean_B - jnp.mean(s_BxHxW, axis=(1, 2))) / slope_B
  return jax.nn.sigmoid(z_BxHxW + b_B[:, None, None])


def _carrier(x_BxHxW: jax.Array) -> jax.Array:
  """A checkerboard of 1 and -1, shape (1, H, W)."""
  _, height, width = x_BxHxW.shape
  parity = (jnp.arange(height)[:, None] + jnp.arange(width)[None, :]) % 2
  return 1.0 - 2.0 * parity[None]


class Optics(nn.Module):
  """The stage-1 autoencoder."""

  cell: int  # pixels a side of one cell of the path_params grid
  width: int  # channels
  radius: str  # 'local', 'contrast' or 'free', see the module
  blocks: int = 3  # residual blocks on either side

  @property
  def reach(self) -> tuple[int | None, int]:
    """How many cells away `encode` and `decode` see; None is all of them."""
    pattern, paint = 2 * self.blocks, 2 * self.blocks + 2
    return {
      'local': (max(pattern, _SPREAD + 1), paint + 1),
      'contrast': (None, paint),
      'free': (pattern, paint),
    }[self.radius]

  def setup(self) -> None:
    if self.radius not in RADII:
      raise ValueError(
        f'radius must be one of {RADII}, got radius = {self.radius!r}: fix '
        '--config.optics.radius.'
      )
    is_local = self.radius == 'local'
    convolve = convolve_mirrored if is_local else None
    near = functools.partial(
      nn.Conv, kernel_size=(3, 3), conv_general_dilated=convolve
    )
    residual = functools.partial(Residual, self.width, near)
    self.look = nn.Conv(self.width, (self.cell,) * 2, (self.cell,) * 2)
    self.modulate = [residual() for _ in range(self.blocks)]
    self.steer = nn.Conv(3, (1, 1), bias_init=_bias)
    self.expand = near(self.width)
    self.refine = [residual() for _ in range(self.blocks)]
    self.paint = near(3 * self.cell**2)

  def encode(self, images_BxSxSx3: jax.Array) -> jax.Array:
    """path_params (B, S / cell, S / cell, 3), within `poincare`'s ranges.

    They are light modulated by RGB in [-1, 1]; S is a multiple of cell.
    """
    _, height, width, _ = images_BxSxSx3.shape
    if height % self.cell or width % self.cell:
      raise ValueError(
        f'image_size must be a multiple of cell = {self.cell}, got '
        f'{height} x {width}: fix --config.data.image_size.'
      )
    h = self.look(images_BxSxSx3)
    for block in self.modulate:
      h = block(h)
    delta, chi, z = jnp.moveaxis(self.steer(nn.gelu(h)), -1, 0)
    if self.radius == 'local':
      share = local_radius(images_BxSxSx3, self.cell)
      share *= 1 + _carrier(z) * jnp.tanh(z)
    elif self.radius == 'contrast':
      z = _LOGIT * jnp.tanh(z / _LOGIT)
      mean_B = mean_radius(images_BxSxSx3) / poincare.RADIUS_MAX
      share = pin_mean(_carrier(z) * z, mean_B)
    else:
      share = nn.sigmoid(_LOGIT * jnp.tanh(z / _LOGIT))
    delta = poincare.DELTA_MAX * jnp.tanh(delta)
    chi = poincare.CHI_MAX * jnp.tanh(chi)
    return jnp.stack([delta, chi, poincare.RADIUS_MAX * share], axis=-1)

  def decode(self, paths_BxHxWxC: jax.Array) -> jax.Array:
    """Paints what the observer sees, as RGB in [-1, 1]."""
    seen = poincare.observe(paths_BxHxWxC)
    carrier = _carrier(seen[..., 0])[..., None]
    if self.radius == 'local':
      # Received: both bands are without the carrier where an image is flat.
      even, odd = smooth(seen), smooth(carrier * seen)
      rest = seen - even - carrier * odd
      seen = jnp.concatenate([even, odd, rest, carrier * rest], axis=-1)
    elif self.radius == 'contrast':  # demodulated beside what was seen
      seen = jnp.concatenate([seen, carrier * seen], axis=-1)
    h = self.expand(seen)
    for block in self.refine:
      h = block(h)
    pixels = self.paint(nn.gelu(h))
    b, height, width, _ = pixels.shape
    c = self.cell
    pixels = pixels.reshape(b, height, width, c, c, 3)
    pixels = pixels.transpose(0, 1, 3, 2, 4, 5)
    return jnp.tanh(pixels.reshape(b, height * c, width * c, 3))

  def __call__(self, images_BxSxSx3: jax.Array) -> jax.Array:
    return self.decode(self.encode(images_BxSxSx3))


class Residual(nn.Module):
  """Two convolutions beside the identity; the second starts at zero."""

  width: int
  near: Callable[..., nn.Conv]  # a convolution with the cells about each

  @nn.compact
  def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
    h = self.near(self.width)(nn.gelu(x_BxHxWxC))
    zero = nn.initializers.zeros_init()
    return x_BxHxWxC + self.near(self.width, kernel_init=zero)(nn.gelu(h))
