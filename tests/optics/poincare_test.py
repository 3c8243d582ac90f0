"""Light on the sphere, against numbers by hand and paths walked in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from chimera.optics import poincare


def _walk(paths, steps=256):
  """The observer, literally: `steps` points of each path, in float64."""
  delta, chi, radius = np.moveaxis(np.asarray(paths, np.float64), -1, 0)[
    ..., None
  ]
  u = 2 * np.pi * np.arange(steps) / steps
  t = np.cos((delta + radius * np.cos(u)) / 2) + 1j * np.sin(
    (delta + radius * np.cos(u)) / 2
  ) * np.sin(2 * (chi + radius * np.sin(u)))
  return np.stack(
    [t.real.mean(-1), t.imag.mean(-1), t.real.std(-1), t.imag.std(-1)], -1
  )


def _random_paths(shape=(2, 16, 16)):
  rng = np.random.default_rng(0)
  low = [-math.pi, -math.pi / 4, 0]
  high = [math.pi, math.pi / 4, math.pi / 2]
  return rng.uniform(low, high, (*shape, 3)).astype(np.float32)


def _cell(delta, chi, radius):
  return jnp.array([delta, chi, radius], jnp.float32).reshape(1, 1, 1, 3)


def test_no_retardance_transmits_everything():
  real, imaginary = poincare.transmittance(jnp.zeros(3), jnp.arange(3.0))
  np.testing.assert_array_equal(real, np.ones(3))
  np.testing.assert_array_equal(imaginary, np.zeros(3))


@pytest.mark.parametrize(
  ('delta', 'chi', 'real', 'imaginary'),
  [
    (math.pi, math.pi / 4, 0.0, 1.0),
    (math.pi, -math.pi / 4, 0.0, -1.0),
    (math.pi / 2, math.pi / 12, math.sqrt(0.5), math.sqrt(0.5) / 2),
    (-math.pi / 3, math.pi / 8, math.sqrt(0.75), -0.5 * math.sqrt(0.5)),
  ],
)
def test_transmittance_by_hand(delta, chi, real, imaginary):
  t = poincare.transmittance(jnp.float32(delta), jnp.float32(chi))
  np.testing.assert_allclose(t, (real, imaginary), atol=1e-6)


def test_a_path_without_radius_is_seen_as_its_center():
  seen = poincare.observe(_cell(math.pi / 2, math.pi / 12, 0.0)).ravel()
  expected = [math.sqrt(0.5), math.sqrt(0.5) / 2, 0.0, 0.0]
  np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_path_around_no_retardance_by_hand():
  # Re t = cos(cos(u) / 2 * r): its mean is J0(r / 2), its mean square
  # (1 + J0(r)) / 2. Im t is odd in chi, which is 0: its mean is 0.
  r = 1.2
  seen = poincare.observe(_cell(0.0, 0.0, r)).ravel()
  mean = special.j0(r / 2)
  std = math.sqrt((1 + special.j0(r)) / 2 - mean**2)
  np.testing.assert_allclose(seen[:3], [mean, 0.0, std], atol=2e-4)


def test_closed_form_equals_a_walk_along_the_path():
  paths = _random_paths()
  seen = poincare.observe(jnp.asarray(paths))
  np.testing.assert_allclose(seen, _walk(paths), atol=2e-4)
  np.testing.assert_allclose(seen[..., :2], _walk(paths)[..., :2], atol=1e-6)


def test_a_larger_radius_is_a_more_varied_path():
  radius = jnp.linspace(0.0, 0.9, 20)
  paths = jnp.stack([0 * radius + 2.0, 0 * radius + 0.2, radius], axis=-1)
  seen = poincare.observe(paths[None, None])[0, 0]
  assert np.all(np.diff(seen[:, 2:], axis=0) > 0)


def test_gradient_equals_the_slope_of_the_walk():
  paths = _random_paths((1, 4, 4))
  paths[..., 2] = np.clip(paths[..., 2], 0.2, 1.4)
  weights = np.array([1.0, -2.0, 3.0, 0.5])
  grad = jax.grad(
    lambda p: jnp.sum(poincare.observe(p) @ weights.astype(np.float32))
  )(jnp.asarray(paths))
  step = 1e-5
  for c in range(3):
    shift = step * np.eye(3)[c]
    slope = (_walk(paths + shift) - _walk(paths - shift)) @ weights / 2 / step
    np.testing.assert_allclose(grad[..., c], slope, atol=2e-3)


def test_gradient_is_finite_at_radius_zero_and_at_the_corners():
  corners = np.array(
    [
      [d, c, r]
      for d in (-math.pi, 0.0, math.pi)
      for c in (-math.pi / 4, 0.0, math.pi / 4)
      for r in (0.0, 1e-7, 1e-3, math.pi / 2)
    ],
    np.float32,
  )
  grad = jax.grad(lambda p: jnp.sum(poincare.observe(p)))(
    jnp.asarray(corners)[None, None]
  )
  assert np.all(np.isfinite(grad))
  assert np.all(np.abs(grad) < 10)


def test_normalize_maps_the_bounds_to_one():
  low = _cell(-math.pi, -math.pi / 4, 0.0)
  high = _cell(math.pi, math.pi / 4, math.pi / 2)
  np.testing.assert_allclose(poincare.normalize(low).ravel(), -np.ones(3))
  np.testing.assert_allclose(poincare.normalize(high).ravel(), np.ones(3))


def test_denormalize_undoes_normalize_and_clips_what_lies_outside():
  paths = _random_paths()
  there = poincare.normalize(jnp.asarray(paths))
  np.testing.assert_allclose(poincare.denormalize(there), paths, atol=1e-6)
  outside = poincare.denormalize(_cell(-3.0, 2.0, 5.0)).ravel()
  expected = [-math.pi, math.pi / 4, math.pi / 2]
  np.testing.assert_allclose(outside, expected, rtol=1e-6)
