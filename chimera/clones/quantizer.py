"""The quantizers: encodings to codes, and tokens back to codes.

  VQ   the nearest of V learned codes, l2-normalized and of few dimensions (van
       den Oord et al., VQ-VAE, 2017, https://arxiv.org/abs/1711.00937; Yu et
       al., ViT-VQGAN, 2021, section 3.2, https://arxiv.org/abs/2110.04627)
  FSQ  each dimension rounded to one of a few levels; nothing is learned
       (Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023,
       https://arxiv.org/abs/2309.15505)

Another one is a flax module with its row in `terms.KINDS`, its place in
`Quantizer` and its keys in the config:

  kind                    its name in config.model.quantizer
  codes, dim              V and D: tokens are in [0, V), z and q have D channels
  (z_BxhxwxD)             -> (Codes, tokens_Bxhxw int32) of the encoder's z;
                          the tokenizer passes the gradient from q on to z
  lookup(tokens_Bxhxw)    -> q_BxhxwxD
  renormalize(params)     -> params, after they became the mean of several
  revive(params, dead_V, z_XxD, rng)
                          -> params, codes that nobody uses moved to encodings
  language(params)        -> bytes that tell its tokens from others'

It shares the tokenizer's scope: what it learns stands at the top of the
tokenizer's params, and only here is it known by name.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from chimera.clones import terms

# How far the bound of FSQ stays inside the outermost levels' edges.
_MARGIN = 1e-3


class Codes(NamedTuple):
  """What a quantizer makes of an encoding."""

  z_BxhxwxD: jax.Array  # the encoding, in the space of the codes
  q_BxhxwxD: jax.Array  # the code of each cell
  # of the soft assignment of each cell, (B, h, w, choices): one array for each
  # choice that is made independently of the others
  logits: tuple[jax.Array, ...]


def unit(x: jax.Array) -> jax.Array:
  """x / |x| over the last axis, with a gradient at 0."""
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


class VQ(nn.Module):
  """The nearest of `codes` learned codes; all is on the unit sphere.

  The logits are cosine similarities, in [-1, 1].
  """

  codes: int  # V, the codebook's size
  code_dim: int  # D, its width

  kind = 'vq'

  @property
  def dim(self) -> int:
    return self.code_dim

  def setup(self):
    self.codebook_VxD = self.param(
      'codebook',
      lambda key: unit(jax.random.normal(key, (self.codes, self.code_dim))),
    )

  def __call__(self, z_BxhxwxD: jax.Array) -> tuple[Codes, jax.Array]:
    z = unit(z_BxhxwxD.astype(self.codebook_VxD.dtype))
    codebook_VxD = unit(self.codebook_VxD)
    # On the unit sphere the nearest code is the one of largest cosine. What is
    # made of the logits moves encodings alone: the codes follow theirs, and by
    # Adam as fast whatever `vq` weighs.
    logits = jnp.einsum(
      'bhwd,vd->bhwv',
      z,
      jax.lax.stop_gradient(codebook_VxD),
      precision='highest',
    )
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return Codes(z, codebook_VxD[tokens], (logits,)), tokens

  def lookup(self, tokens_Bxhxw: jax.Array) -> jax.Array:
    return unit(self.codebook_VxD)[tokens_Bxhxw]

  @nn.nowrap
  def renormalize(self, params: Any) -> Any:
    """Puts the codes back on the unit sphere; their mean lies inside it."""
    return {**params, 'codebook': unit(params['codebook'])}

  @nn.nowrap
  def revive(
    self, params: Any, dead_V: jax.Array, z_XxD: jax.Array, rng: jax.Array
  ) -> tuple[Any, jax.Array]:
    """Moves dead codes onto encodings drawn at random; also says which, bool.

    One whose draw is not finite stays. Called with the encodings of all clones
    and one shared key, so that code j means one thing to all four (Dhariwal et
    al., Jukebox, 2020, section 3, https://arxiv.org/abs/2005.00341).
    """
    picks_VxD = z_XxD[jax.random.randint(rng, dead_V.shape, 0, len(z_XxD))]
    moved_V = dead_V & jnp.isfinite(picks_VxD).all(-1)
    codebook_VxD = jnp.where(moved_V[:, None], picks_VxD, params['codebook'])
    return {**params, 'codebook': codebook_VxD}, moved_V

  @nn.nowrap
  def language(self, params: Any) -> bytes:
    """The codebook."""
    return params['codebook'].tobytes()


class FSQ(nn.Module):
  """Each dimension rounded to one of its levels (Mentzer et al., 2023).

  For a dimension of L levels, as in the paper's appendix A:

    half = (L - 1) (1 - 1e-3) / 2     offset = 0 if L is odd else 1 / 2
    place = tanh(z + tan(offset / half)) half - offset
    q = round(place) / floor(L / 2), in [-1, 1]
    token = sum_d (round(place_d) + floor(L_d / 2)) prod_(c < d) L_c

  The dimensions are chosen independently of each other, each with the logits
  -(place - level)^2, whose unit is the distance of two levels. At a temperature
  of 0.1 the next level has a share of e^-10 where the place is a level, and the
  varentropy of the choice is all but 0 there.
  """

  levels: tuple[int, ...]  # L of each dimension

  kind = 'fsq'

  @property
  def codes(self) -> int:
    return math.prod(self.levels)

  @property
  def dim(self) -> int:
    return len(self.levels)

  def __call__(self, z_BxhxwxD: jax.Array) -> tuple[Codes, jax.Array]:
    levels, widths, basis = self._constants
    halves = ((levels - 1) * (1 - _MARGIN) / 2).astype(np.float32)
    offsets = np.where(levels % 2, 0, 0.5).astype(np.float32)
    z = z_BxhxwxD.astype(jnp.float32)
    places = jnp.tanh(z + np.tan(offsets / halves)) * halves - offsets
    rounded = jnp.round(places)
    tokens = jnp.sum(
      (rounded.astype(jnp.int32) + widths) * basis, axis=-1, dtype=jnp.int32
    )
    logits = tuple(
      -((place - (np.arange(n) - n // 2)[None, None, None]) ** 2)
      for place, n in zip(jnp.split(places, self.dim, axis=-1), self.levels)
    )
    return Codes(places / widths, rounded / widths, logits), tokens

  def lookup(self, tokens_Bxhxw: jax.Array) -> jax.Array:
    levels, widths, basis = self._constants
    digits = tokens_Bxhxw[..., None] // basis % levels
    return (digits - widths) / widths.astype(np.float32)

  @nn.nowrap
  def renormalize(self, params: Any) -> Any:
    """As they are: there is no codebook to average."""
    return params

  @nn.nowrap
  def revive(
    self, params: Any, dead_V: jax.Array, z_XxD: jax.Array, rng: jax.Array
  ) -> tuple[Any, jax.Array]:
    """As they are: levels do not move."""
    return params, jnp.zeros_like(dead_V)

  @nn.nowrap
  def language(self, params: Any) -> bytes:
    """The levels and all parameters: a token means what these make of it."""
    leaves = [np.asarray(self.levels), *jax.tree.leaves(params)]
    return b''.join(x.tobytes() for x in leaves)

  @property
  def _constants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each dimension: levels, floor(L / 2), and its place value."""
    levels = np.array(self.levels, np.int32)
    basis = np.cumprod([1, *self.levels[:-1]]).astype(np.int32)
    return tuple(x[None, None, None] for x in (levels, levels // 2, basis))


Quantizer = VQ | FSQ


def create(kind: str, **settings: Any) -> Quantizer:
  """The quantizer of a kind, from config.model or a tokenizer.json.

  Args:
    kind: a key of `terms.KINDS`.
    **settings: keys of config.model; those of other quantizers do not matter.
  """
  made_of = {name: settings[name] for name in terms.KINDS[kind].settings}
  if 'levels' in made_of:  # a list in JSON, and no module can be hashed with it
    made_of['levels'] = tuple(made_of['levels'])
  return {module.kind: module for module in (VQ, FSQ)}[kind](**made_of)
