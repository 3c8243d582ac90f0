"""Sick clones: 48 poisons, several at once, and who judges them.

One compiled step serves all cases: params, codebook and moments are poisoned in
the state, gradients by the one clone's weight of the adversarial term, which
its base-weighted loss leaves out.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera import step as step_lib
from chimera.clones import state as state_lib
from chimera.clones import terms
from chimera.meld import quarantine
from chimera.run import engine
from tests import tiny

NAN, INF, HUGE = np.nan, np.inf, 1e30
SITES = ('params', 'codebook', 'moments', 'gradients')
BINS, PATHS = tiny.bins_and_paths()
B1, B2, EPSILON = 0.9, 0.99, 1e-8


def host(tree):
  return jax.tree.map(np.array, engine.fetch(tree))


class Clinic:
  """The step of one config, and a state of six healthy cycles."""

  def __init__(self, **overrides):
    config = tiny.get_config()
    config.update_from_flattened_dict(overrides)
    self.spec = state_lib.create_spec(config)
    self.devices = jax.devices()[:1]
    self.step = step_lib.make_train_step(self.spec, tuple(self.devices))
    state, mission, self.shard = tiny.on_devices(
      config, self.spec, BINS, PATHS, self.devices
    )
    self.mission = host(mission)
    self.before = self.host(state)
    for _ in range(6):
      self.before, self.metrics = self.run(self.before)

  def run(self, state, mission=None):
    state, metrics = self.step(
      engine.put(tiny.vectors(self.spec, state), self.devices),
      engine.put(mission or self.mission, self.devices),
      self.shard,
    )
    return self.host(state), self.host(metrics)

  def host(self, tree):
    return tiny.trees(self.spec, host(tree))

  def poisoned(self, site, clones, poison):
    """(state, mission) with one number of each clone gone bad."""
    state = jax.tree.map(np.array, self.before)
    base_MxK = self.mission.pid.base_K.copy()
    net = state.generator
    for i in clones:
      if site == 'gradients':
        base_MxK[i, terms.TERMS.index('adv')] = poison
      elif site == 'codebook':
        net.params['codebook'][i, 3, 1] = poison
      else:
        trees = [net.params]
        if site == 'moments':
          trees = [net.opt_state[0].mu, net.opt_state[0].nu]
        for tree in trees:
          jax.tree.leaves(tree)[-1][i].flat[1] = poison
    mission = self.mission._replace(
      pid=self.mission.pid._replace(base_K=base_MxK)
    )
    if site == 'gradients':  # by a weight that nothing bounds
      most = np.ones_like(mission.bounds.most_adv)
      mission = mission._replace(bounds=mission.bounds._replace(most_adv=most))
    return state, mission

  def treat(self, site, clones, poison):
    return self.run(*self.poisoned(site, clones, poison))


@pytest.fixture(scope='module')
def clinic():
  return Clinic()


@pytest.fixture(scope='module')
def rarely_melded():
  return Clinic(**{'meld.every': 4})


def assert_finite(tree):
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    assert np.all(np.isfinite(x)), jax.tree_util.keystr(path)


def assert_close(actual, expected, tolerance):
  """Relative to the largest entry of each leaf."""
  for (path, e), a in zip(
    jax.tree_util.tree_leaves_with_path(expected),
    jax.tree.leaves(actual),
    strict=True,
  ):
    scale = max(np.abs(e).max(initial=0), 1e-6)
    worst = np.abs(np.asarray(a, np.float64) - e).max(initial=0) / scale
    assert worst <= tolerance, f'{jax.tree_util.keystr(path)}: {worst:.1e}'


def melded(clinic, before, after, metrics, well):
  """The master as numpy makes it of the well clones' first moments.

  'shared_v': their gradients, read off those moments, have one second moment;
  each clone steps by its own first over it; the mean of where they arrive.
  """
  count = int(before.generator.opt_state[0].count[0]) + 1
  rates = [float(metrics['agent/lr'][i]) for i in well]

  def leaf(master, mu_M, new_mu_M, nu_M):
    master, mu_M, new_mu_M, nu_M = (
      x.astype(np.float64) for x in (master[0], mu_M, new_mu_M, nu_M)
    )
    gradients = [(new_mu_M[i] - B1 * mu_M[i]) / (1 - B1) for i in well]
    nu = B2 * nu_M[well[0]] + (1 - B2) * np.mean(gradients, 0) ** 2
    below = np.sqrt(nu / (1 - B2**count)) + EPSILON
    steps = [
      rate * new_mu_M[i] / (1 - B1**count) / below
      for i, rate in zip(well, rates)
    ]
    return master - np.mean(steps, 0)

  master = jax.tree.map(
    leaf,
    before.master.params,
    before.generator.opt_state[0].mu,
    after.generator.opt_state[0].mu,
    before.generator.opt_state[0].nu,
  )
  book = master['codebook']
  master['codebook'] = book / np.linalg.norm(book, axis=-1, keepdims=True)
  return master


def test_nobody_is_sick_at_first(clinic):
  np.testing.assert_array_equal(clinic.before.dropped, 0)
  np.testing.assert_array_equal(clinic.before.health.sick, 0)
  assert np.all(clinic.before.health.baseline_S > 0)
  assert clinic.metrics['healthy'].all()


@pytest.mark.parametrize('sick', range(4))
@pytest.mark.parametrize('poison', [NAN, INF, HUGE])
@pytest.mark.parametrize('site', SITES)
def test_one_sick_clone_leaves_the_mean_of_the_healthy_three(
  clinic, site, poison, sick
):
  before, _ = clinic.poisoned(site, [], 0)
  state, metrics = clinic.treat(site, [sick], poison)
  well = [i for i in range(4) if i != sick]
  assert_finite(state)
  expected = melded(clinic, before, state, metrics, well)
  for i in range(4):
    mine = jax.tree.map(lambda x, i=i: x[i], state.master.params)
    assert_close(mine, expected, 1e-4)
    np.testing.assert_array_equal(state.dropped[i], i == sick)
    np.testing.assert_array_equal(metrics['healthy'][i], i != sick)
  assert_close(state.generator.params, state.master.params, 0)
  # Whatever its poison was, nothing of it is left to tell.
  other, _ = clinic.treat('params', [sick], NAN)
  for name in ('master', 'generator'):
    assert_close(getattr(state, name), getattr(other, name), 0)
  moments = state.generator.opt_state[0]
  for x in jax.tree.leaves(moments.mu):
    np.testing.assert_array_equal(x[sick], 0)
  for x in jax.tree.leaves(moments.nu):
    np.testing.assert_allclose(x[sick], x[well[0]], rtol=1e-6)
  for x in jax.tree.leaves(state.critic.opt_state):
    np.testing.assert_array_equal(x[sick], 0)
  critics = jax.tree.map(lambda x: x[well].mean(0), state.critic.params)
  reborn = jax.tree.map(lambda x: x[sick], state.critic.params)
  assert_close(reborn, critics, 1e-5)
  np.testing.assert_array_equal(state.health.sick, 0)


@pytest.mark.parametrize('count', [2, 3, 4])
@pytest.mark.parametrize('poison', [NAN, INF, HUGE])
@pytest.mark.parametrize('site', SITES)
def test_of_several_sick_clones_the_rest_is_melded_or_nothing(
  clinic, site, poison, count
):
  before, _ = clinic.poisoned(site, [], 0)
  for sick in itertools.combinations(range(4), count):
    state, metrics = clinic.treat(site, sick, poison)
    assert_finite(state)
    well = [i for i in range(4) if i not in sick]
    expected = jax.tree.map(lambda x: x[0], before.master.params)
    if well:
      expected = melded(clinic, before, state, metrics, well)
    mine = jax.tree.map(lambda x: x[0], state.master.params)
    assert_close(mine, expected, 1e-4 if well else 0)
    np.testing.assert_array_equal(metrics['healthy'], ~np.isin(range(4), sick))
    np.testing.assert_array_equal(state.health.sick, count > 2)
    healed, metrics = clinic.run(state)
    assert_finite((healed, metrics))
    assert metrics['healthy'].all()
    np.testing.assert_array_equal(healed.health.sick, 0)


@pytest.mark.parametrize('count', [1, 2, 3, 4])
@pytest.mark.parametrize('site', ['params', 'gradients'])
def test_what_is_absurd_but_leaves_float32_room_is_sick_too(
  clinic, rarely_melded, site, count
):
  """1e9 squared is finite; all four agree on it, but not with the past.

  Parameters count where they are a clone's own: where every cycle melds, they
  are the master's.
  """
  if site == 'params':
    state, metrics = clinic.treat(site, range(count), 1e9)
    assert metrics['healthy'].all()
    assert_close(state.master, clinic.run(clinic.before)[0].master, 0)
    clinic = rarely_melded
  state, metrics = clinic.treat(site, range(count), 1e9)
  np.testing.assert_array_equal(metrics['healthy'], np.arange(4) >= count)
  for x in jax.tree.leaves(state.master.params):
    assert np.abs(x).max() < 1e3


def test_an_absurd_adversarial_weight_makes_nobody_sick(clinic):
  """Its share of the gradient is bounded."""
  state, mission = clinic.poisoned('gradients', range(2), 1e9)
  mission = mission._replace(bounds=clinic.mission.bounds)
  state, metrics = clinic.run(state, mission)
  assert metrics['healthy'].all()
  bound_M = clinic.mission.bounds.most_adv
  np.testing.assert_allclose(metrics['loss/adv_share'][:2], bound_M[:2])
  assert_finite(state)


def test_a_restarted_clone_does_not_outrun_the_others(clinic):
  """Over a second moment of its own it stepped 200 times as far as they."""
  state, _ = clinic.treat('params', [2], NAN)
  start = state.master.params
  _, metrics = clinic.run(state)
  lengths_M = np.sqrt(
    sum(
      np.square(after - before).reshape(4, -1).sum(1)
      for after, before in zip(
        jax.tree.leaves(metrics['specialist']), jax.tree.leaves(start)
      )
    )
  )
  assert lengths_M[2] < lengths_M[[0, 1, 3]].max()


def test_agents_that_are_not_finite_begin_anew(clinic):
  state, _ = clinic.poisoned('params', [], 0)
  state.pid.integral_K[1, 2] = NAN
  state.q.table_SxA[3, 0, 0] = INF
  state.q.lr_scale[3] = NAN
  state, metrics = clinic.run(state)
  assert_finite(state)
  np.testing.assert_array_equal(metrics['healthy'], [True, True, True, False])
  for x in jax.tree.leaves((state.pid, state.q.table_SxA, state.q.decisions)):
    np.testing.assert_array_equal(x[[1, 3]], 0)
  np.testing.assert_array_equal(state.q.lr_scale[[1, 3]], 1)
  assert np.all(state.pid.error_K[[0, 2]].any(-1))


def test_encodings_of_a_sick_clone_are_no_codes_to_be():
  clinic = Clinic(**{'model.revive_after': 1})
  for sick in ([0], [0, 1, 2], range(4)):
    state, _ = clinic.treat('params', sick, NAN)
    assert_finite(state)


def test_without_the_meld_a_bad_gradient_is_left_out_and_nobody_restarts():
  clinic = Clinic(**{'meld.enabled': False})
  before, _ = clinic.poisoned('params', [], 0)
  for site, poison in itertools.product(SITES, (NAN, INF, HUGE)):
    state, metrics = clinic.treat(site, [2], poison)
    assert_finite(state)
    np.testing.assert_array_equal(metrics['healthy'], np.arange(4) != 2)
    np.testing.assert_array_equal(state.dropped, np.arange(4) == 2)
    for x in jax.tree.leaves((state.generator, state.master)):
      np.testing.assert_allclose(x, np.broadcast_to(x[:1], x.shape), rtol=1e-6)
    for x in jax.tree.leaves(state.critic):
      scale = max(np.abs(x).max(), 1e-6)
      assert np.abs(x - x[:1]).max() <= 1e-5 * scale
    assert state.generator.opt_state[0].count[2] == 7
    assert not np.array_equal(
      before.master.params['codebook'], state.master.params['codebook']
    )


def judged(sizes_MxS, usual_S=(0.0, 0.0), bounds_S=(10.0, 100.0)):
  healthy_M, median_S = quarantine.judge(
    jnp.array(sizes_MxS, jnp.float32), jnp.array(usual_S), bounds_S
  )
  return healthy_M.tolist(), median_S.tolist()


def test_a_size_is_held_against_the_median_of_the_finite_ones():
  # loss: of 1, 2, 3 the median is 2, bound 20; step: of 1, 5, 7, 101 it is 5.
  assert judged([[1, 1], [2, 5], [3, 101], [NAN, 7]]) == (
    [True, True, True, False],
    [2, 5],
  )
  assert judged([[1, 1], [2, 5], [20.5, 101], [NAN, 7]])[0][2] is False
  assert judged([[1, 1], [2, 5], [3, 501], [2, 7]])[0][2] is False


def test_two_absurd_ones_of_four_do_not_move_the_median():
  assert judged([[1, 1], [1e15, 1], [2, 1], [1e15, 1]]) == (
    [True, False, True, False],
    [1, 1],
  )


def test_of_five_the_three_absurd_ones_are_not_remembered():
  sizes = [[1, 1], [1, 1], [1e6, 1], [1e6, 1], [1e6, 1]]
  healthy = [True, True, False, False, False]
  assert judged(sizes, (1.0, 1.0)) == (healthy, [1, 1])


def test_the_median_itself_is_held_against_the_usual_one():
  leap = [[150, 1]] * 4
  assert judged(leap)[0] == [True] * 4  # nothing is known yet
  assert judged(leap, (2.0, 1.0))[0] == [True] * 4  # 10 x 10 x 2 = 200
  assert judged(leap, (1.0, 1.0))[0] == [False] * 4  # 10 x 10 x 1 = 100
  assert judged(leap, (1.0, 1.0), (0.0, 100.0))[0] == [True] * 4  # no bound


def test_a_path_may_be_as_many_steps_longer_as_a_round_has():
  spec = quarantine.Spec(10.0, 100.0, 3, every=500)
  assert spec.bounds == (10, 100, 100, 50_000)
  # One that began anew, beside one of 151 steps.
  paths_MxS = jnp.array([[1.0], [151.0]])
  for every, expected in ((1, [True, False]), (500, [True, True])):
    bounds = dataclasses.replace(spec, every=every).bounds[-1:]
    healthy_M, _ = quarantine.judge(paths_MxS, jnp.array([150.0]), bounds)
    np.testing.assert_array_equal(healthy_M, expected)


def test_without_bounds_what_is_finite_is_healthy():
  sizes = [[1, 1], [1e15, 1], [INF, 1], [1, NAN]]
  assert judged(sizes, bounds_S=(0.0, 0.0))[0] == [True, True, False, False]
  assert judged([[NAN, NAN]] * 4)[0] == [False] * 4


def test_sick_cycles_count_in_a_row_until_they_call():
  health = quarantine.healthy_at_birth(1)
  counts = []
  # A quorum is two of four; after three without one in a row the count stays.
  for healthy in (4, 1, 0, 2, 1, 1, 1, 0, 4):
    health = quarantine.remember(
      health,
      jnp.arange(4) < healthy,
      jnp.full(1, float(healthy)),
      quarantine.Spec(0.0, 0.0, 3, every=1),
    )
    counts.append((int(health.sick), float(health.baseline_S[0])))
  assert counts == [
    (0, 4),
    (1, 4),
    (2, 4),
    (0, 2),
    (1, 2),
    (2, 2),
    (3, 2),
    (4, 2),
    (4, 4),
  ]


def test_a_size_sees_every_leaf_but_the_counts():
  tree = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array(4.0), 'n': jnp.int32(9**9)}
  assert quarantine.global_norm(tree) == 5
  assert quarantine.l1_norm(tree['a']) == 3
  for poison in (NAN, INF, HUGE):
    assert not np.isfinite(
      quarantine.global_norm({**tree, 'b': jnp.array(poison)})
    )
