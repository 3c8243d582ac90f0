"""Reference curves: by hand, and those that come with the code."""

import json
import math

import numpy as np
import pytest

from chimera.doctor import reference
from chimera.run import preflight
from configs import chimera as chimera_config
from tests import written


def test_the_codes_that_can_be_used_are_bounded_by_the_tokens(tmp_path):
  # 16 x 16 cells, 2 a side of a token: 64 tokens an image.
  few = written.write(tmp_path / 'a', train__batch_size=2)
  assert reference.read_run(few, {}).codes == 4 * 2 * 64
  many = written.write(tmp_path / 'b', train__batch_size=8)
  assert reference.read_run(many, {}).codes == 1024


def test_curves_are_means_and_greatest_of_the_clones(tmp_path):
  figures = dict(zip(written.CLONES, (0.1, 0.2, 0.3, 0.6)))
  run = reference.read_run(
    written.write(
      tmp_path,
      clone=lambda i, name: {
        'loss/base': figures[name] / (i + 1),
        'loss/l1': figures[name],
        'critic/wasserstein': -figures[name],
        'critic/penalty': figures[name],
      },
      held_out=(0.6, 0.45),
    ),
    {},
  )
  curves = reference.curves(run)
  assert curves['base_loss'].cycles.tolist() == list(range(50, 1001, 50))
  assert curves['base_loss'].values[:2] == pytest.approx([0.3, 0.15])
  assert curves['fallen'].values[:2] == pytest.approx([1, 0.5])
  assert curves['wasserstein'].values == pytest.approx(0.6)
  assert curves['penalty'].values == pytest.approx(0.6)
  assert curves['perplexity'].values == pytest.approx(600 / 1024)
  assert curves['gap'].cycles.tolist() == [500, 1000]
  assert curves['gap'].values == pytest.approx([2, 1.5])


def test_a_weight_is_saturated_where_present_and_grudge_reach_the_limit(
  tmp_path,
):
  def clone(i, name):
    # 0.3 * 2 - 0.1 = 0.5; 0.3 * 2 - 0.11 < 0.5; -0.3 * 2 = -0.6.
    return {
      'pid/error/l1': 2.0,
      'pid/integral/l1': -0.1,
      'pid/error/vq': 2.0,
      'pid/integral/vq': -0.11,
      'pid/error/adv': -2.0,
      'pid/integral/adv': 0.0,
    }

  workdir = written.write(tmp_path, clone=clone)
  run = reference.read_run(workdir, {})
  held = reference.saturation(run)
  assert held.shape == (20, 4, 10)
  assert held[0, 0].tolist() == [1, 0, -1] + [0] * 7
  assert reference.curves(run)['saturated'].values == pytest.approx(0.2)


def test_copies_are_counted_once_less_than_they_are_and_flat_ones_not():
  rng = np.random.default_rng(0)
  a, b = rng.uniform(0, 255, (2, 16, 16))
  flat = np.full((16, 16), 7.0)
  # Three of a, one of which was compressed anew: two copies of five.
  thumbnails = np.stack([a, b, a, flat, a + 0.5, b + 20, flat])
  assert reference.copies(thumbnails) == pytest.approx(2 / 5)
  assert reference.copies(np.zeros((0, 16, 16))) == 0
  assert reference.copies(np.stack([flat, flat])) == 0


def _three(home):
  """Runs of three seeds, whose losses are 1, 2 and 6 times the same."""
  for seed, factor in enumerate((1.0, 2.0, 6.0)):
    workdir = home / str(seed)
    yield written.write(
      workdir, seed=seed, clone=lambda i, name, f=factor: {'loss/base': f}
    )
    written.write_data(workdir, **written.varied(100))


def test_the_reference_is_the_mean_the_least_and_the_greatest(tmp_path):
  body = reference.make(list(_three(tmp_path)))
  band = body['bands']['base_loss']
  assert band['cycles'] == list(range(50, 1001, 50))
  assert band['mean'] == [3.0] * 20
  assert band['low'] == [1.0] * 20
  assert band['high'] == [6.0] * 20
  assert body['made']['seeds'] == [0, 1, 2]
  assert body['figures']['lesson'] == [10, 10]
  assert 'seed' not in body['settings']
  assert 'train.log_every' not in body['settings']
  assert body['settings']['model.codes'] == 1024


def test_reference_runs_are_finished_and_of_one_config(tmp_path):
  runs = list(_three(tmp_path))
  half = written.write(tmp_path / 'half', done=500)
  with pytest.raises(ValueError, match='must be finished, got 500 of 1000'):
    reference.make([*runs, half])
  other = written.write(tmp_path / 'other', model__codes=512)
  with pytest.raises(ValueError, match=r'got model\.codes = 512 \(1024\)'):
    reference.make([*runs, other])
  bare = written.write(tmp_path / 'bare')
  with pytest.raises(ValueError, match='must have its data, got none'):
    reference.make([*runs, bare])


def test_an_older_config_takes_the_defaults_of_keys_it_lacks(tmp_path):
  workdir = written.write(tmp_path)
  old = written.read_json(tmp_path / 'config.json')
  del old['model']['revive_after']
  (tmp_path / 'config.json').write_text(json.dumps(old))
  run = reference.read_run(workdir, {'model.revive_after': 77})
  assert run.settings['model.revive_after'] == 77


def test_a_broken_config_is_one_line(tmp_path):
  workdir = written.write(tmp_path)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='must be the JSON that train wrote'):
    reference.read_run(workdir, {})


def test_the_reference_in_the_repository_is_small_and_of_three_seeds():
  assert reference.PATH.stat().st_size < 40_000
  held = reference.load()
  assert held.made['seeds'] == [0, 1, 2]
  for band in held.bands.values():
    assert len(band.cycles) == len(band.mean)
    assert (band.low <= band.mean * (1 + 1e-3)).all()
    assert (band.mean <= band.high * (1 + 1e-3)).all()
    assert all(map(math.isfinite, band.high))


def test_the_reference_is_of_the_default_config():
  """If you changed the default: train it with three seeds, and make it anew."""
  settings = preflight.keys(chimera_config.get_config())
  assert reference.differences(settings, reference.load().settings) == []
