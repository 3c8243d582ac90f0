"""The K terms that the PID weighs, and WGAN-GP.

Design document 4.3 names the terms and 5.1 the critic's protocol: Gulrajani et
al., Improved Training of Wasserstein GANs, 2017,
https://arxiv.org/abs/1704.00028.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import operator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from chimera.clones import perceptual

if TYPE_CHECKING:
  from chimera.clones import quantizer


@dataclasses.dataclass(frozen=True)
class Spec:
  """The constants of the terms; the config's `loss` explains each."""

  commitment: float
  temperature: float
  adv_ramp: int

  def ramp(self, step: jax.Array) -> jax.Array:
    """Share of the adversarial weight that a cycle has, 0 to 1."""
    return jnp.minimum(1.0, step / max(self.adv_ramp, 1))


Score = Callable[[jax.Array], jax.Array]


def vq(codes: 'quantizer.Codes', *, commitment: float) -> jax.Array:
  """|sg(z) - q|^2 + commitment |z - sg(q)|^2, a mean over cells.

  van den Oord et al., VQ-VAE, 2017, eq. 3, https://arxiv.org/abs/1711.00937.
  """
  z, q = codes.z_BxhxwxD, codes.q_BxhxwxD
  stop = jax.lax.stop_gradient
  codebook = jnp.mean(jnp.sum((stop(z) - q) ** 2, axis=-1))
  return codebook + commitment * jnp.mean(jnp.sum((z - stop(q)) ** 2, axis=-1))


def commitment_gradient(
  codes: 'quantizer.Codes', *, commitment: float
) -> jax.Array:
  """That of `vq` by the encodings, (B, h, w, D), in closed form."""
  z, q = codes.z_BxhxwxD, codes.q_BxhxwxD
  return 2 * commitment * (z - q) / (z.size / z.shape[-1])


def varentropy(codes: 'quantizer.Codes', *, temperature: float) -> jax.Array:
  """The "Stink Field" of each sample, (B,), in nats squared.

  Var[-log p] of the softmax assignment of a cell over the codes, a mean over
  the cells: 0 where a cell is decided or where it has no opinion. Of choices
  that are independent of each other it is the sum.
  """

  def of_cells(logits: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(logits / temperature, axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(p * log_p, axis=-1)
    # Centred: E[s^2] - E[s]^2 would lose all its digits where p is nearly flat.
    return jnp.sum(p * (log_p + entropy[..., None]) ** 2, axis=-1)

  cells_Bxhxw = functools.reduce(operator.add, map(of_cells, codes.logits))
  return jnp.mean(cells_Bxhxw, axis=(1, 2))


def reconstruction_terms(
  x: jax.Array, x_hat: jax.Array
) -> dict[str, jax.Array]:
  """The terms that compare two images (B, H, W, C) in [-1, 1], each (B,)."""
  return {
    'l1': perceptual.l1(x, x_hat),
    'ssim': perceptual.ssim(x, x_hat),
    'edge': perceptual.edge(x, x_hat),
    'autocorrelation': perceptual.autocorrelation(x, x_hat),
    'moments': perceptual.moments(x, x_hat),
    'spectrum': perceptual.spectrum(x, x_hat),
    'color_covariance': perceptual.color_covariance(x, x_hat),
  }


def terms(
  x: jax.Array,
  x_hat: jax.Array,
  codes: 'quantizer.Codes',
  score_B: jax.Array,
  *,
  names: Sequence[str],
  commitment: float,
  temperature: float,
) -> tuple[jax.Array, jax.Array]:
  """(terms_K in the order of names, varentropy_B); score_B is x_hat's."""
  varentropy_B = varentropy(codes, temperature=temperature)
  by_name = {k: jnp.mean(v) for k, v in reconstruction_terms(x, x_hat).items()}
  if 'vq' in names:
    by_name['vq'] = vq(codes, commitment=commitment)
  by_name['adv'] = -jnp.mean(score_B)
  by_name['varentropy'] = jnp.mean(varentropy_B)
  return jnp.stack([by_name[name] for name in names]), varentropy_B


def base_objective(
  base_K: jax.Array, terms_K: jax.Array, adv: int
) -> jax.Array:
  """The loss that no agent moves: base weights, without the signed term."""
  return jnp.vdot(base_K.at[adv].set(0), terms_K)


def gradient_penalty(
  score: Score, real: jax.Array, fake: jax.Array, epsilon_B: jax.Array
) -> jax.Array:
  """mean_B (|grad score(e real + (1 - e) fake)| - 1)^2, one e a sample."""
  e = epsilon_B[:, None, None, None]
  gradient = jax.grad(lambda x: jnp.sum(score(x)))(e * real + (1 - e) * fake)
  norm_B = jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3)) + 1e-12)
  return jnp.mean((norm_B - 1) ** 2)


def critic_loss(
  params: Any,
  apply: Callable[[Any, jax.Array], jax.Array],
  real: jax.Array,
  fake: jax.Array,
  epsilon_B: jax.Array,
  *,
  penalty: float,
  drift: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """WGAN-GP with the drift term of Karras et al. (2017, A.1,
  https://arxiv.org/abs/1710.10196): (loss, its parts).

  Its gradient by the fake is that of their mean score: the penalty takes them
  as they are.
  """

  def score(x: jax.Array) -> jax.Array:
    return apply(params, x)

  real_B, fake_B = score(real), score(fake)
  wasserstein = jnp.mean(real_B) - jnp.mean(fake_B)
  gp = gradient_penalty(score, real, jax.lax.stop_gradient(fake), epsilon_B)
  loss = -wasserstein + penalty * gp + drift * jnp.mean(real_B**2)
  return loss, {
    'wasserstein': wasserstein,
    'penalty': gp,
    'fake_B': fake_B,
  }
