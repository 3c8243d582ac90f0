"""The compiled step: layouts, donation, the meld, poison, and every switch.

The programs are compiled without XLA's optimizations, in a quarter of the time.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chimera import step as step_lib
from chimera.benchmarks import plain
from chimera.clones import losses
from chimera.clones import specialists as specialists_lib
from chimera.clones import state as state_lib
from chimera.meld import average
from chimera.optics import poincare
from chimera.run import engine
from tests import tiny

CYCLES = 20
TRACES = 1
BINS, PATHS = tiny.bins_and_paths()


class Program:
  """A compiled step and what it is fed."""

  def __init__(self, config, devices=4, **keywords):
    self.config = config
    self.spec = state_lib.create_spec(config)
    self.devices = jax.devices()[:devices]
    self.replicas = engine.replicas(self.devices, len(config.clone_names))
    self.traces = 0
    body = step_lib.train_step

    def counted(*args, **kwargs):
      self.traces += 1
      return body(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(step_lib, 'train_step', counted)
      make = step_lib.make_train_step.__wrapped__  # not what others had made
      self.step = make(
        self.spec, tuple(self.devices), replicas=self.replicas, **keywords
      )
    self.born, self.mission, self.shard = tiny.on_devices(
      config, self.spec, BINS, PATHS, self.devices
    )
    self.born = self.host(self.born)

  def put(self, state):
    return engine.put(tiny.vectors(self.spec, state), self.devices)

  def host(self, tree):
    return tiny.trees(self.spec, host(tree, self.replicas))

  def run(self, cycles, state=None, mission=None):
    """[(state before, metrics, state after)], on the host."""
    state = self.put(self.born if state is None else state)
    rows, before = [], self.host(state)
    for _ in range(cycles):
      with jax.transfer_guard('disallow'):
        state, metrics = self.step(
          state, self.mission if mission is None else mission, self.shard
        )
      after = self.host(state)
      rows.append((before, self.host(metrics), after))
      before = after
    return rows

  def missions(self, config):
    return engine.put(
      state_lib.stack(specialists_lib.create_missions(config, BINS)),
      self.devices,
    )


def host(tree, replicas=1):
  """A copy: a view of a device's buffer would keep it from being donated."""
  return jax.tree.map(np.array, engine.fetch(tree, replicas))


def get_config(**overrides):
  c = tiny.get_config()
  # With 0 a critic's unit comes to lie at its kink, and with 1 and 2 gradients
  # of the first cycles cancel out, with any targets: there rounding decides.
  c.seed = 4
  c.school.mix = 0.0
  c.school.enrol_from, c.school.enrol_every = 2, 3
  c.update_from_flattened_dict(
    {k.replace('__', '.'): v for k, v in overrides.items()}
  )
  return c


@pytest.fixture(scope='module')
def four():
  return Program(get_config())


@pytest.fixture(scope='module')
def trajectory(four):
  return four.run(CYCLES)


def assert_close(actual, expected, tolerance=1e-4):
  """Relative to the largest entry of each leaf: a near-zero has no digits."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for (path, e), a in zip(
    jax.tree_util.tree_leaves_with_path(expected),
    jax.tree.leaves(actual),
    strict=True,
  ):
    e, a = np.asarray(e, np.float64), np.asarray(a, np.float64)
    scale = max(np.abs(e).max(initial=0), 1e-6)
    worst = np.abs(a - e).max(initial=0) / scale
    assert worst <= tolerance, f'{jax.tree_util.keystr(path)}: {worst:.1e}'


def assert_melded(state, specialists, weight_M):
  """The master is a mean, to the rounding of the largest of what it is of."""
  expected = numpy_meld(specialists, weight_M)
  for (path, e), a, x in zip(
    jax.tree_util.tree_leaves_with_path(expected),
    jax.tree.leaves(clone(state.master.params, 0)),
    jax.tree.leaves(specialists),
    strict=True,
  ):
    parts = np.asarray(x)[weight_M > 0]
    worst = np.abs(np.asarray(a, np.float64) - e).max() / np.abs(parts).max()
    assert worst <= 1e-6, f'{jax.tree_util.keystr(path)}: {worst:.1e}'


def assert_finite(tree):
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    assert np.all(np.isfinite(x)), jax.tree_util.keystr(path)


def alike(tree):
  """Whether every clone holds the same bits."""
  return all(np.all(x == x[:1]) for x in jax.tree.leaves(tree))


def alike_trees(a, b):
  """Whether two trees hold the same bits."""
  return all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def clone(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


def numpy_meld(specialists, weight_M):
  """The master that a meld with alpha = 0 makes."""
  mean = jax.tree.map(
    lambda x: np.average(
      np.where(weight_M.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, 0).astype(
        np.float64
      ),
      axis=0,
      weights=weight_M,
    ),
    specialists,
  )
  book = mean['codebook']
  mean['codebook'] = book / np.linalg.norm(book, axis=-1, keepdims=True)
  return mean


def test_a_cycle_is_traced_once_and_the_donated_state_is_gone(four, trajectory):
  four.run(1)  # conftest may have let go of what was compiled
  traces = four.traces
  assert traces % TRACES == 0
  state = four.put(four.born)
  with jax.transfer_guard('disallow'):
    after, _ = four.step(state, four.mission, four.shard)
  assert all(x.is_deleted() for x in jax.tree.leaves(state))
  with jax.transfer_guard('disallow'):
    four.step(after, four.mission, four.shard)
  assert all(x.is_deleted() for x in jax.tree.leaves(after))
  assert four.traces == traces
  assert not any(x.is_deleted() for x in jax.tree.leaves(four.mission))


def test_a_q_agent_is_told_what_its_clone_s_step_did_to_the_loss(four):
  """By plain gradients of whole losses, on the lessons that were drawn."""
  spec = four.spec
  # What is bounded is not the gradient of a loss.
  unbounded = four.missions(get_config(pid__bounded=False))
  trajectory = four.run(7, mission=unbounded)

  @jax.jit
  def gradient(params, critic, x, lambda_K, ramp):
    ramped_K = lambda_K.at[spec.adv].multiply(ramp)
    loss = jax.grad(plain.objective, has_aux=True)
    return spec.generator_layout.vector(
      loss(params, critic, x, ramped_K, spec)[0]
    )

  def gradients(step):
    before, metrics, _ = trajectory[step]
    return np.stack(
      [
        gradient(
          clone(before.master.params, i),
          clone(before.critic.params, i),
          poincare.normalize(jnp.asarray(PATHS[metrics['lesson_B'][i]])),
          metrics['lambda'][i],
          min(1.0, step / 5),
        )
        for i in range(4)
      ]
    )

  layout = spec.generator_layout
  for step in (4, 5, 6):  # an action is held for 4 cycles: 4 begins one
    start, metrics, _ = trajectory[step - 1]
    _, now, after = trajectory[step]
    before_MxP, after_MxP = gradients(step - 1), gradients(step)
    # Of an even number the lesser of the two in the middle.
    size = np.sort(now['loss/base'])[1]
    effects = []
    for i in range(4):
      own_P = layout.vector(
        jax.tree.map(
          np.subtract,
          clone(metrics['specialist'], i),
          clone(start.master.params, i),
        )
      )
      # What its own objective adds, where its samples are fresh.
      mean_P = after_MxP.mean(0)
      begun_P = np.delete(before_MxP, i, 0).mean(0)
      begun_P = begun_P + (after_MxP[i] - mean_P) / 3
      effects.append(np.exp((begun_P + mean_P) @ own_P / 2 / size))
    effects /= np.prod(effects) ** 0.25
    expected = trajectory[step][0].own_loss * effects if step > 4 else 1.0
    np.testing.assert_allclose(after.own_loss, expected, rtol=1e-4)


@pytest.mark.parametrize(('every', 'part'), [(1, 0.4), (3, 1.0)])
def test_a_step_counts_by_how_far_the_master_follows_it(every, part):
  meld = average.Spec(True, every, 0.5, 0.8, 0.0, 0.99, 0)
  spec = types.SimpleNamespace(
    q=types.SimpleNamespace(history='own'), meld=meld
  )
  learned = types.SimpleNamespace(
    gradient_P=jnp.array([1.0, 2.0]),
    mean_gradient_P=jnp.array([3.0, 1.0]),
    own_step_P=jnp.array([-0.1, 0.2]),
    odds=1 / 3,
    stays=jnp.array(True),
  )
  got = step_lib.remember_step(learned, spec)
  np.testing.assert_allclose(got.displacement_P, [-0.1 * part, 0.2 * part])
  # The mean's product is -.1, its own .3: -.1 + (-.1 - .3) / 3.
  np.testing.assert_allclose(got.promised, part * (-0.7 / 3), rtol=1e-6)


def test_the_agents_share_the_rate_out(trajectory):
  for _, metrics, state in trajectory:
    np.testing.assert_allclose(np.mean(state.q.lr_scale), 1, rtol=0.05)
    np.testing.assert_array_equal(metrics['agent/trim'], state.q.lr_scale)
  assert not alike(state.q.lr_scale)


def test_after_a_meld_only_the_critics_and_agents_differ(trajectory):
  for _, metrics, state in trajectory:
    assert_finite(metrics)
    assert alike(state.master)
    assert alike(state.generator.params)
    assert_close(state.generator.params, state.master.params, 0)
    assert not alike(state.critic.params)
    assert not alike(metrics['specialist'])
    np.testing.assert_array_equal(state.dropped, 0)
  assert not alike(state.pid)


def test_the_master_is_the_mean_of_the_four_destinations(trajectory):
  for _, metrics, state in trajectory[:3]:
    assert_melded(state, metrics['specialist'], np.ones(4))


def test_the_meld_touches_neither_critics_nor_agents(four, trajectory):
  """Bit for bit what they are after another meld of the same cycle."""
  mass = four.missions(get_config(meld__weights='mass'))
  for before, _, expected in trajectory[:5]:
    _, _, state = four.run(1, before, mission=mass)[0]
    assert not alike_trees(state.master, expected.master)
    for name in ('critic', 'pid', 'school'):
      assert alike_trees(getattr(state, name), getattr(expected, name)), name
    # What a Q-agent is told of is the meld; what it has decided is not.
    for name in ('lr_scale', 'settled', 'action', 'decisions'):
      assert alike_trees(getattr(state.q, name), getattr(expected.q, name))


def test_weights_by_mass_reach_the_meld(four):
  config = get_config(meld__weights='mass')
  _, metrics, state = four.run(1, mission=four.missions(config))[0]
  assert_melded(state, metrics['specialist'], np.array([0.1, 0.4, 0.3, 0.2]))


def test_it_learns(trajectory):
  first, last = (
    np.mean([m['loss/base'] for _, m, _ in rows])
    for rows in (trajectory[:5], trajectory[-5:])
  )
  assert last < first


def test_every_lesson_is_drawn_from_the_enrolled_alone(trajectory):
  for before, metrics, _ in trajectory:
    for i in range(4):
      lessons = clone(before.school, i)
      enrolled = lessons.enrolled_L[: lessons.enrolled_count]
      assert np.isin(metrics['lesson_B'][i], enrolled).all()


def test_three_clones_keep_their_bins_and_the_fourth_is_re_enrolled(
  four, trajectory
):
  changes = []
  for step, (before, _, after) in enumerate(trajectory):
    was, now = before.school.enrolled_L, after.school.enrolled_L
    np.testing.assert_array_equal(was[:3], now[:3])
    np.testing.assert_array_equal(
      before.school.enrolled_count, after.school.enrolled_count
    )
    if np.any(was[3] != now[3]):
      changes.append(step)
  assert changes == [2, 5, 8, 11, 14, 17]
  for i, name in enumerate(four.config.clone_names[:3]):
    bins = four.config.specialists[name].bins
    expected = [sample for b in bins for sample in BINS[b]]
    count = trajectory[-1][2].school.enrolled_count[i]
    assert sorted(trajectory[-1][2].school.enrolled_L[i, :count]) == sorted(
      expected
    )


def test_what_one_clone_saw_all_of_them_remember(trajectory):
  for step, (_, metrics, after) in enumerate(trajectory):
    assert alike(after.school[2:])
    seen = np.flatnonzero(after.school.seen_N[0] == step)
    np.testing.assert_array_equal(seen, np.unique(metrics['lesson_B']))


def test_every_third_cycle_the_fence_is_that_of_what_was_seen(trajectory):
  for step, (before, metrics, after) in enumerate(trajectory):
    school = clone(after.school, 0)
    fence = before.school.fence[0]
    if step and step % 3 == 0:
      log = np.log(school.error_N[school.seen_N >= 0], dtype=np.float64)
      first, third = np.quantile(log, [0.25, 0.75])
      fence = np.exp(third + 2 * (third - first))
    assert school.fence == pytest.approx(fence, rel=1e-5)
    assert metrics['school/fence'][0] == school.fence
    beyond = np.sum(school.error_N > school.fence) if step >= 3 else 0
    assert metrics['school/outliers'][0] == beyond


POISONS = {
  'generator, NaN': ('generator', 'params', np.nan),
  'generator, Inf': ('generator', 'params', np.inf),
  'codebook, NaN': ('generator', 'codebook', np.nan),
  'codebook, Inf': ('generator', 'codebook', np.inf),
  'critic, NaN': ('critic', 'params', np.nan),
  'critic, Inf': ('critic', 'params', np.inf),
  'first moment, NaN': ('generator', 'mu', np.nan),
  'second moment, Inf': ('generator', 'nu', np.inf),
  "critic's second moment, NaN": ('critic', 'nu', np.nan),
}


def poisoned(state, clones, network, where, poison):
  """A copy of the state with one number of each clone gone bad."""
  state = jax.tree.map(np.array, state)
  net = getattr(state, network)
  tree = net.params
  if where in ('mu', 'nu'):
    tree = getattr(net.opt_state[0], where)
  leaf = tree['codebook'] if where == 'codebook' else jax.tree.leaves(tree)[-1]
  for i in clones:
    leaf[i].flat[1] = poison
  return state


@pytest.mark.parametrize('poison', POISONS.values(), ids=POISONS)
def test_a_poisoned_clone_is_left_out_and_restarts(four, trajectory, poison):
  state = poisoned(trajectory[3][2], [2], *poison)
  four.run(1)  # conftest may have let go of what was compiled
  traces = four.traces
  (_, metrics, state), (_, later, healed) = four.run(2, state)
  assert_finite(state)
  assert_melded(state, metrics['specialist'], np.array([1, 1, 0, 1]))
  assert alike(state.master)
  assert_close(state.generator.params, state.master.params, 0)
  np.testing.assert_array_equal(state.dropped, [0, 0, 1, 0])
  # What its own moments were is gone; the second of the generator is common.
  moments = state.generator.opt_state[0]
  for x in jax.tree.leaves(clone((moments.mu, state.critic.opt_state), 2)):
    np.testing.assert_array_equal(x, 0)
  assert_close(clone(moments.nu, 2), clone(moments.nu, 0), 1e-6)
  np.testing.assert_array_equal(moments.count, 5)
  np.testing.assert_array_equal(state.critic.opt_state[0].count, [5, 5, 0, 5])
  others = jax.tree.map(lambda x: x[[0, 1, 3]].mean(0), state.critic.params)
  assert_close(clone(state.critic.params, 2), others, 1e-5)
  assert_finite((later, healed))
  np.testing.assert_array_equal(healed.dropped, [0, 0, 1, 0])
  assert four.traces == traces


def test_where_all_four_are_poisoned_the_master_stays(four, trajectory):
  before = trajectory[3][2]
  state = poisoned(before, range(4), 'generator', 'params', np.nan)
  (_, _, state), (_, later, healed) = four.run(2, state)
  assert_close(state.master.params, before.master.params, 1e-6)
  assert_close(state.generator.params, state.master.params, 0)
  np.testing.assert_array_equal(state.dropped, 1)
  assert_finite((later, healed))
  np.testing.assert_array_equal(healed.dropped, 1)


def test_without_the_pid_the_weights_are_the_base_weights(four, trajectory):
  config = get_config(pid__enabled=False)
  assert state_lib.create_spec(config) == four.spec
  mission = four.missions(config)
  base_MxK = host(mission).pid.base_K
  for _, metrics, _ in four.run(3, mission=mission):
    assert_finite(metrics)
    np.testing.assert_array_equal(metrics['lambda'], base_MxK)
  assert np.any(trajectory[2][1]['lambda'] != base_MxK)
  np.testing.assert_array_equal(trajectory[0][1]['lambda'], base_MxK)


def test_one_device_follows_the_same_trajectory_as_four(trajectory):
  rows = Program(get_config(), devices=1).run(CYCLES)
  for (_, expected, _), (_, metrics, _) in zip(trajectory, rows, strict=True):
    np.testing.assert_array_equal(metrics['lesson_B'], expected['lesson_B'])
    for name in ('loss', 'lambda', 'agent/lr', 'critic/loss'):
      assert_close(metrics[name], expected[name])
  assert_close(rows[-1][2], trajectory[-1][2])


def test_in_bfloat16_all_but_products_is_float32_and_the_sick_are_left_out():
  program = Program(get_config(train__dtype='bfloat16'), devices=1)
  rows = program.run(6)
  assert_finite([(metrics, state) for _, metrics, state in rows])
  floats = [x for x in jax.tree.leaves(rows[-1][2]) if x.dtype.kind == 'f']
  assert {x.dtype for x in floats} == {np.dtype('float32')}
  # What is exported and judged is of float32.
  assert program.spec.tokenizer.dtype == 'float32'
  assert program.spec.dtype == 'bfloat16'
  bad = poisoned(rows[2][2], [2], 'generator', 'params', np.nan)
  (_, _, healed), _ = program.run(2, bad)
  assert_finite(healed)
  np.testing.assert_array_equal(healed.dropped, [0, 0, 1, 0])
  assert_close(healed.generator.params, healed.master.params, 0)


def test_three_cycles_in_one_dispatch_are_three_dispatches():
  # By 'total': the agent's own probe is told of codes, which flip on rounding.
  config = get_config(q__history='total')
  _, metrics, state = Program(config, cycles=3).run(1)[0]
  _, expected_metrics, expected = Program(config).run(3)[-1]
  assert_close(state, expected)
  assert_close(metrics, expected_metrics)


@pytest.fixture(scope='module')
def without():
  """(spec, rows) of 8 cycles without Q and School, of which two meld."""
  switches = {'q__enabled': False, 'school__enabled': False, 'meld__every': 4}
  program = Program(get_config(**switches))
  return program.spec, program.run(8)


def test_the_rate_is_the_schedule_without_q_and_every_fourth_cycle_melds(
  without,
):
  spec, rows = without
  for step, (before, metrics, state) in enumerate(rows):
    assert_finite((metrics, state))
    np.testing.assert_array_equal(state.q.lr_scale, 1)
    rate = spec.schedule(step)
    # float32 has seven digits, and a fused product rounds once.
    np.testing.assert_allclose(metrics['agent/lr'], rate, rtol=3e-7)
    assert alike(state.master)
    if step % 4 == 3:
      assert alike(state.generator.params)
      assert_melded(state, metrics['specialist'], np.ones(4))
      decay = {3: 1 / 10, 7: 2 / 11}[step]  # after no meld, and one
      was, new = before.master.ema, state.master.params
      ema = jax.tree.map(lambda e, m, d=decay: d * e + (1 - d) * m, was, new)
      assert_close(state.master.ema, ema, 1e-6)
    else:
      assert not alike(state.generator.params)
      assert_close(state.generator.params, metrics['specialist'], 0)
      assert_close(state.master.params, before.master.params, 0)


def test_without_the_school_lessons_come_from_everything(without):
  _, rows = without
  drawn = np.concatenate([m['lesson_B'] for _, m, _ in rows], axis=1)
  for i, ids in enumerate(drawn):
    assert len(np.unique(ids // 12)) > 3, f'clone {i}'
  for before, metrics, after in rows:
    assert_finite((metrics, after))
    np.testing.assert_array_equal(
      before.school.enrolled_L, after.school.enrolled_L
    )
  own_bin = np.isin(drawn[0], BINS[9])
  assert own_bin.mean() < 0.5


def test_without_the_meld_all_clones_hold_one_generator_and_one_critic():
  for _, metrics, state in Program(get_config(meld__enabled=False)).run(3):
    assert_finite((metrics, state))
    assert alike((state.generator, state.critic, state.master))
    assert_close(state.generator.params, state.master.params, 0)
    assert not alike(metrics['loss'])


def test_the_control_is_one_data_parallel_learner():
  """Adam on the concatenated batch, written by hand."""
  config = tiny.get_config('control')
  program = Program(config)
  spec, born = program.spec, clone(program.born, 0)
  adam = optax.adam(
    1.0, spec.generator_optimizer.adam_b1, spec.generator_optimizer.adam_b2
  )
  critic_adam = optax.adam(spec.wgan.learning_rate, 0.0, 0.9)
  base_K = specialists_lib.create_missions(config, BINS)[0].pid.base_K

  def judge(params, x):
    return spec.critic.apply({'params': params}, x)

  @jax.jit
  def gradients(params, critic, x, ramp, epsilon):
    def loss(params):
      x_hat, codes, _ = spec.tokenizer.apply({'params': params}, x)
      terms_K, _ = losses.terms(
        x,
        x_hat,
        codes,
        judge(critic, x_hat),
        names=spec.terms,
        commitment=spec.loss.commitment,
        temperature=spec.loss.temperature,
      )
      return jnp.vdot(base_K, terms_K.at[spec.adv].multiply(ramp))

    fake = spec.tokenizer.apply({'params': params}, x)[0]
    return jax.grad(loss)(params), jax.grad(losses.critic_loss, has_aux=True)(
      critic,
      judge,
      x,
      fake,
      epsilon,
      penalty=spec.wgan.penalty,
      drift=spec.wgan.drift,
    )[0]

  params, critic = born.generator.params, born.critic.params
  moments, critic_moments = adam.init(params), critic_adam.init(critic)
  key = jax.random.key(config.seed)
  for step, (_, metrics, state) in enumerate(program.run(5)):
    x = poincare.normalize(jnp.asarray(PATHS[metrics['lesson_B'].ravel()]))
    epsilon = [
      jax.random.uniform(
        jax.random.split(
          jax.random.fold_in(jax.random.fold_in(key, step), i), 5
        )[2],
        (spec.batch_size,),
      )
      for i in range(4)
    ]
    gradient, critic_gradient = gradients(
      params, critic, x, min(1.0, step / 5), jnp.concatenate(epsilon)
    )
    rate = spec.schedule(step)
    update, moments = jax.jit(adam.update)(gradient, moments)
    params = jax.tree.map(lambda p, u: p + rate * u, params, update)  # noqa: B023
    update, critic_moments = jax.jit(critic_adam.update)(
      critic_gradient, critic_moments
    )
    critic = optax.apply_updates(critic, update)
    book = params['codebook']
    params['codebook'] = book / jnp.linalg.norm(book, axis=-1, keepdims=True)
    for i in range(4):
      assert_close(clone(state.master.params, i), params)
      mine, hers = clone(state.critic.params, i), dict(critic)
      # wasserstein's gradient in the last bias is 1 - 1: all but the drift's
      # share of it is rounding, which Adam makes as large as any other.
      last, her_last = mine.pop('Conv_3'), hers.pop('Conv_3')
      assert_close(mine, hers)
      assert_close(last['kernel'], her_last['kernel'])
      assert_close(last['bias'], her_last['bias'], 0.05)


def test_fsq_takes_the_same_way_on_any_layout_and_weighs_nine_terms():
  fsq = {
    'model__quantizer': 'fsq',
    'model__levels': (4, 5),
    'clone_names': ('perceptual', 'adversarial'),  # sooner compiled than four
    'q__history': 'total',
    # Born of seed 0, one bias has a gradient so small that it is rounding which
    # Adam makes a whole step of.
    'seed': 1,
  }
  one, two = (
    Program(get_config(**fsq, model__revive_after=revive_after), devices)
    # Nothing is revived, so that it does not matter when it would be.
    for devices, revive_after in ((1, 1), (2, 200))
  )
  rows = [program.run(6) for program in (one, two)]
  for (_, mine, after), (_, others, elsewhere) in zip(*rows, strict=True):
    assert mine['loss'].shape == mine['lambda'].shape == (2, 9)
    assert_finite((mine, after))
    assert_close(after.generator.params, elsewhere.generator.params)
    assert_close(mine['loss'], others['loss'])
    np.testing.assert_array_equal(
      mine['codebook/used'], others['codebook/used']
    )
    assert 1 < mine['codebook/perplexity'][0] <= mine['codebook/used'][0] <= 20
    assert after.master.unused_V.shape == (2, 20)
    assert alike(after.master)
  assert one.spec.adv == one.spec.terms.index('adv') == 1
  first, last = rows[0][0][0], rows[0][-1][2]
  assert not alike_trees(first.generator.params, last.generator.params)
