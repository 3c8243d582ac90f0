"""Mission control: the progress line and the last table."""

import io
import subprocess
import sys

from absl import logging
import pytest
import rich.console

from chimera import mission_control

CLONES = [
  {
    'name': name,
    'bins': bins,
    'samples': 30,
    'g_loss': 0.51234,
    'critic_loss': -0.25,
    'dominant': dominant,
    'dominance': ratio,
    'learning_rate': 1.25e-3,
  }
  for name, bins, dominant, ratio in (
    ('perceptual', (9,), 'ssim', 3.0),
    ('structural', (0, 1, 2, 3), 'l1', 2.0),
    ('adversarial', (4, 5, 6), 'adv', 4.5),
    ('latent_purity', (8, 7), 'varentropy', 5.0),
  )
]
MASTER = {
  'psnr': 24.5678,
  'ssim': 0.81,
  'path_l1': 0.07,
  'pixel_l1': 0.05,
  'codes_used': 61.0,
  'perplexity': 44.25,
  'path_l1_bin_0': 123456.0,
}


def _render(renderable, width=80):
  console = rich.console.Console(file=io.StringIO(), width=width)
  console.print(renderable)
  return console.file.getvalue()


@pytest.fixture
def log(monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, 'info', lambda text, *values: lines.append(text % values)
  )
  return lines


def test_importing_mission_control_imports_no_jax():
  program = (
    'import sys; from chimera import mission_control; '
    'sys.exit("tensorflow" in sys.modules or "jax" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def test_the_time_left_comes_from_the_stretches_after_the_compilation(log):
  progress = mission_control.Progress(100, now=0.0)
  # 10 cycles in 50 s, compilation and all; then 10 cycles in 5 s.
  assert progress.update(10, now=50.0) == pytest.approx(0.2)
  assert progress.update(20, now=55.0) == pytest.approx(2.0)
  assert progress.update(40, now=75.0) == pytest.approx(1.0)
  assert log == [
    'Cycle 10 of 100 (10 %), 0.20 cycles/s, 7m30s left',
    'Cycle 20 of 100 (20 %), 2.00 cycles/s, 40s left',
    # 30 cycles in 25 s since it was warm: 60 cycles more take 50 s.
    'Cycle 40 of 100 (40 %), 1.00 cycles/s, 50s left',
  ]


def test_a_resumed_run_counts_only_what_it_did_itself(log):
  progress = mission_control.Progress(100, first=90, now=0.0)
  assert progress.update(95, 'l1 0.1', now=5.0) == pytest.approx(1.0)
  assert log == ['Cycle 95 of 100 (95 %), 1.00 cycles/s, 5s left, l1 0.1']


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0, '0s'), (7.4, '7s'), (59.6, '1m00s'), (125, '2m05s'), (3725, '1h02m')],
)
def test_seconds_read_as_people_say_them(seconds, text):
  assert mission_control.format_seconds(seconds) == text


def test_the_table_names_every_student_with_its_figures():
  text = _render(mission_control.summary(CLONES, MASTER))
  rows = {
    line.split()[0]: line.split() for line in text.splitlines() if line.strip()
  }
  assert rows['perceptual'][1:] == (
    ['9', '30', '0.5123', '-0.2500', 'ssim', 'x3.00', '1.25e-03']
  )
  assert rows['structural'][1] == '0-3'
  assert rows['latent_purity'][1] == '7-8'
  assert rows['24.57'] == ['24.57', '0.81', '0.07', '0.05', '61', '44.25']
  assert '123456' not in text


def test_the_table_fits_80_columns():
  clones = [{**CLONES[3], 'dominant': 'color_covariance', 'samples': 1000000}]
  text = _render(mission_control.summary(clones, MASTER), width=200)
  assert max(map(len, map(str.rstrip, text.splitlines()))) <= 80


def test_the_master_alone_has_no_table_of_clones():
  text = _render(mission_control.summary([], MASTER))
  assert 'student' not in text
  assert '24.57' in text


def test_the_table_without_pixels_shows_what_there_is():
  master = {'path_l1': 0.1, 'perplexity': float('nan')}
  text = _render(mission_control.summary(CLONES, master))
  assert 'PSNR' not in text
  assert 'L1 path' in text
  assert 'nan' in text


def test_a_narrow_terminal_still_gets_the_whole_table(capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '30')
  mission_control.show(mission_control.summary(CLONES, MASTER))
  assert 'latent_purity' in capsys.readouterr().out
