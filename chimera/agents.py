"""The Agents: one PID lambda controller and one Q-learner a clone.

The design document's section 5. Both are pure functions of one clone's state,
for use inside the compiled step: `act` before the clone learns, `observe`
after. They take the loss of the cycle only through `observe`, so that what an
agent does in a cycle rests on the cycles before it.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# What a falling loss takes off a weight, as a share of what one that rises as
# fast would put on: a slight easing against a sharp kick.
EASE = 0.25
# Greatest log error that counts, a factor of about 150: one absurd measurement
# must not take the filter longer to forget than a bad one.
MAX_ERROR = 5.0

# Classes of the loss trend.
TRENDS = ('rapidly improving', 'improving', 'stagnated', 'worsening')
# Between them: change of the loss a cycle, as a share of the loss.
RAPID = 5e-3
STILL = 5e-4
# Trims between which the learning rate counts as low, as configured and high:
# a state of the trend alone cannot tell where to stop.
LOW, HIGH = 0.85, 1.15
# Of the reward: what stagnation costs, what ascent costs beside its slope, and
# the greatest number of RAPIDs that a slope is worth.
STAGNATION_COST = 0.1
ASCENT_COST = 1.0
MAX_REWARD = 10.0


class PidMission(NamedTuple):
  """What tells one clone's controller from another's, float32.

  Attributes:
    base_K: weights of the loss terms before any adjustment.
    target_K: where each measured loss ought to be, above 0.
    proportional_K: log weight per unit of log error.
    integral_K: log weight per unit of log error and cycle.
    derivative_K: log weight per unit of log error a cycle, in cycles.
  """

  base_K: jax.Array
  target_K: jax.Array
  proportional_K: jax.Array
  integral_K: jax.Array
  derivative_K: jax.Array


class PidState(NamedTuple):
  """What the controller remembers of each loss term.

  Attributes:
    error_K: filtered log(measured / target), float32.
    integral_K: the grudge, its share of the adjustment, float32.
    derivative_K: change of error_K in the last cycle, float32.
    adjustment_K: log(weight / base weight), float32.
    started_K: whether anything was measured yet, bool.
  """

  error_K: jax.Array
  integral_K: jax.Array
  derivative_K: jax.Array
  adjustment_K: jax.Array
  started_K: jax.Array


def pid_init(k: int) -> PidState:
  """A controller of `k` terms that has seen nothing."""
  zeros_K = jnp.zeros(k, jnp.float32)
  return PidState(zeros_K, zeros_K, zeros_K, zeros_K, jnp.zeros(k, bool))


def pid_act(state: PidState, mission: PidMission) -> jax.Array:
  """`lambda_K = base_K exp(adjustment_K)`: base_K itself at first."""
  return mission.base_K * jnp.exp(state.adjustment_K)


def conserve(
  lambda_K: jax.Array, state: PidState, mission: PidMission, *, exempt: int
) -> jax.Array:
  """Scales a clone's weights until its objective is as large as by base_K.

  The controller then moves a clone's emphasis and not its voice: where Adam's
  second moment is common, a clone of threefold weights would have threefold
  say in the mean, and its lesson with it.

  Args:
    lambda_K: from `pid_act`.
    state: whose filtered errors tell how large each term is.
    mission: this clone's.
    exempt: index of the term that is no loss of its own size (adversarial).

  Returns:
    lambda_K times a scalar: 1 where lambda_K is base_K.
  """
  size_K = mission.target_K * jnp.exp(state.error_K)
  size_K = size_K.at[exempt].set(0)
  return lambda_K * (
    jnp.vdot(mission.base_K, size_K) / jnp.vdot(lambda_K, size_K)
  )


def pid_observe(
  state: PidState,
  mission: PidMission,
  measured_K: jax.Array,
  *,
  smoothing: float,
  limit: float,
  slew: float,
) -> PidState:
  """Moves the weights by what was measured.

  In log space, so that terms of any scale share one set of gains:

    e = EMA of log(measured / target)       d = e - e of the cycle before
    I <- I + Ki e, no further than where Kp e + I reaches the limit
    u = Kp e + I + Kd (d if d > 0 else EASE d)
    adjustment <- u within +-limit, at most slew from where it was

  The target is constant, so d is the derivative of the filtered measurement.
  The clamp on I is conditional integration: an error held for however long
  winds up nothing that its reversal must first unwind (Astrom and Hagglund,
  "Advanced PID Control", 2006, section 3.5).

  Args:
    state: as it was before this cycle.
    mission: this clone's.
    measured_K: the losses of this cycle. One at or below 0 counts as far below
      its target; one that is not finite leaves its term as it was.
    smoothing: of the filter, in [0, 1): the share that e keeps of itself.
    limit: greatest |log(weight / base weight)|.
    slew: greatest change of it in one cycle.

  Returns:
    The state from which the next cycle acts.
  """
  chex.assert_equal_shape([measured_K, *mission, *state])
  measured_K = measured_K.astype(state.error_K.dtype)
  ratio_K = jnp.maximum(measured_K, 1e-30) / mission.target_K
  raw_K = jnp.clip(jnp.log(ratio_K), -MAX_ERROR, MAX_ERROR)
  error_K = smoothing * state.error_K + (1 - smoothing) * raw_K
  error_K = jnp.where(state.started_K, error_K, raw_K)
  derivative_K = jnp.where(state.started_K, error_K - state.error_K, 0.0)
  present_K = mission.proportional_K * error_K
  integral_K = jnp.clip(
    state.integral_K + mission.integral_K * error_K,
    jnp.minimum(state.integral_K, -limit - present_K),
    jnp.maximum(state.integral_K, limit - present_K),
  )
  kick_K = jnp.where(derivative_K > 0, derivative_K, EASE * derivative_K)
  wanted_K = present_K + integral_K + mission.derivative_K * kick_K
  step_K = jnp.clip(wanted_K, -limit, limit) - state.adjustment_K
  moved = PidState(
    error_K,
    integral_K,
    derivative_K,
    state.adjustment_K + jnp.clip(step_K, -slew, slew),
    jnp.ones_like(state.started_K),
  )
  finite_K = jnp.isfinite(measured_K)
  return PidState(*(jnp.where(finite_K, m, s) for m, s in zip(moved, state)))


class QMission(NamedTuple):
  """Bounds of one clone's trim of the learning rate, float32.

  Attributes:
    low: least.
    high: greatest. Both 1 switch the agent off.
  """

  low: jax.Array
  high: jax.Array


class QState(NamedTuple):
  """One clone's Q-learner.

  Attributes:
    table_SxA: value of each action in each state, float32.
    history_W: the last W losses, the newest last, float32.
    filled: how many of them were observed, int32.
    trim: of the learning rate, float32.
    settled: the trim that no exploration moved, float32.
    state: `trend + 4 zone`: index into `TRENDS` of the last trend, and whether
      the trim settled low (0), as configured (1) or high (2), int32.
    action: the one that is held, int32.
    reward: of the last one that was held to its end, float32.
    usual: running mean of the rewards, float32.
    decisions: how many were taken, int32.
  """

  table_SxA: jax.Array
  history_W: jax.Array
  filled: jax.Array
  trim: jax.Array
  settled: jax.Array
  state: jax.Array
  action: jax.Array
  reward: jax.Array
  usual: jax.Array
  decisions: jax.Array


def q_init(*, window: int, actions: int) -> QState:
  """A learner that knows nothing and leaves the learning rate alone.

  Raises:
    ValueError: where there is no trend to see or nothing to choose.
  """
  if window < 2:
    raise ValueError(
      f'A trend needs a window of at least 2 cycles, got window = {window}: '
      'mend --config.q.window.'
    )
  if actions < 1:
    raise ValueError('There must be an action: mend --config.q.actions.')
  zero, none = jnp.float32(0.0), jnp.int32(0)
  return QState(
    table_SxA=jnp.zeros((3 * len(TRENDS), actions), jnp.float32),
    history_W=jnp.zeros(window, jnp.float32),
    filled=none,
    trim=jnp.float32(1.0),
    settled=jnp.float32(1.0),
    state=none,
    action=none,
    reward=zero,
    usual=zero,
    decisions=none,
  )


def exploration(
  decisions: jax.Array, *, start: float, end: float, decay: float
) -> jax.Array:
  """Chance that a decision explores.

  Args:
    decisions: taken before it.
    start: at the first decision.
    end: at last.
    decay: decisions in which the excess over the end falls by e.
  """
  return end + (start - end) * jnp.exp(-decisions / decay)


def q_act(
  rng: jax.Array,
  state: QState,
  mission: QMission,
  *,
  actions: tuple[float, ...],
  every: int,
  cycle: jax.Array,
  epsilon: jax.Array,
) -> QState:
  """Every `every` cycles chooses a multiplier and moves the trim by it.

  Epsilon-greedy. A random action is a trial: the next decision starts from
  where the trim was before it, else exploration alone would walk the learning
  rate from bound to bound. Actions of equal value, as all are at first, are
  taken the gentlest first: by how near their multiplier is to 1.

  Args:
    rng: key of this clone and cycle.
    state: as it was before this cycle.
    mission: this clone's.
    actions: A multipliers of the learning rate.
    every: cycles that an action is held. The trend that judges it is its own
      work only where the window is no longer.
    cycle: now, scalar int32; decisions fall on its multiples of `every`, from
      the first at which the window is full.
    epsilon: chance of a random action, see `exploration`.

  Returns:
    The state, whose `trim` multiplies this cycle's learning rate.
  """
  multiplier_A = jnp.asarray(actions, state.trim.dtype)
  chex.assert_shape(multiplier_A, state.table_SxA.shape[1:])
  explore_rng, action_rng = jax.random.split(rng)
  # Far below the least reward that tells two actions apart.
  preference_A = -1e-4 * jnp.abs(jnp.log(multiplier_A))
  explores = jax.random.uniform(explore_rng) < epsilon
  action = jnp.where(
    explores,
    jax.random.randint(action_rng, (), 0, len(actions)),
    jnp.argmax(state.table_SxA[state.state] + preference_A),
  ).astype(jnp.int32)
  trim = state.settled * multiplier_A[action]
  trim = jnp.clip(trim, mission.low, mission.high)
  decides = (cycle % every == 0) & (state.filled == state.history_W.shape[0])
  return state._replace(
    trim=jnp.where(decides, trim, state.trim),
    settled=jnp.where(decides & ~explores, trim, state.settled),
    action=jnp.where(decides, action, state.action),
    decisions=state.decisions + decides,
  )


def q_observe(
  state: QState,
  loss: jax.Array,
  *,
  every: int,
  cycle: jax.Array,
  rate: float,
  discount: float,
) -> QState:
  """Notes a loss; where an action's time is over, learns what it was worth.

    Q[s, a] <- Q[s, a] + rate (r - u + discount max_a' Q[s', a'] - Q[s, a])
    u       <- u + rate (r - u)

  with r the reward of the window's trend, s' the state it leads to, and u the
  usual reward: a loss falls at any sane rate, and the first action that is
  tried must not earn that. Watkins and Dayan, "Q-learning", 1992,
  https://doi.org/10.1007/BF00992698; the baseline as in Wan et al., "Learning
  and planning in average-reward Markov decision processes", 2021,
  https://arxiv.org/abs/2006.16318

  Args:
    state: as `q_act` left it in this cycle.
    loss: of this cycle, positive, of any scale. One that is not finite is not
      noted.
    every: cycles that an action is held.
    cycle: now, scalar int32.
    rate: of learning, in (0, 1].
    discount: of the future, in [0, 1).

  Returns:
    The state from which the next cycle acts.
  """
  finite = jnp.isfinite(loss)
  window = state.history_W.shape[0]
  pushed_W = jnp.append(state.history_W[1:], loss.astype(state.history_W.dtype))
  history_W = jnp.where(finite, pushed_W, state.history_W)
  filled = jnp.minimum(state.filled + finite, window)

  slope = trend(history_W)
  reward = reward_of(slope)
  next_state = state_of(slope, state.settled)
  due = ((cycle + 1) % every == 0) & (filled == window)
  judges = due & (state.decisions > 0)
  at = (state.state, state.action)
  usual = jnp.where(state.decisions > 1, state.usual, reward)
  future = jnp.max(state.table_SxA[next_state])
  error = reward - usual + discount * future - state.table_SxA[at]
  learned = state._replace(
    table_SxA=state.table_SxA.at[at].add(rate * error),
    reward=reward,
    usual=usual + rate * (reward - usual),
  )
  state = jax.tree.map(lambda a, b: jnp.where(judges, a, b), learned, state)
  return state._replace(
    history_W=history_W,
    filled=filled,
    state=jnp.where(due, next_state, state.state),
  )


def trend(history_W: jax.Array) -> jax.Array:
  """Least-squares slope of the losses a cycle, as a share of their mean."""
  time_W = jnp.arange(history_W.shape[0], dtype=history_W.dtype)
  time_W = time_W - jnp.mean(time_W)
  slope = jnp.vdot(time_W, history_W) / jnp.sum(time_W**2)
  return slope / jnp.maximum(jnp.mean(jnp.abs(history_W)), 1e-30)


def state_of(slope: jax.Array, settled: jax.Array) -> jax.Array:
  """`trend + 4 zone`, int32: the slope's class and the settled trim's zone."""
  bounds = jnp.array([-RAPID, -STILL, STILL], slope.dtype)
  zone = (settled > LOW).astype(jnp.int32) + (settled > HIGH)
  return jnp.searchsorted(bounds, slope).astype(jnp.int32) + 4 * zone


def reward_of(slope: jax.Array) -> jax.Array:
  """Descent in units of RAPID; stagnation costs a little, ascent a lot.

  From `MAX_REWARD` at a fall of 5 % a cycle, 1 at RAPID and 0.1 at STILL, to
  -STAGNATION_COST within +-STILL and to -(1.1 to 11) above.
  """
  descent = jnp.clip(-slope / RAPID, -MAX_REWARD, MAX_REWARD)
  return jnp.where(
    slope > STILL,
    descent - ASCENT_COST,
    jnp.where(slope < -STILL, descent, -STAGNATION_COST),
  )
