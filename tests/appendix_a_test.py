"""The compiled step computes what the design document's Appendix A says.

`appendix_a` is the document's pseudocode written out: Python lists of four
states, four PID agents, four Q-agents, a `for` loop over the clones, and means
by `tree_map` on the host. It shares the pure functions of models, losses,
agents and School with the compiled program, and nothing of step.py. Gradients
are plain `jax.grad`s of a whole loss, one forward pass each.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chimera import step as step_lib
from chimera.agents import pid as pid_lib
from chimera.agents import q_learning
from chimera.clones import losses, specialists
from chimera.clones import state as state_lib
from chimera.optics import poincare
from chimera.run import engine
from chimera.school import lessons
from tests import tiny

CYCLES = 20


def appendix_a(config, spec, bins, paths, total_steps):
  """Appendix A: returns (clone_states, agents ..., master, ema, log)."""
  born = tiny.trees(
    spec, state_lib.create_states(config, spec, bins, paths.shape[1:3])
  )
  missions = specialists.create_missions(config, bins)
  curriculum = [jax.tree.map(jnp.asarray, s.school) for s in born]
  shard = tiny.shard(paths)
  adam = optax.scale_by_adam(config.train.adam_b1, config.train.adam_b2)
  critic_adam = optax.scale_by_adam(0.0, 0.9)

  # --- Initialization ---
  master_params = born[0].generator.params
  ema_params = master_params
  unused_V = np.zeros(config.model.codes, int)
  clone_states = [
    {
      'params': master_params,
      'adam': adam.init(master_params),
      'critic': s.critic.params,
      'critic_adam': critic_adam.init(s.critic.params),
    }
    for s in born
  ]
  pid_agents = [s.pid for s in born]
  q_agents = [s.q for s in born]
  log = []

  get_specialized_batch = jax.jit(
    functools.partial(
      lessons.draw_lesson, batch_size=spec.batch_size, mix=spec.school.mix
    )
  )
  remember = jax.jit(lessons.record)
  calculate_lambdas = jax.jit(
    lambda state, mission: pid_lib.conserve(
      pid_lib.act(state, mission), state, mission, exempt=spec.adv
    )
  )
  update_pid = jax.jit(
    functools.partial(
      pid_lib.observe,
      smoothing=spec.pid.smoothing,
      limit=spec.pid.limit,
      slew=spec.pid.slew,
      memory=spec.pid.memory,
    )
  )
  choose_action = jax.jit(
    functools.partial(
      q_learning.act,
      actions=spec.q.actions,
      every=spec.q.every,
      caution=spec.q.caution,
    )
  )
  update_q = jax.jit(
    functools.partial(
      q_learning.observe,
      every=spec.q.every,
      over=spec.q.every,
      rate=spec.q.rate,
      discount=spec.q.discount,
    )
  )

  def generator_loss(params, critic, x, lambdas, ramp):
    x_hat, codes, tokens = spec.tokenizer.apply({'params': params}, x)
    terms_K, varentropy_B = losses.terms(
      x,
      x_hat,
      codes,
      spec.critic.apply({'params': critic}, x_hat),
      names=spec.terms,
      commitment=spec.loss.commitment,
      temperature=spec.loss.temperature,
    )
    ramped_K = lambdas.at[spec.adv].multiply(ramp)
    return jnp.sum(ramped_K * terms_K), (
      terms_K,
      varentropy_B,
      jnp.abs(x - x_hat).mean((1, 2, 3)),
      tokens,
      codes.z_BxhxwxD,
    )

  def critic_loss(critic, params, x, epsilon_B):
    fake = spec.tokenizer.apply({'params': params}, x)[0]
    return losses.critic_loss(
      critic,
      lambda p, y: spec.critic.apply({'params': p}, y),
      x,
      fake,
      epsilon_B,
      penalty=spec.wgan.penalty,
      drift=spec.wgan.drift,
    )[0]

  def adv_share(params, critic, x, lambdas):
    x_hat, codes, _ = spec.tokenizer.apply({'params': params}, x)

    def part(y, chosen_K):
      terms_K, _ = losses.terms(
        x,
        y,
        codes,
        spec.critic.apply({'params': critic}, y),
        names=spec.terms,
        commitment=spec.loss.commitment,
        temperature=spec.loss.temperature,
      )
      return jnp.sum(chosen_K * lambdas * terms_K)

    is_adv_K = jnp.arange(len(spec.terms)) == spec.adv

    def norm(chosen_K):
      return jnp.sqrt(jnp.sum(jax.grad(part)(x_hat, chosen_K) ** 2))

    adv, rest = norm(is_adv_K), norm(~is_adv_K)
    return jnp.maximum(adv / (adv + rest), 1e-4)

  @jax.jit
  def wgan_gp_train_step(clone, x, lambdas, learning_rate, ramp, epsilon_B):
    grads, seen = jax.grad(generator_loss, has_aux=True)(
      clone['params'], clone['critic'], x, lambdas, ramp
    )
    critic_grads = jax.grad(critic_loss)(
      clone['critic'], clone['params'], x, epsilon_B
    )
    share = adv_share(clone['params'], clone['critic'], x, lambdas)
    up, opt = adam.update(grads, clone['adam'])
    critic_up, critic_opt = critic_adam.update(
      critic_grads, clone['critic_adam']
    )
    rate = spec.wgan.learning_rate
    return {
      'params': jax.tree.map(
        lambda p, d: p - learning_rate * d, clone['params'], up
      ),
      'adam': opt,
      'critic': jax.tree.map(
        lambda p, d: p - rate * d, clone['critic'], critic_up
      ),
      'critic_adam': critic_opt,
    }, (*seen, share)

  key = jax.random.key(config.seed)
  # --- Main Training Loop ---
  for step in range(total_steps):
    updated_clone_states, rows = [], []
    cycle_key = jax.random.fold_in(key, step)
    for i in range(4):
      rngs = jax.random.split(jax.random.fold_in(cycle_key, i), 5)
      # 2. Assign a specialized lesson from The School
      ids, batch = get_specialized_batch(rngs[0], curriculum[i], shard)
      x = poincare.normalize(batch)
      # 3. Agents make decisions
      lambdas = calculate_lambdas(pid_agents[i], missions[i].pid)
      q_agents[i] = choose_action(
        rngs[1],
        q_agents[i],
        missions[i].q,
        cycle=step,
        epsilon=spec.q.epsilon_end
        + (spec.q.epsilon - spec.q.epsilon_end)
        * np.exp(-float(q_agents[i].decisions) / spec.q.epsilon_decay),
      )
      # 4. Update the clone's optimizer with the agent's decision
      learning_rate = q_agents[i].lr_scale * spec.schedule(step)
      # 5. Execute a single, independent training step for this clone
      ramp = min(1.0, step / spec.loss.adv_ramp)
      updated, seen = wgan_gp_train_step(
        clone_states[i],
        x,
        lambdas,
        learning_rate,
        ramp,
        jax.random.uniform(rngs[2], (spec.batch_size,)),
      )
      terms_K, varentropy_B, error_B, tokens, z, share = seen
      # 6. Store results and update agents
      updated_clone_states.append(updated)
      target = missions[i].pid.target_K[spec.adv]
      pid_agents[i] = update_pid(
        pid_agents[i],
        missions[i].pid,
        terms_K.at[spec.adv].set(target**2 / share),
      )
      base_K = np.array(missions[i].pid.base_K)
      base_K[spec.adv] = 0
      q_agents[i] = update_q(q_agents[i], jnp.sum(base_K * terms_K), cycle=step)
      rows.append(
        dict(
          ids=ids,
          terms_K=terms_K,
          lambdas=lambdas,
          lr=learning_rate,
          share=share,
          varentropy_B=varentropy_B,
          error_B=error_B,
          tokens=tokens,
          z=z,
        )
      )
    # --- (IV) The Brain Meld ---
    used = np.bincount(
      np.concatenate([np.ravel(r['tokens']) for r in rows]),
      minlength=config.model.codes,
    )
    unused_V = np.where(used > 0, 0, unused_V + 1)
    if (step + 1) % config.meld.every == 0:
      mean_clone_params = jax.tree.map(
        lambda *p: jnp.mean(jnp.stack(p), axis=0),
        *[s['params'] for s in updated_clone_states],
      )
      alpha = config.meld.alpha
      master_params = jax.tree.map(
        lambda m, c, alpha=alpha: alpha * m + (1 - alpha) * c,
        master_params,
        mean_clone_params,
      )
      master_params = spec.tokenizer.quantizer.renormalize(master_params)
      dead_V = unused_V >= spec.meld.revive_after
      master_params, _ = spec.tokenizer.quantizer.revive(
        master_params,
        jnp.asarray(dead_V),
        jnp.concatenate([r['z'].reshape(-1, r['z'].shape[-1]) for r in rows]),
        cycle_key,
      )
      unused_V = np.where(dead_V, 0, unused_V)
      melds = step // config.meld.every
      decay = min(spec.meld.ema, (1 + melds) / (10 + melds))
      ema_params = jax.tree.map(
        lambda e, m, d=decay: d * e + (1 - d) * m, ema_params, master_params
      )
      # 3. Re-Clone: Update all clones with the new unified knowledge
      for clone in updated_clone_states:
        clone['params'] = master_params
    clone_states = updated_clone_states
    # The librarian keeps every clone's record of every sample.
    seen = [
      np.concatenate([row[key] for row in rows])
      for key in ('ids', 'varentropy_B', 'error_B')
    ]
    curriculum = [remember(school, *seen, step) for school in curriculum]
    log.append(rows)
  agents = pid_agents, q_agents, curriculum
  return clone_states, *agents, master_params, ema_params, log


def assert_close(actual, expected, what):
  """Relative to the largest entry of each leaf: a near-zero has no digits."""
  paths = jax.tree_util.tree_leaves_with_path(expected)
  for (path, e), a in zip(paths, jax.tree.leaves(actual), strict=True):
    e, a = np.asarray(e, np.float64), np.asarray(a, np.float64)
    scale = max(np.abs(e).max(initial=0), 1e-7)
    worst = np.abs(a - e).max(initial=0) / scale
    assert worst < 1e-4, f'{what}{jax.tree_util.keystr(path)}: {worst:.1e}'


def before_last(pid):
  """The derivative as the error it came from: a difference has fewer digits."""
  return pid._replace(derivative_K=pid.error_K - pid.derivative_K)


@pytest.mark.parametrize('every', [1, 4])
def test_the_compiled_program_is_appendix_a(every):
  config = tiny.get_config('seed')
  config.meld.every = every
  config.model.revive_after = 6
  # At twice the rate rounding grows a thousandfold from cycle 5 on.
  config.train.learning_rate /= 2
  bins, paths = tiny.bins_and_paths()
  spec = state_lib.create_spec(config)
  clones, pids, qs, curriculum, master, ema, log = appendix_a(
    config, spec, bins, paths, CYCLES
  )

  devices = jax.devices()[:4]
  run = step_lib.make_train_step(spec, tuple(devices))
  state, mission, shard = tiny.on_devices(config, spec, bins, paths, devices)
  for row in log:
    state, metrics = run(state, mission, shard)
    seen = engine.fetch({**metrics, 'specialist': ()})
    np.testing.assert_array_equal(
      seen['lesson_B'], np.stack([r['ids'] for r in row])
    )
    for name, mine in (
      ('terms_K', 'loss'),
      ('lambdas', 'lambda'),
      ('lr', 'agent/lr'),
      ('share', 'loss/adv_share'),
    ):
      assert_close(seen[mine], np.stack([r[name] for r in row]), name)
  state = tiny.trees(spec, engine.fetch(state))
  stack = state_lib.stack
  assert_close(
    state.generator.params, stack([c['params'] for c in clones]), 'generator'
  )
  assert_close(
    state.generator.opt_state[0], stack([c['adam'] for c in clones]), 'moments'
  )
  assert_close(
    state.critic.params, stack([c['critic'] for c in clones]), 'critic'
  )
  assert_close(
    state.critic.opt_state[0],
    stack([c['critic_adam'] for c in clones]),
    'critic moments',
  )
  assert_close(state.master.params, stack([master] * 4), 'master')
  assert_close(state.master.ema, stack([ema] * 4), 'ema')
  assert_close(before_last(state.pid), before_last(stack(pids)), 'pid')
  assert_close(state.q, stack(qs), 'q')
  assert_close(state.school, stack(curriculum), 'school')
