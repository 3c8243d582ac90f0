"""A plain learner: what Chimera's cycle is held against.

One generator and one critic of the same networks and losses, Adam, WGAN-GP, and
the batch that the clones have together; on several devices data-parallel, by
`jax.shard_map`, which `jax.pmap` is made of. No School, no agents, no meld.
Nothing here reads `step.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from chimera.clones import losses
from chimera.clones import state as state_lib
from chimera.optics import poincare


class State(NamedTuple):
  """What changes."""

  generator: Any  # parameters
  critic: Any
  moments: Any  # the optimizer's, of the generator
  critic_moments: Any
  step: jax.Array  # int32


def objective(
  generator: Any,
  critic: Any,
  x: jax.Array,
  weight_K: jax.Array,
  spec: state_lib.StepSpec,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """The generator's weighted loss; its reconstruction, and the terms."""
  x_hat, codes, _ = spec.tokenizer.apply({'params': generator}, x)
  terms_K, _ = losses.terms(
    *(x, x_hat, codes, spec.critic.apply({'params': critic}, x_hat)),
    names=spec.terms,
    commitment=spec.loss.commitment,
    temperature=spec.loss.temperature,
  )
  return jnp.vdot(weight_K, terms_K), (x_hat, terms_K)


def critic_gradient_of(
  critic: Any,
  x: jax.Array,
  x_hat: jax.Array,
  rng: jax.Array,
  spec: state_lib.StepSpec,
) -> Any:
  """By WGAN-GP."""
  gradient, _ = jax.grad(losses.critic_loss, has_aux=True)(
    critic,
    lambda params, x: spec.critic.apply({'params': params}, x),
    *(x, x_hat, jax.random.uniform(rng, (len(x),))),
    penalty=spec.wgan.penalty,
    drift=spec.wgan.drift,
  )
  return gradient


class Learner:
  """The compiled step, and the state that it is given again."""

  def __init__(
    self,
    config: Any,
    spec: state_lib.StepSpec,
    paths_NxHxWxC: np.ndarray,
    devices: Sequence[jax.Device],
    cycles: int = 1,
    optimizer: optax.GradientTransformation | None = None,
  ):
    """The optimizer is the generator's, Adam where none is given."""
    self._spec = spec
    self._seed = config.seed
    self._batch = spec.batch_size * len(config.clone_names) // len(devices)
    # With all emphasis gone every specialist has the base weights.
    weights = {term: config.loss[term] for term in spec.terms}
    self._weight_K = np.array([weights[t] for t in spec.terms], np.float32)
    adam = spec.generator_optimizer
    self._optimizer = optimizer or optax.adam(
      spec.schedule, adam.adam_b1, adam.adam_b2
    )
    self._critic_adam = optax.adam(spec.wgan.learning_rate, 0.0, 0.9)

    def born(key: jax.Array) -> State:
      x = jnp.asarray(paths_NxHxWxC[:1])
      generator, critic = (
        net.init(key, x)['params'] for net in (spec.tokenizer, spec.critic)
      )
      moments = self._optimizer.init(generator), self._critic_adam.init(critic)
      return State(generator, critic, *moments, jnp.int32(0))

    def dispatch(state: State, paths: jax.Array) -> State:
      if cycles == 1:
        return self._cycle(state, paths)
      return lax.fori_loop(0, cycles, lambda _, s: self._cycle(s, paths), state)

    mesh = jax.sharding.Mesh(np.array(devices), ('data',))
    everywhere = jax.sharding.PartitionSpec()
    self._step = jax.jit(
      jax.shard_map(
        dispatch,
        mesh=mesh,
        in_specs=everywhere,
        out_specs=everywhere,
        check_vma=False,  # else gradients are summed before they are averaged
      ),
      donate_argnums=0,
    )
    placed = jax.jit(born)(jax.random.key(config.seed)), paths_NxHxWxC
    self.state, self._paths = jax.device_put(
      placed, jax.sharding.NamedSharding(mesh, everywhere)
    )

  def trace(self) -> jax.stages.Lowered:
    """Traces the step; whoever compiles that hands it back by `use`."""
    return self._step.lower(self.state, self._paths)

  def use(self, program: jax.stages.Compiled) -> None:
    """Takes the step as it was compiled."""
    self._step = program

  def dispatch(self) -> None:
    """Goes on by its cycles."""
    self.state = self._step(self.state, self._paths)

  def _cycle(self, state: State, paths_NxHxWxC: jax.Array) -> State:
    spec = self._spec
    rng = jax.random.fold_in(jax.random.key(self._seed), state.step)
    rng = jax.random.fold_in(rng, lax.axis_index('data'))
    sample_rng, mix_rng = jax.random.split(rng)
    ids_B = jax.random.randint(
      sample_rng, (self._batch,), 0, len(paths_NxHxWxC)
    )
    x = poincare.normalize(paths_NxHxWxC[ids_B])
    ramp_K = (
      jnp.ones(len(spec.terms)).at[spec.adv].set(spec.loss.ramp(state.step))
    )
    gradient, (x_hat, _) = jax.grad(objective, has_aux=True)(
      state.generator, state.critic, x, ramp_K * self._weight_K, spec
    )
    critic_gradient = critic_gradient_of(state.critic, x, x_hat, mix_rng, spec)
    gradient, critic_gradient = lax.pmean((gradient, critic_gradient), 'data')
    update, moments = self._optimizer.update(
      gradient, state.moments, state.generator
    )
    critic_update, critic_moments = self._critic_adam.update(
      critic_gradient, state.critic_moments
    )
    return State(
      optax.apply_updates(state.generator, update),
      optax.apply_updates(state.critic, critic_update),
      moments,
      critic_moments,
      state.step + 1,
    )
