"""Tiles of a picture, and the picture of them."""

import numpy as np

from chimera.tokenizer import tiles as tiles_lib


def test_join_is_the_inverse_of_cut():
  picture = np.arange(20 * 37 * 3, dtype=np.uint8).reshape(20, 37, 3)
  tiles, rows, columns = tiles_lib.cut(picture, 16)
  assert tiles.shape == (6, 16, 16, 3)
  assert (rows, columns) == (2, 3)
  whole = tiles_lib.join(tiles, rows, columns)
  np.testing.assert_array_equal(whole[:20, :37], picture)
  np.testing.assert_array_equal(whole[20:40][::-1][-12:], whole[20:32][::-1])
  np.testing.assert_array_equal(whole[20], whole[19])  # mirrored
  np.testing.assert_array_equal(whole[:, 38], whole[:, 35])


def test_batches_are_filled_up_to_one_size():
  rows = [np.full((2, 2), i) for i in range(5)]
  found = [
    (b.shape, b[:n, 0, 0].tolist()) for b, n in tiles_lib.batches(rows, 3)
  ]
  assert found == [((3, 2, 2), [0, 1, 2]), ((3, 2, 2), [3, 4])]
