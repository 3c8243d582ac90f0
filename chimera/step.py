"""The compiled step: Assign, Learn, Synthesize, Re-clone.

`train_step` is one cycle of ONE clone (design document, sections 2 and 8). It
runs under `jax.pmap` over the devices and `jax.vmap` over the clones that share
a device; it knows of the others only by the names of the axes, and of itself
only by its `Mission`.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from chimera.agents import pid as pid_lib
from chimera.agents import q_learning
from chimera.clones import learning, losses
from chimera.clones import specialists as specialists_lib
from chimera.clones import state as state_lib
from chimera.meld import average, codebook, quarantine
from chimera.meld import optimizer as optimizer_lib
from chimera.optics import poincare
from chimera.school import lessons as lessons_lib
from chimera.system import axes


def train_step(
  state: state_lib.CloneState,
  mission: specialists_lib.Mission,
  shard: lessons_lib.Shard,
  *,
  spec: state_lib.StepSpec,
) -> tuple[state_lib.CloneState, learning.Metrics]:
  """One cycle of one clone: its state, and metrics by their tags.

  Metrics of K terms are arrays, named by what their tags begin with.
  """
  # What all clones hold alike is worked out once for those on a device.
  step, rng, master, health = axes.in_common(
    (state.step, state.rng, state.master, state.health)
  )
  start = master.params
  # After a meld all generators are the master, and their samples one batch.
  origin = start if spec.meld.every == 1 else state.generator.params
  cycle_rng = jax.random.fold_in(jax.random.wrap_key_data(rng), step)
  # The fourth is not used: without it the fifth would be another.
  rngs = jax.random.split(jax.random.fold_in(cycle_rng, mission.clone), 5)

  # Assign: this clone's lesson, from its own shard; of replicas, a part each.
  ids_B, x = _draw(rngs[0], state.school, shard, spec)

  # The agents act.
  lambda_K, epsilon, q = agents_act(rngs[1], step, state, mission, spec)
  learning_rate = axes.once(
    q.lr_scale * mission.rate * spec.schedule(step), step
  )

  # Learn: the critic and the generator, from one forward pass.
  gradients, seen, metrics = learning.learn(
    origin,
    state.critic.params,
    x,
    lambda_K,
    mission.bounds,
    spec.loss.ramp(step),
    axes.part(jax.random.uniform(rngs[2], (spec.batch_size,))),
    spec=spec,
    pool=axes.total_of_parts,
  )
  gradients, seen, metrics = learning.of_all_parts(gradients, seen, metrics)
  base_loss = losses.base_objective(mission.pid.base_K, seen.terms_K, spec.adv)
  learned = descend(
    *(state, health, origin, start, gradients, base_loss, learning_rate),
    *(mission, spec),
  )

  # Synthesize: the mean of the destinations, folded into the master.
  weight = jnp.where(learned.stays, mission.weight, 0.0)
  destination = average.mean(learned.generator.params, weight, start)
  counts_V = axes.total(jnp.where(learned.stays, seen.counts_V, 0))
  is_meld = ((step + 1) % spec.meld.every == 0) & jnp.any(learned.healthy_M)
  master = average.synthesize(
    master,
    destination,
    counts_V,
    jnp.where(learned.stays, seen.z_XxD, jnp.nan),
    cycle_rng,
    step,
    is_meld,
    spec=spec.meld,
    quantizer=spec.tokenizer.quantizer,
    layout=spec.generator_layout,
  )

  # Re-clone: at a meld, and whoever is sick.
  generator, critic = lax.cond(
    jnp.all(learned.stays_M),
    lambda: (learned.generator, learned.critic),
    lambda: restart_the_sick(state, learned, weight, master.params, spec),
  )
  params = axes.where(is_meld, master.params, generator.params)

  # The agents observe what happened; School and quarantine remember it.
  pid, q, own_loss = agents_observe(
    state, q, seen, base_loss, learned, mission, spec
  )
  school = lessons_lib.remember(
    *(rngs[4], state.school, ids_B, seen.varentropy_B, seen.error_B),
    *(step, mission.enrols),
    spec=spec.school,
  )
  health = quarantine.remember(
    health, learned.healthy_M, learned.sizes_S, spec.quarantine
  )
  healthy = learned.healthy_M[mission.clone]
  metrics |= {
    'lambda': lambda_K,
    'loss/base': base_loss,
    'agent/lr': learning_rate,
    'agent/epsilon': epsilon,
    **_of_agents(pid, q),
    **_of_meld(learned, destination - start, counts_V),
    'meld/dropped': state.dropped + ~healthy,
    'healthy': healthy,
    'sick': health.sick,
    'lesson_B': ids_B,
    'school/fence': school.fence,
    'school/outliers': jnp.sum(lessons_lib.is_outlier(school)),
    # What the meld did not use of this clone is still worth a picture.
    'specialist': learned.generator.params,
  }
  return state.replace(
    step=step + 1,
    generator=generator.replace(params=params),
    critic=critic,
    master=master,
    pid=pid,
    q=q,
    own_loss=own_loss,
    own_step=remember_step(learned, spec),
    school=school,
    health=health,
    dropped=state.dropped + ~healthy,
  ), metrics


def agents_act(
  rng: jax.Array,
  step: jax.Array,
  state: state_lib.CloneState,
  mission: specialists_lib.Mission,
  spec: state_lib.StepSpec,
) -> tuple[jax.Array, jax.Array, q_learning.State]:
  """The loss weights, the Q-agent's chance to explore, and what it chose."""
  lambda_K = pid_lib.conserve(
    pid_lib.act(state.pid, mission.pid),
    state.pid,
    mission.pid,
    exempt=spec.adv,
  )
  epsilon = q_learning.exploration(
    state.q.decisions,
    start=spec.q.epsilon,
    end=spec.q.epsilon_end,
    decay=spec.q.epsilon_decay,
  )
  q = q_learning.act(
    rng,
    state.q,
    mission.q,
    actions=spec.q.actions,
    every=spec.q.every,
    cycle=step,
    epsilon=epsilon,
    caution=spec.q.caution,
  )
  if spec.q.history == 'own':
    q = q_learning.share_out(q, mission.q, axes.mean)
  return lambda_K, epsilon, q


class Learned(NamedTuple):
  """Where a clone arrived, and who is well. Vectors of the generator's size."""

  generator: state_lib.TrainState  # after its own step
  critic: state_lib.TrainState  # likewise
  gradient_P: jax.Array  # the generator's own
  mean_gradient_P: jax.Array  # that of all clones that are fit
  odds: jax.Array  # of this clone's weight in it to that of the others
  own_step_P: jax.Array  # from where it stood
  path_P: jax.Array  # from the master
  stays: jax.Array  # whether this clone goes on from there, scalar bool
  stays_M: jax.Array  # whether each does
  healthy_M: jax.Array  # of all clones, bool
  sizes_S: jax.Array  # the clones' median sizes, which the quarantine remembers


def descend(
  state: state_lib.CloneState,
  health: quarantine.Health,
  origin: jax.Array,
  start: jax.Array,
  gradients: dict[str, jax.Array],
  base_loss: jax.Array,
  learning_rate: jax.Array,
  mission: specialists_lib.Mission,
  spec: state_lib.StepSpec,
) -> Learned:
  """Both networks' steps, the generator's from `origin`; who is too sick.

  How far a clone may go is measured from the `start`, the master.
  """
  baseline_S, bounds_S = health.baseline_S, spec.quarantine.bounds
  is_whole = quarantine.is_whole((state.generator, state.critic))
  # Sick by its gradients: it must not reach the moments in common.
  fit_M, before_S = quarantine.examine(
    [base_loss, *map(quarantine.global_norm, gradients.values())],
    is_whole,
    baseline_S[:-1],
    bounds_S[:-1],
  )
  weight = jnp.where(fit_M[mission.clone], mission.weight, 0.0)
  mean_gradients = average.mean(
    gradients, weight, jax.tree.map(jnp.zeros_like, gradients)
  )

  def step(name: str, net: state_lib.TrainState, optimizer: Any, rate: Any):
    updates, opt_state = optimizer_lib.make_optimizer(optimizer).update(
      (gradients if spec.meld.enabled else mean_gradients)[name],
      net.opt_state,
      net.params,
      mean_grads=mean_gradients[name],
      learning_rate=rate,
    )
    params = optax.apply_updates(net.params, updates)
    # Written down once, lest each reader work them out again. (XLA's CPU drops
    # this before it fuses.)
    return lax.optimization_barrier(
      (updates, state_lib.TrainState(params, opt_state))
    )

  own_step_P, generator = step(
    'generator',
    state.generator.replace(params=origin),
    spec.generator_optimizer,
    learning_rate,
  )
  _, critic = step(
    'critic', state.critic, spec.critic_optimizer, spec.wgan.learning_rate
  )
  # Sick by where that leads.
  path_P = own_step_P if origin is start else generator.params - start
  arrived_M, after_S = quarantine.examine(
    [quarantine.l1_norm(path_P)], is_whole, baseline_S[-1:], bounds_S[-1:]
  )
  healthy_M = fit_M & arrived_M
  # With one gradient for all, a clone whose own was left out took no harm.
  stays_M = healthy_M if spec.meld.enabled else arrived_M
  return Learned(
    generator=generator,
    critic=critic,
    gradient_P=gradients['generator'],
    mean_gradient_P=mean_gradients['generator'],
    odds=weight / (axes.total(weight) - weight),
    own_step_P=own_step_P,
    path_P=path_P,
    stays=stays_M[mission.clone],
    stays_M=stays_M,
    healthy_M=healthy_M,
    sizes_S=jnp.concatenate([before_S, after_S]),
  )


def restart_the_sick(
  state: state_lib.CloneState,
  learned: Learned,
  weight: jax.Array,
  master: jax.Array,
  spec: state_lib.StepSpec,
) -> tuple[state_lib.TrainState, state_lib.TrainState]:
  """Both networks: of a sick clone the master, and the others' mean critic."""
  common, spare = (
    state_lib.TrainState(
      *optimizer_lib.pool(
        *(net.params, net.opt_state, weight), fallback=fallback, spec=optimizer
      )
    )
    for net, fallback, optimizer in (
      (learned.generator, master, spec.generator_optimizer),
      (learned.critic, state.critic.params, spec.critic_optimizer),
    )
  )
  return axes.where(
    learned.stays,
    (learned.generator, learned.critic),
    (common.replace(params=master), spare),
  )


def agents_observe(
  state: state_lib.CloneState,
  q: q_learning.State,
  seen: learning.Seen,
  base_loss: jax.Array,
  learned: Learned,
  mission: specialists_lib.Mission,
  spec: state_lib.StepSpec,
) -> tuple[pid_lib.State, q_learning.State, jax.Array]:
  """Both agents after this cycle, and the loss by the clone's own part."""
  target = mission.pid.target_K[spec.adv]
  pid = pid_lib.observe(
    state.pid,
    mission.pid,
    # Signed and unbounded, adv has no log: its error is log(target / share).
    seen.terms_K.at[spec.adv].set(target**2 / seen.adv_share),
    smoothing=spec.pid.smoothing,
    limit=spec.pid.limit,
    slew=spec.pid.slew,
    memory=spec.pid.memory,
  )
  own_loss, seen_loss, over = state.own_loss, base_loss, len(q.history_W)
  if spec.q.history == 'own':
    effect = q_learning.own_effect(
      state.own_step,
      learned.gradient_P,
      learned.mean_gradient_P,
      learned.odds,
      learned.sizes_S[0],
    )
    effect /= jnp.exp(axes.mean(jnp.log(effect)))  # beside the other clones'
    # What an action's last step did is known when the next one is chosen.
    is_new = state.step % spec.q.every == 0
    own_loss = jnp.where(is_new, 1.0, own_loss * effect)
    # A clone's own effect is told from the last decision on.
    seen_loss, over = own_loss, max(spec.q.every, 2)
  q = q_learning.observe(
    *(q, seen_loss),
    every=spec.q.every,
    over=over,
    cycle=state.step,
    rate=spec.q.rate,
    discount=spec.q.discount,
  )
  # Poison of their own they would keep for good.
  is_sound = average.all_finite((pid, q, own_loss))
  newborn = (
    pid_lib.init(len(pid.error_K)),
    q_learning.init(window=len(q.history_W), actions=q.table_SxA.shape[1]),
    jnp.float32(1.0),
  )
  return axes.where(is_sound, (pid, q, own_loss), newborn)


def remember_step(
  learned: Learned, spec: state_lib.StepSpec
) -> q_learning.OwnStep | None:
  """What the next cycle will judge of this one; nothing of who was left out."""
  if spec.q.history != 'own':
    return None
  own, mean = (
    jnp.vdot(g, learned.own_step_P)
    for g in (learned.gradient_P, learned.mean_gradient_P)
  )
  # The other clones' gradient alone: the step was fitted to its own samples.
  promised = spec.meld.outer_step * (mean + learned.odds * (mean - own))
  return axes.where(
    learned.stays & jnp.isfinite(promised),
    q_learning.OwnStep(spec.meld.outer_step * learned.own_step_P, promised),
    q_learning.OwnStep(jnp.zeros_like(learned.own_step_P), jnp.float32(0.0)),
  )


@functools.lru_cache(maxsize=8)  # the next run of these has it compiled
def make_train_step(
  spec: state_lib.StepSpec,
  devices: tuple[jax.Device, ...],
  *,
  cycles: int = 1,
  resident: bool = True,
  replicas: int = 1,
) -> Callable[..., tuple[state_lib.CloneState, learning.Metrics]]:
  """Compiles `cycles` cycles of all clones: (state, mission, shard) -> ...

  Leading axes of state and mission: devices, then the clones of each device.
  The state is donated. The metrics are those of the last cycle.

  Args:
    spec: the constants.
    devices: whose number divides that of the clones, or is `replicas` times it.
    cycles: in one dispatch. More than one spare the host on an accelerator;
      on a CPU, XLA's loops are several times slower than what they hold.
    resident: whether a device's clones share one shard, which then has no
      axis of clones.
    replicas: the devices of each clone, which stand side by side; a divisor of
      the batch size.
  """
  all_clones = axes.along(
    functools.partial(train_step, spec=spec),
    in_axes=(0, 0, None if resident else 0),
    replicas=replicas,
  )

  @jax.default_matmul_precision(spec.precision)
  def dispatch(state, mission, shard):
    if cycles == 1:
      return all_clones(state, mission, shard)
    blank = jax.tree.map(
      lambda m: jnp.zeros(m.shape, m.dtype),
      jax.eval_shape(all_clones, state, mission, shard)[1],
    )
    return lax.fori_loop(
      0,
      cycles,
      lambda _, carry: all_clones(carry[0], mission, shard),
      (state, blank),
    )

  return jax.pmap(dispatch, 'devices', devices=devices, donate_argnums=0)


def _draw(rng, school, shard, spec) -> tuple[jax.Array, jax.Array]:
  """ids_B of a lesson and its normalized path_params."""
  ids_B, paths = lessons_lib.draw_lesson(
    rng, school, shard, batch_size=spec.batch_size, mix=spec.school.mix
  )
  return ids_B, poincare.normalize(axes.part(paths))


def _of_agents(pid: pid_lib.State, q: q_learning.State) -> learning.Metrics:
  return {
    'pid/error': pid.error_K,
    'pid/integral': pid.integral_K,
    'pid/derivative': pid.derivative_K,
    'agent/reward': q.reward,
    'agent/state': q.state,
    'agent/action': q.action,
    'agent/trim': q.lr_scale,
  }


def _of_meld(learned, path_P, counts_V) -> learning.Metrics:
  return {
    'grads/rms': jnp.sqrt(jnp.mean(learned.gradient_P**2)),
    'meld/drift': average.cosine(learned.path_P, path_P),
    'codebook/perplexity': codebook.perplexity(counts_V),
    'codebook/used': jnp.sum(counts_V > 0),
  }
