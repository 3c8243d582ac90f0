"""The short form of nothing_is_lost.py, whose long form a person runs."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


_JOBS = {
  'kills=1': 'bit for bit as never killed, as are ',
  'signals=2': 'dispatches lost',
  'limits': 'then on from 4 to 12',
  'flips=12': 'noticed, in one line each',
  'soak=24': 'SIGTERM while saving',
}


def test_nothing_is_lost():
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  # One process for all: what it imports and compiles serves each.
  done = subprocess.run(
    [sys.executable, '-m', 'tests.nothing_is_lost', *_JOBS, '--seed=6'],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  for last in _JOBS.values():
    assert last in done.stdout, done.stdout
