"""What tells the clones apart, however many there are."""

import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from chimera.clones import specialists, terms
from chimera.clones import state as state_lib
from chimera.run import preflight
from configs import chimera as chimera_config
from tests import tiny

BINS, _ = tiny.bins_and_paths()


def get_config(count=4, **overrides):
  """Of the first of eight specialists, from the fifth on each one block."""
  config = tiny.get_config()
  for i, bins in enumerate([(2, 3, 4, 5, 6), (0, 1), (5,), tuple(range(10))]):
    config.specialists[f'texture_{i}'] = chimera_config._specialist(
      bins=bins,
      emphasis={'spectrum': 3.0, 'autocorrelation': 3.0},
      target={'spectrum': 0.4, 'autocorrelation': 0.03},
    )
    config.clone_names += (f'texture_{i}',)
  config.clone_names = config.clone_names[:count]
  config.update_from_flattened_dict(
    {k.replace('__', '.'): v for k, v in overrides.items()}
  )
  preflight.check_config(config)
  return config


def missions(count=4, **overrides):
  return specialists.create_missions(get_config(count, **overrides), BINS)


def test_a_specialist_s_base_weights_by_hand():
  # 0.3 * (1 + 0.3 * (specialty - 1)), the specialties 3, 0.5, 0.7 and 0.7
  config = get_config(loss__ssim=0.3, loss__emphasis=0.3)
  config.specialists.perceptual.emphasis.ssim = 3.0
  written = json.loads(config.to_json())
  ssim = terms.TERMS.index('ssim')
  for name, mission, expected in zip(
    config.clone_names,
    specialists.create_missions(config, BINS),
    (0.48, 0.255, 0.273, 0.273),
    strict=True,
  ):
    for source in (config, written):
      weights = specialists.base_weights(source, name)
      assert weights['ssim'] == pytest.approx(expected)
    np.testing.assert_allclose(mission.pid.base_K[ssim], expected, rtol=1e-6)


def test_without_emphasis_nobody_asks_for_more_than_another():
  config = chimera_config.get_config()
  config.loss.emphasis = 0.0
  bins = {k: list(range(10 * k, 10 * k + 10)) for k in range(10)}
  adv = terms.TERMS.index('adv')
  # Of adv for the geometric mean of the four.
  targets = [config.specialists[n].pid.target.adv for n in config.clone_names]
  asked = math.prod(targets) ** 0.25
  assert len({*targets}) > 1
  for mission in specialists.create_missions(config, bins):
    expected = np.ones(len(terms.TERMS))
    expected[adv] = asked
    np.testing.assert_allclose(mission.pid.target_K, expected, rtol=1e-6)
    most = asked * math.exp(config.pid.limit)
    assert mission.bounds.most_adv == pytest.approx(most, rel=1e-6)


def test_base_weights_and_missions_follow_the_order_of_the_terms():
  weights = {f'loss__{t}': 1.0 + i for i, t in enumerate(terms.TERMS)}
  targets = {
    f'specialists__{name}__pid__target__{t}': 1.0 + i * (name == 'structural')
    for name in chimera_config.get_config().clone_names
    for i, t in enumerate(terms.TERMS)
    if t != 'adv'  # which is a share
  }
  alike = {
    f'specialists__{name}__emphasis__{t}': 1.0
    for name in chimera_config.get_config().clone_names
    for t in terms.TERMS
  }
  of_terms = 1.0 + np.arange(len(terms.TERMS))
  found = missions(**weights, **targets, **alike)
  for mission in found:
    np.testing.assert_allclose(mission.pid.base_K, of_terms)
  # Over the mean of four, of which the others ask for 1; but the share of adv.
  relative = np.array([t != 'adv' for t in terms.TERMS])
  np.testing.assert_array_equal(found[1].pid.relative_K, relative)
  by_hand = np.where(relative, of_terms ** (3 / 4), 0.02)
  np.testing.assert_allclose(found[1].pid.target_K, by_hand, rtol=1e-6)


def test_what_a_specialist_asks_for_the_others_forgo():
  # Of SSIM one asks for 0.5, three for 1: over the mean, 0.5 ** (1 / 4).
  config = chimera_config.get_config()
  asked = [specialists.targets(config, n) for n in config.clone_names]
  half, other = 0.5**0.75, 0.5**-0.25
  assert [a['ssim'] for a in asked] == pytest.approx([half, *[other] * 3])
  assert [a['l1'] for a in asked] == pytest.approx([other, half, other, other])
  assert [a['moments'] for a in asked] == pytest.approx([1.0] * 4)
  assert [a['adv'] for a in asked] == pytest.approx([0.02, 0.02, 0.2, 0.02])


def test_the_missions_differ_in_data_alone():
  found = missions()
  assert [int(m.clone) for m in found] == [0, 1, 2, 3]
  assert [float(m.enrols) for m in found] == [0, 0, 0, 1]
  for i in range(4):
    for j in range(i):
      assert np.any(found[i].pid.base_K != found[j].pid.base_K)
      assert np.any(found[i].pid.target_K != found[j].pid.target_K)
  for mission in found:
    for x in jax.tree.leaves(mission._replace(clone=np.float32(0))):
      assert x.dtype == np.float32
    assert mission.clone.dtype == np.int32
  stacked = state_lib.stack(found)
  assert stacked.pid.base_K.shape == (4, len(terms.TERMS))
  assert stacked.weight.shape == (4,)


def test_who_is_enrolled_by_varentropy_is_told_by_the_block_and_not_its_place():
  names = ('latent_purity', 'structural')
  found = missions(clone_names=names, specialists__structural__enrols=True)
  assert [float(m.enrols) for m in found] == [1, 1]
  assert [float(m.enrols) for m in missions(clone_names=names)] == [1, 0]


def test_the_weights_of_the_meld_are_equal_or_by_mass():
  equal = [float(m.weight) for m in missions()]
  assert equal == [1, 1, 1, 1]
  mass = [float(m.weight) for m in missions(5, meld__weights='mass')]
  np.testing.assert_allclose(mass, [0.1, 0.4, 0.3, 0.2, 0.5], rtol=1e-6)
  everything = {'meld__weights': 'mass', 'school__enabled': False}
  assert {float(m.weight) for m in missions(**everything)} == {1.0}


def test_agents_are_switched_off_by_their_gains_and_bounds():
  for mission in missions(pid__enabled=False, q__enabled=False):
    for gain_K in mission.pid[3:]:
      np.testing.assert_array_equal(gain_K, np.zeros(len(terms.TERMS)))
    assert mission.q.low == mission.q.high == 1


def test_weights_are_told_without_jax():
  program = (
    'import sys; from chimera.clones import specialists\n'
    'sys.exit("jax" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def train(count, devices):
  """The state after three cycles, in which all went well."""
  config = get_config(count, q__history='total')  # compiled sooner
  state, log = tiny.run(config, 3, jax.local_devices()[:devices])
  for metrics in log:
    assert metrics['healthy'].tolist() == [True] * count
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
  np.testing.assert_array_equal(state.health.sick, 0)
  for params in (state.master.params, state.generator.params):
    for x in jax.tree.leaves(params):
      assert len(x) == count
      np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
  return state


# Several on one device are compiled for long, and are but more of the same;
# step_test.py has two on one device and on two.
@pytest.mark.parametrize(('count', 'devices'), [(3, 3), (8, 4)])
def test_any_number_of_specialists_trains(count, devices):
  train(count, devices)


def test_the_shares_of_a_gradient_are_bounded_by_targets_and_limit():
  def bounds(config):
    missions = specialists.create_missions(config, BINS)
    return np.array([mission.bounds for mission in missions])

  config = chimera_config.get_config()
  config.specialists.perceptual.pid.target.adv = 0.7  # 1.15 by the limit
  free = (1, 0, 1)
  np.testing.assert_allclose(
    bounds(config),
    [(1, 0.08, 0.15), (0.033, 0.08, 0.15)]
    + [(0.3297, 0.08, 0.15), (0.033, 0.08, 0.15)],
    atol=1e-4,
  )
  for variant in ('control', 'seed'):
    off = chimera_config.get_config(variant)
    np.testing.assert_array_equal(bounds(off), [free] * 4)


def test_devices_for_a_huge_batch_are_found_at_once():
  # 2^10 5^9 has (10 + 1) (9 + 1) divisors.
  fit = specialists.fitting_devices(1, 2_000_000_000)
  assert len(fit) == 110
  assert (fit[:4], fit[-1]) == ([1, 2, 4, 5], 2_000_000_000)
