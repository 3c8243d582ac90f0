"""The Q-learner of a clone's learning rate.

Design document, section 5.3. Pure functions of one clone's state, for use
inside the compiled step: `act` before the clone learns, `observe` after.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import chex
import jax
from jax import lax
import jax.numpy as jnp

from chimera.system import axes

# Classes of the loss trend.
TRENDS = ('rapidly improving', 'improving', 'stagnated', 'worsening')
# Between them: change of the loss a cycle, as a share of the loss.
RAPID = 5e-3
STILL = 5e-4
# Scales between which the learning rate counts as low, as configured and high:
# a state of the trend alone cannot tell where to stop.
LOW, HIGH = 0.85, 1.15
# Of the reward: what stagnation costs, what ascent costs beside its slope, and
# the greatest number of RAPIDs that a slope is worth.
STAGNATION_COST = 0.1
ASCENT_COST = 1.0
MAX_REWARD = 10.0


@dataclasses.dataclass(frozen=True)
class Spec:
  """What is the same for all clones; the config's `q` explains each."""

  actions: tuple[float, ...]
  every: int
  history: str
  rate: float
  discount: float
  caution: float
  epsilon: float
  epsilon_end: float
  epsilon_decay: float


class Mission(NamedTuple):
  """Bounds of one clone's scale of the learning rate, float32."""

  low: jax.Array  # least
  high: jax.Array  # greatest. Both 1 switch the agent off.


class State(NamedTuple):
  """One clone's Q-learner."""

  table_SxA: jax.Array  # value of each action in each state, float32
  history_W: jax.Array  # the last W losses, the newest last, float32
  filled: jax.Array  # how many of them were observed, int32
  lr_scale: jax.Array  # multiplies the learning rate, float32
  settled: jax.Array  # the lr_scale that no exploration moved, float32
  # `trend + 4 zone`: index into `TRENDS` of the last trend, and whether the
  # lr_scale settled low (0), as configured (1) or high (2), int32
  state: jax.Array
  action: jax.Array  # the one that is held, int32
  reward: jax.Array  # of the last one that was held to its end, float32
  baseline: jax.Array  # running mean of the rewards, float32
  surprise: jax.Array  # likewise of its values' squared errors, float32
  decisions: jax.Array  # how many were taken, int32


def init(*, window: int, actions: int) -> State:
  """A learner that knows nothing and leaves the learning rate alone."""
  zero, none = jnp.float32(0.0), jnp.int32(0)
  return State(
    table_SxA=jnp.zeros((3 * len(TRENDS), actions), jnp.float32),
    history_W=jnp.zeros(window, jnp.float32),
    filled=none,
    lr_scale=jnp.float32(1.0),
    settled=jnp.float32(1.0),
    state=none,
    action=none,
    reward=zero,
    baseline=zero,
    surprise=zero,
    decisions=none,
  )


def exploration(
  decisions: jax.Array, *, start: float, end: float, decay: float
) -> jax.Array:
  """Chance that a decision explores, after so many others.

  In `decay` decisions its excess over the end falls by e.
  """
  return end + (start - end) * jnp.exp(-decisions / decay)


def act(
  rng: jax.Array,
  state: State,
  mission: Mission,
  *,
  actions: tuple[float, ...],
  every: int,
  cycle: jax.Array,
  epsilon: jax.Array,
  caution: float,
) -> State:
  """Every `every` cycles chooses a multiplier and moves the scale by it.

  Epsilon-greedy. A random action is a trial: the next decision starts from
  where the scale was before it, else exploration alone would walk the learning
  rate from bound to bound. Actions of equal value, as all are at first, are
  taken the gentlest first: by how near their multiplier is to 1. That one is
  left for another only if it is worth more by `caution` times the usual error
  of a value: where rewards are mostly noise, as they are over ten cycles, the
  greatest value of five is one of chance, and the rate would walk by it.

  Decisions fall on the cycles that are multiples of `every`, from the first at
  which the window is full. An action is held for so many cycles; the trend that
  judges it is its own work only where the window is no longer. `epsilon` is the
  chance of a random one (`exploration`).
  """
  multiplier_A = jnp.asarray(actions, state.lr_scale.dtype)
  chex.assert_shape(multiplier_A, state.table_SxA.shape[1:])

  def decide() -> State:
    explore_rng, action_rng = jax.random.split(rng)
    # Far below the least reward that tells two actions apart.
    preference_A = -1e-4 * jnp.abs(jnp.log(multiplier_A))
    value_A = state.table_SxA[state.state] + preference_A
    best, still = jnp.argmax(value_A), jnp.argmax(preference_A)
    doubt = caution * jnp.sqrt(state.surprise)
    explores = jax.random.uniform(explore_rng) < epsilon
    action = jnp.where(
      explores,
      jax.random.randint(action_rng, (), 0, len(actions)),
      jnp.where(value_A[best] - value_A[still] > doubt, best, still),
    ).astype(jnp.int32)
    lr_scale = state.settled * multiplier_A[action]
    lr_scale = jnp.clip(lr_scale, mission.low, mission.high)
    decided = state._replace(
      lr_scale=lr_scale,
      settled=jnp.where(explores, state.settled, lr_scale),
      action=action,
      decisions=state.decisions + 1,
    )
    return axes.where(state.filled == state.history_W.shape[0], decided, state)

  return lax.cond(cycle % every == 0, decide, lambda: state)


def share_out(
  state: State, mission: Mission, mean: Callable[[jax.Array], jax.Array]
) -> State:
  """Holds the clones' mean scale at 1, as far as the bounds let it.

  So the agents move no rate but their own: how fast all learn is not theirs to
  say. A shorter step sheds its noise at once and pays for it later, which no
  reward of the last cycles tells, and each would call less better (Wu et al.,
  "Understanding short-horizon bias in stochastic meta-optimization", 2018,
  https://arxiv.org/abs/1803.02021).

  Args:
    state: a clone's.
    mission: its bounds.
    mean: of a clone's scalar, over all clones.
  """

  def shared(scale: jax.Array) -> jax.Array:
    return jnp.clip(scale / mean(scale), mission.low, mission.high)

  return state._replace(
    lr_scale=shared(state.lr_scale), settled=shared(state.settled)
  )


def observe(
  state: State,
  loss: jax.Array,
  *,
  every: int,
  over: int,
  cycle: jax.Array,
  rate: float,
  discount: float,
) -> State:
  """Notes a loss; where an action's time is over, learns what it was worth.

    Q[s, a] <- Q[s, a] + rate (r - u + discount max_a' Q[s', a'] - Q[s, a])
    u       <- u + rate (r - u)
    e       <- e + rate (error^2 - e), the error of the first line's brackets

  with r the reward of the window's trend, s' the state it leads to, e the
  surprise, and u the baseline: a loss falls at any sane rate, and the first
  action that is tried must not earn that. Watkins and Dayan, "Q-learning",
  1992, https://doi.org/10.1007/BF00992698; the baseline as in Wan et al.,
  "Learning and planning in average-reward Markov decision processes", 2021,
  https://arxiv.org/abs/2006.16318

  The loss is positive, of any scale; one that is not finite is not noted. The
  trend is that of the newest `over`, two at least.
  """
  finite = jnp.isfinite(loss)
  window = state.history_W.shape[0]
  pushed_W = jnp.append(state.history_W[1:], loss.astype(state.history_W.dtype))
  history_W = jnp.where(finite, pushed_W, state.history_W)
  filled = jnp.minimum(state.filled + finite, window)

  slope = trend(history_W[-over:])
  reward = reward_of(slope)
  next_state = state_of(slope, state.settled)
  due = ((cycle + 1) % every == 0) & (filled == window)
  judges = due & (state.decisions > 0)
  at = (state.state, state.action)
  is_first = state.decisions <= 1
  baseline = jnp.where(is_first, reward, state.baseline)
  future = jnp.max(state.table_SxA[next_state])
  error = reward - baseline + discount * future - state.table_SxA[at]
  learned = state._replace(
    table_SxA=state.table_SxA.at[at].add(rate * error),
    reward=reward,
    baseline=baseline + rate * (reward - baseline),
    surprise=state.surprise + rate * (error**2 - state.surprise),
  )
  state = jax.tree.map(lambda a, b: jnp.where(judges, a, b), learned, state)
  return state._replace(
    history_W=history_W,
    filled=filled,
    state=jnp.where(due, next_state, state.state),
  )


class OwnStep(NamedTuple):
  """A clone's last step, and what it promised."""

  displacement_P: jax.Array  # from where all began to where it arrived
  # product with the others' mean gradient there: they have other samples than
  # those that it was fitted to, and other objectives
  promised: jax.Array


def own_effect(
  last: OwnStep,
  own_P: jax.Array,
  mean_P: jax.Array,
  odds: jax.Array,
  loss: jax.Array,
) -> jax.Array:
  """The loss after a clone's last step over that before it, by this step alone.

  As though all clones had done alike: what its part in the meld did to the
  loss, times the number of parts. By the trapezoid of the gradient along it,

    exp(1/2 (g_before + g_after) . displacement / loss)

  which is exact where the loss is quadratic, to first order in its change: the
  parts of all clones sum to the change that the meld made, and each is the mean
  of what it does before all others and after them (Shapley, "A value for
  n-person games", 1953, https://doi.org/10.1515/9781400881970-018). Of one
  point alone, the gradient would call every step good that begins downhill.

  The gradient is of the clones' mean objective, with the weights that they have
  in that cycle: weights that change move nothing, and pay nothing. Where the
  step began, the clone's own gradient was of the samples that the step was
  fitted to. So what its own objective adds to the others' mean is told here,
  where its samples are fresh; else every step that serves the clone's own
  objective would look like harm, and a shorter one like less of it.

  Args:
    last: the step that led to this point; one of 0 has no effect, 1.
    own_P: the clone's own gradient here, on the samples of this cycle.
    mean_P: all clones' mean gradient here, likewise.
    odds: of the clone's weight in the mean to that of the others.
    loss: the size of a clone's objective, above 0.
  """
  own, kept = (jnp.vdot(g, last.displacement_P) for g in (own_P, mean_P))
  begun = last.promised + odds * (own - kept)
  effect = jnp.exp(0.5 * (begun + kept) / loss)
  return jnp.where(jnp.isfinite(effect), effect, 1)


def trend(history_W: jax.Array) -> jax.Array:
  """Least-squares slope of the losses a cycle, as a share of their mean."""
  time_W = jnp.arange(history_W.shape[0], dtype=history_W.dtype)
  time_W = time_W - jnp.mean(time_W)
  slope = jnp.vdot(time_W, history_W) / jnp.sum(time_W**2)
  return slope / jnp.maximum(jnp.mean(jnp.abs(history_W)), 1e-30)


def state_of(slope: jax.Array, settled: jax.Array) -> jax.Array:
  """`trend + 4 zone`, int32: the slope's class and the settled scale's zone."""
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
