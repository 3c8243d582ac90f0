"""The audition: what it tries, what it hears, and what it makes of it."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chimera import train
from chimera.clones import losses
from chimera.clones import state as state_lib
from chimera.optics import poincare
from chimera.run import audition
from tests import tiny

BINS, PATHS = tiny.bins_and_paths()
CYCLES = 10


def config_of(rate=0.02, **changes):
  config = tiny.get_config()
  config.train.audition = CYCLES
  config.train.learning_rate = rate
  config.update_from_flattened_dict(changes)
  return config


def start_of(config):
  spec = state_lib.create_spec(config)
  born = state_lib.create_states(config, spec, BINS, (8, 8))[0]
  return spec, np.asarray(born.master.params)


def held(config, devices=1):
  spec, start_P = start_of(config)
  return audition.hold(config, spec, start_P, PATHS, jax.devices()[:devices])


@pytest.fixture(scope='module')
def first():
  return held(config_of())


def test_the_first_round_is_about_the_given_rate():
  rates = audition.first_round(8.0, {}, 4)
  np.testing.assert_allclose(np.diff(np.log(rates)), math.log(8))
  np.testing.assert_allclose(math.prod(rates), 8.0**4)
  assert audition.first_round(3.0, {}, 1) == [3.0]


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
  rates = audition.second_round(1.0, tried, 4)
  np.testing.assert_allclose(np.log(rates) / math.log(8), powers, atol=1e-12)


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
  tried = {0.5: 7.0, 1.0: 1.1, 2.0: 1.0, 4.0: 1.15, 8.0: 5.0}
  edge = 1.0 + audition.CLIFF
  x = [-1.0, 0.0, 1.0, 2.0]
  bend, slope, _ = np.polyfit(x, [edge, 1.1, 1.0, edge], 2)
  found = audition.HORIZON * 2 ** (-slope / (2 * bend))
  assert audition.choose(tried, 1.0) == float(f'{found:.1e}')
  assert audition.choose({**tried, 4.0: 900.0}, 1.0) == float(f'{found:.1e}')


def test_at_an_edge_the_best_is_chosen_as_it_is():
  tried = {1.0: 0.5, 2.0: 0.6, 4.0: math.inf}
  assert audition.choose(tried, 9.0) == audition.HORIZON * 1.0
  assert audition.choose({5.0: 1.0}, 9.0) == audition.HORIZON * 5.0


def test_where_none_is_finite_the_given_rate_stays():
  assert audition.choose({1.0: math.inf, 2.0: math.inf}, 0.123) == 0.123


def test_each_loss_is_that_of_a_plain_learner(first):
  # Written out with optax's own adam and schedule.
  config = config_of()
  spec, start_P = start_of(config)
  rate = first.rates[1]
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, rate, 4, CYCLES, 0.01 * rate
  )
  adam = optax.adam(lambda i: schedule(i + 1), 0.9, 0.99)
  rows = np.random.default_rng(config.seed).integers(120, size=CYCLES * 4)
  weights = [config.loss[t] for t in spec.terms]

  @jax.jit
  def loss_of(params, x):
    x_hat, codes, _ = spec.tokenizer.apply({'params': params}, x)
    terms_K, _ = losses.terms(
      *(x, x_hat, x_hat, codes, lambda x: jnp.zeros(len(x))),
      names=spec.terms,
      commitment=config.loss.commitment,
      temperature=config.loss.temperature,
    )
    return sum(
      w * t for w, t, n in zip(weights, terms_K, spec.terms) if n != 'adv'
    )

  params = spec.generator_layout.tree(jnp.asarray(start_P))
  moments = adam.init(params)
  heard = []
  for batch in rows.reshape(CYCLES, 4):
    x = poincare.normalize(jnp.asarray(PATHS[batch]))
    loss, gradient = jax.value_and_grad(loss_of)(params, x)
    update, moments = adam.update(gradient, moments)
    params = optax.apply_updates(params, update)
    heard.append(float(loss))
  np.testing.assert_allclose(first.losses[1], np.mean(heard[-3:]), rtol=1e-4)


@pytest.mark.parametrize('devices', [2, 4])
def test_every_layout_hears_the_same(first, devices):
  there = held(config_of(), devices)
  np.testing.assert_allclose(there.rates, first.rates)
  # Where the rate is too high, rounding grows without a bound.
  np.testing.assert_allclose(there.losses[:5], first.losses[:5], rtol=1e-4)
  assert there.found == pytest.approx(first.found, rel=0.05)


def test_given_rates_that_are_apart_by_900_come_together():
  found = [
    held(config_of(0.02 * k, **{'train.audition': 60}), 2).found
    for k in (1 / 30, 1, 30)
  ]
  assert max(found) / min(found) < 2


def test_losses_that_are_not_finite_are_none():
  there = held(config_of(1e30))
  assert None in there.losses
  assert math.isfinite(there.found)


def test_it_is_read_back_and_a_broken_one_is_held_again(
  tmp_path, caplog, first
):
  assert audition.read(tmp_path) is None
  assert not caplog.records
  audition.save(tmp_path, first)
  assert audition.read(tmp_path) == first
  path = tmp_path / audition.NAME
  body = json.loads(path.read_text())
  path.write_text(json.dumps({**body, 'found': 1.0}))
  assert audition.read(tmp_path) is None
  assert 'audition.json is not as it was written' in caplog.text
  config = config_of()
  spec, _ = start_of(config)
  born = state_lib.stack(state_lib.create_states(config, spec, BINS, (8, 8)))
  args = config, tmp_path, spec, born, PATHS, jax.devices()[:1]
  assert train.find_rate(*args) == first.found / config.train.learning_rate
  assert audition.read(tmp_path) == first


def test_switched_off_the_rate_is_as_it_is_given(tmp_path):
  config = config_of(**{'train.audition': 0})
  assert train.find_rate(config, tmp_path, None, None, None, []) == 1.0
  assert not list(tmp_path.iterdir())
