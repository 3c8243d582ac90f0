"""A whole run where there is no TensorFlow: all but TensorBoard is there."""

import pathlib
import subprocess
import sys

import numpy as np

from chimera.monitor import history
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
_PROGRAM = """
import sys
sys.modules['tensorflow'] = None
from chimera import main
sys.exit(main.main())
"""


def test_a_run_without_tensorflow_lacks_tensorboard_alone(tmp_path):
  np.save(tmp_path / 'source.npy', tiny.bins_and_paths()[1])
  workdir = tmp_path / 'run'
  done = subprocess.run(
    [
      *(sys.executable, '-c', _PROGRAM, f'--config={tiny.__file__}'),
      *(f'--workdir={workdir}', f'--config.data.source={tmp_path}/source.npy'),
      "--config.clone_names=('perceptual',)",
      *('--config.train.cycles=4', '--config.train.log_every=2'),
      *('--config.train.eval_every=4', '--config.train.checkpoint_every=4'),
      *('--config.eval.batch_size=20', '--config.data.held_out_count=20'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.count('TensorFlow') == 1
  assert 'No TensorBoard, for TensorFlow cannot be imported' in done.stderr
  assert [row.cycle for row in history.scan(str(workdir))] == [2, 4, 4]
  for name in ('report.html', 'evaluation.json', 'tokenizer/tokenizer.json'):
    assert (workdir / name).stat().st_size
  assert not list(workdir.rglob('events.out.tfevents.*'))
