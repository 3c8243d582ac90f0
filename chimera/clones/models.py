"""The tokenizer: an encoder, a quantizer, a decoder.

A residual convolutional VQ-GAN on path_params scaled to [-1, 1] (Esser, Rombach
and Ommer, Taming Transformers, 2021, https://arxiv.org/abs/2012.09841).

Another encoder or decoder goes in the place of these two, here in `Tokenizer`:

  encoder  x (B, H, W, 3) in [-1, 1] -> z (B, H / n, W / n, D), not bounded;
           mean, `mean_of` the whole of which x is a part, or None
  decoder  q (B, h, w, D) -> x_hat (B, n h, n w, 3) in [-1, 1]

where n is `downsample`, and D what the quantizer asks for. Both take any number
of samples and any H and W that n divides, keep each sample to itself, and learn
nothing but params: no layer keeps batch statistics, so the mean of four
networks is a network.
"""

import functools

import dm_pix
import flax.linen as nn
import jax
import jax.numpy as jnp

from chimera.clones import convolution, layer_norm
from chimera.clones import quantizer as quantizer_lib

Features = jax.Array | convolution.Framed


def _swish(x: Features) -> Features:
  return jax.tree.map(nn.swish, x)


def _folded(x: Features) -> Features:
  """Of half the height and width, four times the channels."""
  if not isinstance(x, convolution.Framed):
    return dm_pix.space_to_depth(x, 2)
  image, beyond = x
  if beyond.shape[1] == 1:
    return convolution.Framed(_folded(image), jnp.tile(beyond, (1, 1, 1, 4)))
  return convolution.Framed(_folded(image), _folded(beyond))


def mean_of(x_BxHxWxC: jax.Array, downsample: int) -> jax.Array:
  """(B, P, P, C): the mean, that of two cells by two, for each of the four.

  The optics' carrier repeats in two cells. Where a token is of one, P is 1.
  """
  b, h, w, c = x_BxHxWxC.shape
  p = min(downsample, 2)
  return jnp.mean(x_BxHxWxC.reshape(b, h // p, p, w // p, p, c), (1, 3))


class ResidualBlock(nn.Module):
  """Of images, or of framed ones."""

  width: int
  norm: str  # 'layer' or 'group', see `Tokenizer`
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Features) -> Features:
    y = x
    norm = layer_norm.LayerNorm
    if self.norm == 'group':
      # Of 8 channels, or the fewest more that divide the width.
      most = max(1, self.width // 8)
      groups = next(n for n in range(most, 0, -1) if self.width % n == 0)
      norm = functools.partial(nn.GroupNorm, num_groups=groups)
    for _ in range(2):
      y = _swish(jax.tree.map(norm(), y))
      y = convolution.Conv(self.width, (3, 3), self.dtype)(y)
    return jax.tree.map(jnp.add, x, y)


class Encoder(nn.Module):
  width: int
  blocks: int
  downsample: int
  dim: int
  norm: str
  border: str
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array, mean: jax.Array | None = None) -> jax.Array:
    if is_framed := self.border == 'mean':
      if mean is None:
        mean = mean_of(x, self.downsample)
      x = convolution.Framed(x, mean)
    conv = functools.partial(convolution.Conv, dtype=self.dtype)
    block = functools.partial(ResidualBlock, dtype=self.dtype)
    x = conv(self.width, (3, 3))(x)
    for _ in range(self.downsample.bit_length() - 1):
      x = block(self.width, self.norm)(x)
      # Instead of a stride of 2, whose gradients are dilated convolutions,
      # which XLA runs without a library on the CPU.
      x = conv(self.width, (3, 3))(_folded(x))
    for _ in range(self.blocks):
      x = block(self.width, self.norm)(x)
    z = conv(self.dim, (1, 1))(_swish(x))
    return z[0] if is_framed else z


class Decoder(nn.Module):
  width: int
  blocks: int
  downsample: int
  norm: str
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, q: jax.Array) -> jax.Array:
    conv = functools.partial(convolution.Conv, dtype=self.dtype)
    block = functools.partial(ResidualBlock, dtype=self.dtype)
    x = conv(self.width, (3, 3))(q)
    for _ in range(self.blocks):
      x = block(self.width, self.norm)(x)
    for _ in range(self.downsample.bit_length() - 1):
      x = dm_pix.depth_to_space(conv(4 * self.width, (1, 1))(x), 2)
      x = block(self.width, self.norm)(x)
    # Bounded: an unbounded output is how one seed in three blew up.
    return jnp.tanh(conv(3, (3, 3))(nn.swish(x)))


class Tokenizer(nn.Module):
  """Normalized path_params -> tokens -> normalized path_params."""

  width: int  # channels of both halves
  blocks: int  # residual blocks at the token grid, each half
  downsample: int  # cells a side of one token, a power of two
  quantizer: quantizer_lib.Quantizer  # between them
  # In the residual blocks: 'layer', of each cell for itself, or 'group', of the
  # whole image, so that a token depends on all of it.
  norm: str = 'group'
  # What the encoder takes to lie beyond an image's border: 'zeros', or its
  # 'mean', for which an image of one color has tokens of one kind.
  border: str = 'zeros'
  # What the convolutions multiply, while it learns: 'float32' or 'bfloat16'.
  dtype: str = 'float32'

  @property
  def codes(self) -> int:
    """V; tokens are in [0, V)."""
    return self.quantizer.codes

  @property
  def reach(self) -> tuple[int, int] | None:
    """How far encoder and decoder see, in cells; None is all of the image.

    From the side of a token to the farthest cell that it depends on, and from a
    cell to the side of the farthest token. What lies beyond the border, an
    image's mean, is not counted: it is handed in where a part is looked at.
    """
    if self.norm == 'group':
      return None
    n = self.downsample
    # Two convolutions a residual block, and one from each grid to the next.
    grids = [1 << i for i in range(n.bit_length() - 1)]
    encoder = 1 + sum(2 * side + 2 * side for side in grids)
    decoder = 1 + sum(2 * side for side in grids) + n
    at_tokens = 2 * self.blocks * n
    return encoder + at_tokens, decoder + at_tokens

  def setup(self):
    self.encoder = Encoder(
      *(self.width, self.blocks, self.downsample),
      *(self.quantizer.dim, self.norm, self.border, self.dtype),
    )
    self.decoder = Decoder(
      *(self.width, self.blocks, self.downsample, self.norm, self.dtype)
    )
    nn.share_scope(self, self.quantizer)

  def quantize(
    self, x_BxHxWxC: jax.Array, mean_BxPxPxC: jax.Array | None = None
  ) -> tuple[quantizer_lib.Codes, jax.Array]:
    """Codes and tokens_Bxhxw int32 of normalized path_params.

    Of parts of larger ones, of which that is `mean_of`.
    """
    return self.quantizer(self.encoder(x_BxHxWxC, mean_BxPxPxC))

  def tokenize(
    self, x_BxHxWxC: jax.Array, mean_BxPxPxC: jax.Array | None = None
  ) -> jax.Array:
    """tokens_Bxhxw int32, of what `quantize` takes."""
    return self.quantize(x_BxHxWxC, mean_BxPxPxC)[1]

  def decode(self, q_BxhxwxD: jax.Array) -> jax.Array:
    """Normalized path_params (B, H, W, 3), in [-1, 1], of codes."""
    return self.decoder(q_BxhxwxD)

  def detokenize(self, tokens_Bxhxw: jax.Array) -> jax.Array:
    """Normalized path_params (B, H, W, 3), in [-1, 1], of tokens."""
    return self.decoder(self.quantizer.lookup(tokens_Bxhxw))

  def __call__(
    self, x_BxHxWxC: jax.Array
  ) -> tuple[jax.Array, quantizer_lib.Codes, jax.Array]:
    """The reconstruction (B, H, W, 3) in [-1, 1], the codes, the tokens."""
    codes, tokens_Bxhxw = self.quantize(x_BxHxWxC)
    # Straight through: the decoder's gradient reaches the encoder unchanged, as
    # `learning.learn` has it. To the last bit it is the code that is drawn.
    z, stop = codes.z_BxhxwxD, jax.lax.stop_gradient
    q = stop(codes.q_BxhxwxD) + (z - stop(z))
    return self.decoder(q), codes, tokens_Bxhxw


def create_tokenizer(
  *,
  width: int,
  blocks: int,
  downsample: int,
  quantizer: str = 'vq',
  norm: str = 'group',
  border: str = 'zeros',
  **settings,
) -> Tokenizer:
  """The tokenizer of config.model, or of an exported tokenizer.json.

  One from before there was a choice has VQ, groups, or zeros; the settings are
  the quantizer's.
  """
  between = quantizer_lib.create(quantizer, **settings)
  return Tokenizer(width, blocks, downsample, between, norm, border)
