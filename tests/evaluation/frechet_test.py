"""The Frechet distance against scipy, and the networks that make features."""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import scipy.linalg
import scipy.ndimage
import skimage.data

from chimera.evaluation import frechet


def reference(x, y):
  """As the authors wrote it: by the root of the product."""
  c, d = (np.cov(z, rowvar=False) for z in (x, y))
  root = scipy.linalg.sqrtm(c @ d)
  apart = x.mean(0) - y.mean(0)
  return apart @ apart + np.trace(c + d - 2 * root.real)


def moments(*batches):
  so_far = None
  for batch in batches:
    so_far = frechet.add(so_far, batch)
  return so_far


def distance(x, y):
  return frechet.frechet_distance(moments(x), moments(y))


def photographs():
  """48 crops of 32 pixels, in [-1, 1]."""
  photo = skimage.data.astronaut().astype(np.float32) / 127.5 - 1
  corners = np.random.default_rng(0).integers(0, 480, (48, 2))
  return np.stack([photo[t : t + 32, l : l + 32] for t, l in corners])


@pytest.mark.parametrize(('count', 'features'), [(50, 3), (200, 40), (300, 96)])
def test_the_distance_is_that_of_scipy(count, features):
  rng = np.random.default_rng(count)
  mix = rng.normal(size=(features, features))
  x = rng.normal(size=(count, features)) @ mix
  y = 0.7 * rng.normal(size=(count, features)) @ mix.T + 0.5
  assert distance(x, y) == pytest.approx(reference(x, y), rel=1e-6)


def test_the_distance_of_the_random_features_is_that_of_scipy():
  x = photographs()
  rng = np.random.default_rng(1)
  y = np.clip(x + 0.3 * rng.normal(size=x.shape), -1, 1).astype(np.float32)
  f, g = (np.asarray(frechet.random_features(z), np.float64) for z in (x, y))
  # Of 16 features, fewer than there are images: scipy's root of a singular
  # product is good to half of the digits.
  assert distance(f[:, ::6], g[:, ::6]) == pytest.approx(
    reference(f[:, ::6], g[:, ::6]), rel=1e-6, abs=1e-6
  )


def gaussian(mean, variances):
  """Moments of two images, whose scatter is their covariance."""
  return frechet.Moments(2, np.array(mean, float), np.diag(variances))


def test_the_distance_of_two_gaussians_by_hand():
  # Means 3 apart; standard deviations 2 and 5 in the one direction, 1 and 1 in
  # the other: 9 + (5 - 2)^2.
  d = frechet.frechet_distance(
    gaussian((0, 0), (4, 1)), gaussian((0, 3), (25, 1))
  )
  assert d == pytest.approx(18.0, rel=1e-12)
  # The traces are 17 each; C^(1/2) D^(1/2) = diag(4, 1) diag(1, 4) = 4 I.
  d = frechet.frechet_distance(
    gaussian((0, 0), (16, 1)), gaussian((0, 0), (1, 16))
  )
  assert d == pytest.approx(34 - 2 * 8, rel=1e-12)


def test_equal_sets_are_at_no_distance_even_with_fewer_images_than_features():
  x = np.random.default_rng(0).normal(size=(20, 50))
  assert distance(x, x) == pytest.approx(0.0, abs=1e-9)
  assert distance(x, x[::-1]) == pytest.approx(0.0, abs=1e-9)


def test_features_that_are_not_finite_have_no_distance():
  x = np.random.default_rng(0).normal(size=(20, 3))
  assert np.isnan(distance(x, np.where(x > 1, np.nan, x)))


def test_the_moments_do_not_depend_on_the_batches():
  x = 100 + np.random.default_rng(0).normal(size=(50, 4))
  once, many = moments(x), moments(x[:1], x[1:32], x[32:])
  assert once.count == many.count == 50
  for m in (once, many):
    np.testing.assert_allclose(m.mean_F, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
      m.covariance_FxF, np.cov(x, rowvar=False), rtol=1e-9
    )


def test_the_random_network_is_the_same_everywhere():
  kernels = frechet.random_weights()
  assert [k.shape for k in kernels] == [
    (3, 3, 3, 16),
    (3, 3, 16, 32),
    (3, 3, 32, 48),
  ]
  # numpy's default_rng(0).random() begins 0.6369616873, 0.2697867138.
  first = (2 * np.array([0.6369616873, 0.2697867138]) - 1) * np.sqrt(6 / 27)
  np.testing.assert_allclose(kernels[0].ravel()[:2], first, rtol=1e-6)
  for kernel in kernels:
    fan_in = np.prod(kernel.shape[:3])
    assert kernel.var() * fan_in == pytest.approx(2, rel=0.1)


def test_the_random_features_are_those_of_scipy():
  x = photographs()[:1, :8, :8]
  expected, maps = [], x[0].astype(np.float64)
  for kernel in frechet.random_weights():
    outside = []
    for o in range(kernel.shape[3]):
      # 'SAME' in steps of 2 of an even side: zeros behind, none before.
      total = sum(
        scipy.ndimage.correlate(
          maps[..., i], kernel[..., i, o].astype(np.float64), mode='constant'
        )
        for i in range(maps.shape[2])
      )
      outside.append(np.maximum(total[1::2, 1::2], 0))
    maps = np.stack(outside, axis=-1)
    expected.extend(maps.mean((0, 1)))
  np.testing.assert_allclose(
    frechet.random_features(x)[0], expected, rtol=1e-4, atol=1e-6
  )


def test_the_distance_rises_with_noise_and_with_blur():
  x = photographs()
  metric = frechet.FrechetMetric('x', frechet.random_features, [x[:32], x[32:]])
  rng = np.random.default_rng(1)
  noise = rng.normal(size=x.shape).astype(np.float32)

  def of(pictures):
    return metric.distance(metric.add(None, pictures))

  noisy = [of(np.clip(x + s * noise, -1, 1)) for s in (0, 0.05, 0.1, 0.2, 0.4)]
  blurred = [
    of(scipy.ndimage.gaussian_filter(x, (0, s, s, 0))) for s in (0.5, 1, 2)
  ]
  assert noisy[0] == pytest.approx(0, abs=1e-6)
  assert noisy == sorted(noisy)
  assert [0, *blurred] == sorted([0, *blurred])
  assert blurred[0] > 1e-4


def test_pictures_become_as_large_as_inception_s_by_pillow_s_bicubic_filter():
  x = photographs()[0]
  expected = [
    Image.fromarray(x[..., c]).resize((299, 299), Image.Resampling.BICUBIC)
    for c in range(3)
  ]
  np.testing.assert_allclose(
    frechet.resize(x[None])[0], np.stack(expected, axis=-1), atol=1e-4
  )


@pytest.fixture(scope='module')
def network(tmp_path_factory):
  """Returns a function that exports another to a file."""
  folder = tmp_path_factory.mktemp('networks')

  def save(f, shape='n, 299, 299, 3', platforms=None):
    image = jax.ShapeDtypeStruct(export.symbolic_shape(shape), jnp.float32)
    exported = export.export(jax.jit(f), platforms=platforms)(image)
    path = folder / f'{len(list(folder.iterdir()))}.jax'
    path.write_bytes(exported.serialize())
    return str(path)

  return save


def means(x):
  """Brightness of the left and of the right half, twice over."""
  left, right = x[:, :, :149].mean((1, 2, 3)), x[:, :, 149:].mean((1, 2, 3))
  return jnp.stack([left, right], axis=1)


@pytest.mark.parametrize('trailing', [(), (1, 1)])
def test_a_network_of_the_user_s_gives_the_features(network, trailing):
  path = network(lambda x: means(x).reshape(-1, *trailing, 2))
  features = frechet.load_network(path)
  x = photographs()[:5]
  expected = np.asarray(means(np.asarray(frechet.resize(x))))
  np.testing.assert_allclose(features(x), expected, atol=1e-5)


@pytest.mark.parametrize('data', [b'', b'x', b'PK\x03\x04 of another kind' * 9])
def test_a_file_that_is_no_network_is_refused_in_one_line(tmp_path, data):
  path = tmp_path / 'inception.jax'
  path.write_bytes(data)
  with pytest.raises(ValueError, match=r'--config\.eval\.inception') as e:
    frechet.load_network(str(path))
  assert '\n' not in str(e.value)


def test_half_a_file_is_refused(network, tmp_path):
  with open(network(means), 'rb') as f:
    data = f.read()
  (tmp_path / 'half').write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match='does not load'):
    frechet.load_network(str(tmp_path / 'half'))


def test_a_network_of_other_images_or_of_no_features_is_refused(network):
  for path, reason in (
    (network(lambda x: x.mean((1, 2)), 'n, 32, 32, 3'), 'does not load'),
    (network(lambda x: x.mean((1, 2)), '4, 299, 299, 3'), 'does not load'),
    (network(means, platforms=('tpu',)), 'exported for platforms'),
    (network(lambda x: x.mean((0, 1, 2))), r'makes \[\(3,\)\]'),
    (network(lambda x: x.mean((1, 2, 3))), r'makes \[\(2,\)\]'),
    (network(lambda x: x), r'makes \[\(2, 299, 299, 3\)\]'),
    (network(lambda x: (means(x), means(x))), r'makes \[\(2, 2\), \(2, 2\)\]'),
  ):
    with pytest.raises(ValueError, match=reason):
      frechet.load_network(path)
