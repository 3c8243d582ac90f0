"""Which devices train, what lies on them, and when it is dealt anew."""

import types

import jax
import numpy as np
import pytest

from chimera.clones import state as state_lib
from chimera.run import engine
from chimera.school import lessons
from tests import tiny


def test_what_is_put_onto_devices_is_fetched_in_the_order_of_the_clones():
  tree = {'x': np.arange(24.0).reshape(8, 3), 'n': np.arange(8)}
  for count in (1, 2, 4):
    there = engine.put(tree, jax.devices()[:count])
    assert there['x'].shape == (count, 8 // count, 3)
    assert len(there['x'].addressable_shards) == count
    back = engine.fetch(there)
    for name, x in tree.items():
      np.testing.assert_array_equal(back[name], x)


def test_what_is_shared_lies_on_every_device():
  there = engine.put_shared({'x': np.arange(3.0)}, jax.devices()[:4])
  np.testing.assert_array_equal(there['x'], [[0, 1, 2]] * 4)


def test_shards_are_dealt_at_rotations_and_enrolments():
  config = tiny.get_config()
  config.school.resident_mb = 0
  config.school.rotate_every = 6
  config.school.enrol_from = 3
  config.school.enrol_every = 5
  shards = engine.Shards(config, np.zeros((10, 2, 2, 3), np.float32), [])
  # The enrolments of cycles 3 and 8 are there once 4 and 9 cycles are done.
  due = [c for c in range(1, 13) if shards.are_due(c, 1)]
  assert due == [4, 6, 9, 12]
  assert [c for c in range(4, 13, 4) if shards.are_due(c, 4)] == [4, 8, 12]
  config.school.enabled = False
  assert [c for c in range(1, 13) if shards.are_due(c, 1)] == [6, 12]


def _rotations(monkeypatch, function):
  """Those that a function of lessons is asked for, as they come."""
  asked = []

  def note(*args, rotation, **how):
    asked.append(rotation)
    return function(*args, rotation=rotation, **how)

  monkeypatch.setattr(lessons, function.__name__, note)
  return asked


def test_each_rotation_has_a_dispatch(monkeypatch):
  config = tiny.get_config()
  config.school.resident_mb = 0
  config.school.rotate_every = 2
  config.train.cycles_per_dispatch = 6
  _, paths = tiny.bins_and_paths()
  rotations = _rotations(monkeypatch, lessons.make_shards)
  for cycle in (0, 6, 12):
    shards = engine.Shards(config, paths, jax.devices()[:1])
    shards.deal(np.zeros((4, 12), np.int32), cycle)
    assert shards.are_due(cycle + 6, 6)
  assert rotations == [0, 1, 2]


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_what_rotates_alone_is_put_and_was_read_ahead(devices, monkeypatch):
  config = tiny.get_config()
  config.school.resident_mb = 0
  config.school.rotate_every = 6
  config.school.rotating_samples = 5
  _, paths = tiny.bins_and_paths()
  enrolled = np.random.default_rng(0).integers(0, 120, (4, 12), np.int32)
  others = enrolled[::-1].copy()
  read = _rotations(monkeypatch, lessons.rotate)
  there = jax.devices()[:devices]
  shards = engine.Shards(config, paths, there)
  # On and on, back (after a rollback), and to others.
  for cycle, to, news in (
    *((0, enrolled, [0, 1]), (6, enrolled, [2]), (13, enrolled, [3])),
    *((6, enrolled, [1, 2]), (12, others, [2, 3]), (18, others, [4])),
  ):
    del read[:]
    dealt = shards.deal(to, cycle)
    shards._reader.submit(lambda: None).result()  # the one before is done
    assert read == news
    expected = lessons.make_shards(
      paths,
      to,
      resident_mb=0,
      rotating_samples=5,
      rotation=cycle // 6,
      seed=config.seed,
    )
    expected = engine.put(state_lib.stack(expected), there)
    for x, y in zip(dealt, expected, strict=True):
      np.testing.assert_array_equal(x, y)
      # Else the step would be compiled again.
      assert x.sharding == y.sharding


# Of the four there are, with batches of 3.
@pytest.mark.parametrize(
  ('clones', 'fit'),
  [(1, '1, 3'), (2, '1, 2'), (3, '1, 3'), (5, '1'), (8, '1, 2, 4')],
)
def test_devices_divide_the_clones_or_their_batch_and_none_told_are_the_most(
  clones, fit
):
  assert len(engine.choose_devices(0, clones, 3)) == int(fit[-1])
  wrong = {3: 2, 5: 5, 8: 8}.get(clones, 4)
  with pytest.raises(ValueError, match=r'fix --config\.devices') as e:
    engine.choose_devices(wrong, clones, 3)
  assert f'one of {fit}, for {clones} clones with batches of 3' in str(e.value)


def test_what_is_put_onto_more_devices_than_clones_lies_on_each_of_a_clone():
  tree = {'x': np.arange(6.0).reshape(2, 3)}
  there = engine.put(tree, jax.devices()[:4])
  assert engine.replicas(jax.devices()[:4], 2) == 2
  np.testing.assert_array_equal(there['x'][:, 0, 0], [0, 0, 3, 3])
  np.testing.assert_array_equal(engine.fetch(there, 2)['x'], tree['x'])


def test_of_several_hosts_each_has_as_many_side_by_side(monkeypatch):
  _machine(monkeypatch, devices=12, platform='tpu')
  for i, device in enumerate(jax.devices()):
    device.process_index = i % 3  # as JAX may number those of a slice
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  chosen = engine.choose_devices(0, 3, 2)
  assert [d.process_index for d in chosen] == [0, 0, 1, 1, 2, 2]
  assert [d.id for d in engine.local(chosen)] == [1, 4]
  assert len(engine.choose_devices(3, 3, 2)) == 3
  with pytest.raises(ValueError, match='one of 3, 6, for 3 clones'):
    engine.choose_devices(1, 3, 2)
  with pytest.raises(ValueError, match=r'4 clones .* evenly over 3 hosts'):
    engine.choose_devices(0, 4, 2)


def test_hosts_of_different_numbers_of_devices_are_told(monkeypatch):
  there = [
    types.SimpleNamespace(process_index=i, id=i, platform='cpu')
    for i in (0, 1, 1)
  ]
  monkeypatch.setattr(jax, 'devices', lambda: there)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match=r'as the others, got 1, 2: on CPUs fix'):
    engine.choose_devices(0, 4, 2)


def _machine(monkeypatch, *, devices=1, platform='cpu', asked=None, files=()):
  """One of that many devices, whose /dev holds these files, with libtpu."""
  there = [
    types.SimpleNamespace(platform=platform, process_index=0, id=i)
    for i in range(devices)
  ]
  monkeypatch.setattr(jax, 'devices', lambda: there)
  config = types.SimpleNamespace(jax_platforms=asked)
  monkeypatch.setattr(jax, 'config', config)
  monkeypatch.setattr(
    engine.importlib.util, 'find_spec', lambda name: name == 'libtpu' or None
  )
  monkeypatch.setattr(
    engine.glob, 'glob', lambda pattern: [f for f in files if f in pattern]
  )
  for name in ('TPU_VISIBLE_DEVICES', 'CUDA_VISIBLE_DEVICES'):
    monkeypatch.delenv(name, raising=False)


# Batches of 2.
@pytest.mark.parametrize(
  ('devices', 'clones', 'train'),
  [(3, 4, 2), (9, 4, 8), (6, 9, 3), (3, 2, 2), (6, 2, 4)],
)
def test_that_devices_idle_is_said_once_and_how_to_use_them(
  monkeypatch, said, devices, clones, train
):
  _machine(monkeypatch, devices=devices, platform='tpu')
  assert engine.check_devices(0, clones, 2) == train
  assert said == []
  assert len(engine.choose_devices(0, clones, 2)) == train
  [line] = said
  assert line.startswith(f'{train} of {devices} devices train, the others idle')
  assert f'must divide the {clones} clones, or be a multiple' in line


def test_that_none_idles_or_some_were_told_to_is_not_said(monkeypatch, said):
  _machine(monkeypatch, devices=4)
  assert len(engine.choose_devices(0, 8, 8)) == 4
  assert len(engine.choose_devices(2, 8, 8)) == 2
  assert said == []


@pytest.mark.parametrize('asked', [None, '', 'tpu,cpu', 'cuda,cpu'])
def test_an_accelerator_that_jax_cannot_have_is_no_silent_cpu(
  monkeypatch, asked
):
  for file in ('/dev/accel', '/dev/vfio/'):
    _machine(monkeypatch, asked=asked, files=[file])
    with pytest.raises(ValueError, match='a TPU is here, but JAX sees the CPU'):
      engine.check_devices(0, 4, 8)
  # Without the modules it was never meant.
  _machine(monkeypatch, asked=asked, files=['/dev/nvidia'])
  assert engine.check_devices(0, 4, 8) == 1
  monkeypatch.setattr(
    engine.importlib.util, 'find_spec', lambda name: 'cuda12' in name or None
  )
  with pytest.raises(ValueError, match='XLA_PYTHON_CLIENT_MEM_FRACTION'):
    engine.check_devices(0, 4, 8)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  assert engine.check_devices(0, 4, 8) == 1


def test_whoever_asks_for_the_cpu_gets_it_and_a_tpu_that_is_seen_is_used(
  monkeypatch,
):
  _machine(monkeypatch, asked='cpu', files=['/dev/accel'])
  assert engine.check_devices(0, 4, 8) == 1
  _machine(monkeypatch, devices=4, platform='tpu', files=['/dev/accel'])
  assert engine.check_devices(0, 4, 8) == 4


def test_a_tpu_that_another_program_has_is_one_line(monkeypatch):
  def refuse():
    raise RuntimeError(
      "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use "
      'by process with pid 7. Not attempting to load libtpu.so'
    )

  monkeypatch.setattr(jax, 'devices', refuse)
  with pytest.raises(
    ValueError, match=r'JAX has no device: .* pid 7.* End what'
  ):
    engine.check_devices(0, 4, 8)


def test_a_platform_that_jax_does_not_know_is_one_line(monkeypatch):
  def refuse():
    raise AssertionError  # as JAX does, of JAX_PLATFORMS=cuda

  monkeypatch.setattr(jax, 'devices', refuse)
  with pytest.raises(ValueError, match=r'none as JAX_PLATFORMS asks\. End'):
    engine.check_devices(0, 4, 8)


@pytest.mark.parametrize(
  'said',
  [
    'RESOURCE_EXHAUSTED: Out of memory while trying to\nallocate 42 bytes.',
    'FAILED_PRECONDITION: DNN library initialization failed. Look above.',
  ],
)
def test_memory_that_another_program_has_is_explained_in_a_line(said):
  line = engine.explain(jax.errors.JaxRuntimeError(said))
  assert '\n' not in line
  assert ' '.join(said.split()) in line
  assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' in line


def test_other_errors_are_not_explained():
  assert engine.explain(jax.errors.JaxRuntimeError('INTERNAL: a bug')) is None
  assert engine.explain(RuntimeError('dictionary changed size')) is None


def test_without_the_school_no_class_is_held():
  config = tiny.get_config()
  config.school.resident_mb = 0
  config.school.rotating_samples = 5
  _, paths = tiny.bins_and_paths()
  enrolled = np.zeros((4, 12), np.int32)
  rows = []
  for config.school.enabled in (True, False):
    shards = engine.Shards(config, paths, jax.devices()[:4])
    rows.append(shards.deal(enrolled, 0).samples_RxHxWxC.shape[2])
  assert rows == [5 + 12, 5]


def test_parts_that_are_more_than_the_whole_are_told(warnings):
  config = tiny.get_config()
  config.school.resident_mb = 0
  config.school.rotating_samples = 24
  _, paths = tiny.bins_and_paths()
  enrolled = np.zeros((4, 48), np.int32)
  for devices in (4, 2, 1):  # of 120 samples each holds 72, 144, 288
    shards = engine.Shards(config, paths, jax.devices()[:devices])
    shards.deal(enrolled, 0)
    assert len(warnings) == {4: 0, 2: 1, 1: 2}[devices]
    shards.deal(enrolled[::-1], 0)  # once
  assert 'raise --config.school.resident_mb' in warnings[0]


def test_no_device_holds_what_was_dealt_before_beside_what_is_dealt_now(
  monkeypatch,
):
  config = tiny.get_config()
  config.school.resident_mb = 0
  _, paths = tiny.bins_and_paths()
  shards = engine.Shards(config, paths, jax.devices()[:1])
  held, put = [], engine.put

  def see(tree, devices):
    held.append(shards._shard)
    return put(tree, devices)

  monkeypatch.setattr(engine, 'put', see)
  for enrolled in (0, 1):
    shards.deal(np.full((4, 12), enrolled, np.int32), 0)
  assert held == [None, None]


def test_a_set_that_is_resident_is_put_there_once():
  config = tiny.get_config()
  _, paths = tiny.bins_and_paths()
  shards = engine.Shards(config, paths, jax.devices()[:1])
  assert shards.resident
  first = shards.deal(np.zeros((4, 12), np.int32), 0)
  assert shards.deal(np.ones((4, 12), np.int32), 250) is first
  np.testing.assert_array_equal(first.samples_RxHxWxC[0], paths)
