"""Four CPU devices for every test, no silent rank promotion; warnings seen."""

import gc
import os
import pathlib
import signal

from tests import xla

_FLAG = '--xla_force_host_platform_device_count'
if _FLAG not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAG}=4'
os.environ['XLA_FLAGS'] += f' {xla.SOONER}'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from absl import logging  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from tests import sweep  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
# What the tests compile, here or in another process, runs for seconds;
# compiling it took minutes.
jax.config.update('jax_disable_most_optimizations', True)
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
# Nor is it compiled by every file of tests that needs it.
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


# What is imported is not looked through for cycles again and again.
gc.freeze()
gc.set_threshold(20_000, 20, 20)


# Started in the background or by nohup: what sends itself a signal would wait
# for ever.
for _signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
  if signal.getsignal(_signum) is signal.SIG_IGN:
    signal.signal(_signum, signal.SIG_DFL)


# What takes longest, longest first: no worker is left alone with it in the end.
_LONGEST = (
  *('nothing_is_lost', 'export', 'step', 'quarantine', 'appendix_a', 'train'),
)


def pytest_addoption(parser):
  parser.addoption('--long', action='store_true', help='sweeps at full length')


def pytest_configure(config):
  if config.getoption('long'):
    sweep.lengthen()


def pytest_collection_modifyitems(items):
  names = [f'/{name}_test.py' for name in _LONGEST]
  items.sort(key=lambda item: [name not in item.nodeid for name in names])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  """What a test printed goes to another process, as UTF-8 whatever it was."""
  report = yield
  report.sections = [
    (name, text.encode('utf-8', 'backslashreplace').decode())
    for name, text in report.sections
  ]
  return report


@pytest.fixture
def warnings(monkeypatch):
  """What is warned of, a line each."""
  return _logged(monkeypatch, 'warning')


@pytest.fixture
def said(monkeypatch):
  """What is logged that is no warning, a line each."""
  return _logged(monkeypatch, 'info')


def _logged(monkeypatch, level):
  lines = []
  monkeypatch.setattr(
    logging, level, lambda text, *values: lines.append(text % values)
  )
  return lines


@pytest.fixture(autouse=True)
def _few_programs():
  """Lets go of what is compiled before the kernel has no maps left for more.

  Each program takes hundreds; beyond vm.max_map_count, 65530, XLA dies with
  'Cannot allocate memory', a segmentation fault, or an abort.
  """
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > 20_000:
    jax.clear_caches()
    gc.collect()
