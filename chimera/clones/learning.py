"""What a clone learns at one batch: its gradients, and what it saw there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chimera.clones import losses
from chimera.clones import state as state_lib
from chimera.system import axes

Metrics = dict[str, jax.Array]


class Seen(NamedTuple):
  """What a clone saw of its lesson."""

  terms_K: jax.Array  # the loss terms
  # of the adversarial term in the gradient at the reconstruction, as lambda_K
  # alone would have it
  adv_share: jax.Array
  varentropy_B: jax.Array  # of each sample
  error_B: jax.Array  # mean absolute, of each reconstruction
  z_XxD: jax.Array  # the encodings
  counts_V: jax.Array  # uses of each code, int32


class Bounds(NamedTuple):
  """Of shares in a gradient, float32; 0 and 1 are none."""

  most_adv: jax.Array  # of the adversarial term, at the reconstruction
  least_vq: jax.Array  # of the commitment, at the encodings
  most_vq: jax.Array


def learn(
  generator_P: jax.Array,
  critic_P: jax.Array,
  x: jax.Array,
  lambda_K: jax.Array,
  bounds: Bounds,
  ramp: jax.Array,
  epsilon_B: jax.Array,
  *,
  spec: state_lib.StepSpec,
  pool: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> tuple[dict[str, jax.Array], Seen, Metrics]:
  """The gradients of generator and critic at one batch, and what was seen.

  Where others learn from other parts of the batch, `pool` is the sum over all
  of them; gradients and terms are of this part's mean.

  Both are taken where the cycle began, from one forward pass; so they can be
  averaged over devices before either is applied. Vectors, as the parameters.

  Two weights that are easily wrong by ten are held by what they do, whatever
  lambda_K says: the adversarial one by its share of the gradient at the
  reconstruction, that of `vq` by the commitment's at the encodings, beside what
  comes straight through from the decoder. Taming Transformers sets the former
  by the ratio of two such norms (section 3.1, https://arxiv.org/abs/2012.09841).
  """
  critic_params = spec.critic_layout.tree(critic_P)

  def score(params: Any, x: jax.Array) -> jax.Array:
    return spec.critic.apply({'params': params}, x)

  def criticize(x_hat: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    (loss, parts), (gradient, by_score) = jax.value_and_grad(
      losses.critic_loss, argnums=(0, 3), has_aux=True
    )(
      *(critic_params, score, x, x_hat, epsilon_B),
      penalty=spec.wgan.penalty,
      drift=spec.wgan.drift,
    )
    return parts['fake_B'], by_score, (loss, parts, gradient)

  gradient_P, seen, metrics, (critic_loss, critic_parts, critic_gradient) = (
    generate(
      *(generator_P, x, lambda_K, bounds, criticize, ramp),
      spec=spec,
      pool=pool,
    )
  )
  metrics |= {
    'critic/loss': critic_loss,
    'critic/wasserstein': critic_parts['wasserstein'],
    'critic/penalty': critic_parts['penalty'],
  }
  gradients = {
    'generator': gradient_P,
    'critic': spec.critic_layout.vector(critic_gradient),
  }
  return gradients, seen, metrics


def of_all_parts(
  gradients: dict[str, jax.Array], seen: Seen, metrics: Metrics
) -> tuple[dict[str, jax.Array], Seen, Metrics]:
  """What `learn` returns of a replica's part, of its clone's whole batch."""
  seen = seen._replace(
    terms_K=axes.mean_of_parts(seen.terms_K),
    adv_share=axes.mean_of_parts(seen.adv_share),
    varentropy_B=axes.gather_parts(seen.varentropy_B),
    error_B=axes.gather_parts(seen.error_B),
    z_XxD=axes.gather_parts(seen.z_XxD),
    counts_V=axes.total_of_parts(seen.counts_V),
  )
  return axes.mean_of_parts(gradients), seen, axes.mean_of_parts(metrics)


def generate(
  generator_P: jax.Array,
  x: jax.Array,
  lambda_K: jax.Array,
  bounds: Bounds,
  criticize: Callable[[jax.Array], tuple[jax.Array, jax.Array, Any]],
  ramp: jax.Array | float,
  *,
  spec: state_lib.StepSpec,
  pool: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> tuple[jax.Array, Seen, Metrics, Any]:
  """The generator's part of `learn`, whoever criticizes.

  `criticize` tells of reconstructions their scores (B,), what it wants of those
  in the reconstructions' gradient, and more, which is returned behind the rest.
  """
  generator_params = spec.generator_layout.tree(generator_P)
  tokenizer = spec.tokenizer.clone(dtype=spec.dtype)

  def encode(params: Any) -> tuple[Any, jax.Array]:
    return tokenizer.apply({'params': params}, x, method='quantize')

  def decode(params: Any, q_BxhxwxD: jax.Array) -> jax.Array:
    return tokenizer.apply({'params': params}, q_BxhxwxD, method='decode')

  codes, to_encoder, tokens = jax.vjp(encode, generator_params, has_aux=True)
  x_hat, to_decoder = jax.vjp(decode, generator_params, codes.q_BxhxwxD)
  fake_B, by_score, more = criticize(x_hat)

  def objective(x_hat: jax.Array, codes: Any):
    terms_K, varentropy_B = losses.terms(
      *(x, x_hat, codes, fake_B),
      names=spec.terms,
      commitment=spec.loss.commitment,
      temperature=spec.loss.temperature,
    )
    return jnp.vdot(lambda_K, terms_K), (terms_K, varentropy_B)

  (total, (terms_K, varentropy_B)), (by_rest, by_codes) = jax.value_and_grad(
    objective, argnums=(0, 1), has_aux=True
  )(x_hat, codes)
  # The generator wants of a score the opposite of what the critic wants of it.
  by_adv = -lambda_K[spec.adv] * by_score
  share, held, scale = bound_share(
    by_adv, by_rest, most=bounds.most_adv, pool=pool
  )
  by_decoder, by_q = to_decoder(by_rest + ramp * scale * by_adv)
  # Straight through: what the decoder asks of a code is asked of the encoding.
  by_z = by_codes.z_BxhxwxD + by_q
  metrics = {'loss': terms_K, 'loss/total': total, 'loss/adv_share': held}
  if 'vq' in spec.terms:
    commitment = lambda_K[spec.terms.index('vq')] * losses.commitment_gradient(
      codes, commitment=spec.loss.commitment
    )
    _, held, scale = bound_share(
      *(commitment, by_q),
      least=bounds.least_vq,
      most=bounds.most_vq,
      pool=pool,
    )
    by_z += (scale - 1) * commitment
    metrics['loss/vq_share'] = held
  (by_encoder,) = to_encoder(by_codes._replace(z_BxhxwxD=by_z))
  gradient = jax.tree.map(jnp.add, by_decoder, by_encoder)
  seen = Seen(
    terms_K=terms_K,
    adv_share=jnp.maximum(share, 1e-4),  # the PID takes its log
    varentropy_B=varentropy_B,
    error_B=jnp.mean(jnp.abs(x_hat - x), axis=(1, 2, 3)),
    z_XxD=codes.z_BxhxwxD.reshape(-1, codes.z_BxhxwxD.shape[-1]),
    counts_V=jnp.bincount(tokens.ravel(), length=spec.tokenizer.codes).astype(
      jnp.int32
    ),
  )
  return spec.generator_layout.vector(gradient), seen, metrics, more


def bound_share(
  part: jax.Array,
  rest: jax.Array,
  *,
  least: jax.Array | float = 0.0,
  most: jax.Array | float = 1.0,
  pool: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The share of a part of a gradient, by norms; within bounds; its scale then.

  What is nothing stays so. The squares of the norms are pooled.
  """
  a, b = (jnp.sqrt(pool(jnp.sum(x**2))) for x in (part, rest))
  share = a / (a + b + 1e-12)
  held = jnp.where(a > 0, jnp.clip(share, least, most), share)
  scale = held * b / jnp.maximum((1 - held) * a, 1e-12)
  return share, held, jnp.where(share == held, 1.0, scale)
