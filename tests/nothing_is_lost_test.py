"""The short form of nothing_is_lost.py, whose long form a person runs."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  ('command', 'last'),
  [
    ('kills --count=2', 'bit for bit as never killed'),
    ('cuts --count=1', 'and the history the same'),
    ('twins --count=6', 'arrays the same'),
    ('signals --count=2', 'at most'),
    ('flips --count=24', 'noticed, in one line each'),
    ('limits', 'then on from 4 to 12'),
    ('soak --cycles=24 --seed=6', 'SIGTERM while saving'),
  ],
)
def test_nothing_is_lost(command, last):
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-m', 'tests.nothing_is_lost', *command.split()],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert last in done.stdout
