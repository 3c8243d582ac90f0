"""A run read from its files: its curves and its data, by hand."""

import numpy as np
import pytest

from chimera.doctor import readings
from tests import written


def test_the_codes_that_can_be_used_are_bounded_by_the_tokens(tmp_path):
  # 16 x 16 cells, 2 a side of a token: 64 tokens an image.
  few = written.write(tmp_path / 'a', train__batch_size=2)
  assert readings.read_run(few).codes == 4 * 2 * 64
  many = written.write(tmp_path / 'b', train__batch_size=8)
  assert readings.read_run(many).codes == 1024


def test_curves_are_means_and_greatest_of_the_clones(tmp_path):
  figures = dict(zip(written.CLONES, (0.1, 0.2, 0.3, 0.6)))
  run = readings.read_run(
    written.write(
      tmp_path,
      clone=lambda i, name: {
        'loss/base': figures[name] / (i + 1),
        'loss/l1': figures[name],
        'critic/wasserstein': -figures[name],
        'critic/penalty': figures[name],
      },
      held_out=(0.6, 0.45),
    )
  )
  curves = readings.curves(run)
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
  run = readings.read_run(workdir)
  held = readings.saturation(run)
  assert held.shape == (20, 4, 10)
  assert held[0, 0].tolist() == [1, 0, -1] + [0] * 7
  assert readings.curves(run)['saturated'].values == pytest.approx(0.2)


@pytest.mark.parametrize('probed', [4096, 60])
def test_equal_samples_are_counted_once_less_than_they_are(monkeypatch, probed):
  monkeypatch.setattr(readings, '_PROBED', probed)
  rng = np.random.default_rng(0)
  paths = rng.normal(size=(900, 2, 2, 3)).astype(np.float32)
  # Three of each of the first hundred, far apart: 200 of 900 equal an earlier
  # one. Of the others two by two have one score, and are not equal.
  paths[300:400], paths[700:800] = paths[:100], paths[:100]
  scores = paths.mean((1, 2, 3))
  scores[100:200] = scores[200:300]
  # What is not looked into is taken to be like what is.
  assert readings.identical(paths, scores) == pytest.approx(
    200 / 900, abs=0 if probed > 900 else 0.06
  )
  assert readings.identical(paths[:300], np.arange(300.0)) == 0
  assert readings.identical(paths[:300], np.zeros(300)) == 0


@pytest.mark.parametrize('text', ['{', '[]'])
def test_a_broken_config_is_one_line(tmp_path, text):
  workdir = written.write(tmp_path)
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=r'config\.json is not readable as JSON'):
    readings.read_run(workdir)


@pytest.mark.parametrize(
  ('name', 'spoil', 'complaint'),
  [
    ('latents.npy', lambda p: p.write_bytes(p.read_bytes()[:-1]), 'promises'),
    ('latents.npy', lambda p: p.write_bytes(b''), 'latents.npy must hold'),
    ('latents.npy', lambda p: p.write_bytes(b'x' * 99), 'latents.npy must'),
    ('latents.npy', lambda p: np.save(p, np.zeros(9)), r'got \(9,\)'),
    ('latents.npy', lambda p: np.save(p, np.zeros((9, 8, 8, 3))), 'float64'),
    (
      'latents.npy',
      lambda p: np.save(p, np.zeros((9, 8, 8, 3), np.float32)),
      'equally many samples, got 1000, 1000, 9',
    ),
    ('optics/crops.csv', lambda p: p.write_text(''), 'crops.csv is not a mani'),
    (
      'manifest.csv',
      lambda p: p.write_text(''.join(p.open().readlines()[:-1])),
      'equally many samples, got 999, 1000, 1000',
    ),
  ],
)
def test_data_that_are_not_whole_are_one_line_with_the_name(
  tmp_path, name, spoil, complaint
):
  workdir = written.write(tmp_path)
  written.write_data(tmp_path, **written.varied())
  assert readings.figures(readings.read_run(workdir))
  spoil(tmp_path / name)
  with pytest.raises(ValueError, match=complaint) as e:
    readings.figures(readings.read_run(workdir))
  assert name in str(e.value)
  assert '\n' not in str(e.value)


def test_a_row_that_lacks_what_a_log_cycle_has_is_no_log_cycle(tmp_path):
  workdir = written.write(tmp_path)
  path = tmp_path / 'history.jsonl'
  path.write_text(path.read_text().replace('pid/error', 'pid/errors'))
  with pytest.raises(ValueError, match='must have the row of a log cycle'):
    readings.read_run(workdir)


def test_what_a_longer_run_left_behind_is_no_part_of_a_shorter_one(tmp_path):
  run = readings.read_run(written.write(tmp_path, train__cycles=600))
  assert (run.cycles, run.exams[-1].cycle) == (600, 500)


def test_near_copies_are_those_that_stage_1_counted(tmp_path):
  workdir = written.write(tmp_path)
  data = written.varied()
  written.write_data(tmp_path, **data, copies=130)
  run = readings.read_run(workdir)
  assert readings.figures(run)['copies'] == 0.13  # of 1000 files
  (tmp_path / 'optics' / 'optics.json').write_text('{"figures": {}}')
  assert 'copies' not in readings.figures(run)
