"""Which devices train, what lies on them, and when it is dealt anew."""

import jax
import numpy as np
import pytest

from chimera.run import engine
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


# Of the four there are.
@pytest.mark.parametrize(
  ('clones', 'fit'), [(1, '1'), (3, '1, 3'), (5, '1'), (8, '1, 2, 4')]
)
def test_devices_divide_the_clones_and_none_told_are_the_most(clones, fit):
  assert len(engine.choose_devices(0, clones)) == int(fit[-1])
  wrong = {5: 5, 8: 8}.get(clones, 2)
  with pytest.raises(ValueError, match=r'fix --config\.devices') as e:
    engine.choose_devices(wrong, clones)
  assert f'one of {fit}, for {clones} clones' in str(e.value)
