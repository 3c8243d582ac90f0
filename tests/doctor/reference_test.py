"""Reference curves: made by hand, and those that come with the code."""

import math
import sys

import pytest

from chimera.doctor import reference
from chimera.monitor import history
from chimera.run import config_json
from configs import chimera as chimera_config
from tests import written


def _three(home):
  """Runs of three seeds, whose losses are 1, 2 and 6 times the same."""
  for seed, factor in enumerate((1.0, 2.0, 6.0)):
    workdir = home / str(seed)
    yield written.write(
      workdir,
      seed=seed,
      clone=lambda i, name, f=factor: {
        'loss/base': f,
        'agent/trim': 1.0,
        'agent/lr': 0.002 * min(f, 2.0) * (i + 1) / 20,
      },
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
  assert body['figures']['rate'] == [0.002, 0.004]
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
  often = written.write(tmp_path / 'often')
  written.write_data(tmp_path / 'often', **written.varied(100))
  row = {name: written.clone_row(0) for name in written.CLONES}
  history.History(often, 1000).append(1000, row, {})
  with pytest.raises(ValueError, match='at the same cycles, got others in'):
    reference.make([*runs, often])


def test_what_is_no_reference_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['reference', str(tmp_path)])
  with pytest.raises(SystemExit, match=r'^Error: A run has its config\.json'):
    reference.main()


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
  settings = config_json.keys(chimera_config.get_config())
  assert reference.differences(settings, reference.load().settings) == []
