"""Data that are spoilt for the ledger."""

import numpy as np
import pytest

from chimera.benchmarks import conditions
from chimera.optics import stage_1


def by_radius():
  """100 samples whose radius is their number."""
  paths = np.zeros((100, 2, 2, 3), np.float32)
  paths[..., 2] = np.arange(100)[:, None, None] / 100
  paths[..., :2] = -paths[..., 2:]
  return stage_1.Prepared(
    paths, list(range(100)), np.arange(100), None, None, None
  )


@pytest.fixture
def prepared():
  return by_radius()


def test_where_hard_samples_are_rare_nine_in_ten_are_easy(prepared):
  found = conditions.rare(prepared, 0)
  order = np.array(found.crops)
  assert len(order) == 100
  assert np.sum(order < 40) == 90
  np.testing.assert_array_equal(found.gradients_N, order)
  np.testing.assert_array_equal(found.paths_NxHxWxC, prepared[0][order])
  assert conditions.rare(prepared, 1).crops != found.crops


def test_a_set_of_any_size_can_be_corrupted(prepared):
  rows = list(range(39))
  fewer = prepared._replace(
    paths_NxHxWxC=prepared.paths_NxHxWxC[rows],
    crops=rows,
    gradients_N=prepared.gradients_N[rows],
  )
  found = conditions.corrupted(fewer, 0)
  assert (len(found.crops), len(found.paths_NxHxWxC)) == (39, 39)


def test_of_a_corrupted_set_one_in_ten_is_noise_or_a_copy(prepared):
  found = conditions.corrupted(prepared, 0)
  differ = np.any(found.paths_NxHxWxC != prepared.paths_NxHxWxC, axis=(1, 2, 3))
  copies = np.array(found.crops) != np.arange(100)
  assert (differ.sum(), copies.sum()) == (9, 4)  # the fifth is the original
  assert not np.ptp(found.paths_NxHxWxC[copies], axis=0).any()
  noise = found.paths_NxHxWxC[differ & ~copies]
  assert (noise.shape[0], np.ptp(noise[..., 0]) > 5) == (5, True)
  np.testing.assert_array_equal(prepared.crops, np.arange(100))
