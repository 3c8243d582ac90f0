"""The PID controllers, sentence by sentence of the design document's 5.2.

Its words stand above the tests that hold them. Numbers are by hand.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.agents import pid as pid_lib

NAN = math.nan
NO_LIMIT = {'smoothing': 0.0, 'limit': 9.0, 'slew': 9.0, 'memory': math.inf}
DEFAULTS = {'smoothing': 0.9, 'limit': 1.1, 'slew': 0.02, 'memory': math.inf}


def _mission(
  p: float = 0.0, i: float = 0.0, d: float = 0.0, terms: int = 1
) -> pid_lib.Mission:
  """Base weight 2 and target 0.1, whatever is usual, for every term."""
  return pid_lib.Mission(
    *(jnp.full(terms, x, jnp.float32) for x in (2.0, 0.1, 0.0, p, i, d))
  )


def _lambdas(mission: pid_lib.Mission, losses, **keywords) -> np.ndarray:
  """Weights after each of the losses, (T, K)."""
  losses_TxK = jnp.asarray(losses, jnp.float32)
  if losses_TxK.ndim == 1:
    losses_TxK = losses_TxK[:, None]
  return np.asarray(_scan_pid(mission, losses_TxK, keywords))


@jax.jit
def _scan_pid(mission, losses_TxK, keywords):
  def cycle(state, measured_K):
    state = pid_lib.observe(state, mission, measured_K, **keywords)
    return state, pid_lib.act(state, mission)

  return lax.scan(cycle, pid_lib.init(losses_TxK.shape[1]), losses_TxK)[1]


def _held(error: float, cycles: int) -> np.ndarray:
  """Losses whose log error is `error`."""
  return np.full(cycles, 0.1 * math.exp(error))


def _relative(mission: pid_lib.Mission, target: float) -> pid_lib.Mission:
  """Likewise, with a target that is a multiple of what is usual."""
  ones_K = jnp.ones_like(mission.target_K)
  return mission._replace(target_K=target * ones_K, relative_K=ones_K)


# Section 5.2: "Each of the four clones is equipped with its own independent PID
# controller."


def test_each_clone_has_its_own_independent_pid_controller():
  states = jax.tree.map(lambda x: jnp.stack([x] * 4), pid_lib.init(2))
  missions = jax.tree.map(
    lambda x: jnp.stack([x] * 4), _mission(0.5, 0.1, 0.1, terms=2)
  )
  missions = missions._replace(
    proportional_K=jnp.array([[0.1] * 2, [0.2] * 2, [0.3] * 2, [0.4] * 2])
  )
  observe = jax.vmap(functools.partial(pid_lib.observe, **NO_LIMIT))
  calm = jnp.full((4, 2), 0.2)
  before = observe(states, missions, calm)
  after = observe(states, missions, calm.at[2].set(5.0))
  for a, b in zip(before, after):
    np.testing.assert_array_equal(
      a[jnp.array([0, 1, 3])], b[jnp.array([0, 1, 3])]
    )
  lambda_MxK = jax.vmap(pid_lib.act)(before, missions)
  # Each by its own gain: 2 * 2^(gain + 0.1), error ln 2, I = 0.1 ln 2.
  gains = np.array([0.1, 0.2, 0.3, 0.4])
  np.testing.assert_allclose(
    lambda_MxK[:, 0], 2 * 2 ** (gains + 0.1), rtol=1e-5
  )


# "This agent elevates loss balancing from a simple feedback loop to a
# sophisticated, second-order control system."


def test_second_order_control_adds_the_present_the_past_and_the_future():
  # Log errors 1 then 2: P = 0.3 * 2, I = 0.01 * (1 + 2), D = 0.5 * (2 - 1).
  lambdas = _lambdas(
    _mission(0.3, 0.01, 0.5), [0.1 * math.e, 0.1 * math.e**2], **NO_LIMIT
  )
  np.testing.assert_allclose(lambdas[1], [2 * math.exp(1.13)], rtol=1e-5)


def test_the_controller_moves_a_clone_s_emphasis_and_not_its_voice():
  mission = _mission(0.3, 0.01, 0.5, terms=3)._replace(
    base_K=jnp.array([2.0, 1.0, 1.0]), target_K=jnp.full(3, 0.1)
  )
  state = pid_lib.init(3)._replace(error_K=jnp.array([0.0, math.log(2), 9.0]))
  # Sizes 0.1 and 0.2, the last exempt: 0.2 + 0.2 by the base weights against
  # 0.2 + 0.6 by these, so half of each.
  lambda_K = pid_lib.conserve(
    jnp.array([2.0, 3.0, 5.0]), state, mission, exempt=2
  )
  np.testing.assert_allclose(lambda_K, [1.0, 1.5, 2.5], rtol=1e-6)
  same_K = pid_lib.conserve(mission.base_K, state, mission, exempt=2)
  np.testing.assert_array_equal(same_K, mission.base_K)


# "P (Proportional): The Present. The immediate "stick and carrot" based on the
# current error between a loss metric and its target."


def test_proportional_is_a_stick_above_the_target_and_a_carrot_below():
  # Twice the target, half of it and on it, at a gain of 1/2.
  lambdas = _lambdas(_mission(p=0.5), [0.2, 0.05, 0.1], **NO_LIMIT)
  np.testing.assert_allclose(
    lambdas[:, 0], [2 * math.sqrt(2), 2 / math.sqrt(2), 2.0], rtol=1e-5
  )


# "It is the fast-twitch muscle of the system, reacting instantly to
# performance deviations."


def test_proportional_reacts_in_the_very_next_cycle():
  calm = [0.1] * 5
  lambdas = _lambdas(_mission(p=0.5), [*calm, 0.2], **NO_LIMIT)
  np.testing.assert_allclose(lambdas[:5, 0], 2.0, rtol=1e-6)
  np.testing.assert_allclose(lambdas[5, 0], 2 * math.sqrt(2), rtol=1e-5)


def test_proportional_reacts_in_the_next_cycle_through_filter_and_slew():
  # The filter lets a tenth of ln 2 through: 0.5 * 0.1 * 0.693 > slew = 0.02.
  lambdas = _lambdas(_mission(p=0.5), [0.1, 0.2], **DEFAULTS)
  np.testing.assert_allclose(lambdas[1, 0], 2 * math.exp(0.02), rtol=1e-5)


# "I (Integral): The Past. The accumulated error over time, or "grudge.""


def test_integral_is_the_accumulated_error():
  # Errors 1, 2, -0.5: the sum is 2.5.
  losses = [0.1 * math.exp(e) for e in (1.0, 2.0, -0.5)]
  lambdas = _lambdas(_mission(i=0.1), losses, **NO_LIMIT)
  np.testing.assert_allclose(
    lambdas[:, 0], 2 * np.exp([0.1, 0.3, 0.25]), rtol=1e-5
  )


def test_integral_still_bears_the_grudge_when_the_error_is_gone():
  lambdas = _lambdas(
    _mission(i=0.1), [*_held(1.0, 3), *_held(0.0, 50)], **NO_LIMIT
  )
  np.testing.assert_allclose(lambdas[-1, 0], 2 * math.exp(0.3), rtol=1e-4)


# "It ensures that persistent, stubborn errors (e.g., a consistently high SSIM
# loss) are eventually met with overwhelming, inescapable pressure from an
# ever-increasing lambda weight."


def test_persistent_error_raises_the_weight_ever_more_up_to_its_limit():
  lambdas = _lambdas(_mission(i=0.002), _held(1.0, 800), **DEFAULTS)[:, 0]
  assert (np.diff(lambdas[:549]) > 0).all()
  # 0.002 a cycle reaches the limit of 1.1 at cycle 550, and no further.
  np.testing.assert_allclose(lambdas[274], 2 * math.exp(0.55), rtol=1e-3)
  np.testing.assert_allclose(lambdas[560:], 2 * math.exp(1.1), rtol=1e-5)


# "It defeats complacency and prevents the model from ignoring a difficult
# task."


def test_small_error_that_is_ignored_grows_past_what_proportional_would_do():
  # 2 % above the target: the present alone would add 0.6 % for ever.
  small = _held(math.log(1.02), 2000)
  ignored = _lambdas(_mission(p=0.3), small, **DEFAULTS)[-1, 0]
  pressed = _lambdas(_mission(p=0.3, i=0.002), small, **DEFAULTS)[-1, 0]
  np.testing.assert_allclose(ignored, 2 * 1.02**0.3, rtol=1e-4)
  np.testing.assert_allclose(pressed, 2 * 1.02**4.3, rtol=1e-3)


# "D (Derivative): The Future. The rate of change of the error. It acts as an
# "anticipation engine" or "shock absorber.""


def test_derivative_is_the_rate_of_change_of_the_filtered_error():
  mission, state = _mission(d=1.0), pid_lib.init(1)
  rates = []
  for error in (1.0, 3.0, 2.0):
    state = pid_lib.observe(
      state,
      mission,
      jnp.array([0.1 * math.exp(error)]),
      smoothing=0.5,
      limit=9.0,
      slew=9.0,
      memory=math.inf,
    )
    rates.append(float(state.derivative_K[0]))
  # Filtered: 1, (1 + 3) / 2 = 2, (2 + 2) / 2 = 2.
  np.testing.assert_allclose(rates, [0.0, 1.0, 0.0], atol=1e-5)


def test_derivative_is_silent_at_the_first_measurement_and_while_level():
  lambdas = _lambdas(_mission(d=1.0), _held(2.0, 5), **NO_LIMIT)
  np.testing.assert_allclose(lambdas[:, 0], 2.0, rtol=1e-5)


# "If a loss is falling too quickly (large negative derivative), it slightly
# *reduces* the lambda to prevent the model from overshooting its target and
# becoming unstable."


def test_falling_loss_eases_the_weight_before_the_target_is_reached():
  # From 4 to 2 times the target: d = -ln 2, of which EASE counts.
  lambdas = _lambdas(_mission(d=1.0), [0.4, 0.2], **NO_LIMIT)
  np.testing.assert_allclose(lambdas[1, 0], 2 * 2**-pid_lib.EASE, rtol=1e-5)


# "If a loss begins to rise (positive derivative), it applies a sharp "kick" to
# the lambda, preemptively correcting the backsliding before it becomes a major
# issue."


def test_rising_loss_kicks_the_weight_while_it_is_still_below_target():
  # From a quarter to a half of the target: d = +ln 2, all of it.
  lambdas = _lambdas(_mission(d=1.0), [0.025, 0.05], **NO_LIMIT)
  np.testing.assert_allclose(lambdas[1, 0], 2 * 2.0, rtol=1e-5)


def test_kick_is_sharper_than_the_easing_is_deep():
  kick, ease = (
    math.log(_lambdas(_mission(d=1.0), pair, **NO_LIMIT)[1, 0] / 2)
    for pair in ([0.1, 0.2], [0.2, 0.1])
  )
  np.testing.assert_allclose([kick, ease], np.log([2, 2**-0.25]), rtol=1e-5)


# "This agent allows each clone to conduct a masterful, internal symphony of
# its assigned loss components, dynamically adapting its focus in real-time."


def test_focus_follows_the_loss_that_misses_its_target_term_by_term():
  first, second, on_target = [0.3, 0.1, 0.1], [0.1, 0.3, 0.1], [0.1] * 3
  lambdas = _lambdas(
    _mission(0.3, 0.002, 0.5, terms=3),
    [first] * 100 + [second] * 100 + [on_target],
    **DEFAULTS,
  )
  assert lambdas[99].argmax() == 0
  assert lambdas[199].argmax() == 1
  np.testing.assert_allclose(lambdas[:, 2], 2.0, rtol=1e-6)


# What the letter leaves open.


def test_before_anything_is_measured_the_weights_are_the_configured_ones():
  mission = _mission(0.3, 0.002, 0.5, terms=10)
  np.testing.assert_array_equal(
    pid_lib.act(pid_lib.init(10), mission), mission.base_K
  )


def test_controller_without_gains_keeps_the_base_weights_exactly():
  losses = np.random.default_rng(0).lognormal(size=(50, 3))
  np.testing.assert_array_equal(
    _lambdas(_mission(terms=3), losses, **DEFAULTS), np.full((50, 3), 2.0)
  )


@pytest.mark.parametrize('sign', [1, -1])
def test_weight_comes_back_at_once_when_an_error_held_10000_cycles_flips(sign):
  losses = np.concatenate([_held(sign, 10_000), _held(-sign, 400)])
  logs = np.log(_lambdas(_mission(0.3, 0.002, 1.0), losses, **DEFAULTS) / 2)
  logs = sign * logs[10_000:, 0]
  # At the limit until then; then the full slew in the very first cycle.
  np.testing.assert_allclose(logs[:3], [1.08, 1.06, 1.04], atol=1e-4)
  # The grudge had stopped at 1.1 - 0.3 = 0.8; against -0.3 of the present
  # it is paid after (0.8 - 0.3) / 0.002 = 250 cycles, not after 10^4.
  assert logs[240] > 0 > logs[275]


def test_held_error_winds_the_integral_up_no_further_than_the_limit():
  mission, state = _mission(0.3, 0.002), pid_lib.init(1)
  state, _ = lax.scan(
    lambda s, x: (pid_lib.observe(s, mission, x, **DEFAULTS), None),
    state,
    jnp.asarray(_held(1.0, 10_000), jnp.float32)[:, None],
  )
  np.testing.assert_allclose(state.integral_K, [0.8], rtol=1e-4)


def test_spike_of_the_present_beyond_the_limit_does_not_erase_the_grudge():
  # P = 0.3 * 4 is past the limit by itself.
  losses = [*_held(1.0, 100), *_held(4.0, 3), *_held(0.0, 1)]
  lambdas = _lambdas(_mission(0.3, 0.002), losses, **NO_LIMIT | {'limit': 1.1})
  np.testing.assert_allclose(lambdas[102, 0], 2 * math.exp(1.1), rtol=1e-5)
  np.testing.assert_allclose(lambdas[103, 0], 2 * math.exp(0.2), rtol=1e-4)


def test_dip_of_the_present_beyond_the_limit_does_not_erase_the_grudge():
  # P = 0.3 * -8 is past the lower limit by itself.
  losses = [*_held(1.0, 100), *_held(-8.0, 3), *_held(0.0, 1)]
  lambdas = _lambdas(_mission(0.3, 0.002), losses, **NO_LIMIT | {'limit': 1.1})
  np.testing.assert_allclose(lambdas[102, 0], 2 * math.exp(-1.1), rtol=1e-5)
  np.testing.assert_allclose(lambdas[103, 0], 2 * math.exp(0.2), rtol=1e-4)


def test_weight_moves_no_faster_than_the_slew_and_no_further_than_the_limit():
  losses = np.random.default_rng(0).lognormal(-2, 3, size=(500, 4))
  lambdas = _lambdas(_mission(2.0, 0.5, 5.0, terms=4), losses, **DEFAULTS)
  logs = np.log(np.concatenate([np.full((1, 4), 2.0), lambdas]) / 2)
  assert np.abs(np.diff(logs, axis=0)).max() < 0.02 + 1e-6
  assert np.abs(logs).max() < 1.1 + 1e-6
  assert np.abs(logs).max() > 0.5


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_measurement_that_is_not_finite_leaves_its_term_as_it_was(bad: float):
  mission = _mission(0.3, 0.002, 0.5, terms=2)
  state = pid_lib.init(2)
  first = pid_lib.observe(state, mission, jnp.array([bad, 0.2]), **DEFAULTS)
  second = pid_lib.observe(first, mission, jnp.array([0.3, bad]), **DEFAULTS)
  for s, f in zip(state, first):
    np.testing.assert_array_equal(s[0], f[0])
  for f, s in zip(first, second):
    np.testing.assert_array_equal(f[1], s[1])
  # The first that counts starts the filter: no derivative, error ln 3.
  np.testing.assert_allclose(second.error_K[0], math.log(3), rtol=1e-5)
  assert second.derivative_K[0] == 0


@pytest.mark.parametrize('measured', [0.0, -1.0, 1e-38])
def test_loss_at_or_below_zero_counts_as_far_below_its_target(measured: float):
  lambdas = _lambdas(_mission(p=0.1), [measured], **NO_LIMIT)
  np.testing.assert_allclose(
    lambdas[0], [2 * math.exp(-0.1 * pid_lib.MAX_ERROR)], rtol=1e-5
  )


def test_absurd_loss_is_forgotten_as_soon_as_a_bad_one():
  absurd, bad = (
    _lambdas(_mission(p=0.3), [0.1, loss, *[0.1] * 40], **DEFAULTS)
    for loss in (1e30, 0.1 * 150)
  )
  np.testing.assert_allclose(absurd, bad, rtol=1e-3)


def test_losses_of_any_scale_share_one_set_of_gains():
  mission = _mission(0.3, 0.002, 0.5, terms=3)
  scale_K = jnp.array([1e-6, 1.0, 1e6])
  mission = mission._replace(target_K=mission.target_K * scale_K)
  losses = np.random.default_rng(0).lognormal(-2, 0.5, size=(100, 1))
  lambdas = _lambdas(mission, losses * np.asarray(scale_K), **DEFAULTS)
  np.testing.assert_allclose(lambdas[:, 0], lambdas[:, 1], rtol=1e-4)
  np.testing.assert_allclose(lambdas[:, 2], lambdas[:, 1], rtol=1e-4)


@pytest.mark.parametrize('x64', [False, True])
def test_controller_keeps_its_types_and_shapes(x64: bool):
  with jax.enable_x64(x64):
    before = pid_lib.init(2)
    after = pid_lib.observe(
      before, _mission(0.3, 0.002, 0.5, terms=2), jnp.ones(2), **DEFAULTS
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == (
      jax.tree.map(lambda x: (x.shape, x.dtype), before)
    )


def test_measurements_of_another_number_of_terms_are_refused():
  with pytest.raises(AssertionError):
    pid_lib.observe(pid_lib.init(2), _mission(terms=2), jnp.ones(3), **DEFAULTS)


# Where the target is: what the letter calls "its target", without a number.


@pytest.mark.parametrize('level', [1e-3, 0.1, 30.0])
def test_half_of_the_usual_loss_is_asked_for_at_any_level(level: float):
  # log(1 / 0.5), times 0.3, from the first cycle to the last.
  lambdas = _lambdas(
    _relative(_mission(0.3), 0.5),
    np.full(50, level),
    **NO_LIMIT | {'memory': 9},
  )
  np.testing.assert_allclose(lambdas[:, 0], 2 * 2**0.3, rtol=1e-5)


def test_what_is_usual_follows_the_loss_within_the_memory():
  # Errors 0, 1, and 0.75, for a quarter of 1 was usual by then.
  losses = np.exp([0.0, 1.0, 1.0])
  lambdas = _lambdas(
    _relative(_mission(1.0), 1.0), losses, **NO_LIMIT | {'memory': 4.0}
  )
  np.testing.assert_allclose(lambdas[:, 0], 2 * np.exp([0, 1, 0.75]), rtol=1e-5)


def test_a_grudge_grows_as_long_as_the_memory_and_fades_with_it():
  # 0.1, 0.1 + 0.9 * 0.1, ...: in the end 10 * 0.1. Then a tenth less a cycle.
  losses = [*_held(1.0, 200), *_held(0.0, 2)]
  lambdas = _lambdas(_mission(i=0.1), losses, **NO_LIMIT | {'memory': 10.0})
  logs = np.log(lambdas[[0, 1, 199, 200, 201], 0] / 2)
  np.testing.assert_allclose(logs, [0.1, 0.19, 1.0, 0.9, 0.81], rtol=1e-4)


def test_one_absurd_loss_is_soon_no_longer_usual():
  # It counts as 5, and what is usual rises by a tenth of that, not of 87.
  losses = [1.0, 1e38, 1.0]
  lambdas = _lambdas(
    _relative(_mission(0.1), 1.0), losses, **NO_LIMIT | {'memory': 10.0}
  )
  np.testing.assert_allclose(
    np.log(lambdas[:, 0] / 2), [0, 0.5, -0.05], atol=1e-5
  )


def test_the_usual_loss_of_a_term_outlives_what_is_not_finite():
  mission = _relative(_mission(0.3, terms=2), 1.0)
  keywords = NO_LIMIT | {'memory': 4.0}
  state = pid_lib.init(2)
  for measured in ([NAN, 3.0], [2.0, NAN], [2.0, math.inf]):
    state = pid_lib.observe(state, mission, jnp.array(measured), **keywords)
  np.testing.assert_allclose(state.usual_K, np.log([2.0, 3.0]), rtol=1e-6)
  assert state.started_K.all()


def test_a_loss_of_zero_before_any_other_is_not_what_is_usual():
  mission = _relative(_mission(p=0.4), 0.5)
  losses = [0.0, 0.0, 0.08, 0.04]
  lambdas = _lambdas(mission, losses, **{**NO_LIMIT, 'memory': 1e9})[:, 0]
  # At twice its target the third is the first that counts; the fourth is on it.
  expected = [2.0, 2.0, 2.0 * 2**0.4, 2.0]
  np.testing.assert_allclose(lambdas, expected, rtol=1e-5)


def test_weights_are_the_same_for_losses_of_any_scale_and_course():
  course = np.exp(np.random.default_rng(0).normal(size=(60, 1)).cumsum(0) / 9)
  losses = course * [1e-4, 1.0, 1e4]
  lambdas = _lambdas(
    _relative(_mission(0.3, 0.002, 0.5, terms=3), 0.7),
    losses,
    **DEFAULTS | {'memory': 20.0},
  )
  np.testing.assert_allclose(lambdas[:, 0], lambdas[:, 1], rtol=1e-4)
  np.testing.assert_allclose(lambdas[:, 2], lambdas[:, 1], rtol=1e-4)
  assert np.ptp(np.log(lambdas[:, 1])) > 0.1


def test_the_voice_is_kept_by_the_sizes_that_terms_have():
  mission = _relative(_mission(terms=3), 0.5)
  state = pid_lib.init(3)._replace(
    usual_K=jnp.log(jnp.array([0.2, 0.4, 1.0])),
    error_K=jnp.log(jnp.array([2.0, 4.0, 1.0])),
  )
  # Sizes 0.2 and 0.8, the last exempt: 2 * 1.0 against 0.2 * 2 + 0.8 * 4.5.
  lambda_K = pid_lib.conserve(
    jnp.array([2.0, 4.5, 2.0]), state, mission, exempt=2
  )
  np.testing.assert_allclose(lambda_K, [1.0, 2.25, 1.0], rtol=1e-6)
