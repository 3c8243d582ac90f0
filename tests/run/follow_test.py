"""Several hosts, which are processes here, against one: the same run, its end.

  python -m tests.run.follow_test

Each process is `chimera.main` on tests/tiny.py. The long form has two and four
processes of two devices, a kill -9 of either of two, a workdir of one that two
go on with, and hosts that come alone.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import nothing_is_lost, tiny, xla

ROOT = pathlib.Path(__file__).parents[2]
ONE_LINE = re.compile(r'(?m)^((?:Error|Stopped)\b.*)$')
# What TensorBoard would write is not looked at, and importing it takes seconds.
PROGRAM = """
import runpy, sys
sys.modules['tensorflow'] = None
{first}
runpy.run_module('chimera.main', run_name='__main__')
"""
# The devices of one process sum as those of several do: in gloo's order.
BY_GLOO = """
import jax
jax.config.update('jax_enable_preemption_service', False)
jax.distributed.initialize(
  'localhost:{port}', 1, 0, cluster_detection_method='deactivate'
)
"""


class Host:
  """One process, of `count`."""

  def __init__(
    self, workdir, port, count, number, devices, flags, by_gloo=False
  ):
    several = (
      f'--coordinator=localhost:{port}',
      f'--hosts={count}',
      f'--host={number}',
    )
    first = BY_GLOO.format(port=port) if by_gloo else ''
    forced = f'--xla_force_host_platform_device_count={devices}'
    self.log = pathlib.Path(f'{workdir}.{number}.log')
    with open(self.log, 'ab') as log:
      self.process = subprocess.Popen(
        [
          *(sys.executable, '-c', PROGRAM.format(first=first)),
          f'--config={ROOT / "tests" / "tiny.py"}',
          f'--workdir={workdir}',
          *(several if count > 1 else ()),
          *(f'--config.{k}={v}' for k, v in flags.items()),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
        env={
          'JAX_COMPILATION_CACHE_DIR': str(workdir.parent / 'compiled'),
          **os.environ,
          'XLA_FLAGS': f'{forced} {xla.SOONER}',
        },
      )

  def end(self, patience=180):
    return self.process.wait(patience)

  def kill(self, signum):
    self.process.send_signal(signum)

  def says(self):
    return self.log.read_text()


def start(workdir, count=2, devices=2, by_gloo=False, **changes):
  with socket.create_server(('localhost', 0)) as s:
    port = s.getsockname()[1]
  flags = nothing_is_lost.flags(
    workdir, devices=0, train__eval_every=1000, **changes
  )
  return [
    Host(workdir, port, count, i, devices, flags, by_gloo) for i in range(count)
  ]


def wait_for(host, words, patience=180):
  deadline = time.monotonic() + patience
  while words not in host.says():
    assert host.process.poll() is None, host.says()
    assert time.monotonic() < deadline, host.says()
    time.sleep(0.05)


def losses(workdir):
  """By cycle, of every clone."""
  rows = (workdir / 'history.jsonl').read_text().splitlines()
  return {
    row['cycle']: [clone['loss/base'] for clone in row['clones'].values()]
    for row in map(json.loads, rows)
    if 'loss/base' in row['clones']['structural']
  }


def state(workdir, step):
  """Every leaf that was saved, by its name."""
  path = (workdir / 'checkpoints' / str(step)).resolve()
  tree = ocp.StandardCheckpointer().restore(path)['state']
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(k): np.asarray(x) for k, x in leaves}


def assert_same(mine, theirs, step):
  """Losses and saved states of two workdirs, bit for bit."""
  assert losses(mine) == losses(theirs)
  here, there = state(mine, step), state(theirs, step)
  assert here.keys() == there.keys()
  for name, x in there.items():
    np.testing.assert_array_equal(here[name], x, err_msg=name)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  home = tmp_path_factory.mktemp('hosts')
  _, paths = tiny.bins_and_paths()
  np.save(home / 'source.npy', paths)
  return home


def test_two_hosts_stopped_and_killed_follow_the_run_of_one_bit_for_bit(home):
  """Of two devices: of two numbers there is but one sum."""
  workdir = home / 'two'
  two = start(workdir, devices=1, train__cycles=99999)
  wait_for(two[0], 'Cycle 2 of')
  two[1].kill(signal.SIGTERM)
  assert [host.end() for host in two] == [143, 143], two[0].says()
  lines = [ONE_LINE.findall(host.says()) for host in two]
  assert lines[0] == lines[1]
  done = int(re.match(r'Stopped at cycle (\d+), saved', lines[0][0])[1])

  two = start(workdir, devices=1, train__cycles=99999)
  wait_for(two[0], f'Cycle {done - done % 4 + 8} of')
  assert f'Resuming from cycle {done}.' in two[0].says()
  two[0].kill(signal.SIGKILL)
  assert two[1].end(60) == 134
  assert ONE_LINE.findall(two[1].says())[1:] == [
    'Error: Another host is gone: the same command on all hosts goes on from '
    'the last checkpoint.'
  ]
  # What two have saved one goes on from, as if there had been no other.
  names = (p.name for p in (workdir / 'checkpoints').iterdir())
  last = max(int(name) for name in names if name.isdecimal())
  cycles = last - last % 6 + 6  # of log lines and of melds
  (one, alone) = (
    start(folder, count=1, devices=2, train__cycles=cycles)[0]
    for folder in (workdir, home / 'alone')
  )
  assert [one.end(), alone.end()] == [0, 0], one.says()
  assert_same(workdir, home / 'alone', cycles)


def test_hosts_of_different_configs_are_refused_in_a_line(home):
  with socket.create_server(('localhost', 0)) as s:
    port = s.getsockname()[1]
  flags = nothing_is_lost.flags(home / 'configs', devices=0)
  two = [
    Host(home / 'configs', port, 2, i, 2, flags | {'q.every': 4 + i})
    for i in range(2)
  ]
  assert [host.end(60) for host in two] == [2, 2]
  [line], [same] = (ONE_LINE.findall(host.says()) for host in two)
  assert line == same
  assert line == (
    'Error: All hosts need the same --config.q.every: host 0 has 4, host 1 has '
    '5.'
  )
  assert not (home / 'configs').exists()


def go_on_from_one(base):
  """What one host has saved two go on from, as if there had been no other."""
  (one,) = start(base / 'back', 1, 2, train__cycles=8)
  (alone,) = start(base / 'on', 1, 2, train__cycles=16)
  assert one.end() == 0, one.says()
  two = start(base / 'back', 2, 1, train__cycles=16)
  assert {host.end() for host in (*two, alone)} == {0}, two[0].says()
  assert 'Resuming from cycle 8.' in two[0].says()
  assert_same(base / 'back', base / 'on', 16)
  print('two went on from cycle 8 of one: cycle 16 bit for bit')


def follow_many(base, count):
  """Hosts of two devices against one process of as many."""
  # XLA shares a product out among as many threads as a process has devices, or
  # cores, and what the threads did is summed in that order.
  os.environ['NPROC'] = str(2 * count)
  runs = start(base / f'one_{count}', 1, 2 * count, True, train__cycles=12)
  runs += start(base / f'hosts_{count}', count, 2, train__cycles=12)
  del os.environ['NPROC']
  assert {host.end(600) for host in runs} == {0}, runs[0].says()
  assert_same(base / f'hosts_{count}', base / f'one_{count}', 12)
  print(f'{count} hosts of two devices: cycle 12 bit for bit as one process')


def come_alone(base):
  """The first host, or another, where the other never comes."""
  for number in (0, 1):
    with socket.create_server(('localhost', 0)) as s:
      port = s.getsockname()[1]
    workdir = base / f'alone_{number}'
    flags = nothing_is_lost.flags(workdir, devices=0)
    began = time.monotonic()
    host = Host(workdir, port, 2, number, 2, flags)
    code = host.end(300)
    print(
      f'host {number} alone ended after {time.monotonic() - began:.1f} s with '
      f'{code}: {ONE_LINE.findall(host.says())}'
    )


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as folder:
    base = pathlib.Path(folder)
    np.save(base / 'source.npy', tiny.bins_and_paths()[1])
    go_on_from_one(base)
    come_alone(base)
    for count in (2, 4):
      follow_many(base, count)
    for victim in (0, 1):
      runs = start(base / f'killed_{victim}', train__cycles=99999)
      wait_for(runs[0], 'Cycle 8 of')
      began = time.monotonic()
      runs[victim].kill(signal.SIGKILL)
      code = runs[1 - victim].end(60)
      print(
        f'host {victim} killed: the other ended after '
        f'{time.monotonic() - began:.1f} s with {code}: '
        f'{ONE_LINE.findall(runs[1 - victim].says())}'
      )
