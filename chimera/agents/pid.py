"""The PID lambda controller: a clone's loss weights.

Design document, section 5.2. Pure functions of one clone's state, for use
inside the compiled step: `act` before the clone learns, `observe` after; so
what it does in a cycle rests on the cycles before it.
"""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Spec:
  """What is the same for all clones; the config's `pid` explains each."""

  smoothing: float
  limit: float
  slew: float
  memory: float


class Mission(NamedTuple):
  """What tells one clone's controller from another's, float32."""

  base_K: jax.Array  # weights of the loss terms before any adjustment
  # Where each measured loss ought to be, above 0: a multiple of the usual one.
  target_K: jax.Array
  relative_K: jax.Array  # or, where this is 0 and not 1, the loss itself
  proportional_K: jax.Array  # log weight per unit of log error
  integral_K: jax.Array  # log weight per unit of log error and cycle
  derivative_K: jax.Array  # log weight per unit of log error a cycle, in cycles


class State(NamedTuple):
  """What the controller remembers of each loss term."""

  usual_K: jax.Array  # log of the loss of late, 0 where that is not asked for
  error_K: jax.Array  # filtered log(measured / target), float32
  integral_K: jax.Array  # the grudge, its share of the adjustment, float32
  derivative_K: jax.Array  # change of error_K in the last cycle, float32
  adjustment_K: jax.Array  # log(weight / base weight), float32
  started_K: jax.Array  # whether anything was measured yet, bool


def init(k: int) -> State:
  """A controller of `k` terms that has seen nothing."""
  zeros_K = jnp.zeros(k, jnp.float32)
  return State(*[zeros_K] * 5, jnp.zeros(k, bool))


def act(state: State, mission: Mission) -> jax.Array:
  """`lambda_K = base_K exp(adjustment_K)`: base_K itself at first."""
  return mission.base_K * jnp.exp(state.adjustment_K)


def conserve(
  lambda_K: jax.Array, state: State, mission: Mission, *, exempt: int
) -> jax.Array:
  """Scales a clone's weights until its objective is as large as by base_K.

  The controller then moves a clone's emphasis and not its voice: where Adam's
  second moment is common, a clone of threefold weights would have threefold
  say in the mean, and its lesson with it.

  Returns lambda_K times a scalar, 1 where lambda_K is base_K. The filtered
  errors tell how large each term is; `exempt` is the one that is no loss of its
  own size (adversarial).
  """
  size_K = mission.target_K * jnp.exp(state.usual_K + state.error_K)
  size_K = size_K.at[exempt].set(0)
  return lambda_K * (
    jnp.vdot(mission.base_K, size_K) / jnp.vdot(lambda_K, size_K)
  )


def observe(
  state: State,
  mission: Mission,
  measured_K: jax.Array,
  *,
  smoothing: float,
  limit: float,
  slew: float,
  memory: float,
) -> State:
  """Moves the weights by what was measured.

  In log space, so that terms of any scale share one set of gains:

    usual = EMA of log(measured), of the cycles before
    e = EMA of log(measured) - usual - log(target)
    d = e - e of the cycle before
    I <- (1 - 1 / memory) I + Ki e, no further than Kp e + I = the limit
    u = Kp e + I + Kd (d if d > 0 else EASE d)
    adjustment <- u within +-limit, at most slew from where it was

  A relative target is a multiple of what the loss has been of late: no number
  that another data set, image size or base weight would change. A loss that
  stays off its target by e earns a grudge of memory Ki e in the end.

  The target moves slowly, so d is the derivative of the filtered measurement.
  The clamp on I is conditional integration: an error held for however long
  winds up nothing that its reversal must first unwind (Astrom and Hagglund,
  "Advanced PID Control", 2006, section 3.5).

  Args:
    state: as it was before this cycle.
    mission: this clone's.
    measured_K: the losses of this cycle. One at or below 0 counts as far below
      its target; one that is not finite leaves its term as it was, and so does
      one at or below 0 before anything is usual.
    smoothing: of the filter, in [0, 1): the share that e keeps of itself.
    limit: greatest |log(weight / base weight)|.
    slew: greatest change of it in one cycle.
    memory: cycles, at least 1, in which what was usual and the grudge are
      forgotten by e.
  """
  chex.assert_equal_shape([measured_K, *mission, *state])
  measured_K = measured_K.astype(state.error_K.dtype)
  log_K = jnp.log(jnp.maximum(measured_K, 1e-30))
  before_K = jnp.where(state.started_K, state.usual_K, log_K)
  before_K = mission.relative_K * before_K
  raw_K = log_K - before_K - jnp.log(mission.target_K)
  raw_K = jnp.clip(raw_K, -MAX_ERROR, MAX_ERROR)
  news_K = jnp.clip(log_K - before_K, -MAX_ERROR, MAX_ERROR)
  usual_K = before_K + mission.relative_K * news_K / memory
  error_K = smoothing * state.error_K + (1 - smoothing) * raw_K
  error_K = jnp.where(state.started_K, error_K, raw_K)
  derivative_K = jnp.where(state.started_K, error_K - state.error_K, 0.0)
  present_K = mission.proportional_K * error_K
  integral_K = jnp.clip(
    (1 - 1 / memory) * state.integral_K + mission.integral_K * error_K,
    jnp.minimum(state.integral_K, -limit - present_K),
    jnp.maximum(state.integral_K, limit - present_K),
  )
  kick_K = jnp.where(derivative_K > 0, derivative_K, EASE * derivative_K)
  wanted_K = present_K + integral_K + mission.derivative_K * kick_K
  step_K = jnp.clip(wanted_K, -limit, limit) - state.adjustment_K
  moved = State(
    usual_K,
    error_K,
    integral_K,
    derivative_K,
    state.adjustment_K + jnp.clip(step_K, -slew, slew),
    jnp.ones_like(state.started_K),
  )
  is_known_K = state.started_K | (mission.relative_K == 0) | (measured_K > 0)
  counts_K = jnp.isfinite(measured_K) & is_known_K
  return State(*(jnp.where(counts_K, m, s) for m, s in zip(moved, state)))
