"""The modulator's bounds, and the meaning of the radius."""

import functools
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.data import images
from chimera.optics import modules as optics


def _pictures(count=6, size=16, seed=0):
  """Noise of rising contrast, in [-1, 1]."""
  rng = np.random.default_rng(seed)
  noise = rng.uniform(-1, 1, (count, size, size, 3))
  contrast = np.linspace(0, 1, count)[:, None, None, None]
  return jnp.asarray(contrast * noise, jnp.float32)


@functools.cache
def _create(radius='contrast', seed=0):
  model = optics.Optics(cell=4, width=8, radius=radius, blocks=1)
  return model, jax.jit(model.init)(jax.random.key(seed), _pictures())


# Compiled as one, instead of one by one.
@functools.partial(jax.jit, static_argnames=('model', 'method'))
def _apply(model, variables, x, method=None):
  return model.apply(variables, x, method=method)


def _scaled(variables, factor):
  return jax.tree.map(lambda x: x * factor, variables)


def test_the_device_sees_the_colors_that_the_host_sees():
  values = np.arange(256, dtype=np.uint8)
  for to_float in (optics.to_float, jax.jit(optics.to_float)):
    seen = to_float(values)
    assert seen.dtype == jnp.float32
    np.testing.assert_allclose(seen, images.to_float(values), atol=1.2e-7)


def test_gradient_magnitude_of_a_ramp_is_its_slope():
  across, down = jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0))
  gray = 0.03 * across + 0.04 * down
  ramp = jnp.broadcast_to(gray[None, :, :, None], (2, 8, 8, 3))
  np.testing.assert_allclose(
    optics.gradient_magnitude(ramp), [0.05, 0.05], rtol=1e-5
  )


def test_luminance_is_that_of_bt_601():
  ramp = 0.1 * jnp.arange(8.0)[None, None, :, None] * jnp.eye(3)[:, None, None]
  ramp = jnp.broadcast_to(ramp, (3, 8, 8, 3))  # of red, of green, of blue
  np.testing.assert_allclose(
    optics.gradient_magnitude(ramp), [0.0299, 0.0587, 0.0114], rtol=1e-4
  )


def test_the_local_radius_and_the_carrier_in_numbers():
  """Another one would give what is exported already other tokens."""
  ramps = jnp.array([0.0, 0.14, 0.42])[:, None, None, None]
  ramps = ramps * jnp.arange(48.0)[None, None, :, None]
  ramps = jnp.broadcast_to(ramps, (3, 48, 48, 3))
  # The border, where a ramp is mirrored, is ten cells of four pixels from it.
  inner = optics.local_radius(ramps, 4)[:, 5:7, 5:7]
  for share, expected in zip(inner, (0.1, 0.3, 0.4)):
    np.testing.assert_allclose(share, expected, rtol=1e-4)
  carrier = optics._carrier(jnp.zeros((1, 2, 3)))
  np.testing.assert_array_equal(carrier, [[[1, -1, 1], [-1, 1, -1]]])


def test_mean_radius_by_hand():
  # A ramp of slope HALF lies in the middle between LOW and HIGH.
  ramp = optics.HALF * jnp.arange(8.0)[None, None, :, None]
  pictures = jnp.concatenate(
    [jnp.broadcast_to(ramp, (1, 8, 8, 3)), jnp.zeros((1, 8, 8, 3))]
  )
  share = np.array([(optics.LOW + optics.HIGH) / 2, optics.LOW])
  np.testing.assert_allclose(
    optics.mean_radius(pictures), math.pi / 2 * share, rtol=1e-4
  )


def test_a_mirror_goes_on_with_a_checkerboard():
  x = jnp.arange(6.0).reshape(1, 2, 3)
  np.testing.assert_array_equal(
    optics.mirror(x)[0],
    [[4, 3, 4, 5, 4], [1, 0, 1, 2, 1], [4, 3, 4, 5, 4], [1, 0, 1, 2, 1]],
  )
  np.testing.assert_array_equal(
    optics.mirror(x[:, :1, :1])[0], np.zeros((3, 3))
  )


def test_smoothing_leaves_nothing_of_a_checkerboard_and_all_of_what_is_flat():
  board = jnp.asarray((-1.0) ** (np.arange(5)[:, None] + np.arange(4)))
  x = jnp.stack([board, jnp.full((5, 4), 3.0)])
  np.testing.assert_allclose(optics.smooth(x)[0], np.zeros((5, 4)), atol=1e-7)
  np.testing.assert_allclose(optics.smooth(x)[1], np.full((5, 4), 3.0))
  spike = jnp.zeros((1, 5, 5)).at[0, 2, 2].set(16.0)
  weights = optics.smooth(spike)[0]
  np.testing.assert_allclose(
    weights[1:4, 1:4], [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
  )
  assert float(weights.sum()) == 16


@pytest.mark.parametrize('size', [(4, 5), (2, 2), (1, 3), (1, 1)])
def test_the_mirrored_convolution_is_that_of_what_is_mirrored(size):
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(3, 3, 3, 2))
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), 'reflect')
  expected = sum(
    padded[:, i : i + size[0], j : j + size[1]] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )
  conv = nn.Conv(
    2, (3, 3), conv_general_dilated=optics.convolve_mirrored, use_bias=False
  )
  y = conv.apply({'params': {'kernel': jnp.float32(kernel)}}, jnp.float32(x))
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_local_radius_by_hand():
  # A ramp of slope HALF is in the middle, up to the border where it turns.
  ramp = optics.HALF * jnp.arange(64.0)[None, None, :, None]
  pictures = jnp.concatenate(
    [jnp.broadcast_to(ramp, (1, 64, 64, 3)), jnp.zeros((1, 64, 64, 3))]
  )
  share = optics.local_radius(pictures, cell=4)
  assert share.shape == (2, 16, 16)
  middle = (optics.LOW + optics.HIGH) / 2
  np.testing.assert_allclose(share[0], np.full((16, 16), middle), rtol=1e-4)
  np.testing.assert_allclose(share[1], np.full((16, 16), optics.LOW), rtol=1e-4)


def test_the_local_radius_is_that_of_the_neighborhood_alone():
  model, variables = _create('local')
  flat = np.zeros((1, 128, 128, 3), np.float32)
  busy = flat.copy()
  busy[:, :, 64:] = np.random.default_rng(0).uniform(-1, 1, (1, 128, 64, 3))
  near, far = (
    np.asarray(_apply(model, variables, x, method='encode'))[0]
    for x in (flat, busy)
  )
  reach = model.reach[0]
  np.testing.assert_array_equal(near[:, : 16 - reach], far[:, : 16 - reach])
  assert far[:, 20:, 2].mean() > 2 * far[:, :8, 2].mean()


def test_neighbors_lie_to_either_side_of_the_local_radius():
  # Where z is one number, two neighbors' mean radius is the local one.
  model, variables = _create('local')
  flat = jnp.full((1, 64, 64, 3), 0.3)
  radius = _apply(model, variables, flat, method='encode')[0, ..., 2]
  pairs = (radius[:, 0::2] + radius[:, 1::2]) / 2
  np.testing.assert_allclose(
    pairs, np.full_like(pairs, optics.LOW * math.pi / 2), rtol=1e-4
  )
  assert float(jnp.std(radius)) > 1e-4


def test_of_a_flat_picture_nothing_of_the_carrier_is_painted():
  # Also where nothing was learned yet: each cell is painted alike.
  model, variables = _create('local')
  flat = jnp.full((1, 128, 128, 3), -0.4)
  cells = _apply(model, variables, flat).reshape(32, 4, 32, 4, 3)
  np.testing.assert_allclose(
    cells, np.broadcast_to(cells[:1, :, :1], cells.shape), atol=1e-5
  )


def test_pinned_mean_is_the_one_asked_for():
  rng = np.random.default_rng(0)
  z = np.clip(rng.normal(scale=3, size=(5, 8, 8)), -4, 4).astype(np.float32)
  z[4] = 4.0  # a flat pattern
  mean = np.array([0.1, 0.3, 0.5, 0.9, 0.2], np.float32)
  share = optics.pin_mean(jnp.asarray(z), jnp.asarray(mean))
  np.testing.assert_allclose(np.mean(share, axis=(1, 2)), mean, atol=1e-5)
  np.testing.assert_allclose(share[4], np.full((8, 8), 0.2), atol=1e-5)
  # One shift of all logits explains the whole pattern.
  logits = np.log(share / (1 - share)) - z
  np.testing.assert_allclose(
    logits, logits[:, :1, :1] * np.ones((1, 8, 8)), atol=1e-2
  )


def test_gradient_of_the_pinned_pattern_equals_finite_differences():
  rng = np.random.default_rng(1)
  z, direction, weight = rng.normal(size=(3, 1, 4, 4))
  mean = 0.3

  def exact(z):  # float64, b to the last digit
    low, high = -20.0, 20.0
    for _ in range(100):
      b = (low + high) / 2
      share = 1 / (1 + np.exp(-(z + b)))
      low, high = (low, b) if share.mean() > mean else (b, high)
    return np.sum(weight * share)

  slope = (exact(z + 1e-5 * direction) - exact(z - 1e-5 * direction)) / 2e-5
  grad = jax.grad(
    lambda z: jnp.sum(
      jnp.float32(weight) * optics.pin_mean(z, jnp.full(1, mean, jnp.float32))
    )
  )(jnp.float32(z))
  np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-3)


@pytest.mark.parametrize('radius', optics.RADII)
@pytest.mark.parametrize('factor', [1.0, 100.0])
def test_paths_stay_within_the_sphere(radius, factor):
  model, variables = _create(radius)
  paths = _apply(
    model, _scaled(variables, factor), _pictures(), method='encode'
  )
  assert paths.shape == (6, 4, 4, 3)
  assert np.abs(paths[..., 0]).max() <= math.pi + 1e-6
  assert np.abs(paths[..., 1]).max() <= math.pi / 4 + 1e-6
  assert paths[..., 2].min() >= 0
  assert paths[..., 2].max() <= math.pi / 2 + 1e-6


@pytest.mark.parametrize('factor', [1.0, 100.0])
def test_a_more_complex_picture_has_a_larger_mean_radius(factor):
  model, variables = _create()
  paths = _apply(
    model, _scaled(variables, factor), _pictures(), method='encode'
  )
  mean = np.mean(paths[..., 2], axis=(1, 2))
  np.testing.assert_allclose(mean, optics.mean_radius(_pictures()), atol=1e-4)
  assert np.all(np.diff(mean) > 0.01)


def test_a_more_complex_picture_has_a_larger_local_radius():
  model, variables = _create('local')
  paths = _apply(model, variables, _pictures(), method='encode')
  assert np.all(np.diff(np.mean(paths[..., 2], axis=(1, 2))) > 0.01)


def test_a_flat_picture_can_have_any_signal():
  # Where the modulator sees one color, z is one number, and the radii of
  # neighbors lie to either side of the mean by as much as z says.
  model, variables = _create()
  apart = []
  for color in (-0.8, 0.8):
    flat = jnp.full((1, 64, 64, 3), color)
    radius = _apply(model, variables, flat, method='encode')[0, 4:-4, 4:-4, 2]
    np.testing.assert_allclose(radius[0::2, 0::2], radius[4, 4], atol=1e-5)
    np.testing.assert_allclose(radius[0::2, 1::2], radius[4, 5], atol=1e-5)
    apart.append(float(radius[4, 4] - radius[4, 5]))
  assert abs(apart[0] - apart[1]) > 1e-3


def test_no_radius_of_a_free_encoder_is_computed():
  model, variables = _create('free')
  mean = _apply(model, variables, _pictures(), method='encode')[..., 2].mean()
  assert abs(mean - math.pi / 4) < 0.2


def test_decoded_pictures_stay_within_the_color_range():
  model, variables = _create()
  pictures = _apply(model, _scaled(variables, 100.0), _pictures())
  assert pictures.shape == (6, 16, 16, 3)
  assert np.abs(pictures).max() <= 1


def test_each_cell_paints_its_own_pixels():
  # Without blocks, the 3x3 convolutions reach two cells and no farther.
  model = optics.Optics(cell=4, width=8, radius='free', blocks=0)
  paths = jnp.full((1, 8, 8, 3), 0.5)
  variables = model.init(jax.random.key(0), paths, method='decode')
  other = paths.at[0, 1, 5].set(0.1)
  changed = np.any(
    _apply(model, variables, paths, method='decode')
    != _apply(model, variables, other, method='decode'),
    axis=(0, 3),
  )
  rows, columns = np.nonzero(changed)
  assert rows.min() == 0
  assert rows.max() == 4 * 4 - 1
  assert columns.min() == 3 * 4
  assert columns.max() == 8 * 4 - 1


def test_gradients_are_finite_on_flat_and_on_wild_pictures():
  model, variables = _create()
  wild = jnp.sign(_pictures(seed=1) + 1e-3)
  pictures = jnp.concatenate([jnp.zeros((1, 16, 16, 3)), wild])
  grads = jax.grad(
    lambda v: jnp.mean((_apply(model, v, pictures) - pictures) ** 2)
  )(variables)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_unknown_radius_and_uneven_size_are_refused():
  with pytest.raises(ValueError, match=r'--config\.optics\.radius'):
    _create('large')
  model, variables = _create()
  with pytest.raises(ValueError, match=r'--config\.data\.image_size'):
    _apply(model, variables, jnp.zeros((1, 18, 18, 3)))


def test_of_unknown_size_an_image_is_mirrored_as_of_a_known_one():
  shape = jax.export.symbolic_shape('b, h, w')
  x = jax.ShapeDtypeStruct(shape, np.float32)
  exported = jax.export.export(jax.jit(optics.mirror))(x)
  for size in ((1, 1, 1), (1, 1, 4), (2, 2, 1), (1, 3, 5)):
    x = np.arange(np.prod(size), dtype=np.float32).reshape(size)
    found = exported.call(x)
    np.testing.assert_array_equal(found, optics.mirror(x))
    if 1 not in size[1:]:
      expected = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode='reflect')
      np.testing.assert_array_equal(found, expected)
  # Of one cell there is no second.
  np.testing.assert_array_equal(
    optics.mirror(np.ones((1, 1, 1))), np.ones((1, 3, 3))
  )
