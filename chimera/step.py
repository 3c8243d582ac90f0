"""The compiled step: Assign, Learn, Synthesize, Re-clone.

`train_step` is one cycle of ONE clone (design document, sections 2 and 8). It
runs under `jax.pmap` over the devices and `jax.vmap` over the clones that share
a device; it knows of the others only by the names of the axes, and of itself
only by its `Mission`.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp
import numpy as np
import optax

from chimera.agents import pid as pid_lib
from chimera.agents import q_learning
from chimera.clones import losses, models
from chimera.clones import state as state_lib
from chimera.meld import average as meld
from chimera.meld import quarantine
from chimera.optics import poincare
from chimera.school import lessons as lessons_lib

AXES = ('devices', 'clones')

Metrics = dict[str, jax.Array]


def train_step(
  state: state_lib.CloneState,
  mission: state_lib.Mission,
  shard: lessons_lib.Shard,
  *,
  spec: state_lib.StepSpec,
) -> tuple[state_lib.CloneState, Metrics]:
  """One cycle of one clone."""
  step = state.step
  cycle_rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), step)
  rngs = jax.random.split(jax.random.fold_in(cycle_rng, mission.clone), 5)

  # Assign: this clone's lesson, from its own shard.
  ids_B, paths = lessons_lib.draw_lesson(
    rngs[0], state.school, shard, batch_size=spec.batch_size, mix=spec.mix
  )
  x = poincare.normalize(paths)

  # The agents act.
  lambda_K = pid_lib.conserve(
    pid_lib.act(state.pid, mission.pid),
    state.pid,
    mission.pid,
    exempt=losses.ADV,
  )
  epsilon = q_learning.exploration(
    state.q.decisions,
    start=spec.q_epsilon,
    end=spec.q_epsilon_end,
    decay=spec.q_epsilon_decay,
  )
  q = q_learning.act(
    rngs[1],
    state.q,
    mission.q,
    actions=spec.q_actions,
    every=spec.q_every,
    cycle=step,
    epsilon=epsilon,
  )
  learning_rate = q.trim * spec.plain_learning_rate(step)

  # Learn: the critic and the generator, from one forward pass.
  ramp = jnp.minimum(1.0, step / max(spec.adv_ramp, 1))
  epsilon_B = jax.random.uniform(rngs[2], (spec.batch_size,))
  gradients, seen = one_by_one(functools.partial(learn, spec=spec))(
    state.generator.params, state.critic.params, x, lambda_K, ramp, epsilon_B
  )
  base_loss = base_objective(mission.pid.base_K, seen['terms_K'])
  # Sick by its gradients: it must not reach the moments in common.
  usual_S, bounds_S = state.health.usual_S, spec.bounds
  fit_M, before_S = _judge(
    [base_loss, *map(quarantine.size, gradients.values())],
    (state.generator, state.critic),
    usual_S[:-1],
    bounds_S[:-1],
  )
  weight = jnp.where(fit_M[mission.clone], mission.weight, 0.0)
  mean_gradients = meld.mean(
    gradients, weight, AXES, jax.tree.map(jnp.zeros_like, gradients)
  )
  if spec.average_gradients:
    gradients = mean_gradients
  learned, critic = _descend(
    state, gradients, mean_gradients, learning_rate, spec
  )
  # Sick by where that leads.
  arrived_M, after_S = _judge(
    [quarantine.length(_minus(learned.params, 1.0, state.master.params))],
    (learned, critic),
    usual_S[-1:],
    bounds_S[-1:],
  )
  healthy_M = fit_M & arrived_M
  # With one gradient for all, a clone whose own was left out took no harm.
  stays_M = arrived_M if spec.average_gradients else healthy_M
  stays = stays_M[mission.clone]
  weight = jnp.where(stays, mission.weight, 0.0)

  # Synthesize: the mean of the destinations.
  common = _in_common(
    learned, weight, state.master.params, spec.adam, spec.optimizer_state
  )
  destination = common.params

  # The agents observe what happened.
  target = mission.pid.target_K[losses.ADV]
  pid = pid_lib.observe(
    state.pid,
    mission.pid,
    # Signed and unbounded, adv has no log: its error is log(target / share).
    seen['terms_K'].at[losses.ADV].set(target**2 / seen['adv_share']),
    smoothing=spec.pid_smoothing,
    limit=spec.pid_limit,
    slew=spec.pid_slew,
  )
  if spec.q_history == 'own':
    effect = _own_effect(
      rngs[3], state, learned, destination, weight, mission, shard, spec
    )
    own_loss = effect * jnp.where(step % spec.q_every == 0, 1, state.own_loss)
  else:
    own_loss = state.own_loss
  q = q_learning.observe(
    q,
    own_loss if spec.q_history == 'own' else base_loss,
    every=spec.q_every,
    cycle=step,
    rate=spec.q_rate,
    discount=spec.q_discount,
  )
  # Poison of their own they would keep for good.
  is_sound = meld.all_finite((pid, q, own_loss))
  pid, q, own_loss = _where(is_sound, (pid, q, own_loss), _new_agents(pid, q))
  lessons = _remember(rngs[4], state.school, mission, step, ids_B, seen, spec)

  # Synthesize: the destination, folded into the master.
  counts_V = lax.psum(jnp.where(stays, seen['counts_V'], 0), AXES)
  is_meld = ((step + 1) % spec.every == 0) & jnp.any(healthy_M)
  master = _synthesize(
    state.master,
    destination,
    counts_V,
    jnp.where(stays, seen['z_XxD'], jnp.nan),
    is_meld,
    cycle_rng,
    step,
    spec,
  )

  # Re-clone: at a meld, and whoever is sick.
  generator = _where(stays, learned, common.replace(params=master.params))
  params = _where(is_meld, master.params, generator.params)
  new_critic = _in_common(
    critic,
    weight,
    state.critic.params,
    spec.critic_adam,
    'shared' if spec.average_gradients else 'local',
  )
  critic = _where(stays, critic, new_critic)
  health = quarantine.remember(
    state.health,
    healthy_M,
    jnp.concatenate([before_S, after_S]),
    patience=spec.sick_cycles,
  )
  healthy = healthy_M[mission.clone]
  # By their tags, `evaluation.metrics`; a vector holds one for each loss term.
  metrics = {
    'loss': seen['terms_K'],
    'loss/total': seen['objective'],
    'loss/base': base_loss,
    'loss/adv_share': seen['adv_share'],
    'lambda': lambda_K,
    'pid/error': pid.error_K,
    'pid/integral': pid.integral_K,
    'pid/derivative': pid.derivative_K,
    'agent/lr': learning_rate,
    'agent/trim': q.trim,
    'agent/reward': q.reward,
    'agent/state': q.state,
    'agent/action': q.action,
    'agent/epsilon': epsilon,
    'critic/loss': seen['critic_loss'],
    'critic/wasserstein': seen['wasserstein'],
    'critic/penalty': seen['penalty'],
    'codebook/perplexity': _perplexity(counts_V),
    'codebook/used': jnp.sum(counts_V > 0),
    'grads/rms': _rms(gradients['generator']),
    'meld/drift': meld.cosine(
      jax.tree.map(jnp.subtract, learned.params, state.master.params),
      jax.tree.map(jnp.subtract, destination, state.master.params),
    ),
    'meld/dropped': state.dropped + ~healthy,
    'healthy': healthy,
    'sick': health.sick,
    'lesson_B': ids_B,
  }
  state = state.replace(
    step=step + 1,
    generator=generator.replace(params=params),
    critic=critic,
    master=master,
    pid=pid,
    q=q,
    own_loss=own_loss,
    school=lessons,
    health=health,
    dropped=state.dropped + ~healthy,
  )
  # What the meld did not use of this clone is still worth a picture.
  return state, {**metrics, 'specialist': learned.params}


def learn(
  generator_params: Any,
  critic_params: Any,
  x: jax.Array,
  lambda_K: jax.Array,
  ramp: jax.Array,
  epsilon_B: jax.Array,
  *,
  spec: state_lib.StepSpec,
) -> tuple[dict[str, Any], Metrics]:
  """The gradients of generator and critic at one batch, and what was seen.

  Both are taken where the cycle began, from one forward pass; so they can be
  averaged over devices before either is applied.
  """

  def reconstruct(params: Any) -> tuple[Any, jax.Array]:
    x_hat, codes, tokens = spec.tokenizer.apply({'params': params}, x)
    return (x_hat, codes), tokens

  def judge(params: Any, x: jax.Array) -> jax.Array:
    return spec.critic.apply({'params': params}, x)

  def objective(x_hat: jax.Array, x_adv: jax.Array, codes: Any):
    terms_K, varentropy_B = losses.terms(
      x,
      x_hat,
      x_adv,
      codes,
      functools.partial(judge, critic_params),
      commitment=spec.commitment,
      temperature=spec.temperature,
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
  (generator_gradient,) = pull_back((by_rest + ramp * by_adv, by_codes))
  (critic_loss, parts), critic_gradient = jax.value_and_grad(
    losses.critic_loss, has_aux=True
  )(
    critic_params,
    judge,
    x,
    x_hat,
    epsilon_B,
    penalty=spec.penalty,
    drift=spec.drift,
  )
  adv, rest = jnp.linalg.norm(by_adv.ravel()), jnp.linalg.norm(by_rest.ravel())
  seen = {
    'objective': total,
    'terms_K': terms_K,
    'varentropy_B': varentropy_B,
    'adv_share': jnp.maximum(adv / (adv + rest + 1e-12), 1e-4),
    'critic_loss': critic_loss,
    'z_XxD': codes.z_BxhxwxD.reshape(-1, codes.z_BxhxwxD.shape[-1]),
    'counts_V': jnp.bincount(
      tokens.ravel(), length=spec.tokenizer.codes
    ).astype(jnp.int32),
    **parts,
  }
  return {'generator': generator_gradient, 'critic': critic_gradient}, seen


def base_objective(base_K: jax.Array, terms_K: jax.Array) -> jax.Array:
  """The loss that no agent moves: base weights, without the signed term."""
  return jnp.vdot(base_K.at[losses.ADV].set(0), terms_K)


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
  """f, whose `vmap` is f written out once for each clone.

  Mapped weights would turn the clones' convolutions into grouped ones, which
  cost half as much again on one device.
  """
  once = jax.jit(f, inline=True)  # traced once, not once for each clone
  f = custom_vmap(f)

  @f.def_vmap
  def _(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
    def pick(i: int) -> Any:
      return jax.tree.map(lambda x, b: x[i] if b else x, args, tuple(batched))

    out = jax.tree.map(
      lambda *x: jnp.stack(x), *[once(*pick(i)) for i in range(size)]
    )
    return out, jax.tree.map(lambda _: True, out)

  return f


def make_train_step(
  spec: state_lib.StepSpec,
  devices: Sequence[jax.Device],
  *,
  cycles: int = 1,
  resident: bool = True,
) -> Callable[..., tuple[state_lib.CloneState, Metrics]]:
  """Compiles `cycles` cycles of all clones: (state, mission, shard) -> ...

  Leading axes of state and mission: devices, then the clones of each device.
  The state is donated. The metrics are those of the last cycle.

  Args:
    spec: the constants.
    devices: one, two or four.
    cycles: in one dispatch. More than one spare the host on an accelerator;
      on a CPU, XLA's loops are several times slower than what they hold.
    resident: whether a device's clones share one shard, which then has no
      axis of clones.
  """
  all_clones = jax.vmap(
    functools.partial(train_step, spec=spec),
    in_axes=(0, 0, None if resident else 0),
    axis_name='clones',
  )

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


def put(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Host arrays (M, ...) onto the devices as (devices, M / devices, ...).

  With the very sharding that the compiled step returns: any other compiles it
  twice and donates nothing.
  """
  mesh = jax.sharding.Mesh(np.array(devices), ('devices',))
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('devices')
  )
  n = len(devices)
  return jax.tree.map(
    lambda x: jax.device_put(
      np.reshape(x, (n, np.shape(x)[0] // n, *np.shape(x)[1:])), sharding
    ),
    tree,
  )


def put_shared(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Host arrays onto every device, as (devices, ...)."""
  return jax.tree.map(
    lambda x: jnp.squeeze(x, 1),
    put(
      jax.tree.map(
        lambda x: np.broadcast_to(x, (len(devices), *np.shape(x))), tree
      ),
      devices,
    ),
  )


def fetch(tree: Any) -> Any:
  """Device arrays (devices, M / devices, ...) as host arrays (M, ...)."""
  return jax.tree.map(
    lambda x: np.reshape(x, (-1, *x.shape[2:])), jax.device_get(tree)
  )


def _descend(
  state: state_lib.CloneState,
  gradients: dict[str, Any],
  mean_gradients: dict[str, Any],
  learning_rate: jax.Array,
  spec: state_lib.StepSpec,
) -> tuple[state_lib.TrainState, state_lib.TrainState]:
  direction, opt_state = meld.descend(
    spec.adam,
    gradients['generator'],
    mean_gradients['generator'],
    state.generator.opt_state,
    mode=spec.optimizer_state,
    b1=spec.adam_b1,
    b2=spec.adam_b2,
  )
  critic_direction, critic_opt_state = spec.critic_adam.update(
    gradients['critic'], state.critic.opt_state
  )
  return (
    state_lib.TrainState(
      _minus(state.generator.params, learning_rate, direction), opt_state
    ),
    state_lib.TrainState(
      _minus(state.critic.params, spec.critic_learning_rate, critic_direction),
      critic_opt_state,
    ),
  )


def _own_effect(
  rng, state, learned, destination, weight, mission, shard, spec
) -> jax.Array:
  """Loss at the destination over loss there without this clone's step.

  On a fresh batch; to the power of 1 / share, so as though all clones had done
  alike. The clone alone is no measure: its own step carries all the noise that
  the mean is there to take out (a difference reward: Wolpert and Tumer, 2001,
  https://doi.org/10.1142/S0219525901000188).
  """
  share = weight / lax.psum(weight, AXES)
  without = jax.tree.map(
    lambda d, after, before: d - share * (after - before),
    destination,
    learned.params,
    state.generator.params,
  )
  _, paths = lessons_lib.draw_lesson(
    rng, state.school, shard, batch_size=spec.batch_size, mix=spec.mix
  )
  x = poincare.normalize(paths)

  def probe(params: Any, x: jax.Array) -> jax.Array:
    x_hat, codes, _ = spec.tokenizer.apply({'params': params}, x)
    terms_K, _ = losses.terms(
      x,
      x_hat,
      x_hat,
      codes,
      lambda x: jnp.zeros(len(x), x.dtype),
      commitment=spec.commitment,
      temperature=spec.temperature,
    )
    return terms_K

  probe = one_by_one(probe)
  base_K = mission.pid.base_K
  effect = base_objective(base_K, probe(destination, x)) / base_objective(
    base_K, probe(without, x)
  )
  effect = jnp.where(share > 0, effect, 1) ** (1 / share)
  return jnp.where(jnp.isfinite(effect), effect, 1)


def _remember(rng, lessons, mission, step, ids_B, seen, spec):
  """Tracks every clone's varentropy; re-enrols whose mission it is."""
  lessons = lessons_lib.record(
    lessons, _gather(ids_B), _gather(seen['varentropy_B']), step
  )
  if not spec.enrol_from:
    return lessons
  is_due = (
    (mission.enrols > 0)
    & (step >= spec.enrol_from)
    & ((step - spec.enrol_from) % spec.enrol_every == 0)
  )

  def re_enrol(is_due, rng, lessons, step):
    return lax.cond(
      is_due,
      lambda s: lessons_lib.re_enrol(
        rng, s, step, half_life=spec.half_life, floor=spec.floor
      ),
      lambda s: s,
      lessons,
    )

  return one_by_one(re_enrol)(is_due, rng, lessons, step)


def _synthesize(
  master, destination, counts_V, z_XxD, is_meld, rng, step, spec
) -> state_lib.Master:
  unused_V = jnp.where(counts_V > 0, 0, master.unused_V + 1)
  target = meld.fold(master.params, destination, spec.alpha)
  update, outer = spec.outer.update(
    jax.tree.map(jnp.subtract, master.params, target), master.outer
  )
  params = models.renormalize(optax.apply_updates(master.params, update))
  if spec.revive_after:
    dead_V = unused_V >= spec.revive_after
    params = models.revive(params, dead_V, _gather(z_XxD), rng)
    unused_V = jnp.where(dead_V & is_meld, 0, unused_V)
  melded = state_lib.Master(
    params=params,
    outer=outer,
    ema=meld.average(master.ema, params, spec.ema, step),
    unused_V=unused_V,
  )
  return _where(is_meld, melded, master.replace(unused_V=unused_V))


def _in_common(learned, weight, fallback, adam, mode) -> state_lib.TrainState:
  """The healthy clones' mean, from which the others restart.

  Their moments are fresh but for those that all hold in common: over a second
  moment of its own, one clone's gradient alone is worlds apart from the
  direction that it is a part of.
  """
  fresh = adam.init(learned.params)
  names = meld.IN_COMMON[mode]
  params, moments = meld.mean(
    (learned.params, {k: getattr(learned.opt_state, k) for k in names}),
    weight,
    AXES,
    (fallback, {k: getattr(fresh, k) for k in names}),
  )
  if names:
    is_any = lax.psum(weight, AXES) > 0
    moments['count'] = jnp.where(is_any, learned.opt_state.count, 0)
  return state_lib.TrainState(params, fresh._replace(**moments))


def _judge(
  sizes: Sequence[jax.Array],
  trees: Any,
  usual_S: jax.Array,
  bounds_S: Sequence[float],
) -> tuple[jax.Array, jax.Array]:
  """`quarantine.judge`; where a tree is not finite no size counts."""
  is_whole = jnp.isfinite(quarantine.size(trees))
  sizes_S = jnp.where(is_whole, jnp.stack(sizes), jnp.nan)
  return quarantine.judge(_gather(sizes_S[None]), usual_S, bounds_S)


def _new_agents(
  pid: pid_lib.State, q: q_learning.State
) -> tuple[pid_lib.State, q_learning.State, jax.Array]:
  """Both as at birth, and the loss that the second is told of."""
  return (
    pid_lib.init(len(pid.error_K)),
    q_learning.init(window=len(q.history_W), actions=q.table_SxA.shape[1]),
    jnp.float32(1.0),
  )


def _gather(x: jax.Array) -> jax.Array:
  """All clones' rows, in the order of the clones."""
  for axis in reversed(AXES):
    x = lax.all_gather(x, axis)
  return x.reshape(-1, *x.shape[3:])


def _minus(params: Any, learning_rate: Any, direction: Any) -> Any:
  return jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)


def _where(condition: jax.Array, a: Any, b: Any) -> Any:
  return jax.tree.map(functools.partial(jnp.where, condition), a, b)


def _rms(tree: Any) -> jax.Array:
  return optax.tree.norm(tree) / np.sqrt(optax.tree.size(tree))


def _perplexity(counts_V: jax.Array) -> jax.Array:
  """exp of the entropy of the codes' frequencies, 1 to V."""
  p_V = counts_V / jnp.maximum(jnp.sum(counts_V), 1)
  return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(p_V, p_V)))
