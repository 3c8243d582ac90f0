"""The audition: what it tries, what it hears, and what it makes of it."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chimera import train
from chimera.clones import learning, losses
from chimera.clones import state as state_lib
from chimera.optics import poincare
from chimera.run import audition
from tests import tiny

BINS, PATHS = tiny.bins_and_paths()
CYCLES = 7  # beyond that rounding grows at the rates that are tried


def config_of(rate=0.005, **changes):
  config = tiny.get_config()
  config.train.audition = True
  config.train.learning_rate = rate
  config.update_from_flattened_dict(changes)
  return config


def start_of(config):
  spec = state_lib.create_spec(config)
  born = state_lib.create_states(config, spec, BINS, (8, 8))[0]
  return spec, np.asarray(born.master.params)


def held(config, devices=1, cycles=CYCLES):
  spec, start_P = start_of(config)
  args = config, spec, start_P, PATHS, jax.devices()[:devices]
  return audition.hold(*args, cycles=cycles)[0]


FREE = {'pid.bounded': False}  # a plain learner holds no share


@pytest.fixture(scope='module')
def outcome():
  config = config_of(**FREE)
  spec, start_P = start_of(config)
  args = config, spec, start_P, PATHS, jax.devices()[:1]
  return audition.hold(*args, cycles=CYCLES)


@pytest.fixture(scope='module')
def first(outcome):
  return outcome[0]


def test_the_first_round_is_about_the_given_rate():
  rates = audition.first_round(8.0, 4)
  np.testing.assert_allclose(np.diff(np.log(rates)), math.log(8))
  np.testing.assert_allclose(math.prod(rates), 8.0**4)
  assert audition.first_round(3.0, 1) == [3.0]


@pytest.mark.parametrize(
  ('heard', 'powers'),
  [
    ([2.0, 1.0, 3.0, 4.0], [1 - 0.6, 1 - 0.2, 1 + 0.2, 1 + 0.6]),
    ([1.0, 2.0, 3.0, 4.0], np.linspace(-1.6, 0.6, 4)),
    ([4.0, 3.0, 2.0, 1.0], 3 + np.linspace(-0.6, 1.6, 4)),
    ([math.inf, 1.0, math.inf, math.inf], np.linspace(0.4, 1.6, 4)),
  ],
)
def test_the_second_round_is_about_the_best_and_goes_outward(heard, powers):
  tried = {8.0**i: loss for i, loss in enumerate(heard)}
  rates = audition.second_round(tried, 4)
  np.testing.assert_allclose(np.log(rates) / math.log(8), powers, atol=1e-12)


@pytest.mark.parametrize(
  ('heard', 'best'),
  [
    # All have died, as of a rate x 30 (BSDS500, seed 1).
    ([1.2474, 1.2445, 1.2445, 1.2445], 0),
    ([1.2474, 1.4785, 1.2445, 1.2445], 0),
    ([1.2474, 1.2445, 1.2445, math.inf], 0),
    ([1.2474, 1.2200, 1.2445, 1.2445], 0),
    # One is better than what has died.
    ([1.2474, 1.1900, 1.2445, 1.2445], 1),
    # The highest is the best by itself.
    ([0.90, 0.80, 0.75, 0.70], 3),
    # All are too low to learn anything.
    ([1.2448, 1.2447, 1.2446, 1.2445], 3),
  ],
)
def test_where_nobody_is_better_than_who_died_lower_rates_are_tried(
  heard, best
):
  tried = dict(zip([1.0, 8.0, 64.0, 512.0], heard))
  low, *_, high = audition.second_round(tried, 4)
  outward = {0: (-1.6, 0.6), 3: (-0.6, 1.6)}.get(best, (-0.6, 0.6))
  np.testing.assert_allclose(
    [low, high], [8.0 ** (best + power) for power in outward]
  )


def test_what_is_chosen_is_least_on_the_parabola():
  # (log2 of the rate - 1.3)^2 is least between 2 and 4.
  tried = {2.0**i: 1 + 0.01 * (i - 1.3) ** 2 for i in range(-1, 4)}
  found = audition.choose(tried, 1.0)
  assert found == float(f'{audition.HORIZON * 2**1.3:.1e}')


def test_noise_is_fitted_away():
  # 1, -3, 3, -1 at even steps is orthogonal to every parabola.
  noise = np.array([1, -3, 3, -1]) / 400
  x = np.array([-3, -1, 1, 3])
  tried = dict(zip(2.0**x, 1 + 0.01 * x**2 + noise))
  assert audition.choose(tried, 1.0) == audition.HORIZON * 1.0


def test_beyond_the_basin_a_loss_counts_as_its_edge():
  tried = {0.5: 7.0, 1.0: 1.1, 2.0: 1.0, 4.0: 1.15, 8.0: 1.45}
  edge = 1.0 + audition.CLIFF
  x = [-1.0, 0.0, 1.0, 2.0]
  bend, slope, _ = np.polyfit(x, [edge, 1.1, 1.0, edge], 2)
  found = audition.HORIZON * 2 ** (-slope / (2 * bend))
  assert audition.choose(tried, 1.0) == float(f'{found:.1e}')
  # But who dies of a rate tells that it is too high, whatever the loss.
  assert audition.choose({**tried, 4.0: 1.49}, 1.0) == float(f'{found:.1e}')
  assert audition.choose({**tried, 4.0: 900.0}, 1.0) == 2.8  # root of 2 x 4


def test_at_an_edge_the_best_is_chosen_as_it_is():
  tried = {1.0: 0.5, 2.0: 0.6, 40.0: math.inf}
  assert audition.choose(tried, 9.0) == audition.HORIZON * 1.0
  assert audition.choose({5.0: 1.0}, 9.0) == audition.HORIZON * 5.0


def test_where_none_is_finite_the_given_rate_stays():
  assert audition.choose({1.0: math.inf, 2.0: math.inf}, 0.123) == 0.123


@pytest.fixture(scope='module')
def plain_learner():
  """(loss, weights) by the rate, written out with optax's adam and schedule."""
  config = config_of()
  spec, start_P = start_of(config)
  schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, 3, CYCLES, 0.01)
  adam = optax.scale_by_adam(0.9, 0.99)
  rows = np.random.default_rng(config.seed).integers(120, size=CYCLES * 4)
  weights = [config.loss[t] for t in spec.terms]

  def loss_of(params, x):
    x_hat, codes, _ = spec.tokenizer.apply({'params': params}, x)
    terms_K, _ = losses.terms(
      *(x, x_hat, codes, jnp.zeros(len(x))),
      names=spec.terms,
      commitment=config.loss.commitment,
      temperature=config.loss.temperature,
    )
    return sum(
      w * t for w, t, n in zip(weights, terms_K, spec.terms) if n != 'adv'
    ), terms_K

  @jax.jit
  def step(params, moments, i, rate, x):
    (_, terms_K), gradient = jax.value_and_grad(loss_of, has_aux=True)(
      params, x
    )
    loss = sum(
      w * t
      for w, t, n in zip(weights, terms_K, spec.terms)
      if n not in ('adv', 'vq', 'varentropy')
    )
    update, moments = adam.update(gradient, moments)
    ahead = jax.tree.map(lambda u: -rate * schedule(i + 1) * u, update)
    return optax.apply_updates(params, ahead), moments, loss

  def learn(rate):
    params = spec.generator_layout.tree(jnp.asarray(start_P))
    moments, heard = adam.init(params), []
    for i, batch in enumerate(rows.reshape(CYCLES, 4)):
      x = poincare.normalize(jnp.asarray(PATHS[batch]))
      params, moments, loss = step(params, moments, i, rate, x)
      heard.append(float(loss))
    return np.mean(heard[-2:]), spec.generator_layout.vector(params)

  return learn


def test_each_loss_is_that_of_a_plain_learner(first, plain_learner):
  loss, _ = plain_learner(first.rates[1])
  np.testing.assert_allclose(first.losses[1], loss, rtol=1e-4)


def test_what_the_best_has_learned_is_kept(outcome, plain_learner):
  first, best_P = outcome
  at = int(np.argmin(first.losses))
  _, start_P = start_of(config_of())
  _, expected_P = plain_learner(first.rates[at])
  went = np.linalg.norm(expected_P - start_P)
  assert np.linalg.norm(best_P - expected_P) < 0.01 * went
  # Not those of a neighbor.
  _, other_P = plain_learner(first.rates[at - 1])
  assert np.linalg.norm(best_P - other_P) > 0.1 * went


@pytest.mark.parametrize('devices', [2, 4])
def test_every_layout_hears_the_same(first, devices):
  there = held(config_of(**FREE), devices)
  np.testing.assert_allclose(there.rates, first.rates)
  # From the rate on that is best rounding grows, in the end without a bound.
  np.testing.assert_allclose(there.losses[:3], first.losses[:3], rtol=1e-4)
  assert there.found == pytest.approx(first.found, rel=0.05)


# With a batch of 4 rounding alone moves what is found by a factor of two.
WIDE = {'train.batch_size': 12}


@pytest.fixture(scope='module')
def wide():
  return held(config_of(**WIDE), devices=2, cycles=30)


def test_devices_that_share_a_batch_hear_what_one_hears(wide):
  """Three, of one learner whose batch they divide: four samples each."""
  shared = held(config_of(**WIDE), devices=3, cycles=30)
  np.testing.assert_allclose(shared.rates, wide.rates)
  np.testing.assert_allclose(shared.losses[:3], wide.losses[:3], rtol=1e-4)


def test_given_rates_that_are_apart_by_900_come_together(wide):
  low, high = (
    held(config_of(0.005 * k, **WIDE), devices=2, cycles=30).found
    for k in (1 / 30, 30)
  )
  found = low, wide.found, high
  assert max(found) / min(found) < 3


def test_a_rate_that_failed_is_not_chosen():
  tried = {1.0: 0.5, 2.0: 0.52, 2.5: math.inf, 8.0: math.inf}
  assert audition.choose(tried, 9.0) == 2.2  # the root of 2 x 2.5


def test_losses_that_are_not_finite_are_none_and_an_edge_is_warned_of(warnings):
  config = config_of(1e30)
  spec, start_P = start_of(config)
  args = config, spec, start_P, PATHS, jax.devices()[:1]
  there, best_P = audition.hold(*args, cycles=CYCLES)
  assert set(there.losses) == {None}
  assert there.found == 1e30
  np.testing.assert_array_equal(best_P, start_P)
  held(config_of(1e-9))
  assert len(warnings) == 2
  assert warnings[0].startswith('No learning rate had a finite loss')
  assert 'look farther by --config.train.learning_rate=' in warnings[1]


BEST_P = np.arange(5, dtype=np.float32)
GIVEN_P = -BEST_P


def test_what_is_asked_of_codes_judges_no_rate():
  # Where nothing is learned.
  low, high = (held(config_of(1e-9, **{'loss.vq': w})) for w in (0.5, 50.0))
  np.testing.assert_allclose(high.losses, low.losses, rtol=1e-5)


def test_a_weight_of_the_commitment_that_is_wrong_does_little_harm():
  free, bound = (
    held(config_of(**{'loss.vq': 500.0, 'pid.bounded': is_bound}), cycles=40)
    for is_bound in (False, True)
  )
  assert min(bound.losses) < 0.95 * min(free.losses)


def find(config, workdir, bound=None):
  """`train.find_rate` where nobody can hold an audition."""
  args = config, str(workdir), None, GIVEN_P, None, None
  return train.find_rate(*args, bound or {'config': 'a'})


@pytest.fixture
def times(first, monkeypatch):
  """How often one was held, at the cost of none."""
  heard = []

  def hold(config, *_):
    heard.append(config)
    return first, BEST_P

  monkeypatch.setattr(audition, 'hold', hold)
  return heard


def test_it_is_held_once_for_a_run_and_again_for_another(
  tmp_path, first, times
):
  config = config_of()
  assert audition.read(tmp_path) is None
  for _ in range(2):
    rate, start_P = find(config, tmp_path)
    assert rate == first.found / config.train.learning_rate
    np.testing.assert_array_equal(start_P, BEST_P)
  assert len(times) == 1
  assert audition.read(tmp_path).losses == first.losses
  assert find(config, tmp_path, {'config': 'b'})[0] == rate
  assert len(times) == 2


def test_one_whose_figures_are_broken_is_held_again(
  tmp_path, first, times, warnings
):
  find(config_of(), tmp_path)
  path = tmp_path / audition.NAME
  body = json.loads(path.read_text())
  path.write_text(json.dumps({**body, 'found': 1.0}))
  assert audition.read(tmp_path) is None
  assert 'audition.json is not as it was written' in warnings[0]
  find(config_of(), tmp_path)
  assert audition.read(tmp_path).found == first.found
  assert len(times) == 2


@pytest.mark.parametrize('is_there', [True, False])
def test_one_whose_weights_are_broken_is_held_again(
  tmp_path, times, warnings, is_there
):
  find(config_of(), tmp_path)
  path = tmp_path / audition.WEIGHTS
  path.unlink()
  if is_there:
    np.save(path, 2 * BEST_P)
  _, start_P = find(config_of(), tmp_path)
  assert len(times) == 2
  assert len(warnings) == 1
  assert str(path) in warnings[0]
  np.testing.assert_array_equal(start_P, BEST_P)


def test_one_that_cannot_be_written_is_a_warning(
  tmp_path, first, times, warnings
):
  config = config_of()
  rate = first.found / config.train.learning_rate
  assert find(config, tmp_path / 'nowhere')[0] == rate
  assert warnings[0].startswith('audition.json could not be written')


@pytest.mark.parametrize(
  'changes', [{'train.audition': False}, {'init_from': 'somewhere'}]
)
def test_without_one_rate_and_weights_are_those_given(tmp_path, times, changes):
  find(config_of(), tmp_path)  # of when it was on
  rate, start_P = find(config_of(**changes), tmp_path)
  assert rate == 1.0
  np.testing.assert_array_equal(start_P, GIVEN_P)
  assert not list(tmp_path.iterdir())
  assert audition.images(config_of(**changes)) == 0


def test_its_images_are_those_of_two_rounds_of_four():
  assert audition.images(config_of()) == 2 * 4 * 50 * 4


def test_where_a_meld_goes_half_way_the_rate_is_twice_as_high(
  tmp_path, first, times
):
  config = config_of(**{'meld.alpha': 0.5})
  rate, _ = find(config, tmp_path)
  assert rate == 2 * first.found / config.train.learning_rate


@pytest.mark.parametrize(('lr', 'momentum'), [(0.7, 0.9), (0.8, 0.5)])
def test_where_melds_gather_speed_the_rate_is_as_much_lower(
  tmp_path, first, times, lr, momentum
):
  changes = {'meld.outer_learning_rate': lr, 'meld.outer_momentum': momentum}
  config = config_of(**changes)
  rate, _ = find(config, tmp_path)
  # Where every meld asks for a step of 1.
  outer = optax.sgd(lr, momentum, nesterov=True)
  state = outer.init(0.0)
  for _ in range(200):
    step, state = outer.update(-1.0, state)
  np.testing.assert_allclose(
    rate * step, first.found / config.train.learning_rate, rtol=1e-5
  )


def test_it_is_as_precise_as_the_run_is():
  config = config_of(**{'train.precision': 'highest'})
  spec, start_P = start_of(config)
  x = np.zeros((2, spec.batch_size, *PATHS.shape[1:]), np.float32)
  ones = np.ones(len(spec.terms), np.float32)
  bounds = learning.Bounds(*map(np.float32, (1, 0, 1)))
  devices = jax.devices()[:1]
  stage = audition.Stage(spec, ones, bounds, start_P, x, devices)
  text = stage._cycle.lower(
    *(stage._born, np.int32(0), np.ones(4, np.float32), x)
  ).as_text()
  found = re.findall(r'stablehlo\.convolution.*', text)
  assert found
  assert all('HIGHEST' in line for line in found)
