"""A perceptual distance by hand, and the networks that are taken for it."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.evaluation import features


@pytest.fixture
def save(tmp_path):
  """Returns a function that exports another to a file."""

  def write(f, shape='n, 8, 8, 3'):
    image = jax.ShapeDtypeStruct(export.symbolic_shape(shape), jnp.float32)
    path = tmp_path / f'{len(list(tmp_path.iterdir()))}.jax'
    path.write_bytes(export.export(jax.jit(f))(image).serialize())
    return str(path)

  return write


def test_the_distance_of_two_maps_by_hand():
  # Features (3, 4) and (4, 3) of length 5, at one of two places; equal
  # directions at the other: ((0.2)^2 + (0.2)^2) / 2.
  a = jnp.array([[[[3.0, 4.0], [1.0, 0.0]]]])
  b = jnp.array([[[[4.0, 3.0], [9.0, 0.0]]]])
  np.testing.assert_allclose(features.distance(a, b), [0.04], rtol=1e-6)
  opposite = features.distance(a, -a)
  np.testing.assert_allclose(opposite, [4.0], rtol=1e-6)
  zeros = features.distance(jnp.zeros_like(a), jnp.zeros_like(a))
  np.testing.assert_array_equal(zeros, [0.0])


def test_a_network_of_the_user_s_gives_the_mean_over_its_maps(save):
  def maps(x):
    # The colors themselves, and the halves' brightness, one channel each.
    halves = x.reshape(-1, 2, 4, 8, 3).mean((2, 3, 4))
    return x, {'halves': halves[:, None, None]}

  between = features.load_network(save(maps), 8)
  rng = np.random.default_rng(0)
  a, b = rng.uniform(-1, 1, (2, 5, 8, 8, 3)).astype(np.float32)
  expected = np.zeros(5)
  for x, y in (
    (a, b),
    (
      a.reshape(5, 2, -1).mean(2)[:, None, None],
      b.reshape(5, 2, -1).mean(2)[:, None, None],
    ),
  ):
    x, y = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
    expected += ((x - y) ** 2).sum(-1).mean((1, 2)) / 2
  np.testing.assert_allclose(between(a, b), expected, rtol=1e-4)
  np.testing.assert_allclose(between(a[:2], a[:2]), 0, atol=1e-9)


def test_what_makes_no_maps_of_these_images_is_refused_in_one_line(
  save, tmp_path
):
  (tmp_path / 'none').write_bytes(b'x')
  for path, reason in (
    (save(lambda x: x.mean((1, 2))), r'makes \[\(2, 3\)\] of n = 2'),
    (save(lambda x: x.mean(0, keepdims=True)), r'makes \[\(1, 8, 8, 3\)\]'),
    (save(lambda x: x, 'n, 16, 16, 3'), 'does not load'),
    (str(tmp_path / 'none'), 'does not load'),
  ):
    with pytest.raises(ValueError, match=reason) as e:
      features.load_network(path, 8)
    assert str(e.value).startswith(
      'eval.features must be a jax.export of (n, 8, 8, 3) float32 to one or '
    )
    assert '\n' not in str(e.value)


def test_long_maps_of_halves_are_no_nearer():
  rng = np.random.default_rng(0)
  a, b = (jnp.array(rng.normal(size=(1, 2, 2, 4)) * 300) for _ in range(2))
  halves = features.distance(a.astype(jnp.float16), b.astype(jnp.float16))
  np.testing.assert_allclose(halves, features.distance(a, b), rtol=1e-3)
