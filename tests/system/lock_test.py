"""A workdir and the processes that want it."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from chimera.system import lock

_HOLD = """
import sys
from chimera.system import lock
with lock.hold(sys.argv[1]):
  sys.stdout.write('held\\n')
  sys.stdout.flush()
  sys.stdin.read()
"""


def _holder(folder):
  process = subprocess.Popen(
    [sys.executable, '-c', _HOLD, str(folder)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert process.stdout.readline() == b'held\n'
  return process


def test_a_second_process_is_refused_by_the_pid_of_the_first(tmp_path):
  with _holder(tmp_path) as first:
    with (
      pytest.raises(ValueError, match=f'process {first.pid} is at work') as e,
      lock.hold(tmp_path),
    ):
      pass
    assert '\n' not in str(e.value)
    assert '--workdir' in str(e.value)
    first.stdin.close()
    assert first.wait() == 0
  with lock.hold(tmp_path):
    assert os.listdir(tmp_path) == ['.lock']
  assert os.listdir(tmp_path) == []


def test_a_folder_that_was_made_in_vain_is_removed(tmp_path):
  folder = tmp_path / 'a' / 'b'
  with lock.hold(folder), pytest.raises(ValueError, match='another --out'):
    lock.hold(folder, '--out').__enter__()
  assert not folder.exists()
  with lock.hold(folder):
    (folder / 'c').touch()
  assert os.listdir(folder) == ['c']


def test_a_process_that_was_killed_holds_nothing(tmp_path):
  with _holder(tmp_path) as first:
    first.send_signal(signal.SIGKILL)
    first.wait()
  assert (tmp_path / '.lock').read_text() == str(first.pid)
  with lock.hold(tmp_path):
    assert (tmp_path / '.lock').read_text() == str(os.getpid())


def test_a_lock_that_was_removed_in_between_is_taken_anew(
  tmp_path, monkeypatch
):
  flock = lock.fcntl.flock
  calls = []

  def remove_first(file, how):
    flock(file, how)
    calls.append(how)
    if len(calls) == 1:
      (tmp_path / '.lock').unlink()

  monkeypatch.setattr(lock.fcntl, 'flock', remove_first)
  with lock.hold(tmp_path), pytest.raises(ValueError, match='one process'):
    lock.hold(tmp_path).__enter__()
  assert len(calls) == 2


def test_an_error_lets_go(tmp_path):
  with pytest.raises(KeyError), lock.hold(tmp_path):
    raise KeyError
  with lock.hold(tmp_path):
    pass


def test_where_nothing_can_be_locked_that_is_a_warning(
  tmp_path, monkeypatch, warnings
):
  def refuse(file, how):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

  monkeypatch.setattr(lock.fcntl, 'flock', refuse)
  with lock.hold(tmp_path):
    (tmp_path / 'x').touch()
  assert os.listdir(tmp_path) == ['x']
  assert warnings == [
    f'{tmp_path} cannot be locked (Function not implemented): see that one '
    'process at a time uses it.'
  ]


def test_the_next_holders_lock_is_not_removed(tmp_path):
  first = lock.hold(tmp_path)
  first.__enter__()
  # As a user does who takes it for one that was left behind.
  (tmp_path / '.lock').unlink()
  with lock.hold(tmp_path):
    first.__exit__(None, None, None)
    with pytest.raises(ValueError, match='one process'):
      lock.hold(tmp_path).__enter__()


def test_a_lock_that_goes_while_it_is_looked_at_is_taken_anew(
  tmp_path, monkeypatch
):
  stat = pathlib.Path.stat
  gone = []

  def remove_first(path, **kwargs):
    if path.name == '.lock' and not gone:
      gone.append(path.unlink())
    return stat(path, **kwargs)

  monkeypatch.setattr(pathlib.Path, 'stat', remove_first)
  with lock.hold(tmp_path):
    assert gone
    assert os.listdir(tmp_path) == ['.lock']
