"""What tells the clones apart, how they are born, and the constants."""

import jax
import numpy as np
import pytest

from chimera.clones import state as state_lib
from chimera.clones import terms
from tests import tiny

BINS, _ = tiny.bins_and_paths()
GRID = (8, 8)


def missions(**overrides):
  config = tiny.get_config()
  config.update_from_flattened_dict(
    {k.replace('__', '.'): v for k, v in overrides.items()}
  )
  return state_lib.create_missions(config, BINS)


def spec(arg='', **overrides):
  config = tiny.get_config(arg)
  config.update_from_flattened_dict(
    {k.replace('__', '.'): v for k, v in overrides.items()}
  )
  return state_lib.create_spec(config)


def assert_equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope='module')
def born():
  config = tiny.get_config()
  return state_lib.create_states(
    config, state_lib.create_spec(config), BINS, GRID
  )


def test_a_specialist_s_base_weights_by_hand():
  # base * (1 + strength * (specialty - 1)), in the order of terms.TERMS
  perceptual, structural, adversarial, purity = missions(
    loss__ssim=0.3,
    specialists__strength=0.3,
    specialists__ssim=(3.0, 0.5, 0.7, 0.7),
  )
  ssim = terms.TERMS.index('ssim')
  got = [
    m.pid.base_K[ssim] for m in (perceptual, structural, adversarial, purity)
  ]
  np.testing.assert_allclose(got, [0.48, 0.255, 0.273, 0.273], rtol=1e-6)


def test_base_weights_follow_the_order_of_the_terms_not_the_alphabet():
  weights = {f'loss__{t}': 1.0 + i for i, t in enumerate(terms.TERMS)}
  for mission in missions(specialists__strength=0.0, **weights):
    np.testing.assert_allclose(
      mission.pid.base_K, 1.0 + np.arange(len(terms.TERMS))
    )


def test_the_four_missions_differ_in_data_alone():
  four = missions()
  assert [int(m.clone) for m in four] == [0, 1, 2, 3]
  assert [float(m.enrols) for m in four] == [0, 0, 0, 1]
  for i in range(4):
    for j in range(i):
      assert np.any(four[i].pid.base_K != four[j].pid.base_K)
      assert np.any(four[i].pid.target_K != four[j].pid.target_K)
  for mission in four:
    for x in jax.tree.leaves(mission._replace(clone=np.float32(0))):
      assert x.dtype == np.float32
    assert mission.clone.dtype == np.int32


def test_the_weights_of_the_meld_are_equal_or_by_mass():
  equal = [float(m.weight) for m in missions()]
  assert equal == [1, 1, 1, 1]
  mass = [float(m.weight) for m in missions(meld__weights='mass')]
  np.testing.assert_allclose(mass, [0.1, 0.4, 0.3, 0.2], rtol=1e-6)


def test_agents_are_switched_off_by_their_gains_and_bounds():
  for mission in missions(pid__enabled=False, q__enabled=False):
    assert_equal(
      [mission.pid.proportional_K, mission.pid.integral_K],
      [np.zeros(len(terms.TERMS))] * 2,
    )
    np.testing.assert_array_equal(mission.pid.derivative_K, 0)
    assert mission.q.low == mission.q.high == 1


def test_four_clones_of_one_newborn_master_each_with_its_own_critic(born):
  for state in born:
    assert_equal(state.generator.params, born[0].generator.params)
    assert_equal(state.master.params, born[0].generator.params)
    assert_equal(state.master.ema, born[0].generator.params)
    for network in (state.generator, state.critic):
      assert all(not np.any(x) for x in jax.tree.leaves(network.opt_state))
    assert state.step == state.dropped == 0
    assert_equal(state.rng, born[0].rng)
  kernels = [
    np.asarray(s.critic.params['Conv_0']['kernel']).tobytes() for s in born
  ]
  assert len(set(kernels)) == 4


def test_the_clones_enrol_their_own_bins(born):
  lessons = tiny.get_config().school.lessons
  for state, lesson in zip(born, lessons, strict=True):
    s = state.school
    expected = {i for b in lesson for i in BINS[b]}
    assert set(s.enrolled_L[: s.enrolled_count].tolist()) == expected
    assert set(s.enrolled_L.tolist()) == expected
    assert len(s.enrolled_L) == 48


def test_averaged_critics_are_born_alike_and_the_seed_makes_the_master(born):
  config = tiny.get_config()
  config.meld.enabled = False
  config.seed = 1
  states = state_lib.create_states(
    config, state_lib.create_spec(config), BINS, GRID
  )
  for state in states:
    assert_equal(state.critic.params, states[0].critic.params)
  assert np.any(
    states[0].master.params['codebook'] != born[0].master.params['codebook']
  )


def test_a_batch_larger_than_a_lesson_is_refused_by_name():
  config = tiny.get_config()
  config.train.batch_size = 13
  with pytest.raises(ValueError, match=r'batch_size = 13.*--config'):
    state_lib.create_states(config, state_lib.create_spec(config), BINS, GRID)


def test_the_schedules_by_hand():
  cosine = spec(
    train__warmup=4,
    train__cycles=40,
    train__learning_rate=1e-3,
    train__schedule='cosine',
  )
  np.testing.assert_allclose(
    [cosine.plain_learning_rate(t) for t in (0, 1, 3, 21, 39)],
    [2.5e-4, 5e-4, 1e-3, 5.05e-4, 1e-5],
    atol=1e-9,
  )
  constant = spec(train__warmup=4, train__schedule='constant')
  np.testing.assert_allclose(
    [constant.plain_learning_rate(t) for t in (0, 3, 1000)],
    [2.5e-4, 1e-3, 1e-3],
    rtol=1e-6,
  )


def test_the_critic_s_adam_has_no_first_moment():
  adam = spec().critic_adam
  g = np.array([0.5, -2.0], np.float32)
  state = adam.init(g)
  _, state = adam.update(-3 * g, state)
  direction, _ = adam.update(g, state)
  # v = 0.9 * 0.1 * 9 g^2 + 0.1 g^2 = 0.91 g^2, over 1 - 0.9^2 = 0.19
  np.testing.assert_allclose(
    direction, np.sign(g) / np.sqrt(0.91 / 0.19), rtol=1e-5
  )


def test_the_switches_reach_the_constants():
  assert spec(school__enabled=False).mix == 1
  assert spec(school__enabled=False, school__enrol_from=5).enrol_from == 0
  off = spec(meld__enabled=False, meld__alpha=0.5, meld__every=8)
  assert (off.alpha, off.every, off.optimizer_state) == (0, 1, 'shared')
  assert off.average_gradients
  letter = spec('seed')
  assert (letter.alpha, letter.every, letter.mix) == (0.5, 1, 0)
  assert letter.optimizer_state == 'local'
  np.testing.assert_allclose(letter.learning_rate, 2 * spec().learning_rate)


def test_stacked_clones_have_a_leading_axis_of_clones():
  stacked = state_lib.stack(missions())
  assert stacked.pid.base_K.shape == (4, len(terms.TERMS))
  assert stacked.weight.shape == (4,)
