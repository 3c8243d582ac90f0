"""Files are whole or not there, whatever fails."""

import csv
import errno
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile

import pytest

from chimera.system import disk


@pytest.fixture
def full(monkeypatch):
  """The disk takes no more, as the kernel says it: without a name."""

  def fsync(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', fsync)


def test_a_file_is_made_and_replaced_and_nothing_is_left_beside_it(tmp_path):
  disk.write(tmp_path / 'a.bin', b'\x00old')
  disk.write(str(tmp_path / 'a.bin'), b'new\xff')
  assert (tmp_path / 'a.bin').read_bytes() == b'new\xff'
  assert os.listdir(tmp_path) == ['a.bin']


def test_a_value_is_read_back_from_json(tmp_path):
  value = {'a': [1, 2.5, None], 'ü': 'x'}
  disk.write_json(tmp_path / 'a.json', value)
  text = (tmp_path / 'a.json').read_text(encoding='utf-8')
  assert json.loads(text) == value
  assert text.count('\n') > 3


def test_a_sealed_value_is_read_back_or_refused(tmp_path):
  path = tmp_path / 'a.json'
  value = {'rows': 21, 'b': [1.5, {'ü': None}]}
  disk.write_sealed(path, value)
  assert disk.read_sealed(path) == value
  text = path.read_text()
  assert text.count('\n') > 3
  path.write_text(text.replace('21', '22'))
  with pytest.raises(ValueError, match=r'^a.json is not as it was written$'):
    disk.read_sealed(path)
  disk.write_json(path, value)
  with pytest.raises(ValueError, match=r'^a.json has no seal$'):
    disk.read_sealed(path)
  for data in (b'', b'\xff', b'[]', b'7', b'[' * 10**6, text.encode()[:-1]):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'^a.json holds no sealed JSON$'):
      disk.read_sealed(path)


@pytest.mark.usefixtures('full')
def test_a_full_disk_leaves_the_old_file_and_says_which_it_was(tmp_path):
  (tmp_path / 'a').write_bytes(b'old')
  with pytest.raises(OSError, match='No space left on device') as e:
    disk.write(tmp_path / 'a', b'new')
  assert e.value.errno == errno.ENOSPC
  assert e.value.filename == str(tmp_path / 'a')
  assert str(tmp_path / 'a') in str(e.value)
  assert (tmp_path / 'a').read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['a']


def test_a_limit_of_the_kernel_names_the_file(tmp_path):
  """A real write that stops midway."""
  program = f"""
import resource, signal, sys
from chimera.system import disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.RLIM_INFINITY}))
try:
  disk.write(sys.argv[1], b'x' * 5000)
except OSError as e:
  sys.exit(str(e))
"""
  ended = subprocess.run(
    [sys.executable, '-c', program, str(tmp_path / 'a')],
    capture_output=True,
    text=True,
    check=False,
  )
  assert 'File too large' in ended.stderr
  assert str(tmp_path / 'a') in ended.stderr
  assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere'):
    disk.write(tmp_path / 'nowhere' / 'a', b'')


def test_what_is_in_the_way_is_left(tmp_path):
  (tmp_path / 'a' / 'b').mkdir(parents=True)
  with pytest.raises(OSError, match=r"a\.tmp' -> '.*a'"):
    disk.write(tmp_path / 'a', b'x')
  assert os.listdir(tmp_path) == ['a']
  assert (tmp_path / 'a' / 'b').is_dir()


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
  def fsync(_):
    raise KeyboardInterrupt

  (tmp_path / 'a').write_bytes(b'old')
  monkeypatch.setattr(os, 'fsync', fsync)
  with pytest.raises(KeyboardInterrupt):
    disk.write(tmp_path / 'a', b'new')
  assert (tmp_path / 'a').read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['a']


def test_what_a_killed_write_left_is_no_hindrance(tmp_path):
  program = """
import os, signal, sys
from chimera.system import disk
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
disk.write(sys.argv[1], b'never')
"""
  path = tmp_path / 'a'
  path.write_bytes(b'old')
  ended = subprocess.run(
    [sys.executable, '-c', program, str(path)], check=False
  )
  assert ended.returncode == -signal.SIGKILL
  assert path.read_bytes() == b'old'
  disk.write(path, b'new')
  assert path.read_bytes() == b'new'
  assert os.listdir(tmp_path) == ['a']


def test_a_plain_name_stays_as_it_is(tmp_path):
  with disk.plain(tmp_path / 'run_1-a.b') as folder:
    assert folder == tmp_path / 'run_1-a.b'


@pytest.mark.parametrize(
  'name', ['run [1]', 'a*', '?', 'фото', os.fsdecode(b'\xff'), 'a\nb', '\\']
)
def test_any_folder_has_a_plain_name_as_long_as_it_is_needed(tmp_path, name):
  (tmp_path / name).mkdir()
  with disk.plain(tmp_path / name) as folder:
    assert str(folder).isascii()
    assert not set(str(folder)) & set('[]*?\\\n ')
    (folder / 'x').write_text('there')
  assert not os.path.lexists(folder)
  assert (tmp_path / name / 'x').read_text() == 'there'


def test_a_place_of_temporary_files_that_is_not_plain_is_passed_over(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / '[1]'))
  with disk.plain(tmp_path / '[2]') as folder:
    assert '[' not in str(folder)


def test_rows_come_back_whatever_is_in_them(tmp_path):
  rows = [
    ('plain', '1'),
    ('a\rb', 'c\nd'),
    ('"', ','),
    ('\r', ''),
    (os.fsdecode(b'\xff'), "'"),
  ]
  disk.write_csv(tmp_path / 'a.csv', rows)
  with open(
    tmp_path / 'a.csv', encoding='utf-8', errors='surrogateescape', newline=''
  ) as f:
    assert list(map(tuple, csv.reader(f))) == rows
  assert (tmp_path / 'a.csv').read_bytes().startswith(b'plain,1\n')


@pytest.mark.parametrize('path', ['', '.', 'd', 'd/none/deep', 'none', 'up'])
def test_what_is_a_folder_or_is_not_there_can_be_one(
  tmp_path, monkeypatch, path
):
  monkeypatch.chdir(tmp_path)
  os.mkdir('d')
  os.symlink('d', 'up')
  disk.check_folder(path, '--out')


@pytest.mark.parametrize(
  ('path', 'what'), [('f', 'f'), ('f/a/b', 'f'), ('link/a', 'link')]
)
def test_what_cannot_be_a_folder_is_named(tmp_path, monkeypatch, path, what):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('f').write_text('')
  os.symlink('nowhere', 'link')
  with pytest.raises(ValueError, match='is none') as e:
    disk.check_folder(path, '--out')
  assert str(e.value) == f'--out must be a folder, got {path}: {what} is none.'
