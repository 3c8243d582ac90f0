"""A CPU becomes a device a clone, unless someone says how many it is."""

import os
import subprocess
import sys

import pytest

from chimera.system import cpus


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
  monkeypatch.delitem(sys.modules, 'jax')
  monkeypatch.delenv('JAX_NUM_CPU_DEVICES', raising=False)
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  monkeypatch.setattr(os, 'environ', dict(os.environ))


@pytest.mark.parametrize(
  ('cores', 'clones', 'devices'),
  [(2, 4, 2), (1, 4, 1), (3, 4, 2), (16, 4, 4), (5, 6, 3)],
)
def test_a_device_a_core_at_most_that_divides_the_clones(
  monkeypatch, cores, clones, devices
):
  monkeypatch.setattr(cpus, 'count', lambda: cores)
  cpus.split(clones)
  assert os.environ['JAX_NUM_CPU_DEVICES'] == str(devices)


def test_cores_are_those_that_the_process_may_use(monkeypatch):
  monkeypatch.setattr(os, 'cpu_count', lambda: 64)
  monkeypatch.setattr(
    os, 'sched_getaffinity', lambda pid: {3, 9}, raising=False
  )
  assert cpus.count() == 2
  monkeypatch.delattr(os, 'sched_getaffinity')
  assert cpus.count() == 64
  monkeypatch.setattr(os, 'cpu_count', lambda: None)
  assert cpus.count() == 1


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('JAX_NUM_CPU_DEVICES', '1'),
    ('XLA_FLAGS', '--xla_force_host_platform_device_count=3'),
  ],
)
def test_what_the_user_says_stays(key, value):
  os.environ[key] = value
  before = dict(os.environ)
  cpus.split(4)
  assert os.environ == before


def test_where_jax_is_there_already_nothing_is_done(monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax', None)
  before = dict(os.environ)
  cpus.split(4)
  assert os.environ == before


def test_jax_takes_it():
  code = (
    'from chimera.system import cpus; cpus.count = lambda: 2; cpus.split(4)\n'
    'import jax; print(jax.local_device_count())'
  )
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  environment['JAX_PLATFORMS'] = 'cpu'
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True
  )
  assert done.stdout.split() == [b'2'], done.stderr
