"""Steps on disk: what comes back, is refused, is kept; what a crash leaves."""

import errno
import json
import logging as std_logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from chimera.run import steps as steps_lib
from chimera.system import disk


class Agent(NamedTuple):
  table_SxA: np.ndarray
  started: np.ndarray


class State(struct.PyTreeNode):
  step: np.ndarray
  rng: np.ndarray
  params: dict
  moments: tuple
  agent: Agent
  outer: None = None


def _state(seed: int = 0) -> State:
  rng = np.random.default_rng(seed)
  params = {'conv': {'kernel': rng.random((3, 3, 8), np.float32)}, 'empty': {}}
  return State(
    step=np.int32(seed),
    rng=np.asarray(jax.random.key_data(jax.random.key(seed))),
    params=params,
    moments=jax.tree.map(np.asarray, optax.adam(1e-3).init(params)),
    agent=Agent(rng.random((4, 5)), np.asarray(True)),
  )


def _assert_same(a: State, b: State) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert isinstance(x, np.ndarray)
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def _flip_a_bit(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _largest(folder: pathlib.Path) -> pathlib.Path:
  files = [path for path in folder.rglob('*') if path.is_file()]
  files = [path for path in files if path.name != 'digests.json']
  return max(files, key=lambda path: path.stat().st_size)


@pytest.fixture
def two(tmp_path) -> steps_lib.Steps:
  """Steps 10 and 20 in tmp_path."""
  checkpoints = steps_lib.Steps(tmp_path, keep=2)
  checkpoints.save(10, _state(1), {'n': 1})
  checkpoints.save(20, _state(2), {'n': 2})
  return checkpoints


def test_a_state_comes_back_bit_for_bit_with_its_structure(tmp_path):
  checkpoints = steps_lib.Steps(tmp_path / 'new', keep=1)
  assert checkpoints.latest() is None
  assert checkpoints.restore(_state()) is None
  extra = {'seconds': 0.1, 'order': {2: 'b', 10: 'a'}}
  checkpoints.save(7, jax.tree.map(jnp.asarray, _state(3)), extra)
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x).dtype), _state()
  )
  step, tree, restored = checkpoints.restore(target)
  assert step == 7
  assert restored == {'seconds': 0.1, 'order': {'2': 'b', '10': 'a'}}
  _assert_same(
    tree, jax.tree.map(lambda x: np.asarray(jnp.asarray(x)), _state(3))
  )


def test_the_newest_are_kept(tmp_path):
  checkpoints = steps_lib.Steps(tmp_path, keep=2)
  for step in (5, 10, 100):
    checkpoints.save(step, _state(step), {})
  assert checkpoints.steps() == [10, 100]
  assert checkpoints.latest() == 100
  assert sorted(os.listdir(tmp_path)) == ['10', '100']
  step, tree, _ = checkpoints.restore(_state())
  assert step == 100
  _assert_same(tree, _state(100))


def test_the_best_is_kept_beside_them(tmp_path):
  checkpoints = steps_lib.Steps(tmp_path, keep=1)
  for step, best in ((5, 5), (10, 5), (15, 5), (20, 20), (25, 20)):
    checkpoints.save(step, _state(step), {}, best)
  assert checkpoints.steps() == [20, 25]


def _saved_by(folder, plan, *steps, keep=1):
  checkpoints = steps_lib.Steps(folder, keep, steps_lib.Plan(*plan))
  for step in steps:
    checkpoints.save(step, _state(step), {})
  return checkpoints


def test_the_newest_of_before_the_decay_is_kept(tmp_path):
  checkpoints = _saved_by(tmp_path, (40, 30), 10, 20, 25)
  assert checkpoints.steps() == [25]
  checkpoints.save(30, _state(30), {})
  checkpoints.save(35, _state(35), {})
  checkpoints.save(40, _state(40), {})
  assert checkpoints.steps() == [30, 40]
  assert _saved_by(tmp_path, (40, 30)).restore(_state())[0] == 40


def test_a_longer_run_goes_on_from_before_the_decay(tmp_path):
  _saved_by(tmp_path, (40, 30), 10, 30, 35, 40, keep=3)
  longer = _saved_by(tmp_path, (80, 60), keep=3)
  assert longer.latest() == 30
  step, tree, _ = longer.restore(_state())
  assert step == 30
  _assert_same(tree, _state(30))
  # What is undone is there until there is something new, and may come again.
  assert _saved_by(tmp_path, (40, 30), keep=3).steps() == [30, 35, 40]
  longer.save(40, _state(7), {})
  assert sorted(os.listdir(tmp_path)) == ['30', '40']
  _assert_same(longer.restore(_state())[1], _state(7))
  # Nor does a shorter one take over what a longer one has learned since.
  assert _saved_by(tmp_path, (40, 30)).latest() == 30
  # And what is constant is as long as it likes.
  assert _saved_by(tmp_path, (90, 90)).latest() == 40


def test_of_a_run_that_was_made_shorter_the_rest_does_not_count(tmp_path):
  _saved_by(tmp_path, (40, 30), 30, 35, 40, keep=3)
  for most, newest in ((40, 40), (39, 35), (30, 30)):
    assert (
      steps_lib.Steps(tmp_path, 3, most=most).restore(_state())[0] == newest
    )


def test_what_is_undone_goes_with_the_next_one(tmp_path):
  _saved_by(tmp_path, (40, 30), 30, 40)
  longer = _saved_by(tmp_path, (80, 60))
  longer.save(35, _state(35), {})
  assert os.listdir(tmp_path) == ['35']


def test_without_one_of_before_the_decay_it_does_not_start_over(tmp_path):
  _saved_by(tmp_path, (40, 30), 35, 40)
  with pytest.raises(ValueError, match=r'of cycles \[40\] .*init_from') as e:
    _saved_by(tmp_path, (80, 60)).restore(_state())
  assert '\n' not in str(e.value)
  # A run that starts from them asks for no plan.
  assert steps_lib.Steps(tmp_path, keep=1).restore(_state())[0] == 40


def test_what_cannot_be_written_leaves_the_others_whole(two, tmp_path):
  most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (500, most[1]))
  try:
    with pytest.raises(OSError, match='30 could not be written') as e:
      two.save(30, _state(3), {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, most)
  assert '\n' not in str(e.value)
  assert sorted(os.listdir(tmp_path)) == ['10', '20']
  _assert_same(two.restore(_state())[1], _state(2))
  two.save(30, _state(3), {})
  assert two.steps() == [20, 30]


@pytest.mark.parametrize(
  'name',
  [
    *('run [1]', 'lr=[1e-3]', 'back\\slash', 'a**b', 'what?', '[!a]*'),
    *('фото', os.fsdecode(b'\xff\xfe'), 'new\nline', '%2F{0}$HOME', '~', 'gs:'),
  ],
)
def test_a_folder_of_any_name_holds_steps(tmp_path, name):
  folder = tmp_path / name / 'checkpoints'
  checkpoints = steps_lib.Steps(folder, keep=1)
  checkpoints.save(1, _state(1), {})
  checkpoints.save(2, _state(2), {}, wait=False)
  assert checkpoints.steps() == [2]
  _assert_same(steps_lib.Steps(folder, keep=1).restore(_state())[1], _state(2))
  assert os.listdir(folder) == ['2']


def drop(monkeypatch, spoil):
  """Has the file layer lose what is written, as often as the list says."""
  save = ocp.Checkpointer.save

  def lossy(self, folder, *args, **kwargs):
    save(self, folder, *args, **kwargs)
    if spoil.pop(0):
      spoil_file = _largest(pathlib.Path(folder))
      spoil_file.write_bytes(bytes(spoil_file.stat().st_size))

  monkeypatch.setattr(ocp.Checkpointer, 'save', lossy)


def test_what_a_file_system_dropped_is_no_step(two, tmp_path, monkeypatch):
  drop(monkeypatch, [True, True, False])
  with pytest.raises(steps_lib.UnreadableError, match='30 cannot be read b'):
    two.save(30, _state(3), {})
  assert sorted(os.listdir(tmp_path)) == ['10', '20']
  two.save(30, _state(3), {}, wait=False)
  assert two.has_failed()
  assert two.steps() == [10, 20]
  two.save(30, _state(3), {}, wait=False)
  assert two.steps() == [20, 30]
  assert not two.has_failed()


def test_an_array_that_is_another_when_it_is_read_is_no_step(
  two, tmp_path, monkeypatch
):
  restore = ocp.Checkpointer.restore

  def other(*args, **kwargs):
    tree = restore(*args, **kwargs)
    return tree.replace(step=tree.step + 1)

  monkeypatch.setattr(ocp.Checkpointer, 'restore', other)
  with pytest.raises(OSError, match=r'1 of \d+ arrays, \.step first, are not'):
    two.save(30, _state(3), {})
  assert sorted(os.listdir(tmp_path)) == ['10', '20']


def test_saving_a_step_twice_is_an_error(two):
  with pytest.raises(ValueError, match='got step = 20'):
    two.save(20, _state(5), {})
  _assert_same(two.restore(_state())[1], _state(2))


@pytest.mark.parametrize('which', ['largest', 'digests.json', '_METADATA'])
def test_a_flipped_bit_falls_back_to_the_previous_step_with_one_warning(
  two, tmp_path, caplog, which
):
  folder = tmp_path / '20'
  _flip_a_bit(_largest(folder) if which == 'largest' else folder / which)
  with caplog.at_level(std_logging.WARNING, 'absl'):
    step, tree, extra = two.restore(_state())
  assert (step, extra) == (10, {'n': 1})
  _assert_same(tree, _state(1))
  warnings = [r for r in caplog.records if 'not whole' in r.getMessage()]
  assert len(warnings) == 1
  assert 'Checkpoint(s) 20 in' in warnings[0].getMessage()


def test_every_file_of_a_step_is_watched(two, tmp_path):
  folder = tmp_path / '20'
  for path in [p for p in folder.rglob('*') if p.is_file()]:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert steps_lib._verify(folder) is None, path
    path.unlink()
    assert steps_lib._verify(folder) is None, path
    path.write_bytes(whole)
    assert steps_lib._verify(folder)


def test_what_a_file_manager_leaves_there_harms_nothing(two, tmp_path):
  (tmp_path / '20' / '.DS_Store').write_bytes(b'x')
  step, _, extra = two.restore(_state())
  assert (step, extra) == (20, {'n': 2})


def test_an_old_step_that_cannot_be_taken_away_is_a_warning(
  two, tmp_path, monkeypatch, caplog
):
  def busy(path, *_, **__):
    raise OSError(errno.EBUSY, 'Device or resource busy', str(path))

  with monkeypatch.context() as patched:
    patched.setattr(shutil, 'rmtree', busy)
    two.save(30, _state(3), {'n': 3})
  [line] = [r.getMessage() for r in caplog.records if r.name == 'absl']
  assert 'which is not needed: [Errno 16] Device or resource busy' in line
  assert two.restore(_state())[0] == 30
  two.save(40, _state(4), {'n': 4})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['30', '40']


def test_a_leaf_that_changed_before_it_was_written_is_noticed(two, tmp_path):
  folder = tmp_path / '20'
  body = steps_lib._verify(folder)
  name = next(name for name in body['leaves'] if 'kernel' in name)
  body['leaves'][name] = '0' * 64
  disk.write_sealed(folder / 'digests.json', body)
  assert two.restore(_state())[0] == 10


def test_a_broken_step_can_be_saved_again(two, tmp_path):
  _flip_a_bit(_largest(tmp_path / '20'))
  assert two.restore(_state())[0] == 10
  two.save(15, _state(4), {})
  assert two.steps() == [10, 15, 20]
  two.save(20, _state(3), {})
  assert two.steps() == [15, 20]
  _assert_same(two.restore(_state())[1], _state(3))


def test_a_broken_step_takes_no_place_among_those_that_are_kept(two, tmp_path):
  _flip_a_bit(tmp_path / '20' / 'digests.json')
  assert two.restore(_state())[0] == 10
  two.save(25, _state(25), {})
  assert two.steps() == [10, 25]
  # Once written anew it does.
  two.save(30, _state(30), {})
  assert two.steps() == [25, 30]


def test_with_no_whole_step_training_does_not_start_over_in_silence(
  two, tmp_path
):
  for step in ('10', '20'):
    _flip_a_bit(_largest(tmp_path / step))
  with pytest.raises(ValueError, match='by moving that folder away') as e:
    two.restore(_state())
  assert '\n' not in str(e.value)


def test_a_step_without_digests_is_not_committed(two, tmp_path):
  (tmp_path / '20' / 'digests.json').unlink()
  assert two.steps() == [10]
  assert two.restore(_state())[0] == 10
  two.save(20, _state(3), {})
  _assert_same(two.restore(_state())[1], _state(3))


def test_what_died_midway_is_ignored_then_cleared(two, tmp_path):
  (tmp_path / '30.orbax-checkpoint-tmp' / 'd').mkdir(parents=True)
  (tmp_path / '15').mkdir()
  (tmp_path / 'notes').mkdir()
  assert two.latest() == 20
  two.save(30, _state(3), {})
  assert sorted(os.listdir(tmp_path)) == ['20', '30', 'notes']


def test_another_config_is_refused_in_one_line(two):
  other = _state().replace(params={'conv': {'kernel': np.zeros((3, 3, 9))}})
  with pytest.raises(ValueError, match=r'kernel.*--workdir') as e:
    two.restore(other)
  assert '\n' not in str(e.value)
  with pytest.raises(ValueError, match='absent here'):
    two.restore({'other': np.zeros(3)})


_KILLED = """
import sys
import numpy as np
from chimera.clones import state as state_lib
from chimera.run import steps as steps_lib
from chimera.system import disk, preemption
from tests import tiny
checkpoints = steps_lib.Steps(sys.argv[1], keep=2)
for step in range(1000):
  tree = {'x': np.full((64, 1024), step, np.float32)}
  checkpoints.save(step, tree, {})
  print(step, flush=True)
"""


def test_kill_9_leaves_a_whole_step(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  child = subprocess.Popen(
    [sys.executable, '-c', _KILLED, tmp_path],
    stdout=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': str(root)},
  )
  committed = [int(child.stdout.readline()) for _ in range(4)][-1]
  child.send_signal(signal.SIGKILL)
  child.wait()
  child.stdout.close()
  checkpoints = steps_lib.Steps(tmp_path, keep=2)
  step, tree, _ = checkpoints.restore(
    {'x': jax.ShapeDtypeStruct((64, 1024), np.float32)}
  )
  assert step >= committed
  assert np.all(tree['x'] == step)


def test_importing_it_does_not_import_tensorflow():
  code = "import sys, chimera.run.steps; sys.exit('tensorflow' in sys.modules)"
  root = pathlib.Path(__file__).parents[2]
  subprocess.run([sys.executable, '-c', code], check=True, cwd=root)


def test_the_digests_name_every_leaf(two, tmp_path):
  sealed = json.loads((tmp_path / '20' / 'digests.json').read_text())
  assert sealed['kinds']['.step'] == 'int32[]'
  assert len(sealed['leaves']) == len(jax.tree.leaves(_state()))
