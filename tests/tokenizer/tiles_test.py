"""Crops in batches, and tiles joined."""

import numpy as np

from chimera.tokenizer import tiles as tiles_lib


def test_tiles_are_joined_row_by_row():
  picture = np.arange(32 * 27 * 3, dtype=np.uint16).reshape(32, 27, 3)
  tiles = [
    picture[16 * i : 16 * (i + 1), 9 * j : 9 * (j + 1)]
    for i in range(2)
    for j in range(3)
  ]
  joined = tiles_lib.join(np.stack(tiles), 2, 3)
  np.testing.assert_array_equal(joined, picture)


def test_batches_are_filled_up_to_one_size():
  rows = [np.full((2, 2), i) for i in range(5)]
  found = [
    (b.shape, b[:n, 0, 0].tolist()) for b, n in tiles_lib.batches(rows, 3)
  ]
  assert found == [((3, 2, 2), [0, 1, 2]), ((3, 2, 2), [3, 4])]
