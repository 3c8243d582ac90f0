"""The Q-learning agents, sentence by sentence of the design document's 5.3.

Its words stand above the tests that hold them. Numbers are by hand.
"""

from collections.abc import Callable
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.agents import pid as pid_lib
from chimera.agents import q_learning

ACTIONS = (0.8, 0.95, 1.0, 1.05, 1.2)
DEFAULTS = {'smoothing': 0.9, 'limit': 1.1, 'slew': 0.02, 'memory': math.inf}


def _mission(
  p: float = 0.0, i: float = 0.0, d: float = 0.0, terms: int = 1
) -> pid_lib.Mission:
  """Base weight 2 and target 0.1, whatever is usual, for every term."""
  return pid_lib.Mission(
    *(jnp.full(terms, x, jnp.float32) for x in (2.0, 0.1, 0.0, p, i, d))
  )


def _q(**changes) -> q_learning.State:
  """A learner with a full, level window of 4; changes replace its fields."""
  state = q_learning.init(window=4, actions=5)
  state = state._replace(
    history_W=jnp.ones(4), filled=jnp.int32(4), state=jnp.int32(6)
  )
  return state._replace(**changes)


def _bounds(low: float = 0.5, high: float = 2.0) -> q_learning.Mission:
  return q_learning.Mission(
    jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)
  )


@jax.jit
def _act(state, rng=None, mission=None, cycle=10, epsilon=0.0, caution=0.0):
  return q_learning.act(
    jax.random.key(0) if rng is None else rng,
    state,
    _bounds() if mission is None else mission,
    actions=ACTIONS,
    every=10,
    cycle=cycle,
    epsilon=epsilon,
    caution=caution,
  )


@functools.partial(jax.jit, static_argnames='over')
def _observe(state, loss, cycle=9, rate=0.5, discount=0.9, over=10):
  return q_learning.observe(
    state,
    jnp.float32(loss),
    every=10,
    over=over,
    cycle=cycle,
    rate=rate,
    discount=discount,
  )


def _gains_by_speed(lr_scale: jax.Array) -> jax.Array:
  return 0.002 * lr_scale


def _gains_by_care(lr_scale: jax.Array) -> jax.Array:
  return 0.002 / lr_scale


def _best_at_one(lr_scale: jax.Array) -> jax.Array:
  return 0.002 * (1 - jnp.log(lr_scale) ** 2)


def test_the_reward_is_of_the_newest_losses_only():
  state = q_learning.init(window=10, actions=5)._replace(
    history_W=jnp.array([9, 8, 7, 6, 5, 4, 1, 1, 1, 1.0]), filled=10
  )
  state = state._replace(decisions=jnp.int32(1))
  for over, slope in ((10, -1.0), (4, 0.0)):
    reward = _observe(state, 1.0, over=over).reward
    still = float(q_learning.reward_of(jnp.float32(0.0)))
    assert (reward == pytest.approx(still)) == (slope == 0)
  # Exactly four: 1, 1, 1, 1, after a 3; and -.3 a cycle of mean 1.25.
  for newest, expected in (([3, 1, 1, 1], -0.1), ([3, 2, 1, 1], 10.0)):
    history = jnp.array([9, 8, 7, 6, 5, 4, *newest], jnp.float32)
    after = _observe(state._replace(history_W=history), 1.0, over=4)
    assert after.reward == pytest.approx(expected)


@functools.partial(jax.jit, static_argnums=0)
def _train(
  progress: Callable[[jax.Array], jax.Array],
  seed: int,
  bounds=(0.5, 2.0),
  noise=1e-3,
  caution=0.0,
) -> tuple[q_learning.State, jax.Array]:
  """2000 cycles of a loss that falls by exp(progress(lr_scale)) in each.

  With 0.1 % of noise, and 1 again whenever an action begins.
  """

  def cycle(carry, t):
    state, loss = carry
    rngs = jax.random.split(jax.random.fold_in(jax.random.key(seed), t))
    epsilon = q_learning.exploration(
      state.decisions, start=0.3, end=0.05, decay=50
    )
    state = _act(state, rngs[0], _bounds(*bounds), t, epsilon, caution)
    loss = jnp.where(t % 10 == 0, 1.0, loss)
    by_chance = noise * jax.random.normal(rngs[1])
    loss *= jnp.exp(by_chance - progress(state.lr_scale))
    state = _observe(state, loss, cycle=t, rate=0.2)
    return (state, loss), state.lr_scale

  start = q_learning.init(window=10, actions=5), jnp.float32(1.0)
  (state, _), scales = lax.scan(cycle, start, jnp.arange(2000))
  return state, scales


# "Each clone also possesses an independent Q-Learning agent."


def test_each_clone_has_an_independent_q_agent():
  states = jax.tree.map(
    lambda x: jnp.stack([x] * 4), _q(decisions=jnp.int32(3))
  )
  calm = jnp.ones(4)
  observe = jax.vmap(_observe)
  before, after = observe(states, calm), observe(states, calm.at[1].set(2.0))
  others = jnp.array([0, 2, 3])
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a[others], b[others]),
    before,
    after,
  )
  assert (before.table_SxA[1] != after.table_SxA[1]).any()


# "Its domain is not the loss weights, but the optimizer's learning rate."


def test_q_agent_moves_the_learning_rate_and_never_a_loss_weight():
  def cycle(carry, t, epsilon):
    pid, q = carry
    q = _act(q, cycle=10 * t, epsilon=epsilon)
    loss = 0.1 + 0.01 * (t % 3)
    pid = pid_lib.observe(
      pid, _mission(0.3, 0.002, 0.5), loss[None], **DEFAULTS
    )
    lambda_K = pid_lib.act(pid, _mission())
    return (pid, _observe(q, loss, cycle=10 * t + 9)), (q.lr_scale, lambda_K)

  start = pid_lib.init(1), _q()
  (idle, idle_K), (busy, busy_K) = (
    lax.scan(functools.partial(cycle, epsilon=e), start, jnp.arange(20))[1]
    for e in (0.0, 1.0)
  )
  assert (idle != busy).any()
  np.testing.assert_array_equal(idle_K, busy_K)


# "State: The recent history of the clone's total generator loss, discretized
# into a finite number of states (e.g., "rapidly improving," "stagnated,"
# "worsening")."


@pytest.mark.parametrize(
  ('change', 'trend'),
  [
    (-0.02, 'rapidly improving'),
    (-0.006, 'rapidly improving'),
    (-0.004, 'improving'),
    (-0.0006, 'improving'),
    (-0.0004, 'stagnated'),
    (0.0, 'stagnated'),
    (0.0004, 'stagnated'),
    (0.0006, 'worsening'),
    (0.5, 'worsening'),
  ],
)
@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_state_is_the_trend_of_the_recent_loss_at_any_scale(
  change: float, trend: str, scale: float
):
  # Straight lines of mean 1 and slope `change`.
  state = q_learning.init(window=4, actions=5)
  for cycle, t in zip(range(6, 10), (-1.5, -0.5, 0.5, 1.5)):
    state = _observe(state, scale * (1 + change * t), cycle=cycle)
  assert q_learning.TRENDS[int(state.state) % 4] == trend


@pytest.mark.parametrize(
  ('settled', 'zone'), [(0.5, 0), (0.8, 0), (1.0, 1), (1.1, 1), (1.2, 2)]
)
def test_state_tells_a_low_learning_rate_from_a_high_one(settled, zone):
  state = _observe(_q(settled=jnp.float32(settled)), 1.0)
  assert int(state.state) == 2 + 4 * zone


def test_history_holds_the_last_window_of_losses_and_forgets_older_ones():
  state = q_learning.init(window=4, actions=5)
  for cycle in range(6):
    state = _observe(state, float(cycle), cycle=cycle)
    assert int(state.filled) == min(cycle + 1, 4)
  np.testing.assert_array_equal(state.history_W, [2, 3, 4, 5])


# "Action: To select from a discrete set of multipliers for the base learning
# rate (e.g., `[0.8, 0.95, 1.0, 1.05, 1.2]`)."


@pytest.mark.parametrize('action', range(5))
def test_action_of_the_highest_value_multiplies_the_learning_rate(action: int):
  table = jnp.zeros((12, 5)).at[6, action].set(1.0).at[5].set(9.0)
  state = _act(_q(table_SxA=table))
  assert int(state.action) == action
  np.testing.assert_allclose(state.lr_scale, ACTIONS[action], rtol=1e-6)


def test_exploring_selects_each_of_the_multipliers_about_alike():
  states = jax.vmap(lambda rng: _act(_q(), rng, epsilon=1.0))(
    jax.random.split(jax.random.key(0), 1000)
  )
  counts = [
    (np.asarray(states.lr_scale) == np.float32(a)).sum() for a in ACTIONS
  ]
  assert sum(counts) == 1000
  # Binomial: 200 +- 13.
  assert 140 < min(counts) <= max(counts) < 260


def test_ignorant_agent_leaves_the_learning_rate_alone():
  state = _act(_q())
  assert ACTIONS[int(state.action)] == 1.0
  assert float(state.lr_scale) == 1.0
  assert int(state.decisions) == 1


def test_next_gentlest_action_follows_when_leaving_it_alone_proves_bad():
  table = jnp.zeros((12, 5)).at[6, 2].set(-1.0)
  assert ACTIONS[int(_act(_q(table_SxA=table)).action)] == 1.05


def test_actions_accumulate_and_stay_between_the_bounds():
  # 1.2^3 = 1.728, 1.2^4 = 2.07 > 2; 0.8^3 = 0.512, 0.8^4 = 0.41 < 0.5.
  for action, expected in (
    (4, [1.2, 1.44, 1.728, 2]),
    (0, [0.8, 0.64, 0.512, 0.5]),
  ):
    state = _q(table_SxA=jnp.zeros((12, 5)).at[:, action].set(1.0))
    for lr_scale in expected:
      state = _act(state)
      np.testing.assert_allclose(state.lr_scale, lr_scale, rtol=1e-6)
    # What a bound stopped is not to be made up for.
    np.testing.assert_allclose(state.settled, expected[-1], rtol=1e-6)
    back = jnp.zeros((12, 5)).at[:, 4 - action].set(1.0)
    state = _act(state._replace(table_SxA=back))
    multiplier = {4: 0.8, 0: 1.2}[action]
    np.testing.assert_allclose(
      state.lr_scale, expected[-1] * multiplier, rtol=1e-6
    )


def test_bounds_of_one_switch_the_agent_off():
  state, scales = _train(_gains_by_speed, 0, (1.0, 1.0))
  np.testing.assert_array_equal(scales, np.ones(2000))
  assert int(state.decisions) == 199


@pytest.mark.parametrize(
  ('scales', 'low', 'expected'),
  [
    ((0.5, 1.0, 1.0, 1.5), 0.5, (0.5, 1.0, 1.0, 1.5)),
    ((0.5, 0.5, 0.5, 0.5), 0.5, (1.0, 1.0, 1.0, 1.0)),
    ((0.8, 1.2, 1.2, 1.6), 0.5, (2 / 3, 1.0, 1.0, 4 / 3)),
    ((0.8, 1.2, 1.2, 1.6), 0.9, (0.9, 1.0, 1.0, 4 / 3)),  # its bound
  ],
)
def test_agents_share_out_a_rate_that_they_leave_alone(scales, low, expected):
  def shared(scale):
    state = _q(lr_scale=scale, settled=scale / 4)
    mean = functools.partial(lax.pmean, axis_name='clones')
    return q_learning.share_out(state, _bounds(low), mean)

  state = jax.vmap(shared, axis_name='clones')(jnp.array(scales))
  np.testing.assert_allclose(state.lr_scale, expected, rtol=1e-6)
  np.testing.assert_allclose(state.settled, expected, rtol=1e-6)


def test_random_action_is_a_trial_that_the_next_decision_starts_before():
  for seed in range(20):
    tried = _act(_q(), jax.random.key(seed), epsilon=1.0)
    if float(tried.lr_scale) != 1.0:
      break
  assert float(tried.settled) == 1.0
  # Nothing was learned of it, so the next decision takes it back.
  assert float(_act(tried, cycle=20).lr_scale) == 1.0


def test_exploration_decays_by_e_in_fifty_decisions():
  epsilons = [
    float(q_learning.exploration(jnp.int32(n), start=0.3, end=0.05, decay=50.0))
    for n in (0, 50, 100_000)
  ]
  np.testing.assert_allclose(
    epsilons, [0.3, 0.05 + 0.25 / math.e, 0.05], rtol=1e-5
  )


def test_action_is_held_for_every_cycles_and_waits_for_a_full_window():
  short = _q(filled=jnp.int32(3))
  for state, cycle in ((_q(), 11), (_q(), 19), (short, 10)):
    after = _act(state, cycle=cycle, epsilon=1.0)
    jax.tree.map(np.testing.assert_array_equal, after, state)
  assert int(_act(_q(), cycle=20).decisions) == 1


# "Reward: A function of the loss trend (the slope of the loss history)."


def test_reward_is_a_function_of_the_least_squares_slope():
  history = np.array([1.0, 0.97, 0.99, 0.94])
  slope = np.polyfit(np.arange(4), history, 1)[0] / history.mean()
  # By hand: (-1.5 - 0.485 + 0.495 + 1.41) / 5 / 0.975.
  np.testing.assert_allclose(slope, -0.016 / 0.975, rtol=1e-6)
  np.testing.assert_allclose(
    q_learning.trend(jnp.asarray(history, jnp.float32)), slope, rtol=1e-5
  )
  state = _q(decisions=jnp.int32(1), history_W=jnp.array([9, *history[:3]]))
  np.testing.assert_allclose(
    _observe(state, history[3]).reward, 0.016 / 0.975 / 0.005, rtol=1e-4
  )


@pytest.mark.parametrize('window', [2, 5, 20])
def test_trend_is_that_of_polyfit_over_the_whole_window(window: int):
  history = np.random.default_rng(window).lognormal(size=window)
  slope = np.polyfit(np.arange(window), history, 1)[0] / history.mean()
  np.testing.assert_allclose(
    q_learning.trend(jnp.asarray(history, jnp.float32)), slope, rtol=1e-4
  )


# "A steep downward trend yields a massive positive reward."


@pytest.mark.parametrize(
  ('slope', 'reward'),
  [(-0.5, 10.0), (-0.05, 10.0), (-0.02, 4.0), (-0.005, 1.0), (-0.001, 0.2)],
)
def test_steep_descent_yields_a_massive_positive_reward(slope, reward):
  np.testing.assert_allclose(
    q_learning.reward_of(jnp.float32(slope)), reward, rtol=1e-5
  )


# "Stagnation yields a small negative reward."


@pytest.mark.parametrize('slope', [-0.0004, 0.0, 0.0004])
def test_stagnation_yields_a_small_negative_reward(slope):
  np.testing.assert_allclose(
    q_learning.reward_of(jnp.float32(slope)), -0.1, rtol=1e-6
  )


# "An upward trend yields a large negative reward."


@pytest.mark.parametrize(
  ('slope', 'reward'), [(0.001, -1.2), (0.005, -2.0), (0.02, -5.0), (1, -11.0)]
)
def test_ascent_yields_a_large_negative_reward(slope, reward):
  np.testing.assert_allclose(
    q_learning.reward_of(jnp.float32(slope)), reward, rtol=1e-5
  )


# "Role: The Q-Learner's job is to dynamically discover the optimal "engine
# speed" for its clone's specialized task."


def test_agent_discovers_the_best_engine_speed():
  # Best at 1, and half of it at either bound.
  for seed in range(3):
    _, scales = _train(_best_at_one, seed)
    assert 0.75 < np.exp(np.log(scales[1000:]).mean()) < 1.33


# "The Perceptual Specialist might learn that a slower, more careful speed is
# optimal, while the Structural Specialist might learn it can afford to be more
# aggressive."


def test_one_specialist_learns_to_be_careful_and_another_to_be_aggressive():
  for seed in range(3):
    _, careful = _train(_gains_by_care, seed)
    _, aggressive = _train(_gains_by_speed, seed)
    assert np.median(careful[1000:]) < 0.7
    assert np.median(aggressive[1000:]) > 1.5


# "This adds another layer of intelligent, autonomous control."


def test_agent_governs_a_compiled_loop_without_the_host():
  def cycle(state, t):
    state = _act(state, cycle=t, epsilon=1.0)
    return _observe(state, jnp.exp(-1e-3 * t), cycle=t), None

  run = jax.jit(lambda s, t: lax.scan(cycle, s, t)[0])
  start, cycles = q_learning.init(window=4, actions=5), jnp.arange(40)
  with jax.transfer_guard('disallow'):
    end = run(start, cycles)
  assert int(end.decisions) == 3
  # Straight down by 1e-3 of itself a cycle: a fifth of RAPID.
  np.testing.assert_allclose(end.reward, 0.2, rtol=1e-3)


def test_a_cautious_agent_is_led_by_what_is_so_and_not_by_chance():
  def end(progress, caution, noise):
    ends = [
      _train(progress, seed, (0.5, 2.0), noise, caution)[0].settled
      for seed in range(3)
    ]
    return np.abs(np.log(ends))

  assert end(jnp.zeros_like, 0.0, 0.03).max() > 0.4
  np.testing.assert_array_equal(end(jnp.zeros_like, 1.0, 0.03), 0)
  assert end(lambda scale: 0.02 * scale, 1.0, 0.001).min() > 0.15


@pytest.mark.parametrize(
  ('caution', 'surprise', 'lr_scale'),
  [(0, 9.0, 1.05), (1, 0.2, 1.05), (1, 0.25, 1.0), (2, 0.07, 1.0)],
)
def test_a_move_is_worth_more_than_the_usual_error(caution, surprise, lr_scale):
  # 1.05 promises 0.5 more than 1; the usual errors are 3, .45, .5 and .26.
  table = jnp.zeros((12, 5)).at[6].set(jnp.array([0.0, 0.0, 0.1, 0.6, 0.0]))
  state = _q(table_SxA=table, surprise=jnp.float32(surprise))
  state = _act(state, caution=float(caution))
  np.testing.assert_allclose(state.lr_scale, lr_scale, rtol=1e-6)


# What it learns, by hand.


@pytest.mark.parametrize('decisions', [2, 7])
def test_held_action_is_valued_by_reward_above_the_usual_and_what_follows(
  decisions,
):
  # Slope -0.01 of mean 1 over [1.015 .. 0.985]: rapid, r = 2, s' = 4.
  table = jnp.zeros((12, 5)).at[6, 3].set(0.4).at[4, 1].set(1.0)
  state = _q(
    table_SxA=table,
    history_W=jnp.array([5.0, 1.015, 1.005, 0.995]),
    action=jnp.int32(3),
    decisions=jnp.int32(decisions),
    baseline=jnp.float32(0.5),
    surprise=jnp.float32(1.0),
  )
  after = _observe(state, 0.985)
  # 0.4 + 0.5 * (2 - 0.5 + 0.9 * 1 - 0.4) = 1.4; baseline 0.5 + 0.5 * 1.5;
  # surprise 1 + 0.5 * (2 ** 2 - 1).
  expected = table.at[6, 3].set(1.4)
  np.testing.assert_allclose(after.table_SxA, expected, rtol=1e-4)
  np.testing.assert_allclose(after.reward, 2.0, rtol=1e-4)
  np.testing.assert_allclose(after.baseline, 1.25, rtol=1e-4)
  np.testing.assert_allclose(after.surprise, 2.5, rtol=1e-3)
  assert int(after.state) == 4


def test_first_reward_is_what_is_usual():
  state = _q(decisions=jnp.int32(1), action=jnp.int32(0))
  after = _observe(state, 0.9)
  np.testing.assert_array_equal(after.table_SxA, np.zeros((12, 5)))
  assert float(after.baseline) == float(after.reward) > 0


def test_nothing_is_learned_in_the_midst_of_a_held_action():
  state = _q(decisions=jnp.int32(3))
  after = _observe(state, 0.5, cycle=8)
  np.testing.assert_array_equal(after.history_W, [1, 1, 1, 0.5])
  after = after._replace(history_W=state.history_W)
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_trend_before_the_first_decision_only_sets_the_state():
  after = _observe(_q(), 2.0)
  np.testing.assert_array_equal(after.table_SxA, np.zeros((12, 5)))
  assert int(after.state) == 3 + 4
  assert float(after.reward) == 0


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_is_not_noted(bad: float):
  state = _q(filled=jnp.int32(3), decisions=jnp.int32(1))
  jax.tree.map(np.testing.assert_array_equal, _observe(state, bad), state)
  # At the end of a held action the trend is that of what was noted.
  after = _observe(_q(decisions=jnp.int32(2)), bad)
  np.testing.assert_allclose(after.reward, -0.1, rtol=1e-6)
  assert np.isfinite(after.table_SxA).all()


@pytest.mark.parametrize('x64', [False, True])
def test_agent_keeps_its_types_and_shapes(x64: bool):
  with jax.enable_x64(x64):
    before = q_learning.init(window=4, actions=5)
    for after in (_act(before, epsilon=0.3), _observe(before, 1.0)):
      assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == (
        jax.tree.map(lambda x: (x.shape, x.dtype), before)
      )


# A quadratic loss, four clones' parts of a meld, and where it leads.
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(6, 6))
CURVATURE = ROOT @ ROOT.T
START = RNG.normal(size=6)
PARTS = 0.3 * RNG.normal(size=(4, 6))


def quadratic(x):
  return 0.5 * x @ CURVATURE @ x


# What each clone has of its own besides, as a gradient.
OWN = RNG.normal(size=(4, 6))


def effect_of(step, own, mean, loss, odds=1 / 3):
  own, mean = (jnp.asarray(x, jnp.float32) for x in (own, mean))
  return q_learning.own_effect(step, own, mean, jnp.float32(odds), loss)


def log_effect(part, start, end, loss=1.0):
  """ln of the effect of a part, by the gradients CURVATURE x at both ends."""
  step = q_learning.OwnStep(
    jnp.asarray(part, jnp.float32), jnp.float32(CURVATURE @ start @ part)
  )
  gradient = CURVATURE @ end
  return float(jnp.log(effect_of(step, gradient, gradient, loss)))


def test_the_parts_of_all_clones_sum_to_what_the_meld_did():
  end = START + PARTS.sum(0)
  total = sum(log_effect(part, START, end) for part in PARTS)
  np.testing.assert_allclose(
    total, quadratic(end) - quadratic(START), rtol=1e-4
  )


@pytest.mark.parametrize('weights', [(1, 1, 1, 1), (4, 1, 2, 1), (1, 0, 1, 1)])
def test_the_parts_of_clones_that_want_different_things_sum_likewise(weights):
  """A clone's gradient is CURVATURE x and what is its own."""
  weights = np.array(weights, np.float64)
  share = weights / weights.sum()
  common = share @ OWN
  end = START + PARTS.sum(0)

  def loss(x):
    return quadratic(x) + common @ x

  total = 0.0
  for i, part in enumerate(PARTS):
    others = np.delete(weights, i) @ np.delete(OWN, i, 0)
    others = CURVATURE @ START + others / (weights.sum() - weights[i])
    step = q_learning.OwnStep(
      jnp.asarray(part, jnp.float32), jnp.float32(others @ part)
    )
    odds = weights[i] / (weights.sum() - weights[i])
    ends = (CURVATURE @ end + x for x in (OWN[i], common))
    total += float(jnp.log(effect_of(step, *ends, 1.0, odds)))
  np.testing.assert_allclose(total, loss(end) - loss(START), rtol=1e-4)


def test_a_part_is_worth_what_two_passes_find_first_and_last_in_the_mean():
  """Loss with and without it: before all others stepped, and after them."""
  end = START + PARTS.sum(0)
  for part in PARTS:
    first = quadratic(START + part) - quadratic(START)
    last = quadratic(end) - quadratic(end - part)
    np.testing.assert_allclose(
      log_effect(part, START, end), (first + last) / 2, rtol=1e-4
    )


def test_a_clone_alone_is_worth_the_change_of_the_loss():
  end = START + PARTS[0]
  np.testing.assert_allclose(
    log_effect(PARTS[0], START, end, loss=2.0),
    (quadratic(end) - quadratic(START)) / 2,
    rtol=1e-4,
  )


def test_a_step_that_overshoots_is_bad_though_it_begins_downhill():
  # From x = 1 on x^2 / 2: to 0.5 is good, to -1 is even, to -2 is bad.
  for end, expected in ((0.5, -0.375), (-1.0, 0.0), (-2.0, 1.5)):
    step = q_learning.OwnStep(
      jnp.array([end - 1.0]), jnp.float32(1.0 * (end - 1.0))
    )
    effect = effect_of(step, [end], [end], 1.0)
    np.testing.assert_allclose(jnp.log(effect), expected, atol=1e-6)


def test_other_weights_without_a_step_pay_nothing():
  still = q_learning.OwnStep(jnp.zeros(6), jnp.float32(0.0))
  for gradient in (CURVATURE @ START, 100 * CURVATURE @ START):
    assert effect_of(still, 2 * gradient, gradient, 0.7) == 1


def test_what_is_not_finite_has_no_effect():
  step = q_learning.OwnStep(jnp.ones(2), jnp.float32(-1.0))
  for gradient in (jnp.full(2, jnp.nan), jnp.full(2, 1e38)):
    assert effect_of(step, gradient, gradient, 1.0) == 1
    assert effect_of(step, gradient, jnp.ones(2), 1.0) == 1
  # As where there are no others.
  assert effect_of(step, jnp.ones(2), jnp.zeros(2), 1.0, np.inf) == 1
