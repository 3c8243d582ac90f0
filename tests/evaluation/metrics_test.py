"""The one table of metrics: it holds what there is, and all follow it."""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from chimera import ledger
from chimera import step as step_lib
from chimera.clones import perceptual, terms
from chimera.clones import state as state_lib
from chimera.evaluation import evaluate, features, frechet, metrics
from chimera.monitor import report, summary, writers
from chimera.optics import poincare
from tests import tiny

# What the step returns beside metrics.
OTHERS = {'healthy', 'sick', 'lesson_B', 'specialist'}


def test_importing_it_imports_no_jax():
  program = (
    'import sys; from chimera.evaluation import metrics; '
    'sys.exit("tensorflow" in sys.modules or "jax" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def test_the_step_emits_what_the_table_says_and_nothing_else():
  config = tiny.get_config()
  spec = state_lib.create_spec(config)
  devices = jax.devices()[:1]
  step = step_lib.make_train_step(spec, tuple(devices))
  _, emitted = jax.eval_shape(
    step, *tiny.on_devices(config, spec, *tiny.bins_and_paths(), devices)
  )
  in_table = {
    m.tag.removesuffix(metrics.TERM)
    for m in metrics.TABLE
    if not m.tag.startswith((metrics.HELD_OUT, 'perf/'))
  }
  assert emitted.keys() - OTHERS == in_table
  assert tiny.metrics().keys() == in_table
  vectors = {k for k in in_table if emitted[k].shape[-1] == len(terms.TERMS)}
  assert vectors == {
    m.tag.removesuffix(metrics.TERM)
    for m in metrics.TABLE
    if m.tag.endswith(metrics.TERM)
  }


def test_a_row_is_of_known_places_and_its_function_is_there():
  assert len(metrics.BY_TAG) == len(metrics.TABLE)
  for metric in metrics.TABLE:
    places = f'{metric.shown} {metric.by_bin or ""}'.split()
    assert set(places) <= set(metrics.PLACES), metric
    assert metric.better in (metrics.HIGHER, metrics.LOWER, ''), metric
    assert format(1.0, metric.form)
    assert not metric.by or callable(getattr(perceptual, metric.by))


def test_the_overview_is_one_page_of_tensorboard():
  assert len({m.title for m in metrics.shown('overview')}) == 12


def test_every_figure_says_which_way_is_better():
  x = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3))
  worse = 0.5 * x + 0.3
  for metric in metrics.FIGURES:
    assert metric.better
    if metric.by:
      measure = functools.partial(getattr(perceptual, metric.by), jnp.array(x))
      values = (*map(float, measure(x)), *map(float, measure(worse)))
      assert metric.best_of(values) in values[:2], metric
      assert metric.worst_of(values) in values[2:], metric
      assert np.isnan(metric.worst_of([*values, np.nan, 0.0])), metric


def test_a_head_breaks_where_it_may():
  metric = metrics.Metric('eval/x', 'X', unit='dB', short='MS-perp\xadlexity')
  assert metric.head == 'MS-perplexity (dB)'
  assert metric.narrow_head == 'MS-\nperp-\nlexity\n(dB)'
  assert metrics.Metric('eval/x', 'X y').head == 'X y'


@pytest.fixture
def gradient_l1(monkeypatch):
  """One line more in the table, and its function."""
  row = metrics.Metric(
    'eval/gradient_l1',
    'Gradient L1',
    'table report ledger',
    by='gradient_l1',
    better=metrics.LOWER,
    by_bin='',
  )
  monkeypatch.setattr(metrics, 'TABLE', (*metrics.TABLE, row))
  monkeypatch.setattr(metrics, 'FIGURES', (*metrics.FIGURES, row))
  monkeypatch.setattr(
    perceptual,
    'gradient_l1',
    lambda a, b: jnp.abs(jnp.diff(a - b, axis=1)).mean((1, 2, 3)),
    raising=False,
  )
  jax.clear_caches()
  yield
  jax.clear_caches()


def _measured():
  """(figures, pixels, reconstructions) of a newborn tokenizer."""
  parts = tiny.parts()
  pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
  eyes = evaluate.Eyes(parts.optics, parts.variables)
  x = pixels / np.float32(127.5) - 1
  encode = jax.jit(functools.partial(eyes.model.apply, method='encode'))
  paths = np.asarray(encode(eyes.params, x))
  held_out = evaluate.HeldOut(paths, pixels, np.array([0, 0, 4, 4, 9]))
  figures, *_ = evaluate.evaluate(
    parts.tokenizer, parts.params, held_out, eyes, batch_size=5
  )
  x_hat = jax.jit(parts.tokenizer.apply)(
    {'params': parts.params}, poincare.normalize(paths)
  )[0]
  return figures, pixels, evaluate.draw(x_hat, eyes)


def test_a_line_in_the_table_is_a_metric_everywhere(gradient_l1):
  figures, pixels, pictures = _measured()
  difference = (pixels.astype(float) - pictures) / 127.5
  each_N = np.abs(np.diff(difference, axis=1)).mean((1, 2, 3))
  assert figures['gradient_l1'] == pytest.approx(each_N.mean(), abs=1e-4)
  of_bins = (each_N[:2].mean(), each_N[2:4].mean(), each_N[4])
  assert figures['gradient_l1_bin_9'] == pytest.approx(of_bins[2], abs=1e-4)
  assert figures['gradient_l1_worst_bin'] == pytest.approx(
    max(of_bins), abs=1e-4
  )
  console = rich.console.Console(record=True, width=200)
  console.print(summary.summary([], {'master': figures}, {}))
  line = {'method': 'x', 'seed': 0, 'figures': {}}
  line['figures'] = {f'ema/{k}': v for k, v in figures.items()}
  console.print(ledger.tabulate([line], 'ema'))
  text = console.export_text()
  shown = f'{figures["gradient_l1"]:.4f}'
  assert text.count(shown) >= 3  # the table, all bins, the ledger
  page = '\n'.join(report._summary([], {'master': figures}, {}))
  assert '>Gradient L1</span></th>' in page
  assert f'<td>{shown}</td>' in page
  layout = str(writers.layout(('l1',)))
  assert 'eval/gradient_l1$' in layout
  assert 'eval/gradient_l1_bin_9$' in layout


def test_an_evaluation_holds_every_figure_of_the_table_and_no_other():
  figures, *_ = _measured()
  by_bin = [m for m in metrics.FIGURES if m.by_bin is not None]
  of_networks = {frechet.RANDOM, frechet.INCEPTION, features.NAME}
  assert set(figures) == {
    *(m.name for m in metrics.FIGURES if m.name not in of_networks),
    *(m.bin(b).name for m in by_bin for b in (0, 4, 9)),
  }
  assert of_networks <= {m.name for m in metrics.FIGURES}


def test_tags_are_those_of_older_runs():
  """If you rename a tag: TensorBoard breaks a run's curve in two."""
  training = {m.tag for m in metrics.TABLE if m not in metrics.FIGURES}
  assert training >= {
    *('loss/base', 'loss/total', 'loss/adv_share', 'loss/{term}'),
    *('lambda/{term}', 'pid/error/{term}', 'pid/integral/{term}'),
    *('pid/derivative/{term}', 'agent/lr', 'agent/trim', 'agent/reward'),
    *('agent/state', 'agent/action', 'agent/epsilon', 'critic/wasserstein'),
    *('critic/loss', 'critic/penalty', 'codebook/used', 'codebook/perplexity'),
    *('grads/rms', 'meld/drift', 'meld/dropped', 'perf/cycles_per_sec'),
    *('perf/images_per_sec', 'perf/compile_seconds'),
  }
  figures = {m.name for m in metrics.FIGURES}
  assert figures >= {
    *('psnr', 'ssim', 'ms_ssim', 'pixel_l1', 'edge', 'spectrum', 'rfd-random'),
    *('rfid', 'optics_psnr', 'path_psnr', 'path_ssim', 'path_l1', 'path_edge'),
    *('path_spectrum', 'codes_used', 'perplexity', 'psnr_worst_bin'),
    *('ssim_worst_bin', 'pixel_l1_worst_bin', 'path_l1_worst_bin'),
  }
  [psnr] = [m for m in metrics.FIGURES if m.name == 'psnr']
  assert psnr.bin(3).tag == 'eval/psnr_bin_3'
  assert not any(re.search(r'\s', tag) for tag in training)
