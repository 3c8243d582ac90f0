"""Held-out figures against numpy, and the sheet that people look at."""

import jax
import numpy as np
import pytest

from chimera import evaluate, poincare
from chimera import state as state_lib
from tests import tiny


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
  figures = evaluate.evaluate(
    spec.tokenizer, params, held_out, None, batch_size=16
  )
  return spec.tokenizer, params, held_out, figures


def test_the_means_are_those_of_numpy_over_every_sample(judged):
  tokenizer, params, held_out, figures = judged
  x = np.asarray(poincare.normalize(held_out.paths_NxHxWxC))
  x_hat = np.asarray(tokenizer.apply({'params': params}, x)[0])
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
  tokens = np.asarray(tokenizer.apply({'params': params}, x)[2]).ravel()
  _, counts = np.unique(tokens, return_counts=True)
  p = counts / counts.sum()
  expected = np.exp(-(p * np.log(p)).sum())
  np.testing.assert_allclose(figures['perplexity'], expected, rtol=1e-6)
  assert figures['codes_used'] == len(counts)


def test_the_sheet_begins_with_what_is_to_be_reconstructed(judged):
  tokenizer, params, held_out, _ = judged
  sheet = evaluate.preview(
    tokenizer, {'a': params, 'b': params}, held_out, None, columns=4
  )
  side = 128 // 8 * 8
  assert sheet.shape == (3 * side, 4 * side, 3)
  assert sheet.dtype == np.uint8
  easiest = held_out.paths_NxHxWxC[np.argmin(held_out.bins_N)]
  pixel = (np.asarray(poincare.normalize(easiest[None]))[0, 0, 0] + 1) * 127.5
  np.testing.assert_allclose(sheet[0, 0], pixel, atol=1)
  np.testing.assert_array_equal(sheet[side : 2 * side], sheet[2 * side :])
