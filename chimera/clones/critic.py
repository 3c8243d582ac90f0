"""The critic of WGAN-GP: how real a sample looks.

A patch critic without normalization layers, as WGAN-GP asks (Gulrajani et al.,
Improved Training of Wasserstein GANs, 2017, section 4,
https://arxiv.org/abs/1704.00028). What it learns by is in `losses.py`.
"""

import dataclasses

import dm_pix
import flax.linen as nn
import jax
import jax.numpy as jnp

from chimera.clones import convolution


@dataclasses.dataclass(frozen=True)
class Spec:
  """The constants of WGAN-GP; the config's `critic` explains each."""

  learning_rate: float
  penalty: float
  drift: float


class Critic(nn.Module):
  """Scores normalized path_params, on a grid of any size."""

  width: int  # channels of the first layer

  @nn.compact
  def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
    """score_B, the mean over patches."""
    x = x_BxHxWxC
    for i in range(2):
      x = convolution.Conv(self.width << i, (3, 3))(_fold(x))
      x = nn.leaky_relu(x, 0.2)
    x = nn.leaky_relu(convolution.Conv(self.width * 2, (3, 3))(x), 0.2)
    return jnp.mean(convolution.Conv(1, (3, 3))(x), axis=(1, 2, 3))


def _fold(x_BxHxWxC: jax.Array) -> jax.Array:
  """2 x 2 cells to channels; zeros, as at any border, beside what is odd."""
  _, height, width, _ = x_BxHxWxC.shape
  if height % 2 or width % 2:
    padding = (0, 0), (0, height % 2), (0, width % 2), (0, 0)
    x_BxHxWxC = jnp.pad(x_BxHxWxC, padding)
  return dm_pix.space_to_depth(x_BxHxWxC, 2)
