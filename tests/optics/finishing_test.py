"""The decoder learns a tokenizer's errors, and the encoder stays."""

import jax
import numpy as np
import pytest
from skimage import data

from chimera.optics import finishing, training
from chimera.optics import modules as optics

HOW = {'batch_size': 8, 'learning_rate': 3e-3, 'seed': 0}
_MODEL = optics.Optics(cell=4, width=8, radius='local', blocks=1)


@pytest.fixture(scope='module')
def given():
  """(variables, images, path_params, path_params whose errors are known)."""
  photo = data.astronaut()
  images = np.stack(
    [photo[t : t + 16, 180 : 180 + 16] for t in range(0, 480, 10)]
  )
  born = jax.jit(_MODEL.init)(jax.random.key(0), optics.to_float(images[:1]))
  variables = jax.device_get(born)
  paths = training.encode_images(_MODEL, variables, images, 48)
  # A tokenizer whose retardances are all too low.
  made = paths - np.array([2, 0, 0], np.float32)
  return variables, images, paths, made


@pytest.fixture(scope='module')
def finished(given):
  reports = []
  found = finishing.finish(
    _MODEL, *given, steps=60, report=lambda *x: reports.append(x), **HOW
  )
  return found, reports


def _error(variables, images, paths):
  seen = _MODEL.apply(variables, paths, method='decode')
  return np.mean((seen - (images / 127.5 - 1)) ** 2)


def test_it_draws_both_what_is_made_and_what_is_seen_better(given, finished):
  variables, images, paths, made = given
  for of in (paths, made):
    before, after = (_error(v, images, of) for v in (variables, finished[0]))
    assert after < 0.8 * before


def test_it_draws_what_is_made_better_than_had_it_not_seen_it(given, finished):
  variables, images, paths, made = given
  quiet = {**HOW, 'report': lambda *x: None}
  unseen = finishing.finish(
    _MODEL, variables, images, paths, paths, steps=60, **quiet
  )
  without, seen = (_error(v, images, made) for v in (unseen, finished[0]))
  assert seen < 0.8 * without


def test_what_leads_to_tokens_keeps_every_bit(given, finished):
  variables, images, paths, _ = given
  again = training.encode_images(_MODEL, finished[0], images, 48)
  np.testing.assert_array_equal(again, paths)
  decoder = {'expand', 'paint', 'refine_0'}
  differ = {
    name
    for name, block in variables['params'].items()
    if any(
      not np.array_equal(a, b)
      for a, b in zip(
        *map(jax.tree.leaves, (block, finished[0]['params'][name]))
      )
    )
  }
  assert differ == decoder


def test_what_was_given_is_still_there(given, finished):
  born = jax.jit(_MODEL.init)(jax.random.key(0), optics.to_float(given[1][:1]))
  jax.tree.map(np.testing.assert_array_equal, given[0], jax.device_get(born))
  assert [done for done, _ in finished[1]] == [50, 60]


def test_what_does_not_stay_finite_is_refused(given):
  variables, images, paths, made = given
  broken = np.full_like(made, np.nan)
  with pytest.raises(FloatingPointError, match='the squared error is nan'):
    finishing.finish(
      _MODEL,
      *(variables, images, paths, broken),
      steps=2,
      report=lambda *x: None,
      **HOW,
    )
