"""How the clones are born, and the constants."""

import functools

import jax
import numpy as np
import pytest

from chimera.clones import state as state_lib
from chimera.meld import optimizer
from tests import tiny

BINS, _ = tiny.bins_and_paths()
GRID = (8, 8)


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


def test_four_clones_of_one_newborn_master_each_with_its_own_critic(born):
  for state in born:
    assert_equal(state.generator.params, born[0].generator.params)
    assert_equal(state.master.params, born[0].generator.params)
    assert_equal(state.master.ema, born[0].generator.params)
    for network in (state.generator, state.critic):
      assert all(not np.any(x) for x in jax.tree.leaves(network.opt_state))
    assert state.step == state.dropped == 0
    assert_equal(state.rng, born[0].rng)
  kernels = [s.critic.params.tobytes() for s in born]
  assert len(set(kernels)) == 4


def test_a_clone_is_born_as_its_modules_and_the_seed_have_it(born):
  config = tiny.get_config()
  constants, key = spec(), jax.random.key(config.seed)
  x = np.zeros((1, *GRID, 3), np.float32)
  for module, layout, number, part in (
    (constants.tokenizer, constants.generator_layout, 0, born[3].generator),
    (constants.critic, constants.critic_layout, 4, born[3].critic),
  ):
    params = jax.jit(module.init)(jax.random.fold_in(key, number), x)['params']
    # The tests compile with less care than create_states, and round otherwise.
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6),
      params,
      layout.tree(part.params),
    )


def test_no_shape_of_a_newborn_clone_is_a_program_of_its_own():
  programs = []

  def heard(event, _, **__):
    programs.extend([event] * event.endswith('backend_compile_duration'))

  jax.monitoring.register_event_duration_secs_listener(heard)
  try:
    jax.clear_caches()
    state_lib.create_states(tiny.get_config(), spec(), BINS, GRID)
  finally:
    jax.monitoring.unregister_event_duration_listener(heard)
  # The key, and all the rest.
  assert len(programs) < 5


def test_the_clones_enrol_their_own_bins(born):
  config = tiny.get_config()
  for state, name in zip(born, config.clone_names, strict=True):
    s = state.school
    expected = {i for b in config.specialists[name].bins for i in BINS[b]}
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
  assert np.any(states[0].master.params != born[0].master.params)


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
    [cosine.schedule(t) for t in (0, 1, 3, 21, 39)],
    [2.5e-4, 5e-4, 1e-3, 5.05e-4, 1e-5],
    atol=1e-9,
  )
  constant = spec(
    train__warmup=4,
    train__learning_rate=1e-3,
    train__schedule='constant',
  )
  np.testing.assert_allclose(
    [constant.schedule(t) for t in (0, 3, 1000)],
    [2.5e-4, 1e-3, 1e-3],
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  ('changes', 'warmup'),
  [
    ({'train__warmup': 0}, 20),
    ({'train__warmup': 19}, 20),
    ({'train__warmup': 21}, 21),
    ({'train__warmup': 0, 'train__audition': False}, 0),
    ({'train__warmup': 0, 'init_from': 'tokenizer'}, 0),
  ],
)
def test_a_rate_that_is_found_rises_as_slowly_as_in_the_audition(
  changes, warmup
):
  made = spec(**{'train__audition': True, 'train__cycles': 40, **changes})
  assert made.schedule.warmup == warmup


def test_the_critic_s_adam_has_no_first_moment():
  adam = optimizer.make_optimizer(spec().critic_optimizer)
  g = np.array([0.5, -2.0], np.float32)
  of = dict(mean_grads=np.full(2, np.nan), learning_rate=1.0)
  state = adam.init(g)
  _, state = adam.update(-3 * g, state, **of)
  update, _ = adam.update(g, state, **of)
  # v = 0.9 * 0.1 * 9 g^2 + 0.1 g^2 = 0.91 g^2, over 1 - 0.9^2 = 0.19
  np.testing.assert_allclose(
    update, -np.sign(g) / np.sqrt(0.91 / 0.19), rtol=1e-5
  )


def test_the_switches_reach_the_constants():
  assert spec(school__enabled=False).school.mix == 1
  alone = spec(school__enabled=False, school__enrol_from=5)
  assert alone.school.enrol_from == 0
  assert spec(q__enabled=False, q__history='own').q.history == 'total'
  # Nor is a step a clone's own that is all clones', or of one that is alone.
  assert spec(q__history='own').q.history == 'own'
  assert spec(meld__enabled=False, q__history='own').q.history == 'total'
  shared = {'meld__optimizer_state': 'shared', 'q__history': 'own'}
  assert spec(**shared).q.history == 'total'
  off = spec(meld__enabled=False, meld__alpha=0.5, meld__every=8)
  assert (off.meld.alpha, off.meld.every) == (0, 1)
  # One learner: one gradient, of one critic too.
  assert off.generator_optimizer.optimizer_state == 'shared'
  assert off.critic_optimizer.optimizer_state == 'shared'
  letter = spec('seed')
  assert (letter.meld.alpha, letter.meld.every) == (0.5, 1)
  assert letter.school.mix == 0
  assert letter.generator_optimizer.optimizer_state == 'local'
  assert letter.critic_optimizer.optimizer_state == 'local'
  np.testing.assert_allclose(
    letter.schedule.learning_rate, 2 * spec().schedule.learning_rate
  )


def test_the_quarantine_expects_the_steps_that_the_meld_has():
  assert spec(meld__every=10).quarantine.every == 10
  assert spec('control', meld__every=10).quarantine.every == 1
