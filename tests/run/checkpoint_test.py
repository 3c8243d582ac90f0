"""Checkpoints: what comes back, is refused, bound to; what a crash leaves."""

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

from chimera.clones import state as state_lib
from chimera.run import checkpoint
from chimera.system import disk, preemption
from tests import tiny


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
def two(tmp_path) -> checkpoint.Steps:
  """Steps 10 and 20 in tmp_path."""
  checkpoints = checkpoint.Steps(tmp_path, keep=2)
  checkpoints.save(10, _state(1), {'n': 1})
  checkpoints.save(20, _state(2), {'n': 2})
  return checkpoints


def test_a_state_comes_back_bit_for_bit_with_its_structure(tmp_path):
  checkpoints = checkpoint.Steps(tmp_path / 'new', keep=1)
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
  checkpoints = checkpoint.Steps(tmp_path, keep=2)
  for step in (5, 10, 100):
    checkpoints.save(step, _state(step), {})
  assert checkpoints.steps() == [10, 100]
  assert checkpoints.latest() == 100
  assert sorted(os.listdir(tmp_path)) == ['10', '100']
  step, tree, _ = checkpoints.restore(_state())
  assert step == 100
  _assert_same(tree, _state(100))


def test_the_best_is_kept_beside_them(tmp_path):
  checkpoints = checkpoint.Steps(tmp_path, keep=1)
  for step, best in ((5, 5), (10, 5), (15, 5), (20, 20), (25, 20)):
    checkpoints.save(step, _state(step), {}, best)
  assert checkpoints.steps() == [20, 25]


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
  checkpoints = checkpoint.Steps(folder, keep=1)
  checkpoints.save(1, _state(1), {})
  checkpoints.save(2, _state(2), {}, wait=False)
  assert checkpoints.steps() == [2]
  _assert_same(checkpoint.Steps(folder, keep=1).restore(_state())[1], _state(2))
  assert os.listdir(folder) == ['2']


def _drop(monkeypatch, spoil):
  """Has the file layer lose what is written, as often as the list says."""
  save = ocp.Checkpointer.save

  def lossy(self, folder, *args, **kwargs):
    save(self, folder, *args, **kwargs)
    if spoil.pop(0):
      spoil_file = _largest(pathlib.Path(folder))
      spoil_file.write_bytes(bytes(spoil_file.stat().st_size))

  monkeypatch.setattr(ocp.Checkpointer, 'save', lossy)


def test_what_a_file_system_dropped_is_no_step(two, tmp_path, monkeypatch):
  _drop(monkeypatch, [True, True, False])
  with pytest.raises(checkpoint.UnreadableError, match='30 cannot be read b'):
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
    assert checkpoint._verify(folder) is None, path
    path.unlink()
    assert checkpoint._verify(folder) is None, path
    path.write_bytes(whole)
    assert checkpoint._verify(folder)


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
  body = checkpoint._verify(folder)
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
from chimera.run import checkpoint
from chimera.system import disk, preemption
from tests import tiny
checkpoints = checkpoint.Steps(sys.argv[1], keep=2)
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
  checkpoints = checkpoint.Steps(tmp_path, keep=2)
  step, tree, _ = checkpoints.restore(
    {'x': jax.ShapeDtypeStruct((64, 1024), np.float32)}
  )
  assert step >= committed
  assert np.all(tree['x'] == step)


def test_importing_it_does_not_import_tensorflow():
  code = (
    "import sys, chimera.run.checkpoint; sys.exit('tensorflow' in sys.modules)"
  )
  root = pathlib.Path(__file__).parents[2]
  subprocess.run([sys.executable, '-c', code], check=True, cwd=root)


def test_the_digests_name_every_leaf(two, tmp_path):
  sealed = json.loads((tmp_path / '20' / 'digests.json').read_text())
  assert sealed['kinds']['.step'] == 'int32[]'
  assert len(sealed['leaves']) == len(jax.tree.leaves(_state()))


@pytest.fixture(scope='module')
def config():
  return tiny.get_config()


@pytest.fixture(scope='module')
def bins():
  return tiny.bins_and_paths()[0]


@pytest.fixture(scope='module')
def born(config, bins):
  spec = state_lib.create_spec(config)
  return state_lib.stack(state_lib.create_states(config, spec, bins, (8, 8)))


def _sick(born):
  health = born.health._replace(sick=np.ones_like(born.health.sick))
  return born.replace(health=health)


def _save(checkpointer, *args):
  """And waits until it is read back."""
  checkpointer.save(*args, preemption.Watch())
  assert not checkpointer._steps.has_failed()


def _full(*_, **__):
  raise OSError('Checkpoint 8 could not be written: it is full.')


def test_what_is_saved_comes_back_with_all_beside_it(
  config, bins, born, tmp_path
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  assert checkpointer.restore(born) is None
  checkpointer.evaluated(6, {'master': {'path_l1': 0.25}})
  checkpointer.extra['rows'] = [{'name': 'a'}]
  specialists = jax.tree.map(lambda x: x + 1, born.generator.params)
  _save(checkpointer, 6, born, specialists)
  again = checkpoint.Checkpointer(config, str(tmp_path), bins)
  done, *there = again.restore(born)
  assert done == 6
  assert again.extra == checkpointer.extra
  assert again.extra['best'] == {'cycle': 6, 'score': 0.25}
  for a, b in zip(jax.tree.leaves(there), jax.tree.leaves([born, specialists])):
    np.testing.assert_array_equal(a, b)
  again.begin()
  assert again.extra['best'] == {'cycle': None, 'score': None}
  assert again.extra['rows'] == []


def test_a_checkpoint_of_another_config_or_curriculum_is_refused(
  config, bins, born, tmp_path
):
  params = born.generator.params
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  _save(checkpointer, 6, born, params)
  with pytest.raises(ValueError, match='of this curriculum'):
    checkpoint.restore(config, str(tmp_path), born, {**bins, 0: bins[0][::-1]})
  other = config.copy_and_resolve_references()
  other.train.keep = 9
  checkpoint.restore(other, str(tmp_path), born, bins)
  other.loss.l1 = 2.0
  with pytest.raises(ValueError, match='of this config'):
    checkpoint.restore(other, str(tmp_path), born, bins)


def test_a_checkpoint_without_specialists_is_refused_in_one_line(
  config, bins, born, tmp_path
):
  checkpoint.open_steps(config, str(tmp_path)).save(6, born, {})
  with pytest.raises(ValueError, match=r'another --workdir\.$') as e:
    checkpoint.restore(config, str(tmp_path), born, bins)
  assert '\n' not in str(e.value)


def test_without_a_checkpoint_there_is_nothing_to_evaluate(
  config, bins, born, tmp_path
):
  with pytest.raises(ValueError, match='There must be a trained tokenizer'):
    checkpoint.restore(config, str(tmp_path), born, bins)


def test_the_best_is_the_least_and_never_nan(tmp_path):
  config = tiny.get_config()
  config.train.checkpoint_every = 100
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), {})
  for cycle, score in ((1, float('nan')), (2, 0.5), (3, 0.6), (4, 0.5)):
    checkpointer.evaluated(cycle, {'master': {'path_l1': score}})
  assert checkpointer.extra['best'] == {'cycle': 2, 'score': 0.5}
  assert [c for c in range(1, 41) if checkpointer.is_due(c)] == [2, 40]
  config.train.keep_best = False
  assert not checkpointer.is_due(2)


def test_sick_clones_are_not_saved_and_it_is_said(
  config, bins, born, tmp_path, warnings
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params = born.generator.params
  _save(checkpointer, 4, born, params)
  checkpointer.save(8, _sick(born), params, preemption.Watch())
  assert checkpoint.open_steps(config, str(tmp_path)).steps() == [4]
  assert warnings == ['Cycles 5 to 8 are not saved: their clones are sick.']
  # The run's end is saved, as there will be no better one.
  checkpointer.save(40, _sick(born), params, preemption.Watch())
  assert checkpoint.open_steps(config, str(tmp_path)).latest() == 40


def test_what_cannot_be_written_is_tried_again_until_the_run_is_over(
  config, bins, born, tmp_path, warnings, monkeypatch
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params = born.generator.params
  _save(checkpointer, 4, born, params)
  monkeypatch.setattr(checkpoint.Steps, 'save', _full)
  _save(checkpointer, 8, born, params)
  [line] = warnings
  assert line.startswith('Cycles 5 to 8 are not saved: Checkpoint 8 could')
  assert line.endswith('it is full. The next one is tried.')
  with pytest.raises(OSError, match=r'to 40 are .* goes on from cycle 4\.$'):
    _save(checkpointer, 40, born, params)


def test_what_cannot_be_read_back_is_said_tried_again_and_ends_the_run(
  config, bins, born, tmp_path, warnings, monkeypatch
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params, watch = born.generator.params, preemption.Watch()
  checkpointer.save(4, born, params, watch)
  _drop(monkeypatch, [True, False, True, True])
  checkpointer.save(8, born, params, watch)
  checkpointer.save(12, born, params, watch)
  [line] = warnings
  assert line.startswith(f'Checkpoint {tmp_path}/checkpoints/8 cannot be read ')
  assert line.endswith('Training goes on; the next one is tried.')
  # That one was whole: all begins anew.
  checkpointer.save(16, born, params, watch)
  with pytest.raises(OSError, match=r'13 to 20 .* goes on from cycle 12\.$'):
    checkpointer.save(20, born, params, watch)
  assert len(warnings) == 2
  assert checkpoint.restore(config, str(tmp_path), born, bins)[0] == 12


def test_the_last_one_is_tried_twice(
  config, bins, born, tmp_path, warnings, monkeypatch
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params, watch = born.generator.params, preemption.Watch()
  _drop(monkeypatch, [True, False, True, True])
  checkpointer.save(40, born, params, watch)
  [line] = warnings
  assert line.endswith('It is tried again.')
  shutil.rmtree(tmp_path / 'checkpoints')
  with pytest.raises(OSError, match='Cycles 1 to 40 are not saved'):
    checkpointer.save(40, born, params, watch)


def test_a_signal_during_a_save_does_not_say_that_it_is_saved(
  config, bins, born, tmp_path, monkeypatch, warnings
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  watch, save = preemption.Watch(), ocp.Checkpointer.save

  def signalled(*args, **kwargs):
    save(*args, **kwargs)
    watch.signum = 15

  monkeypatch.setattr(ocp.Checkpointer, 'save', signalled)
  checkpointer.save(4, born, born.generator.params, watch)
  assert checkpoint.open_steps(config, str(tmp_path)).steps() == [4]
  watch.signum = None
  _drop(monkeypatch, [True])
  with pytest.raises(preemption.Stopped, match=r'Cycles 5 to 8 are not saved'):
    checkpointer.save(8, born, born.generator.params, watch)


def test_a_stopped_run_says_what_is_lost(
  config, bins, born, tmp_path, monkeypatch
):
  checkpointer = checkpoint.Checkpointer(config, str(tmp_path), bins)
  params = born.generator.params
  watch = preemption.Watch()
  watch.signum = 15
  with pytest.raises(preemption.Stopped, match=r'1 to 8 .* clones are sick'):
    checkpointer.save(8, _sick(born), params, watch)
  monkeypatch.setattr(checkpoint.Steps, 'save', _full)
  with pytest.raises(preemption.Stopped, match=r'Cycles 1 to 8 .* it is full'):
    checkpointer.save(8, born, params, watch)
