"""The tokenizer (encoder, quantizer, decoder) and the critic.

A residual convolutional VQ-GAN on path_params scaled to [-1, 1] (Esser, Rombach
and Ommer, Taming Transformers, 2021, https://arxiv.org/abs/2012.09841) with an
l2-normalized low-dimensional codebook (Yu et al., ViT-VQGAN, 2021, section 3.2,
https://arxiv.org/abs/2110.04627). No layer keeps batch statistics, so the mean
of four networks is a network.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Codes(NamedTuple):
  """What the quantizer makes of an encoding.

  Attributes:
    z_BxhxwxD: the encoding, of unit norm.
    q_BxhxwxD: the nearest code of each cell, of unit norm.
    logits_BxhxwxV: cosine similarity to every code, in [-1, 1].
  """

  z_BxhxwxD: jax.Array
  q_BxhxwxD: jax.Array
  logits_BxhxwxV: jax.Array


def unit(x: jax.Array) -> jax.Array:
  """x / |x| over the last axis, with a gradient at 0."""
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def fold(x_BxHxWxC: jax.Array) -> jax.Array:
  """Space to depth: (B, H, W, C) to (B, H / 2, W / 2, 4 C).

  Before a convolution of stride 1, instead of one of stride 2, whose gradients
  are dilated convolutions, which XLA runs without a library on the CPU.
  """
  b, h, w, c = x_BxHxWxC.shape
  x = x_BxHxWxC.reshape(b, h // 2, 2, w // 2, 2, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def unfold(x_BxHxWxC: jax.Array) -> jax.Array:
  """Depth to space, the inverse of `fold`."""
  b, h, w, c = x_BxHxWxC.shape
  x = x_BxHxWxC.reshape(b, h, w, 2, 2, c // 4)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


class ResidualBlock(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x
    for _ in range(2):
      y = nn.swish(nn.GroupNorm(num_groups=max(1, self.width // 8))(y))
      y = nn.Conv(self.width, (3, 3))(y)
    return x + y


class Encoder(nn.Module):
  width: int
  blocks: int
  downsample: int
  code_dim: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.Conv(self.width, (3, 3))(x)
    for _ in range(self.downsample.bit_length() - 1):
      x = ResidualBlock(self.width)(x)
      x = nn.Conv(self.width, (3, 3))(fold(x))
    for _ in range(self.blocks):
      x = ResidualBlock(self.width)(x)
    return nn.Conv(self.code_dim, (1, 1))(nn.swish(x))


class Decoder(nn.Module):
  width: int
  blocks: int
  downsample: int

  @nn.compact
  def __call__(self, q: jax.Array) -> jax.Array:
    x = nn.Conv(self.width, (3, 3))(q)
    for _ in range(self.blocks):
      x = ResidualBlock(self.width)(x)
    for _ in range(self.downsample.bit_length() - 1):
      x = unfold(nn.Conv(4 * self.width, (1, 1))(x))
      x = ResidualBlock(self.width)(x)
    # Bounded: an unbounded output is how one seed in three blew up.
    return jnp.tanh(nn.Conv(3, (3, 3))(nn.swish(x)))


class Tokenizer(nn.Module):
  """Normalized path_params -> tokens -> normalized path_params.

  Attributes:
    width: channels of both halves.
    blocks: residual blocks at the token grid, each half.
    downsample: cells a side of one token, a power of two.
    codes: V, the codebook's size.
    code_dim: D, the codebook's width.
  """

  width: int
  blocks: int
  downsample: int
  codes: int
  code_dim: int

  def setup(self):
    self.encoder = Encoder(
      self.width, self.blocks, self.downsample, self.code_dim
    )
    self.decoder = Decoder(self.width, self.blocks, self.downsample)
    self.codebook_VxD = self.param(
      'codebook',
      lambda key: unit(jax.random.normal(key, (self.codes, self.code_dim))),
    )

  def quantize(self, x_BxHxWxC: jax.Array) -> tuple[Codes, jax.Array]:
    """Codes and tokens_Bxhxw int32 of normalized path_params."""
    z = unit(self.encoder(x_BxHxWxC).astype(self.codebook_VxD.dtype))
    codebook_VxD = unit(self.codebook_VxD)
    # On the unit sphere the nearest code is the one of largest cosine.
    logits = jnp.einsum('bhwd,vd->bhwv', z, codebook_VxD, precision='highest')
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return Codes(z, codebook_VxD[tokens], logits), tokens

  def tokenize(self, x_BxHxWxC: jax.Array) -> jax.Array:
    """tokens_Bxhxw int32 of normalized path_params."""
    return self.quantize(x_BxHxWxC)[1]

  def detokenize(self, tokens_Bxhxw: jax.Array) -> jax.Array:
    """Normalized path_params (B, H, W, 3), in [-1, 1], of tokens."""
    return self.decoder(unit(self.codebook_VxD)[tokens_Bxhxw])

  def __call__(
    self, x_BxHxWxC: jax.Array
  ) -> tuple[jax.Array, Codes, jax.Array]:
    """The reconstruction (B, H, W, 3) in [-1, 1], the codes, the tokens."""
    codes, tokens_Bxhxw = self.quantize(x_BxHxWxC)
    # Straight through: the decoder's gradient reaches the encoder unchanged.
    q = codes.z_BxhxwxD + jax.lax.stop_gradient(
      codes.q_BxhxwxD - codes.z_BxhxwxD
    )
    return self.decoder(q), codes, tokens_Bxhxw


class Critic(nn.Module):
  """A patch critic without normalization layers, as WGAN-GP asks (section 4).

  Gulrajani et al., Improved Training of Wasserstein GANs, 2017,
  https://arxiv.org/abs/1704.00028.
  """

  width: int

  @nn.compact
  def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
    """score_B, the mean over patches."""
    x = x_BxHxWxC
    for i in range(2):
      x = nn.leaky_relu(nn.Conv(self.width << i, (3, 3))(fold(x)), 0.2)
    x = nn.leaky_relu(nn.Conv(self.width * 2, (3, 3))(x), 0.2)
    return jnp.mean(nn.Conv(1, (3, 3))(x), axis=(1, 2, 3))


def renormalize(params: Any) -> Any:
  """Puts the codes back on the unit sphere; their mean lies inside it."""
  return {**params, 'codebook': unit(params['codebook'])}


def revive(
  params: Any, dead_V: jax.Array, z_XxD: jax.Array, rng: jax.Array
) -> Any:
  """Moves dead codes onto encodings drawn at random.

  Called with the encodings of all clones and one shared key, so that code j
  means one thing to all four (Dhariwal et al., Jukebox, 2020, section 3,
  https://arxiv.org/abs/2005.00341).
  """
  picks_VxD = z_XxD[jax.random.randint(rng, dead_V.shape, 0, len(z_XxD))]
  dead_VxD = dead_V[:, None] & jnp.isfinite(picks_VxD)
  codebook_VxD = jnp.where(dead_VxD, picks_VxD, params['codebook'])
  return {**params, 'codebook': codebook_VxD}
