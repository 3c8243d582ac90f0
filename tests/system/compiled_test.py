"""The compilation cache: on by default, and fixed where it is broken."""

import os
import pathlib
import subprocess
import sys
import warnings

import pytest

from chimera.system import compiled

_PROGRAM = """
from chimera.system import compiled
with compiled.kept():
  import jax
  double = jax.jit(lambda x: 2 * x)
  def triple(x):
    return 3 * x
  assert float(double(2.0)) == 4 and float(jax.jit(triple)(2.0)) == 6
"""


def _run(program=_PROGRAM, **environment):
  environment = {
    **{k: v for k, v in os.environ.items() if k != compiled._VARIABLE},
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PLATFORMS': 'cpu',
    **environment,
  }
  return subprocess.run(
    [sys.executable, '-c', program],
    env=environment,
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=True,
  )


def _entries(folder):
  return {p.name: p.read_bytes() for p in folder.glob('*-cache')}


def test_a_broken_entry_is_removed_and_written_anew(tmp_path):
  folder = tmp_path / 'chimera' / 'compiled'
  assert _run(XDG_CACHE_HOME=str(tmp_path)).stderr == ''
  assert folder.stat().st_mode & 0o777 == 0o700
  whole = _entries(folder)
  assert any(name.startswith('jit_triple-') for name in whole)
  for name, data in whole.items():
    if name.startswith('jit_triple-'):
      (folder / name).write_bytes(data[: len(data) // 2])
    elif name.startswith('jit__lambda'):
      (folder / name).write_bytes(b'')
  fixed = _run(XDG_CACHE_HOME=str(tmp_path)).stderr
  assert fixed.count('A broken entry of the compilation cache') == 2
  assert 'Error reading' not in fixed
  assert _entries(folder).keys() == whole.keys()
  assert {
    k: len(v) > 100 for k, v in _entries(folder).items()
  } == dict.fromkeys(whole, True)
  # It is not broken any more.
  assert _run(XDG_CACHE_HOME=str(tmp_path)).stderr == ''


def test_a_broken_entry_that_cannot_be_removed_is_one_warning(tmp_path):
  _run(JAX_COMPILATION_CACHE_DIR=str(tmp_path))
  names = _entries(tmp_path).keys()
  assert len(names) >= 2
  for name in names:
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
  error = _run(JAX_COMPILATION_CACHE_DIR=str(tmp_path)).stderr
  assert error.count('\n') == 1
  assert 'cannot be removed' in error


def test_the_variable_names_another_folder_or_none(tmp_path):
  home = {'XDG_CACHE_HOME': str(tmp_path / 'home')}
  _run(**home, JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'mine'))
  assert _entries(tmp_path / 'mine')
  _run(**home, JAX_COMPILATION_CACHE_DIR='')
  assert not (tmp_path / 'home').exists()


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path):
  (tmp_path / 'file').write_text('x')
  error = _run(XDG_CACHE_HOME=str(tmp_path / 'file')).stderr
  assert error.count('\n') == 1
  assert 'What is compiled is not kept' in error


def test_the_cache_is_in_the_home_where_nothing_else_is_said(monkeypatch):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setenv('HOME', '/home/somebody')
  assert str(compiled.default_folder()) == (
    '/home/somebody/.cache/chimera/compiled'
  )


def test_only_entries_of_that_program_are_removed(tmp_path, monkeypatch):
  monkeypatch.setenv(compiled._VARIABLE, str(tmp_path))
  names = ('jit_f-00ab-cache', 'jit_f-01cd-cache', 'jit_f-x-00ab-cache')
  for name in (*names, 'jit_g-00ab-cache', 'jit_f-00ab-atime'):
    (tmp_path / name).touch()
  with compiled.kept():
    warnings.warn(
      "Error reading persistent compilation cache entry for 'jit_f': broken",
      stacklevel=1,
    )
  assert sorted(os.listdir(tmp_path)) == [
    'jit_f-00ab-atime',
    'jit_f-x-00ab-cache',
    'jit_g-00ab-cache',
  ]


def test_where_no_entry_is_removed_none_is_said_to_be(tmp_path, monkeypatch):
  monkeypatch.setenv(compiled._VARIABLE, str(tmp_path / 'nowhere'))
  text = "Error reading persistent compilation cache entry for 'jit_f': broken"
  with pytest.warns(UserWarning, match='jit_f'), compiled.kept():
    warnings.warn(text, stacklevel=1)


def test_other_warnings_are_shown_as_before(tmp_path, monkeypatch):
  monkeypatch.setenv(compiled._VARIABLE, str(tmp_path))
  with pytest.warns(UserWarning, match='another'), compiled.kept():
    warnings.warn('another', stacklevel=1)


@pytest.mark.parametrize(
  'home', [{}, {'XDG_CACHE_HOME': ''}, {'XDG_CACHE_HOME': '~/.cache'}]
)
def test_who_has_no_home_keeps_nothing_and_is_told_once(tmp_path, home):
  # A user without a name, as `docker run -u` makes them.
  program = f"""
import os, pwd, sys
os.environ.pop('HOME', None)
os.environ.pop('XDG_CACHE_HOME', None)
os.environ.update({home!r})
sys.path[:0] = [{str(pathlib.Path(__file__).parents[2])!r}]
from chimera.system import compiled
def getpwuid(uid):
  raise KeyError(uid)
pwd.getpwuid = getpwuid
with compiled.kept():
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == ''
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    env={k: v for k, v in os.environ.items() if k != compiled._VARIABLE},
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.count('What is compiled is not kept') == 1
  assert os.listdir(tmp_path) == []
