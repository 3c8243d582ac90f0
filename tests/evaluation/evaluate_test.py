"""Held-out figures against numpy, and the sheet that people look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import skimage.data
import skimage.metrics

from chimera.clones import models
from chimera.clones import state as state_lib
from chimera.data import images
from chimera.evaluation import evaluate, frechet, sheets
from chimera.optics import modules as optics
from chimera.optics import poincare
from tests import tiny

# Easy to hard is not the order of the samples, and some bins are empty.
BINS_N = np.array([7, 0, 7, 3, 0, 9, 3])


@pytest.fixture(scope='module')
def judged():
  """(tokenizer, params, held_out, figures) in batches that do not fit."""
  bins, paths = tiny.bins_and_paths()
  spec = state_lib.create_spec(tiny.get_config())
  bins_N = np.zeros(len(paths), int)
  for b, ids in bins.items():
    bins_N[ids] = b
  held_out = evaluate.HeldOut(paths[:30], None, bins_N[:30])
  x = poincare.normalize(held_out.paths_NxHxWxC)
  params = jax.jit(spec.tokenizer.init)(jax.random.key(0), x)['params']
  figures, *_ = evaluate.evaluate(
    spec.tokenizer, params, held_out, None, batch_size=16
  )
  return spec.tokenizer, params, held_out, figures


def test_the_means_are_those_of_numpy_over_every_sample(judged):
  tokenizer, params, held_out, figures = judged
  x = np.asarray(poincare.normalize(held_out.paths_NxHxWxC))
  x_hat = np.asarray(jax.jit(tokenizer.apply)({'params': params}, x)[0])
  l1_N = np.abs(x - x_hat).mean((1, 2, 3))
  psnr_N = 10 * np.log10(4 / ((x - x_hat) ** 2).mean((1, 2, 3)))
  np.testing.assert_allclose(figures['path_l1'], l1_N.mean(), rtol=1e-5)
  np.testing.assert_allclose(figures['path_psnr'], psnr_N.mean(), rtol=1e-5)
  of_bin = {
    b: l1_N[held_out.bins_N == b].mean() for b in set(held_out.bins_N.tolist())
  }
  for b, l1 in of_bin.items():
    np.testing.assert_allclose(figures[f'path_l1_bin_{b}'], l1, rtol=1e-5)
  np.testing.assert_allclose(
    figures['path_l1_worst_bin'], max(of_bin.values()), rtol=1e-5
  )


def test_perplexity_counts_the_whole_held_out_set(judged):
  tokenizer, params, held_out, figures = judged
  x = poincare.normalize(held_out.paths_NxHxWxC)
  _, _, tokens = jax.jit(tokenizer.apply)({'params': params}, x)
  tokens = np.asarray(tokens).ravel()
  _, counts = np.unique(tokens, return_counts=True)
  p = counts / counts.sum()
  expected = np.exp(-(p * np.log(p)).sum())
  np.testing.assert_allclose(figures['perplexity'], expected, rtol=1e-6)
  assert figures['codes_used'] == len(counts)


def _preview(tokenizer, params_by_row, held_out, eyes, *, columns):
  how = {'batch_size': 5, 'shown': evaluate.columns(held_out, columns)}
  made = {
    name: evaluate.evaluate(tokenizer, params, held_out, eyes, **how).pictures
    for name, params in params_by_row.items()
  }
  optics = evaluate.judge_optics(held_out, eyes, **how)[1] if eyes else None
  return evaluate.preview(made, held_out, how['shown'], optics)


def test_the_sheet_begins_with_what_is_to_be_reconstructed(judged):
  tokenizer, params, held_out, _ = judged
  tiles, sheet = _preview(
    tokenizer, {'a': params, 'b': params}, held_out, None, columns=4
  )
  assert sheet.rows == ('original', 'a', 'b', 'error x4')
  assert tiles.shape == (4, 4, 128, 128, 3)
  assert tiles.dtype == np.uint8
  easiest = held_out.paths_NxHxWxC[np.argmin(held_out.bins_N)]
  pixel = (np.asarray(poincare.normalize(easiest[None]))[0, 0, 0] + 1) * 127.5
  np.testing.assert_allclose(tiles[0, 0, 0, 0], pixel, atol=1)
  np.testing.assert_array_equal(tiles[1], tiles[2])


def test_path_params_that_are_not_square_are_cut_from_their_sheet(
  judged, tmp_path
):
  tokenizer, params, held_out, _ = judged
  wide = np.concatenate([held_out.paths_NxHxWxC] * 2, axis=2)
  _, height, width, _ = wide.shape
  tiles, sheet = _preview(
    tokenizer,
    {'a': params},
    held_out._replace(paths_NxHxWxC=wide),
    None,
    columns=4,
  )
  assert tiles.shape[2] == tiles.shape[3] == sheet.tile
  scale = sheet.tile // width
  assert (tiles[:, :, height * scale :] == 255).all()
  easiest = wide[np.argmin(held_out.bins_N)]
  pixel = (np.asarray(poincare.normalize(easiest[None]))[0, -1, -1] + 1) * 127.5
  seen = tiles[0, 0, height * scale - 1, width * scale - 1]
  np.testing.assert_allclose(seen, pixel, atol=1)
  sheets.save(tmp_path / '1.png', sheets.compose(tiles, sheet), sheet)
  np.testing.assert_array_equal(sheets.tiles(tmp_path / '1.png'), tiles)


def _newborn(x, radius):
  """(tokenizer, params, paths, eyes) of pictures x, as they are born."""
  eye = optics.Optics(cell=4, width=8, radius=radius, blocks=1)
  eye_params = jax.jit(eye.init)(jax.random.key(0), x)
  encode = jax.jit(lambda p, x: eye.apply(p, x, method='encode'))
  paths = np.asarray(encode(eye_params, x))
  tokenizer = models.create_tokenizer(
    width=8, blocks=1, downsample=2, codes=12, code_dim=3
  )
  params = jax.jit(tokenizer.init)(jax.random.key(1), paths)['params']
  return tokenizer, params, paths, evaluate.Eyes(eye, eye_params)


@pytest.fixture(scope='module')
def seen():
  """(tokenizer, params, held_out, eyes): 7 images of 16 pixels, 4x4 cells."""
  pixels = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), np.uint8)
  x = jnp.asarray(pixels / 127.5 - 1, jnp.float32)
  tokenizer, params, paths, eyes = _newborn(x, 'free')
  held_out = evaluate.HeldOut(paths, pixels, BINS_N)
  return tokenizer, params, held_out, eyes


@pytest.fixture(scope='module')
def photographs():
  """(tokenizer, params, held_out, eyes, pictures): 6 photographs of 64 pixels,
  and what becomes of them, uint8, by way of numpy."""
  photo = skimage.data.astronaut()
  corners = ((0, 180), (100, 200), (200, 60), (400, 300), (30, 30), (300, 420))
  pixels = np.stack([photo[t : t + 64, l : l + 64] for t, l in corners])
  x = images.to_float(pixels)
  tokenizer, params, paths, eyes = _newborn(x, 'contrast')
  held_out = evaluate.HeldOut(
    paths,
    pixels,
    np.array([0, 0, 4, 4, 4, 9]),
    evaluate.frechet_metrics(pixels, '', batch_size=4),
  )
  x = poincare.normalize(paths)
  x_hat = jax.jit(tokenizer.apply)({'params': params}, x)[0]
  return tokenizer, params, held_out, eyes, evaluate.draw(x_hat, eyes)


@pytest.fixture(scope='module')
def of_photographs(photographs):
  tokenizer, params, held_out, eyes, _ = photographs
  figures, *_ = evaluate.evaluate(
    tokenizer, params, held_out, eyes, batch_size=4
  )
  return figures


def test_pixel_figures_are_those_of_scikit_image_on_the_same_8_bit_images(
  photographs, of_photographs
):
  *_, held_out, _, pictures = photographs
  pairs = list(zip(held_out.images_NxSxSx3, pictures))
  psnr_N = np.array(
    [skimage.metrics.peak_signal_noise_ratio(a, b) for a, b in pairs]
  )
  ssim_N = np.array(
    [
      skimage.metrics.structural_similarity(
        a,
        b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
      )
      for a, b in pairs
    ]
  )
  l1_N = np.array([np.abs(a.astype(float) - b).mean() for a, b in pairs])
  expected = {'psnr': psnr_N, 'ssim': ssim_N, 'pixel_l1': l1_N / 127.5}
  for name, value_N in expected.items():
    of_bins = {
      0: value_N[:2].mean(),
      4: value_N[2:5].mean(),
      9: value_N[5],
    }
    worst = (max if name == 'pixel_l1' else min)(of_bins.values())
    wanted = {
      name: value_N.mean(),
      f'{name}_worst_bin': worst,
      **{f'{name}_bin_{b}': value for b, value in of_bins.items()},
    }
    got = {k: of_photographs[k] for k in wanted}
    assert got == pytest.approx(wanted, abs=1e-4)
    assert f'{name}_bin_1' not in of_photographs


def test_the_other_pixel_figures_are_of_the_same_8_bit_images(
  photographs, of_photographs
):
  *_, held_out, _, pictures = photographs
  a, b = (
    x.astype(np.float64) / 127.5 - 1
    for x in (held_out.images_NxSxSx3, pictures)
  )

  def magnitude(x):
    return np.hypot(np.diff(x, axis=2)[:, :-1], np.diff(x, axis=1)[:, :, :-1])

  def log_power(x):
    power = np.abs(np.fft.rfft2(x, axes=(1, 2), norm='ortho')) ** 2
    return np.log(power + 1e-4)

  edge = np.abs(magnitude(a) - magnitude(b)).mean()
  spectrum = np.abs(log_power(a) - log_power(b)).mean() / 2
  assert of_photographs['edge'] == pytest.approx(edge, abs=1e-3)
  assert of_photographs['spectrum'] == pytest.approx(spectrum, abs=1e-4)
  assert 0 < of_photographs['ms_ssim'] < 1


def test_the_frechet_distance_is_of_the_same_8_bit_images(
  photographs, of_photographs
):
  *_, held_out, _, pictures = photographs
  f, g = (
    np.asarray(frechet.random_features(images.to_float(x)), np.float64)
    for x in (held_out.images_NxSxSx3, pictures)
  )
  # tr (C D)^(1/2), of fewer images than features: by the Gram matrices.
  f_, g_ = (x - x.mean(0) for x in (f, g))
  common = scipy.linalg.svdvals(f_ @ g_.T).sum() / 5
  apart = np.square(f.mean(0) - g.mean(0)).sum()
  traces = (np.square(f_).sum() + np.square(g_).sum()) / 5
  assert of_photographs['rfd-random'] == pytest.approx(
    apart + traces - 2 * common, rel=1e-4
  )
  assert 'rfid' not in of_photographs


def test_the_optics_alone_are_judged_at_8_bits_too(photographs, of_photographs):
  *_, held_out, eyes, _ = photographs
  seen = evaluate.draw(poincare.normalize(held_out.paths_NxHxWxC), eyes)
  expected = [
    skimage.metrics.peak_signal_noise_ratio(a, b)
    for a, b in zip(held_out.images_NxSxSx3, seen)
  ]
  assert of_photographs['optics_psnr'] == pytest.approx(
    np.mean(expected), abs=1e-4
  )


def test_a_partial_last_batch_changes_no_figure(seen):
  tokenizer, params, held_out, eyes = seen
  one, many = (
    evaluate.evaluate(tokenizer, params, held_out, eyes, batch_size=size)[0]
    for size in (7, 3)
  )
  assert one == pytest.approx(many, rel=1e-4)


def test_empty_bins_have_no_figure(seen):
  tokenizer, params, held_out, _ = seen
  figures, *_ = evaluate.evaluate(
    tokenizer, params, held_out, None, batch_size=7
  )
  of_bins = {name for name in figures if name.startswith('path_l1_bin_')}
  assert of_bins == {f'path_l1_bin_{b}' for b in (0, 3, 7, 9)}
  assert {name for name in figures if not name.startswith('path_')} == {
    'codes_used',
    'perplexity',
  }


def test_the_counts_of_codes_are_those_of_numpy(judged):
  tokenizer, params, held_out, _ = judged
  _, counts_V, _ = evaluate.evaluate(
    tokenizer, params, held_out, None, batch_size=16
  )
  x = poincare.normalize(held_out.paths_NxHxWxC)
  _, _, tokens = jax.jit(tokenizer.apply)({'params': params}, x)
  tokens = np.asarray(tokens).ravel()
  np.testing.assert_array_equal(counts_V, np.bincount(tokens, minlength=16))


def test_row_0_holds_the_photographs_from_easy_to_hard(seen):
  tokenizer, params, held_out, eyes = seen
  tiles, sheet = _preview(
    tokenizer, {'master': params, 'b': params}, held_out, eyes, columns=7
  )
  assert sheet.rows == ('original', 'optics', 'master', 'b', 'error x4')
  assert sheet.bins == (0, 0, 3, 3, 7, 7, 9)
  assert tiles.shape == (5, 7, 128, 128, 3)
  originals = [held_out.images_NxSxSx3[i] for i in (1, 4, 3, 6, 0, 2, 5)]
  np.testing.assert_array_equal(tiles[0, :, ::8, ::8], np.stack(originals))
  np.testing.assert_array_equal(
    tiles[4], evaluate.error_map(tiles[0], tiles[2])
  )
  x = poincare.normalize(held_out.paths_NxHxWxC)
  x_hat, *_ = jax.jit(tokenizer.apply)({'params': params}, x)
  for row, paths in ((1, x), (2, x_hat)):
    expected = evaluate.draw(paths, eyes)[[1, 4, 3, 6, 0, 2, 5]]
    apart = tiles[row, :, ::8, ::8].astype(int) - expected
    assert np.abs(apart).max() <= 1, row


def test_a_sheet_of_few_columns_goes_from_the_easiest_to_the_hardest():
  held_out = evaluate.HeldOut(np.zeros((30, 1)), None, np.arange(30) // 3)
  shown = evaluate.columns(held_out, 4)
  assert held_out.bins_N[shown].tolist() == [0, 3, 6, 9]


def test_the_error_map_is_four_times_the_mean_distance_of_the_channels():
  a = np.array([[[10, 20, 30], [255, 255, 255]]], np.uint8)
  b = np.array([[[13, 20, 24], [0, 0, 0]]], np.uint8)
  # (3 + 0 + 6) / 3 = 3, times 4; and more than 255 is white.
  assert evaluate.error_map(a, b).tolist() == [[[12] * 3, [255] * 3]]


def test_features_of_the_user_s_are_a_figure_where_they_are_given(seen):
  tokenizer, params, held_out, eyes = seen

  def apart(a, b):
    return jnp.abs(a - b).mean((1, 2, 3))

  held_out = held_out._replace(distance=apart)
  figures, *_ = evaluate.evaluate(
    tokenizer, params, held_out, eyes, batch_size=3
  )
  np.testing.assert_allclose(
    figures['features'], figures['pixel_l1'], rtol=1e-5
  )
