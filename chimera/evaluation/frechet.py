"""The Frechet distance between the features of two sets of images.

`d^2 = |m - n|^2 + tr(C + D - 2 (C D)^(1/2))` between Gaussians of the features'
means and covariances: Heusel and others, "GANs Trained by a Two Time-Scale
Update Rule Converge to a Local Nash Equilibrium", 2017,
https://arxiv.org/abs/1706.08500.

Two networks make features: a random one that needs no download and sees color,
edges and texture, not objects; or an Inception that the user brings.
"""

from collections.abc import Callable, Iterable
import itertools
import math
from typing import NamedTuple

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from chimera.system import disk

RANDOM = 'rfd-random'
INCEPTION = 'rfid'
INCEPTION_KEY = 'eval.inception'
# Channels of the random network's layers, from pixels on; each layer halves
# the image. All their means together are the features.
_CHANNELS = (3, 16, 32, 48)
_SIDE = 299  # pixels, of what Inception sees

Features = Callable[[jax.Array], jax.Array]


class Moments(NamedTuple):
  """Of the features seen so far, in float64."""

  count: int  # of images
  mean_F: np.ndarray
  scatter_FxF: np.ndarray  # sum of the outer products about the mean

  @property
  def covariance_FxF(self) -> np.ndarray:
    """Divided by count - 1, as numpy's and FID's."""
    return self.scatter_FxF / max(self.count - 1, 1)


def add(moments: Moments | None, features_BxF: np.ndarray) -> Moments:
  """Moments of what was seen before, None being nothing, and of a batch.

  Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
  Computing Sample Variances", 1979: exact, in whatever batches they come.
  """
  x_BxF = np.asarray(features_BxF, np.float64)
  n, mean_F = len(x_BxF), x_BxF.mean(axis=0)
  scatter_FxF = (x_BxF - mean_F).T @ (x_BxF - mean_F)
  if moments is None:
    return Moments(n, mean_F, scatter_FxF)
  total = moments.count + n
  apart_F = mean_F - moments.mean_F
  between_FxF = np.outer(apart_F, apart_F) * (moments.count * n / total)
  return Moments(
    total,
    moments.mean_F + apart_F * n / total,
    moments.scatter_FxF + scatter_FxF + between_FxF,
  )


def frechet_distance(a: Moments, b: Moments) -> float:
  """The Frechet distance, squared as is usual; at least 0.

  The trace of `(C D)^(1/2)` is the sum of the singular values of
  `C^(1/2) D^(1/2)`. NaN where a feature was not finite.
  """
  covariances = np.stack([a.covariance_FxF, b.covariance_FxF])
  apart_F = a.mean_F - b.mean_F
  if not (np.isfinite(covariances).all() and np.isfinite(apart_F).all()):
    return math.nan
  root_a, root_b = map(_root, covariances)
  common = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
  traces = np.trace(covariances, axis1=1, axis2=2).sum()
  return max(0.0, float(apart_F @ apart_F + traces - 2 * common))


def _root(covariance_FxF: np.ndarray) -> np.ndarray:
  """The symmetric root; eigenvalues that are but rounding count as 0."""
  values_F, vectors_FxF = np.linalg.eigh(covariance_FxF)
  floor = len(values_F) * np.finfo(np.float64).eps * max(values_F[-1], 0.0)
  roots_F = np.sqrt(np.where(values_F > floor, values_F, 0.0))
  return (vectors_FxF * roots_F) @ vectors_FxF.T


def random_weights() -> list[np.ndarray]:
  """The random network's kernels, (3, 3, in, out) float32, the same anywhere.

  Uniform, by He and others, "Delving Deep into Rectifiers", 2015: variance
  2 / fan-in. Drawn from the bits of PCG64, which numpy keeps as they are.
  """
  bits, kernels = np.random.PCG64(0), []
  for inside, outside in itertools.pairwise(_CHANNELS):
    shape = (3, 3, inside, outside)
    uniform = (bits.random_raw(math.prod(shape)) >> np.uint64(11)) / 2**53
    kernel = (2 * uniform - 1) * math.sqrt(6 / math.prod(shape[:3]))
    kernels.append(kernel.reshape(shape).astype(np.float32))
  return kernels


def random_features(x_BxHxWxC: jax.Array) -> jax.Array:
  """Features of RGB images in [-1, 1] by the random network, (B, 96).

  Three layers, each a convolution of 3 x 3 in steps of 2 without a bias and a
  ReLU; the features are the means of every channel of every layer.
  """
  means = []
  for kernel in random_weights():
    x_BxHxWxC = jax.nn.relu(
      jax.lax.conv_general_dilated(
        x_BxHxWxC,
        jnp.asarray(kernel),
        window_strides=(2, 2),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision='highest',
      )
    )
    means.append(x_BxHxWxC.mean(axis=(1, 2)))
  return jnp.concatenate(means, axis=1)


def resize(x_BxHxWxC: jax.Array) -> jax.Array:
  """To 299 x 299 by the bicubic filter, widened where an image shrinks.

  Parmar and others, "On Aliased Resizing and Surprising Subtleties in GAN
  Evaluation", 2022, https://arxiv.org/abs/2104.11222.
  """
  b, _, _, c = x_BxHxWxC.shape
  return jax.image.resize(
    x_BxHxWxC, (b, _SIDE, _SIDE, c), 'cubic', precision='highest'
  )


def open_network(
  path: str, key: str, side: int, makes: str
) -> tuple[Features, list[jax.ShapeDtypeStruct], Callable[[str], ValueError]]:
  """A network that `jax.export` serialized, what it makes of two images, and
  how it is refused.

  Args:
    path: of the file.
    key: of the config, that names it.
    side: pixels, of the images (n, side, side, 3) float32, n symbolic.
    makes: in words, what it must make of them.

  Raises:
    ValueError: it holds nothing of the kind.
    OSError: it cannot be read.
  """
  with open(path, 'rb') as f:
    data = f.read()

  def refuse(what: str) -> ValueError:
    return ValueError(
      f'{key} must be a jax.export of (n, {side}, {side}, 3) float32 to '
      f'{makes}, got {path}, {what}: fix --config.{key}.'
    )

  try:
    network = export.deserialize(bytearray(data))
    image = jax.ShapeDtypeStruct((2, side, side, 3), np.float32)
    seen = jax.tree.leaves(jax.jit(network.call).lower(image).out_info)
  except disk.BROKEN as e:  # flatbuffers has no check of its own
    reason = disk.reason(e)[:200]
    raise refuse(f'which does not load ({type(e).__name__}: {reason})') from e
  return network.call, seen, refuse


def load_network(path: str) -> Features:
  """The features (B, F) of images of any size in [-1, 1], by a network that
  `jax.export` serialized.

  The file's function is of images (n, 299, 299, 3) float32 in [-1, 1], n
  symbolic, to features (n, F) float32, trailing ones allowed.

  Raises:
    ValueError: it holds nothing of the kind.
    OSError: it cannot be read.
  """
  network, seen, refuse = open_network(path, INCEPTION_KEY, _SIDE, '(n, F)')
  shape = seen[0].shape if len(seen) == 1 else ()
  if shape[:1] != (2,) or math.prod(shape[1:]) != max(shape[1:], default=0):
    shapes = [leaf.shape for leaf in seen]
    raise refuse(f'which makes {shapes} of n = 2')

  def features(x_BxHxWxC: jax.Array) -> jax.Array:
    (out,) = jax.tree.leaves(network(resize(x_BxHxWxC)))
    return out.reshape(len(out), -1)

  return features


class FrechetMetric:
  """How far pictures are from the originals, all in [-1, 1], by one network."""

  def __init__(
    self, name: str, features: Features, originals: Iterable[jax.Array]
  ):
    self.name = name
    self._features = jax.jit(features)
    self._of_originals: Moments | None = None
    for batch in originals:
      self._of_originals = self.add(self._of_originals, batch)

  def add(self, moments: Moments | None, x_BxHxWx3: jax.Array) -> Moments:
    """Moments of what was seen before and of a batch of pictures."""
    return add(moments, np.asarray(self._features(x_BxHxWx3)))

  def distance(self, moments: Moments) -> float:
    """Of pictures with those moments from the originals."""
    return frechet_distance(self._of_originals, moments)
