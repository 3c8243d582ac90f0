"""The compiled cycle against the design document's own loop.

Appendix A, as it is written: a Python loop over four states, agents on the host
that are told of each clone's metrics, `tree_map` means. Its training step is
compiled, and a clone's state lies on a device of its own where there are four.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import rich.console

from chimera.run import default_config

_say = rich.console.Console().print


class PIDAgent:
  """Loss weights: three gains on the error of each loss."""

  def __init__(self, base_K: np.ndarray, target_K: np.ndarray):
    self._base_K, self._target_K = base_K, target_K
    self._error_K = self._integral_K = np.zeros_like(base_K)
    self._kick_K = np.zeros_like(base_K)

  def calculate_lambdas(self) -> np.ndarray:
    log_K = 0.3 * self._error_K + self._integral_K + 0.5 * self._kick_K
    return self._base_K * np.exp(np.clip(log_K, -0.5, 0.5))

  def update(self, terms_K: np.ndarray) -> None:
    raw_K = np.log(np.maximum(terms_K, 1e-30) / self._target_K)
    error_K = 0.9 * self._error_K + 0.1 * np.clip(raw_K, -5, 5)
    self._kick_K = error_K - self._error_K
    self._error_K = error_K
    self._integral_K = np.clip(self._integral_K + 0.002 * error_K, -0.5, 0.5)


class QAgent:
  """The learning rate: a table over four trends of the last ten losses."""

  ACTIONS = (0.8, 0.95, 1.0, 1.05, 1.2)

  def __init__(self, seed: int):
    self._rng = np.random.default_rng(seed)
    self._table = np.zeros((4, len(self.ACTIONS)))
    self._losses: list[float] = []
    self._state = self._action = 2
    self._scale = 1.0

  def choose_action(self) -> float:
    if self._rng.random() < 0.1:
      self._action = int(self._rng.integers(len(self.ACTIONS)))
    else:
      self._action = int(np.argmax(self._table[self._state]))
    self._scale = np.clip(self._scale * self.ACTIONS[self._action], 0.5, 1.5)
    return self._scale

  def update(self, loss: float) -> None:
    self._losses = [*self._losses[-9:], loss]
    slope = 0.0
    if len(self._losses) > 1:
      slope = np.polyfit(range(len(self._losses)), self._losses, 1)[0] / loss
    state = int(np.searchsorted([-5e-3, -5e-4, 5e-4], slope))
    error = -slope / 5e-3 + 0.9 * self._table[state].max()
    at = self._state, self._action
    self._table[at] += 0.2 * (error - self._table[at])
    self._state = state


class Loop:
  """The main training loop of Appendix A, a cycle a call."""

  def __init__(self, config: Any, devices: int):
    import jax
    import jax.numpy as jnp
    import optax

    from chimera.benchmarks import plain
    from chimera.clones import specialists
    from chimera.clones import state as state_lib
    from chimera.optics import poincare
    from chimera.school import curriculum

    self._spec = spec = state_lib.create_spec(config)
    side = config.data.image_size // config.optics.cell
    paths = np.random.default_rng(0).random((1000, side, side, 3), np.float32)
    self._paths = paths
    bins = curriculum.bin_samples(paths[..., 2].mean((1, 2)))
    blocks = [config.specialists[name] for name in config.clone_names]
    self._lessons = [np.concatenate([bins[b] for b in c.bins]) for c in blocks]
    base = [specialists.base_weights(config, n) for n in config.clone_names]
    self._pid_agents = [
      PIDAgent(
        np.array([weights[t] for t in spec.terms]),
        np.array([block.pid.target[t] for t in spec.terms]),
      )
      for weights, block in zip(base, blocks)
    ]
    self._q_agents = [QAgent(i) for i in range(len(blocks))]
    self._rng = np.random.default_rng(0)
    self._step = 0
    adam, critic_adam = optax.scale_by_adam(0.9, 0.99), optax.adam(2e-4, 0, 0.9)

    def wgan_gp_train_step(state, x, lambda_K, rate, rng):
      generator, critic, moments, critic_moments = state
      x = poincare.normalize(x)
      gradient, (x_hat, terms_K) = jax.grad(plain.objective, has_aux=True)(
        generator, critic, x, lambda_K, spec
      )
      critic_gradient = plain.critic_gradient_of(critic, x, x_hat, rng, spec)
      update, moments = adam.update(gradient, moments)
      update = jax.tree.map(lambda u: -rate * u, update)
      critic_update, critic_moments = critic_adam.update(
        critic_gradient, critic_moments
      )
      metrics = {'terms': terms_K, 'g_loss': jnp.vdot(lambda_K, terms_K)}
      return (
        optax.apply_updates(generator, update),
        optax.apply_updates(critic, critic_update),
        moments,
        critic_moments,
      ), metrics

    self._train = jax.jit(wgan_gp_train_step)
    generator, critic = (
      net.init(jax.random.key(0), jnp.asarray(paths[:1]))['params']
      for net in (spec.tokenizer, spec.critic)
    )
    born = generator, critic, adam.init(generator), critic_adam.init(critic)
    self._devices = [jax.devices()[i % devices] for i in range(len(blocks))]
    self._states = [jax.device_put(born, d) for d in self._devices]
    self._master = generator
    self._alpha = config.meld.alpha

  def cycle(self) -> None:
    import jax
    import jax.numpy as jnp

    updated = []
    for i, state in enumerate(self._states):
      pid_agent, q_agent = self._pid_agents[i], self._q_agents[i]
      ids = self._rng.choice(self._lessons[i], self._spec.batch_size)
      lambdas = pid_agent.calculate_lambdas()
      rate = q_agent.choose_action() * self._spec.schedule.learning_rate
      rng = jax.random.fold_in(jax.random.key(i), self._step)
      state, metrics = self._train(
        state, self._paths[ids], lambdas.astype(np.float32), rate, rng
      )
      metrics = jax.device_get(metrics)
      updated.append(state)
      pid_agent.update(metrics['terms'])
      q_agent.update(float(metrics['g_loss']))
    here = jax.device_put([s[0] for s in updated], self._devices[0])
    mean = jax.tree.map(lambda *p: jnp.mean(jnp.stack(p), axis=0), *here)
    self._master = jax.tree.map(
      lambda m, x: self._alpha * m + (1 - self._alpha) * x, self._master, mean
    )
    self._states = [
      (jax.device_put(self._master, device), *state[1:])
      for state, device in zip(updated, self._devices)
    ]
    self._step += 1

  def run(self, cycles: int) -> float:
    """Seconds."""
    import jax

    start = time.perf_counter()
    for _ in range(cycles):
      self.cycle()
    jax.block_until_ready(self._states)
    return time.perf_counter() - start


def appendix_a(args: argparse.Namespace) -> None:
  """Prints cycles/s of both on one device and on all; rounds that alternate."""
  import jax

  from chimera.benchmarks import programs
  from chimera.clones import specialists

  config = default_config.get_config(args.variant)
  there = jax.devices()
  _say(f'{len(there)} x {there[0].device_kind}')
  clones = len(config.clone_names)
  fit = specialists.fitting_devices(clones, config.train.batch_size)
  most = max(n for n in fit if n <= min(len(there), clones))
  for devices in sorted({1, most}):
    racers = {
      'the compiled cycle': programs.Program(
        'default', args.variant, devices, 1
      ),
      "Appendix A's loop": Loop(config, devices),
    }
    for racer in racers.values():
      racer.run(1)
    rounds = [
      {k: racer.run(args.cycles) for k, racer in racers.items()}
      for _ in range(args.rounds)
    ]
    for name in racers:
      rate = args.cycles / statistics.median(r[name] for r in rounds)
      _say(f'{devices} device(s): {name:18s} {rate:6.2f} cycles/s')
    ours, theirs = racers
    ratios = sorted(r[theirs] / r[ours] for r in rounds)
    _say(
      f'{devices} device(s): {statistics.median(ratios):.2f} times as fast '
      f'({ratios[0]:.2f} to {ratios[-1]:.2f})'
    )
