"""Every key of the config x what people write: refused by name, or trained.

At full length everything that is accepted is trained, and of every number the
least and the greatest that are.
"""

import math
import os
import pathlib
import sys

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from chimera import main
from chimera import step as step_lib
from chimera.clones import specialists
from chimera.clones import state as state_lib
from chimera.doctor import dry_run
from chimera.run import config_json, engine, preflight
from configs import chimera as chimera_config
from tests import sweep, tiny

KEYS = config_json.keys(chimera_config.get_config())
ROOT = pathlib.Path(__file__).parents[2]


def _spoilt(value):
  """What people write in place of it, by what that is."""
  wrong = 7 if isinstance(value, str | bool | tuple) else 'many'
  return {
    'wrong type': wrong,
    'float': float(value) if type(value) is int else 1.5,
    'zero': 0,
    '-1': -1,
    '1e12': 1e12,
    'never': 10**12,
    'nan': math.nan,
    'inf': math.inf,
    'nothing': '',
    'None': None,
    'list': [value],
    'huge': 'x' * 10**6,
  }


def _ladder():
  """Numbers from the least to the greatest of float32 and of int32."""
  return [
    *(10.0**n for n in range(-46, 41)),
    *(2**n for n in range(64)),
    *(2**n - 1 for n in range(1, 64)),
    *(1 - 2.0**-n for n in range(1, 60)),
    80.0,
  ]


def _put(config, key, value):
  """Whatever the type was."""
  *groups, leaf = key.split('.')
  for group in groups:
    config = config[group]
  del config[leaf]  # or what is like it is cast to its type
  config[leaf] = value


def _complaint(config):
  """What is said of a config before any work; None where it may train."""
  try:
    preflight.check_config(config)
    preflight.check_data(config)
    preflight.check_workdir(config, 'nowhere')
    preflight.check_init_from(config, 'nowhere')
  except ValueError as e:
    return str(e)
  return None


def _is_named(complaint, key):
  leaf = key.rpartition('.')[2]
  return '\n' not in complaint and leaf in complaint and len(complaint) < 800


def _accepted(config, values_of):
  """(key, value) of what may train and is not as it was; the rest is named."""
  accepted = []
  for key, old in config_json.keys(config).items():
    for value in values_of(old):
      _put(config, key, value)
      complaint = _complaint(config)
      _put(config, key, old)
      if complaint is None and value != old:
        accepted.append((key, value))
      assert complaint is None or _is_named(complaint, key), (key, complaint)
  return accepted


@pytest.fixture(scope='module')
def tiny_config(tmp_path_factory):
  path = tmp_path_factory.mktemp('source') / 'source.npy'
  np.save(path, tiny.bins_and_paths()[1])
  config = tiny.get_config()
  config.data.source = str(path)
  config.data.held_out_count = 20
  config.model.blocks = 0  # soon compiled
  config.model.downsample = 1
  return config


def test_what_is_not_accepted_is_named_in_one_line():
  config = chimera_config.get_config()
  accepted = _accepted(config, lambda old: _spoilt(old).values())
  assert config == chimera_config.get_config()
  # Most keys are numbers that may be 0.
  assert len(KEYS) < len(accepted) < 2 * len(KEYS)
  for key in ('school.enrol_from', 'train.cycles', 'seed'):
    assert (key, 10**12) not in accepted


_THINGS = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text()
  | st.binary()
  | st.complex_numbers(),
  lambda inner: (
    st.lists(inner)
    | st.tuples(inner)
    | st.tuples(inner, inner)
    | st.frozensets(st.integers())
  ),
  max_leaves=4,
)


@sweep.of(ci=200, long=20_000)
@hypothesis.given(st.sampled_from(sorted(KEYS)), _THINGS)
def test_anything_at_all_is_named_or_accepted(key, value):
  config = chimera_config.get_config()
  _put(config, key, value)
  complaint = _complaint(config)
  assert complaint is None or _is_named(complaint, key), complaint


_FILE = """
import json, os
from configs import chimera
def get_config():
  c = chimera.get_config()
  nan, inf = float('nan'), float('inf')
  key, value = eval(os.environ['CHANGE'])
  *groups, leaf = key.split('.')
  block = c
  for group in groups:
    block = block[group]
  block[leaf] = value
  return c
"""
PAIRS = [(k, label) for k, v in KEYS.items() for label in _spoilt(v)]


@pytest.fixture
def dry_runs(tmp_path, monkeypatch):
  """What --dry-run came to look at, in an empty folder with a config file."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(ROOT))
  (tmp_path / 'own.py').write_text(_FILE)
  monkeypatch.setattr(main, '_set_up_logging', lambda debug: None)
  monkeypatch.setenv('CHANGE', '')
  seen = []
  monkeypatch.setattr(dry_run, 'run', lambda *args: seen.append(args))
  return seen


@pytest.mark.parametrize('value', ['None', '7', "{'seed': 1}", 'get_config'])
def test_a_config_file_that_gives_no_config_is_one_line(dry_runs, capfd, value):
  sys.modules.pop('config_config', None)
  pathlib.Path('own.py').write_text(f'def get_config():\n  return {value}\n')
  assert main.main(['chimera', '--config=own.py', '--dry-run']) == 2
  _, err = capfd.readouterr()
  assert err.startswith('Error: --config: get_config must return a ConfigDict')
  assert err.count('\n') == 1


@sweep.of(ci=40, long=len(PAIRS))
@hypothesis.given(pair=st.sampled_from(PAIRS))
def test_a_config_file_of_ones_own_meets_the_same_rules(dry_runs, capfd, pair):
  key, label = pair
  dry_runs.clear()
  # config_flags would run the next config file in the last one's module.
  sys.modules.pop('config_config', None)
  value = _spoilt(KEYS[key])[label]
  os.environ['CHANGE'] = repr((key, value))
  code = main.main(['chimera', '--config=own.py', '--dry-run', '--workdir=w'])
  _, err = capfd.readouterr()
  if code == 0:
    assert len(dry_runs) == 1
    # A list may come as the tuple that was meant.
    assert _complaint(dry_runs[0][0]) is None
  else:
    assert code == 2
    assert not dry_runs
    assert err.startswith('Error: ')
    assert err.count('\n') == 1
    assert _is_named(err[:-1], key)
  assert os.listdir() == ['own.py']


def _changed(config, *changes):
  config = config.copy_and_resolve_references()
  for key, value in changes:
    _put(config, key, value)
  return config


def _train(configs):
  """One cycle of each: the clones healthy, all numbers.

  One may be left out: who weighs a term by a million has a loss beyond
  meld.loss_bound. What differs in data to the step shares what is compiled.
  """
  bins, paths = tiny.bins_and_paths()
  by_spec, sick = {}, []
  for what, config in configs:
    spec = state_lib.create_spec(config)
    by_spec.setdefault(spec, []).append((what, config))
  devices = jax.devices()
  for spec, cases in by_spec.items():
    born = state_lib.create_states(cases[0][1], spec, bins, paths.shape[1:3])
    born = state_lib.stack(born)
    shard = engine.put_shared(tiny.shard(paths), devices)
    step = step_lib.make_train_step(spec, tuple(devices))
    for what, config in cases:
      mission = state_lib.stack(specialists.create_missions(config, bins))
      state, seen = engine.fetch(
        step(engine.put(born, devices), engine.put(mission, devices), shard)
      )
      leaves = jax.tree.leaves((state.master, state.generator))
      is_well = seen['healthy'].sum() >= len(seen['healthy']) - 1
      is_well &= np.isfinite(seen['loss/base']).all()
      if not (is_well and all(np.isfinite(leaf).all() for leaf in leaves)):
        sick.append(what)
    jax.clear_caches()
  assert not sick


@pytest.fixture(scope='module')
def accepted(tiny_config):
  """[(key, value)] of what people write and may train."""
  return _accepted(tiny_config, lambda old: _spoilt(old).values())


def _is_shared(config, change):
  """Whether it needs no other program."""
  specs = map(state_lib.create_spec, (config, _changed(config, change)))
  return len({*specs}) == 1


def _edges(config):
  """The least and the greatest of each number that is in the step."""
  ladder = _ladder()

  def ends(old):
    return ladder if type(old) in (int, float) else ()

  groups = ('specialists.', 'loss.', 'critic.', 'pid.', 'q.', 'meld.')
  found = {}
  for key, value in _accepted(config, ends):
    is_size = key.startswith(('model.', 'train.cycles_'))
    if key.startswith((*groups, 'school.', 'train.')) and not is_size:
      found.setdefault(key, []).append(value)
  return [(k, end(values)) for k, values in found.items() for end in (min, max)]


def _is_long():
  return sweep.of(ci=1, long=2).max_examples == 2


def test_what_is_accepted_trains(tiny_config, accepted):
  shared = [change for change in accepted if _is_shared(tiny_config, change)]
  assert len(shared) > 200
  # What needs a program of its own, all at once: of each key that may be, 0.
  zeros = [c for c in accepted if c not in shared and c[1] == 0]
  assert len(zeros) > 15
  some = shared[:: len(shared) // 20]
  if _is_long():
    some = [*accepted, *_edges(tiny_config)]
  cases = [*((change, [change]) for change in some), ('zeros', zeros)]
  _train([(what, _changed(tiny_config, *changes)) for what, changes in cases])


def test_sizes_that_do_not_fold_or_divide_train(tmp_path):
  changes = {
    'data.image_size': 40,  # a grid of 10, which the critic folds twice
    'data.train_count': 40,
    'data.held_out_count': 8,
    'data.max_scale': 1e12,
    'data.seed': 10**12,
    'optics.steps': 1,
    'optics.noise': 0.0,
    'model.width': 100,  # 12 groups do not divide it
    'school.resident_mb': 0,
    'train.cycles': 1,
    'train.rollbacks': 0,
    'train.warmup': 0,
  }
  config = _changed(tiny.get_config(), *changes.items())
  assert _complaint(config) is None
  if _is_long():
    argv = [f'--config={ROOT}/tests/tiny.py', f'--workdir={tmp_path}/w']
    argv += [f'--config.{key}={value}' for key, value in changes.items()]
    assert main.main(['chimera', *argv]) == 0
    assert (tmp_path / 'w' / 'tokenizer' / 'tokenizer.json').exists()
    return
  spec, devices = state_lib.create_spec(config), jax.devices()
  bins, paths = tiny.bins_and_paths()
  paths = np.pad(paths, ((0, 0), (0, 2), (0, 2), (0, 0)))
  args = tiny.on_devices(config, spec, bins, paths, devices)
  # Traced, not compiled: what does not fit shows there.
  state, seen = jax.eval_shape(
    step_lib.make_train_step(spec, tuple(devices)), *args
  )
  assert seen['loss'].shape == (4, 1, 10)
  assert state.step.shape == (4, 1)
