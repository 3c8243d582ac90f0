"""A benchmark as its user starts it."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def run(*args):
  return subprocess.run(
    [sys.executable, '-m', 'chimera.benchmark', *args],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )
