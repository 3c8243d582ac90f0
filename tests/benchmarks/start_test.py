"""The benchmark of the start says its figures."""

import argparse
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from chimera.benchmarks import start
from tests import tiny
from tests.benchmarks import command


@pytest.fixture(scope='module')
def line(tmp_path_factory):
  """What a fresh process says, whose step is none."""
  home = tmp_path_factory.mktemp('run')
  np.save(home / 'source.npy', tiny.bins_and_paths()[1])
  program = (
    'import sys, time\n'
    'from chimera.run import engine\n'
    'from chimera.benchmarks import start\n'
    'from tests.benchmarks import still\n'
    'engine.Engine = still.Still\n'
    'start._run(time.time(), sys.argv[1:])'
  )
  flags = (
    '--config=tests/tiny.py',
    f'--config.data.source={home}/source.npy',
    f'--workdir={home}/workdir',
    '--config.train.log_every=1',
  )
  done = subprocess.run(
    [sys.executable, '-c', program, *flags],
    capture_output=True,
    text=True,
    check=False,
    cwd=command.ROOT,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()[-1]


def test_the_phases_are_all_of_the_time(line):
  seconds = {k: np.array(v) for k, v in json.loads(line).items()}
  assert list(seconds) == [*start.PHASES, 'all']
  whole = seconds.pop('all')
  np.testing.assert_allclose(sum(seconds.values()), whole, atol=0.05)
  assert all(on_the_clock >= 0 for on_the_clock, _ in seconds.values())
  assert seconds['imports'][0] > 0.1
  assert seconds['state'][1] > 0


def test_the_start_benchmark_prints_each_phase_cold_and_warm(
  line, monkeypatch, capsys
):
  def said_by(flags, cache):
    [workdir] = [f for f in flags if f.startswith('--workdir=')]
    os.makedirs(workdir.partition('=')[2], exist_ok=True)
    return line

  monkeypatch.setattr(start, '_main', said_by)
  start.start(argparse.Namespace(rounds=2, flags=''))
  said = capsys.readouterr().out
  rows = re.findall(r'^([a-z ]{12})((?: +\d+\.\d\d){4})$', said, re.M)
  assert [name.strip() for name, _ in rows] == [*start.PHASES, 'all']


def test_a_run_that_fails_is_said_in_one_line():
  result = command.run('start', '--rounds=1', '--flags=--config.nothing=1')
  assert result.returncode == 1
  assert result.stderr.count('\n') == 1
  assert 'nothing' in result.stderr


def test_what_an_import_takes_is_in_no_other_phase():
  clock = start._Clock(time.time())
  clock._import = lambda *_: time.sleep(0.2)
  clock.importing('a')
  for phase in start.PHASES[1:]:
    clock.end(phase)
  phases = clock.phases()
  assert phases['imports'][0] >= 0.2
  assert sum(phases[p][0] for p in start.PHASES[1:]) < 0.1
