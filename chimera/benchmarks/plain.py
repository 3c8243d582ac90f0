"""A plain learner: what Chimera's cycle is held against.

One generator and one critic of the same networks and losses, Adam, WGAN-GP, and
the batch that the clones have together. No School, no agents, no meld; nothing
here reads `step.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from chimera.clones import losses, specialists
from chimera.clones import state as state_lib
from chimera.optics import poincare

State = tuple[Any, Any, Any, Any, jax.Array]


def make_step(
  config: Any,
  spec: state_lib.StepSpec,
  axis: str | None = None,
  shards: int = 1,
) -> tuple[Callable[..., Any], Callable[[Any, Any], State]]:
  """(step, init): (state, paths_NxHxWxC) -> (state, losses), and a new state.

  Args:
    config: whose first specialist's weights are everybody's.
    spec: of the networks and losses.
    axis: over which gradients are averaged.
    shards: over which the batch is divided.
  """
  batch = spec.batch_size * len(config.clone_names) // shards
  weights = specialists.base_weights(config, config.clone_names[0])
  weight_K = np.array([weights[term] for term in spec.terms], np.float32)
  adam = optax.adam(
    spec.schedule,
    spec.generator_optimizer.adam_b1,
    spec.generator_optimizer.adam_b2,
  )
  critic_adam = optax.adam(spec.wgan.learning_rate, 0.0, 0.9)

  def judge(critic: Any, x: jax.Array) -> jax.Array:
    return spec.critic.apply({'params': critic}, x)

  def objective(params: Any, critic: Any, x: jax.Array, ramp: jax.Array):
    x_hat, codes, _ = spec.tokenizer.apply({'params': params}, x)
    terms_K, _ = losses.terms(
      x,
      x_hat,
      x_hat,
      codes,
      lambda x: judge(critic, x),
      names=spec.terms,
      commitment=spec.loss.commitment,
      temperature=spec.loss.temperature,
    )
    loss = jnp.vdot(weight_K, terms_K.at[spec.adv].multiply(ramp))
    return loss, (x_hat, terms_K)

  def step(state: State, paths: jax.Array) -> tuple[State, Any]:
    params, critic, moments, critic_moments, count = state
    rng = jax.random.fold_in(jax.random.key(config.seed), count)
    if axis:
      rng = jax.random.fold_in(rng, lax.axis_index(axis))
    rngs = jax.random.split(rng)
    ids = jax.random.randint(rngs[0], (batch,), 0, len(paths))
    x = poincare.normalize(paths[ids])
    (_, (x_hat, terms_K)), gradient = jax.value_and_grad(
      objective, has_aux=True
    )(params, critic, x, spec.loss.ramp(count))
    critic_gradient, parts = jax.grad(losses.critic_loss, has_aux=True)(
      critic,
      judge,
      x,
      x_hat,
      jax.random.uniform(rngs[1], (batch,)),
      penalty=spec.wgan.penalty,
      drift=spec.wgan.drift,
    )
    if axis:
      gradient, critic_gradient = lax.pmean((gradient, critic_gradient), axis)
    update, moments = adam.update(gradient, moments)
    critic_update, critic_moments = critic_adam.update(
      critic_gradient, critic_moments
    )
    return (
      optax.apply_updates(params, update),
      optax.apply_updates(critic, critic_update),
      moments,
      critic_moments,
      count + 1,
    ), (terms_K, parts)

  def init(params: Any, critic: Any) -> State:
    return (
      params,
      critic,
      adam.init(params),
      critic_adam.init(critic),
      jnp.int32(0),
    )

  return step, init
