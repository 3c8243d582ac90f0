"""The benchmark of the start says its figures."""

import re
import time

import numpy as np

from chimera.benchmarks import start
from tests import tiny
from tests.benchmarks import command


def test_the_start_benchmark_says_each_phase_cold_and_warm(tmp_path):
  np.save(tmp_path / 'source.npy', tiny.bins_and_paths()[1])
  # One clone without the Meld: the step that compiles soonest.
  flags = (
    '--config=tests/tiny.py --config.meld.enabled=False --config.devices=1 '
    f'--config.data.source={tmp_path}/source.npy '
    """--config.clone_names="('structural',)" """
  )
  result = command.run('start', '--rounds=1', f'--flags={flags}')
  assert result.returncode == 0, result.stderr
  rows = re.findall(r'^(.{12})((?: +\d+\.\d\d){4})$', result.stdout, re.M)
  seconds = {k.strip(): np.array(v.split(), float) for k, v in rows}
  assert list(seconds) == [*start.PHASES, 'all']
  whole = seconds.pop('all')
  np.testing.assert_allclose(sum(seconds.values()), whole, atol=0.1)


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
