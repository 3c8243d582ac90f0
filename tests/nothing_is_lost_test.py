"""The short form of nothing_is_lost.py, whose long form a person runs."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  ('command', 'count', 'last'),
  [
    ('kills', 4, 'bit for bit as never killed'),
    ('cuts', 2, 'and the history the same'),
    ('twins', 6, 'arrays the same'),
    ('signals', 2, 'at most'),
    ('flips', 24, 'noticed, in one line each'),
    ('limits', 0, 'then on from 8'),
  ],
)
def test_nothing_is_lost(command, count, last):
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-m', 'tests.nothing_is_lost', command]
    + [f'--count={count}'],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert last in done.stdout
