"""How far two images are apart, in the terms that the specialists weigh.

Every distance takes two batches of images in [-1, 1], of any number of
channels and at least 8 x 8, and returns one number a pair. Each is zero for
equal images and symmetric, and its gradient is finite everywhere, also at
equal, constant and zero images. The design document's section 4.3 names SSIM,
edge and autocorrelation; moments, spectrum and color covariance hold texture
and color where a reconstruction need not agree pixel by pixel. `psnr`,
`ms_ssim` and `similarity` are figures to evaluate by, and grow with likeness.
"""

from collections.abc import Callable

import chex
import dm_pix
import jax
import jax.numpy as jnp

# Below this power (a contrast of 0.01 in a range of 2) texture is noise: it
# damps the quotients and logarithms of a flat image.
_FLOOR = 1e-4
_MAX_PSNR = 100.0
# Of the scales of MS-SSIM, from the finest on.
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _check(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> None:
  chex.assert_rank([a_BxHxWxC, b_BxHxWxC], 4)
  chex.assert_equal_shape([a_BxHxWxC, b_BxHxWxC])


def _window(side: int, size: int, sigma: float) -> jax.Array:
  """Gaussian filter as a band matrix: a matmul is cheaper than convolving."""
  offset = jnp.arange(side)[None, :] - jnp.arange(side - size + 1)[:, None]
  weight = jnp.exp(-0.5 * ((offset - (size - 1) / 2) / sigma) ** 2)
  weight = jnp.where((offset >= 0) & (offset < size), weight, 0.0)
  return weight / weight.sum(axis=1, keepdims=True)


def _create_blur(
  shape: tuple[int, ...], filter_size: int
) -> Callable[[jax.Array], jax.Array]:
  """SSIM's window, sigma 1.5, of the greatest odd size that fits."""
  _, height, width, _ = shape
  size = min(filter_size, (min(height, width) - 1) // 2 * 2 + 1)
  rows, columns = _window(height, size, 1.5), _window(width, size, 1.5)

  def blur(x_BxHxWxC: jax.Array) -> jax.Array:
    return jnp.einsum(
      'ph,bhwc,qw->bpqc', rows, x_BxHxWxC, columns, precision='highest'
    )

  return blur


def ssim(
  a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array, *, filter_size: int = 11
) -> jax.Array:
  """Structural dissimilarity, 1 - SSIM, in [0, 2].

  The images are moved to [0, 2] first: SSIM compares means by their ratio,
  which says nothing about values around zero. It is thus the SSIM of the same
  images in uint8.

  "Image quality assessment: from error visibility to structural similarity",
  2004, https://doi.org/10.1109/TIP.2003.819861

  The Gaussian window (sigma 1.5) has filter_size pixels; on a smaller grid the
  greatest odd size that fits.
  """
  _check(a_BxHxWxC, b_BxHxWxC)
  blur = _create_blur(a_BxHxWxC.shape, filter_size)
  return 1.0 - dm_pix.ssim(
    a_BxHxWxC + 1.0, b_BxHxWxC + 1.0, max_val=2.0, filter_fn=blur
  )


def similarity(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
  """SSIM itself, (B,), in [-1, 1]: 1 of equal images."""
  return 1 - ssim(a_BxHxWxC, b_BxHxWxC)


def l1(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
  """The mean absolute difference, (B,)."""
  _check(a_BxHxWxC, b_BxHxWxC)
  return jnp.mean(jnp.abs(a_BxHxWxC - b_BxHxWxC), axis=(1, 2, 3))


def edge(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
  """Mean absolute difference of the gradient magnitudes, a pixel and channel.

  `sqrt(dx^2 + dy^2)` of forward differences: unlike Sobel's they do not
  vanish on the finest stripes. Shape (B,), in [0, 2 sqrt(2)].
  """
  _check(a_BxHxWxC, b_BxHxWxC)
  difference = _gradient_magnitude(a_BxHxWxC) - _gradient_magnitude(b_BxHxWxC)
  return jnp.abs(difference).mean(axis=(1, 2, 3))


def _gradient_magnitude(x_BxHxWxC: jax.Array) -> jax.Array:
  corner = x_BxHxWxC[:, :-1, :-1]
  dx = x_BxHxWxC[:, :-1, 1:] - corner
  dy = x_BxHxWxC[:, 1:, :-1] - corner
  return jnp.sqrt(dx**2 + dy**2 + 1e-6)


def _power(x_BxHxWxC: jax.Array) -> jax.Array:
  """Power spectrum of each channel; its mean over the plane is mean(x^2)."""
  f = jnp.fft.rfft2(x_BxHxWxC, axes=(1, 2), norm='ortho')
  return jnp.square(f.real) + jnp.square(f.imag)


def autocorrelation(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
  """Mean absolute difference of the circular autocorrelations.

  Each channel's is `r(lag) / (r(0) + 1e-4)` with the mean removed, for every
  lag of the grid, by the Wiener-Khinchin theorem
  (https://en.wikipedia.org/wiki/Wiener-Khinchin_theorem): it compares the
  texture's pattern and leaves contrast and position out. Shape (B,), in
  [0, 2].
  """
  _check(a_BxHxWxC, b_BxHxWxC)
  difference = _autocorrelation(a_BxHxWxC) - _autocorrelation(b_BxHxWxC)
  return jnp.abs(difference).mean(axis=(1, 2, 3))


def _autocorrelation(x_BxHxWxC: jax.Array) -> jax.Array:
  x_BxHxWxC = x_BxHxWxC - x_BxHxWxC.mean(axis=(1, 2), keepdims=True)
  r_BxHxWxC = jnp.fft.irfft2(
    _power(x_BxHxWxC), s=x_BxHxWxC.shape[1:3], axes=(1, 2)
  )
  return r_BxHxWxC / (r_BxHxWxC[:, :1, :1] + _FLOOR)


def moments(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
  """Mean absolute difference of each channel's first three moments.

  Mean, standard deviation `sqrt(m2 + 1e-4)` and `m3 / (m2 + 1e-4)`, which is
  skewness times standard deviation: all three in units of intensity. Shape
  (B,).
  """
  _check(a_BxHxWxC, b_BxHxWxC)
  difference = _moments(a_BxHxWxC) - _moments(b_BxHxWxC)
  return jnp.abs(difference).mean(axis=(0, 2))


def _moments(x_BxHxWxC: jax.Array) -> jax.Array:
  mean_BxC = x_BxHxWxC.mean(axis=(1, 2))
  x_BxHxWxC = x_BxHxWxC - mean_BxC[:, None, None, :]
  variance_BxC = jnp.square(x_BxHxWxC).mean(axis=(1, 2)) + _FLOOR
  third_BxC = (x_BxHxWxC**3).mean(axis=(1, 2))
  return jnp.stack([mean_BxC, jnp.sqrt(variance_BxC), third_BxC / variance_BxC])


def spectrum(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
  """Mean absolute difference of the log magnitude spectra, in nepers.

  `log(sqrt(|F|^2 + 1e-4))` over the half plane of the orthonormal real FFT of
  each channel: all octaves count alike, however little energy they hold.
  Shape (B,).
  """
  _check(a_BxHxWxC, b_BxHxWxC)
  difference = jnp.log(_power(a_BxHxWxC) + _FLOOR)
  difference -= jnp.log(_power(b_BxHxWxC) + _FLOOR)
  return 0.5 * jnp.abs(difference).mean(axis=(1, 2, 3))


def color_covariance(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
  """Mean absolute difference of the C x C covariances of the channels.

  Covariance over the pixels of an image, divided by their number. Shape (B,),
  in [0, 2].
  """
  _check(a_BxHxWxC, b_BxHxWxC)
  difference = _color_covariance(a_BxHxWxC) - _color_covariance(b_BxHxWxC)
  return jnp.abs(difference).mean(axis=(1, 2))


def _color_covariance(x_BxHxWxC: jax.Array) -> jax.Array:
  _, height, width, _ = x_BxHxWxC.shape
  x_BxHxWxC = x_BxHxWxC - x_BxHxWxC.mean(axis=(1, 2), keepdims=True)
  covariance_BxCxC = jnp.einsum(
    'bhwc,bhwd->bcd', x_BxHxWxC, x_BxHxWxC, precision='highest'
  )
  return covariance_BxCxC / (height * width)


def psnr(a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array) -> jax.Array:
  """Peak signal-to-noise ratio in dB, `10 log10(2^2 / mse)`, at most 100.

  It grows with likeness. Shape (B,).
  """
  _check(a_BxHxWxC, b_BxHxWxC)
  mse_B = jnp.square(a_BxHxWxC - b_BxHxWxC).mean(axis=(1, 2, 3))
  return 10.0 * jnp.log10(
    4.0 / jnp.maximum(mse_B, 4.0 * 10 ** (-_MAX_PSNR / 10))
  )


def ms_ssim(
  a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array, *, filter_size: int = 11
) -> jax.Array:
  """Multi-scale SSIM, at most 1; it grows with likeness.

  Each scale is the 2 x 2 mean of the one before. Contrast and structure count
  at every scale, luminance at the coarsest, as powers of a product; what is
  negative counts as 0. The five published weights are of images from 176
  pixels on: a smaller one has as many of the finest scales as the window fits
  in (64 pixels: three), their weights scaled to sum to 1.

  "Multiscale structural similarity for image quality assessment", 2003,
  https://doi.org/10.1109/ACSSC.2003.1292216
  """
  _check(a_BxHxWxC, b_BxHxWxC)
  side = min(a_BxHxWxC.shape[1:3])
  count = sum(side >> k >= filter_size for k in range(len(_SCALES))) or 1
  weights = jnp.array(_SCALES[:count]) / sum(_SCALES[:count])
  product_BxC = 1.0
  for k in range(count):
    whole_BxC, contrast_BxC = _similarity(a_BxHxWxC, b_BxHxWxC, filter_size)
    likeness_BxC = whole_BxC if k == count - 1 else contrast_BxC
    product_BxC *= jnp.maximum(likeness_BxC, 0.0) ** weights[k]
    a_BxHxWxC, b_BxHxWxC = _halve(a_BxHxWxC), _halve(b_BxHxWxC)
  return product_BxC.mean(axis=1)


def _similarity(
  a_BxHxWxC: jax.Array, b_BxHxWxC: jax.Array, filter_size: int
) -> tuple[jax.Array, jax.Array]:
  """SSIM of each channel, and it without luminance, both (B, C)."""
  blur = _create_blur(a_BxHxWxC.shape, filter_size)
  a, b = blur(a_BxHxWxC), blur(b_BxHxWxC)
  variances = blur(a_BxHxWxC**2 + b_BxHxWxC**2) - a**2 - b**2
  covariance = blur(a_BxHxWxC * b_BxHxWxC) - a * b
  # Constants of the paper in a range of 2; means from 0 on.
  c1, c2, a, b = 0.02**2, 0.06**2, a + 1.0, b + 1.0
  contrast = (2 * covariance + c2) / (variances + c2)
  luminance = (2 * a * b + c1) / (a**2 + b**2 + c1)
  return (luminance * contrast).mean(axis=(1, 2)), contrast.mean(axis=(1, 2))


def _halve(x_BxHxWxC: jax.Array) -> jax.Array:
  """Means of 2 x 2 pixels; an odd last row or column is left out."""
  b, h, w, c = x_BxHxWxC.shape
  even = x_BxHxWxC[:, : h // 2 * 2, : w // 2 * 2]
  return even.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
