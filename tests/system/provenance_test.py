"""Commit and digests, of repositories that are made here."""

import hashlib
import json
import os
import subprocess

import pytest

from chimera.system import provenance


@pytest.fixture
def root(tmp_path):
  """The files of a package, in no checkout."""
  for name in ('chimera/a.py', 'configs/b.py'):
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text('x = 1\n')
  yield tmp_path
  provenance.commit.cache_clear()


def git(root, *words):
  done = subprocess.run(
    ('git', '-C', str(root), '-c', 'user.name=a', '-c', 'user.email=a@b')
    + words,
    check=True,
    capture_output=True,
    text=True,
    env={**os.environ, 'GIT_CONFIG_GLOBAL': os.devnull},
  )
  return done.stdout.strip()


def check_out(root):
  git(root, 'init', '--quiet')
  git(root, 'add', '.')
  git(root, 'commit', '--quiet', '--message', 'first')
  return git(root, 'rev-parse', 'HEAD')


def test_a_checkout_is_known_by_its_commit(root):
  head = check_out(root)
  (root / 'notes.txt').write_text('no code')
  assert provenance.commit(root) == head[:12]


@pytest.mark.parametrize('name', ['chimera/a.py', 'configs/new.py'])
def test_a_checkout_whose_code_differs_has_a_plus(root, name):
  head = check_out(root)
  (root / name).write_text('x = 2\n')
  assert provenance.commit(root) == f'{head[:12]}+'


def test_without_a_checkout_the_files_are_known_by_their_contents(root):
  before = provenance.commit(root)
  assert before.startswith('files ')
  assert len(before) == len('files ') + 12
  provenance.commit.cache_clear()
  assert provenance.commit(root) == before
  for name, text in (('a.py', 'x = 2\n'), ('c.py', 'x = 1\n')):
    (root / 'chimera' / name).write_text(text)
    provenance.commit.cache_clear()
    assert provenance.commit(root) != before
    before = provenance.commit(root)


def test_without_git_the_files_are_what_there_is(root, monkeypatch):
  check_out(root)
  monkeypatch.setenv('PATH', '')
  assert provenance.commit(root).startswith('files ')


def test_a_digest_does_not_depend_on_the_order_of_the_keys():
  a = provenance.digest({'x': 1, 'y': {'b': 2, 'a': [3]}})
  assert a == provenance.digest({'y': {'a': [3], 'b': 2}, 'x': 1})
  assert a != provenance.digest({'x': 1, 'y': {'b': 2, 'a': [4]}})
  text = json.dumps({'x': 1, 'y': {'a': [3], 'b': 2}})
  assert a == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_file_is_known_by_its_name_and_contents(tmp_path):
  path = tmp_path / 'inception.jax'
  path.write_bytes(b'abc')
  # SHA-256 of 'abc', FIPS 180-2, appendix B.1.
  assert provenance.file_digest(str(path)) == 'inception.jax ba7816bf8f01'
