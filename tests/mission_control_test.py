"""Mission control: TensorBoard runs, the progress line and the last table."""

import glob
import io
import os
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


def _read(folder):
  """{tag: [(step, value)]} of the one run in a folder."""
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  run = event_accumulator.EventAccumulator(str(folder))
  run.Reload()
  return {
    tag: [
      (e.step, float(tensor_util.make_ndarray(e.tensor_proto)))
      for e in run.Tensors(tag)
    ]
    for tag in run.Tags()['tensors']
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


def test_every_clone_is_a_run_of_its_own_and_the_master_is_the_workdirs(
  tmp_path,
):
  with mission_control.Writers(str(tmp_path), ('a', 'b')) as writers:
    writers.write(5, [{'loss/l1': 1.0}, {'loss/l1': 2.0}], {'eval/psnr': 20.0})
    writers.write(10, [{'loss/l1': 3.0}, {}], {})
  assert _read(tmp_path / 'a') == {'loss/l1': [(5, 1.0), (10, 3.0)]}
  assert _read(tmp_path / 'b') == {'loss/l1': [(5, 2.0)]}
  assert len(glob.glob(f'{tmp_path}/events.out.tfevents.*')) == 1
  assert _read(tmp_path)['eval/psnr'] == [(5, 20.0)]


def test_a_nan_is_written_and_stops_nothing(tmp_path):
  with mission_control.Writers(str(tmp_path), ()) as writers:
    writers.write(1, [], {'loss/l1': float('nan')})
    writers.write(2, [], {'loss/l1': 1.0})
  (_, first), second = _read(tmp_path)['loss/l1']
  assert first != first
  assert second == (2, 1.0)


def test_a_missing_clone_is_refused(tmp_path):
  with (
    mission_control.Writers(str(tmp_path), ('a', 'b')) as writers,
    pytest.raises(ValueError, match='shorter'),
  ):
    writers.write(1, [{'loss/l1': 1.0}], {})


def test_the_writers_leave_stderr_clean(tmp_path):
  program = (
    'from chimera import mission_control\n'
    f'w = mission_control.Writers({str(tmp_path)!r}, ("a",))\n'
    'w.write(1, [{"x": 1.0}], {"y": 1.0}); w.close()'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    check=True,
    cwd=os.getcwd(),
  )
  assert done.stderr == ''


def test_importing_mission_control_imports_no_tensorflow():
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
