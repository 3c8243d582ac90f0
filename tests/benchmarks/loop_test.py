"""What a run spends beside the step, of one that learns nothing."""

import numpy as np
import pytest

from chimera.benchmarks import loop
from chimera.run import engine
from tests import tiny
from tests.benchmarks import still


@pytest.fixture(scope='module')
def spent(tmp_path_factory):
  """What `loop.measure` says."""
  home = tmp_path_factory.mktemp('run')
  np.save(home / 'source.npy', tiny.bins_and_paths()[1])
  config = tiny.get_config()
  config.data.source = str(home / 'source.npy')
  config.train.cycles = config.train.eval_every = 6
  config.train.log_every = config.train.checkpoint_every = 2
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine, 'Engine', still.Still)
    return loop.measure(config, str(home))


def test_every_part_of_a_run_is_timed(spent):
  calls = {part: of_it.calls for part, of_it in spent.items()}
  # A checkpoint is saved, and read back; an evaluation is four calls.
  assert calls['log rows'] == 3
  assert calls['checkpoints'] == 2 * 3
  assert calls['evaluations'] == 4
  assert calls['report'] == calls['tokenizer'] == 1
  assert calls['TensorBoard'] > 15


def test_what_a_run_waits_for_is_within_its_time(spent):
  whole, *parts = spent.values()
  assert 0 < sum(part.wall for part in parts) <= whole.wall
  # It is written on threads of their own.
  assert spent['TensorBoard'].wall == 0 < spent['TensorBoard'].cpu
