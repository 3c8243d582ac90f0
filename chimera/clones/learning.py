"""What a clone learns at one batch: its gradients, and what it saw there."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chimera.clones import losses
from chimera.clones import state as state_lib

Metrics = dict[str, jax.Array]


class Seen(NamedTuple):
  """What a clone saw of its lesson."""

  terms_K: jax.Array  # the loss terms
  # of the adversarial term in the gradient at the reconstruction, not bounded
  adv_share: jax.Array
  varentropy_B: jax.Array  # of each sample
  z_XxD: jax.Array  # the encodings
  counts_V: jax.Array  # uses of each code, int32


def learn(
  generator_P: jax.Array,
  critic_P: jax.Array,
  x: jax.Array,
  lambda_K: jax.Array,
  most_adv: jax.Array,
  ramp: jax.Array,
  epsilon_B: jax.Array,
  *,
  spec: state_lib.StepSpec,
) -> tuple[dict[str, jax.Array], Seen, Metrics]:
  """The gradients of generator and critic at one batch, and what was seen.

  Both are taken where the cycle began, from one forward pass; so they can be
  averaged over devices before either is applied. Vectors, as the parameters.

  Of the gradient at the reconstruction at most `most_adv` is adversarial,
  whatever lambda_K has it weigh. Taming Transformers makes the weight itself of
  two such norms (section 3.1, https://arxiv.org/abs/2012.09841).
  """
  generator_params = spec.generator_layout.tree(generator_P)
  critic_params = spec.critic_layout.tree(critic_P)

  def reconstruct(params: Any) -> tuple[Any, jax.Array]:
    x_hat, codes, tokens = spec.tokenizer.apply({'params': params}, x)
    return (x_hat, codes), tokens

  def score(params: Any, x: jax.Array) -> jax.Array:
    return spec.critic.apply({'params': params}, x)

  def objective(x_hat: jax.Array, x_adv: jax.Array, codes: Any):
    terms_K, varentropy_B = losses.terms(
      x,
      x_hat,
      x_adv,
      codes,
      functools.partial(score, critic_params),
      names=spec.terms,
      commitment=spec.loss.commitment,
      temperature=spec.loss.temperature,
    )
    return jnp.vdot(lambda_K, terms_K), (terms_K, varentropy_B)

  (x_hat, codes), pull_back, tokens = jax.vjp(
    reconstruct, generator_params, has_aux=True
  )
  (total, (terms_K, varentropy_B)), (by_rest, by_adv, by_codes) = (
    jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)(
      x_hat, x_hat, codes
    )
  )
  adv, rest = jnp.linalg.norm(by_adv.ravel()), jnp.linalg.norm(by_rest.ravel())
  share, scale = bound_share(adv, rest, most_adv)
  by_x_hat = by_rest + ramp * scale * by_adv
  (generator_gradient,) = pull_back((by_x_hat, by_codes))
  (critic_loss, parts), critic_gradient = jax.value_and_grad(
    losses.critic_loss, has_aux=True
  )(
    critic_params,
    score,
    x,
    x_hat,
    epsilon_B,
    penalty=spec.wgan.penalty,
    drift=spec.wgan.drift,
  )
  seen = Seen(
    terms_K=terms_K,
    adv_share=share,
    varentropy_B=varentropy_B,
    z_XxD=codes.z_BxhxwxD.reshape(-1, codes.z_BxhxwxD.shape[-1]),
    counts_V=jnp.bincount(tokens.ravel(), length=spec.tokenizer.codes).astype(
      jnp.int32
    ),
  )
  metrics = {
    'loss': terms_K,
    'loss/total': total,
    'loss/adv_share': jnp.minimum(share, most_adv),
    'critic/loss': critic_loss,
    'critic/wasserstein': parts['wasserstein'],
    'critic/penalty': parts['penalty'],
  }
  gradients = {
    'generator': spec.generator_layout.vector(generator_gradient),
    'critic': spec.critic_layout.vector(critic_gradient),
  }
  return gradients, seen, metrics


def bound_share(
  adv: jax.Array, rest: jax.Array, most: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The share of one of two norms, and what scales it to `most` or less.

  The share is 1e-4 at least, since the PID takes its log.
  """
  share = jnp.maximum(adv / (adv + rest + 1e-12), 1e-4)
  bounded = most * rest / jnp.maximum((1 - most) * adv, 1e-30)
  return share, jnp.where(share > most, bounded, 1.0)
