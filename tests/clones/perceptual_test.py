"""Each distance against scikit-image, numpy or scipy, written anew here."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.stats
import skimage.data
import skimage.metrics
import skimage.transform

from chimera.clones import perceptual

# Compiled as one, instead of one by one.
ssim = jax.jit(perceptual.ssim, static_argnames='filter_size')
edge, autocorrelation, moments, spectrum, color_covariance, psnr, ms_ssim = map(
  jax.jit,
  (
    perceptual.edge,
    perceptual.autocorrelation,
    perceptual.moments,
    perceptual.spectrum,
    perceptual.color_covariance,
    perceptual.psnr,
    perceptual.ms_ssim,
  ),
)
DISTANCES = ssim, edge, autocorrelation, moments, spectrum, color_covariance
each_distance = pytest.mark.parametrize(
  'distance', DISTANCES, ids=lambda f: f.__name__
)


def _pair(size: int = 16, noise: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
  """Four crops of a photograph, float32 in [-1, 1], and the same with noise."""
  photo = skimage.data.astronaut().astype(np.float32) / 127.5 - 1
  corners = ((0, 180), (100, 200), (200, 60), (400, 300))
  corners = np.minimum(corners, 512 - size)
  a = np.stack([photo[t : t + size, l : l + size] for t, l in corners])
  rng = np.random.default_rng(0)
  b = np.clip(a + noise * rng.normal(size=a.shape), -1, 1)
  return a, b.astype(np.float32)


@pytest.mark.parametrize('size', [11, 16, 32])
def test_ssim_is_that_of_scikit_image_on_the_same_images_in_uint8(size: int):
  a, b = (np.round((x + 1) * 127.5).astype(np.uint8) for x in _pair(size))
  expected = [
    1
    - skimage.metrics.structural_similarity(
      p,
      q,
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
      data_range=255,
      channel_axis=-1,
    )
    for p, q in zip(a, b)
  ]
  a, b = (x.astype(np.float32) / 127.5 - 1 for x in (a, b))
  np.testing.assert_allclose(ssim(a, b), expected, atol=5e-5)


def test_ssim_of_a_black_and_a_white_image_is_its_stabilizer():
  # Means 0 and 1, no variance: SSIM = c1 / (1 + c1), c1 = 0.01^2.
  black, white = -jnp.ones((1, 8, 8, 3)), jnp.ones((1, 8, 8, 3))
  np.testing.assert_allclose(ssim(black, white), [1 - 1e-4 / 1.0001], rtol=1e-5)


def test_ssim_window_shrinks_to_the_grid():
  # On 8 x 8 the greatest odd window is 7: four positions, by hand.
  a, b = (x[:, :8, :8, :1].astype(np.float64) / 2 + 0.5 for x in _pair())
  line = np.exp(-0.5 * ((np.arange(7) - 3) / 1.5) ** 2)
  window = np.outer(line, line)[..., None] / line.sum() ** 2
  expected = np.zeros(4)
  for n in range(4):
    for top, left in np.ndindex(2, 2):
      p = a[n, top : top + 7, left : left + 7]
      q = b[n, top : top + 7, left : left + 7]
      m, k = (window * p).sum(), (window * q).sum()
      mm, kk = (window * (p - m) ** 2).sum(), (window * (q - k) ** 2).sum()
      mk = (window * (p - m) * (q - k)).sum()
      expected[n] += (
        (2 * m * k + 1e-4)
        * (2 * mk + 9e-4)
        / 4
        / ((m * m + k * k + 1e-4) * (mm + kk + 9e-4))
      )
  a, b = (np.float32(2 * x - 1) for x in (a, b))
  np.testing.assert_allclose(ssim(a, b), 1 - expected, atol=5e-5)
  np.testing.assert_allclose(ssim(a, b, filter_size=7), 1 - expected, atol=5e-5)


def test_edge_of_a_step_against_nothing_is_its_height_on_its_column():
  # A step of 1.5 down one of the seven columns of differences.
  step = jnp.where(jnp.arange(8) < 3, -0.5, 1.0)
  step = jnp.broadcast_to(step[None, None, :, None], (1, 8, 8, 2))
  np.testing.assert_allclose(
    edge(step, jnp.zeros((1, 8, 8, 2))), [1.5 / 7], rtol=1e-3
  )


def test_edge_sees_the_finest_stripes():
  # Stripes of one pixel, +-1: every difference is 2.
  stripes = jnp.where(jnp.arange(8) % 2 == 0, -1.0, 1.0)
  stripes = jnp.broadcast_to(stripes[None, None, :, None], (1, 8, 8, 1))
  np.testing.assert_allclose(
    edge(stripes, jnp.zeros((1, 8, 8, 1))), [2.0], rtol=1e-3
  )


def test_edge_is_that_of_numpy():
  a, b = _pair()

  def magnitude(x):
    dx = np.diff(x.astype(np.float64), axis=2)[:, :-1]
    dy = np.diff(x.astype(np.float64), axis=1)[:, :, :-1]
    return np.hypot(dx, dy)

  expected = np.abs(magnitude(a) - magnitude(b)).mean(axis=(1, 2, 3))
  np.testing.assert_allclose(edge(a, b), expected, rtol=2e-3)


def test_autocorrelation_is_that_of_scipy_on_the_wrapped_image():
  a, b = _pair()

  def reference(x):
    x = x.astype(np.float64) - x.mean()
    wrapped = np.pad(x, ((0, 15), (0, 15)), mode='wrap')
    r = scipy.signal.correlate2d(wrapped, x, mode='valid') / x.size
    return r / (r[0, 0] + 1e-4)

  expected = [
    np.mean(
      [np.abs(reference(p[..., c]) - reference(q[..., c])) for c in range(3)]
    )
    for p, q in zip(a, b)
  ]
  np.testing.assert_allclose(autocorrelation(a, b), expected, rtol=1e-4)


def test_autocorrelation_leaves_position_and_contrast_out():
  a, _ = _pair()
  moved = 0.9 * jnp.roll(a, (3, 5), axis=(1, 2)) + 0.1
  assert (autocorrelation(a, moved) < 0.01).all()
  assert (edge(a, moved) > 0.01).all()


def test_moments_are_those_of_scipy():
  a, b = _pair()

  def reference(x):
    x = x.reshape(4, -1, 3).astype(np.float64)
    std = x.std(axis=1)
    return np.stack([x.mean(axis=1), std, scipy.stats.skew(x, axis=1) * std])

  expected = np.abs(reference(a) - reference(b)).mean(axis=(0, 2))
  # The photograph's contrast is far above the floor of 0.01.
  np.testing.assert_allclose(moments(a, b), expected, rtol=2e-2)


def test_moments_of_constant_images_differ_by_a_third_of_their_distance():
  a = jnp.full((1, 8, 8, 3), -0.4)
  b = jnp.full((1, 8, 8, 3), 0.5)
  np.testing.assert_allclose(moments(a, b), [0.3], rtol=1e-5)


def test_spectrum_is_that_of_numpy():
  a, b = _pair()

  def reference(x):
    f = np.fft.fft2(x.astype(np.float64), axes=(1, 2))[:, :, :9] / 16
    return 0.5 * np.log(np.abs(f) ** 2 + 1e-4)

  expected = np.abs(reference(a) - reference(b)).mean(axis=(1, 2, 3))
  np.testing.assert_allclose(spectrum(a, b), expected, rtol=1e-4)


def test_spectrum_of_a_halved_wave_is_log_two_at_its_frequency():
  # cos over 8 x 8 holds its power in one coefficient of the 8 x 5 half plane.
  wave = jnp.cos(2 * jnp.pi * 2 * jnp.arange(8) / 8)
  wave = jnp.broadcast_to(wave[None, None, :, None], (1, 8, 8, 1))
  np.testing.assert_allclose(
    spectrum(wave, 0.5 * wave), [np.log(2) / 40], rtol=1e-3
  )


def test_color_covariance_is_that_of_numpy():
  a, b = _pair()
  expected = [
    np.abs(
      np.cov(p.reshape(-1, 3).T.astype(np.float64), bias=True)
      - np.cov(q.reshape(-1, 3).T.astype(np.float64), bias=True)
    ).mean()
    for p, q in zip(a, b)
  ]
  np.testing.assert_allclose(color_covariance(a, b), expected, rtol=1e-4)


def test_psnr_is_that_of_scikit_image_with_a_range_of_two():
  a, b = _pair()
  expected = [
    skimage.metrics.peak_signal_noise_ratio(p, q, data_range=2)
    for p, q in zip(a, b)
  ]
  np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)


def test_psnr_of_equal_images_is_one_hundred():
  a, _ = _pair()
  np.testing.assert_allclose(psnr(a, a), np.full(4, 100), rtol=1e-6)


@each_distance
def test_equal_images_are_no_distance_apart(distance: Callable):
  a, _ = _pair()
  np.testing.assert_allclose(distance(a, a), np.zeros(4), atol=1e-6)


@each_distance
def test_distance_is_the_same_both_ways_positive_and_one_a_pair(
  distance: Callable,
):
  a, b = _pair()
  assert distance(a, b).shape == (4,)
  assert distance(a, b).dtype == jnp.float32
  assert (distance(a, b) > 1e-3).all()
  np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-5)


@each_distance
def test_more_noise_is_farther(distance: Callable):
  near, far = (distance(*_pair(noise=noise)) for noise in (0.02, 0.3))
  assert (near < far).all()


@each_distance
@pytest.mark.parametrize('shape', [(1, 8, 8, 1), (2, 9, 12, 4)])
def test_any_grid_and_any_number_of_channels(distance: Callable, shape):
  rng = np.random.default_rng(0)
  a, b = rng.uniform(-1, 1, (2, *shape)).astype(np.float32)
  assert distance(a, b).shape == shape[:1]
  assert np.isfinite(distance(a, b)).all()


@each_distance
def test_gradient_agrees_with_finite_differences(distance: Callable):
  with jax.enable_x64(True):
    a, b = (jnp.asarray(x[:1, :8, :8], jnp.float64) for x in _pair())
    gradient = jax.jit(jax.grad(lambda b: distance(a, b).sum()))(b)
    rng = np.random.default_rng(1)
    for _ in range(3):
      way = jnp.asarray(rng.normal(size=b.shape))
      h = 1e-6
      slope = (distance(a, b + h * way) - distance(a, b - h * way)) / (2 * h)
      np.testing.assert_allclose(
        (gradient * way).sum(), slope.sum(), rtol=1e-4, atol=1e-7
      )


@each_distance
def test_gradient_is_finite_where_images_are_constant(
  distance: Callable,
):
  photo = _pair()[0]
  levels = np.array([-1.0, 0.0, 0.5, 1.0], np.float32)
  flat = np.broadcast_to(levels[:, None, None, None], photo.shape)
  slope = jax.jit(jax.grad(lambda b, a: distance(a, b).sum()))
  for a, b in ((flat, flat), (photo, flat), (flat, photo), (photo, photo)):
    gradient = slope(b, a)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 10


@each_distance
def test_descending_the_gradient_comes_nearer(distance: Callable):
  a, b = _pair()
  gradient = jax.grad(lambda b: distance(a, b).sum())(b)
  nearer = b - 0.01 * gradient / jnp.sqrt(jnp.square(gradient).sum())
  assert distance(a, nearer).sum() < distance(a, b).sum()


def test_shapes_that_differ_are_refused():
  with pytest.raises(AssertionError, match='shape'):
    edge(jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 9, 3)))


PUBLISHED = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])


def reference_ms_ssim(a, b):
  """Of two uint8 images, by scikit-image and scipy, a channel at a time."""
  side = min(a.shape[:2])
  scales = [k for k in range(5) if side / 2**k >= 11]
  weights = PUBLISHED[: len(scales)] / PUBLISHED[: len(scales)].sum()

  def blur(x):
    # 11 wide, and only where the window is inside.
    return scipy.ndimage.gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

  products = []
  for p, q in zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)):
    p, q, product = p.astype(np.float64), q.astype(np.float64), 1.0
    for k in scales:
      _, whole = skimage.metrics.structural_similarity(
        p,
        q,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
      )
      c1 = (0.01 * 255) ** 2
      m, n = blur(p), blur(q)
      light = (2 * m * n + c1) / (m**2 + n**2 + c1)
      likeness = whole[5:-5, 5:-5]
      if k != scales[-1]:
        likeness = likeness / light
      product *= likeness.mean() ** weights[k]
      h, w = (n // 2 * 2 for n in p.shape)
      p, q = (
        skimage.transform.downscale_local_mean(x[:h, :w], (2, 2))
        for x in (p, q)
      )
    products.append(product)
  return np.mean(products)


@pytest.mark.parametrize('size', [16, 47, 64, 176])
def test_ms_ssim_is_that_of_scikit_image_and_scipy(size: int):
  a, b = (np.round((x + 1) * 127.5).astype(np.uint8) for x in _pair(size, 0.1))
  expected = [reference_ms_ssim(p, q) for p, q in zip(a, b)]
  a, b = (x.astype(np.float32) / 127.5 - 1 for x in (a, b))
  np.testing.assert_allclose(ms_ssim(a, b), expected, atol=1e-4)


def test_ms_ssim_of_one_scale_is_ssim():
  a, b = _pair(16)
  np.testing.assert_allclose(ms_ssim(a, b), 1 - ssim(a, b), atol=1e-4)


def test_ms_ssim_is_1_of_equal_images_and_0_where_structure_is_turned_over():
  # Around a mean of 0 the negative has the opposite covariance everywhere.
  x = np.random.default_rng(0).choice([-1, 1], (1, 64, 64, 3)).astype('f')
  np.testing.assert_allclose(ms_ssim(x, x), [1.0], atol=1e-6)
  np.testing.assert_array_equal(ms_ssim(x, -x), [0.0])
