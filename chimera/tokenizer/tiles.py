"""Crops of one size in batches, and those of an older store joined."""

from collections.abc import Iterable, Iterator
import itertools

import numpy as np

from chimera.tokenizer import export


def join(tiles: np.ndarray, rows: int, columns: int) -> np.ndarray:
  """A picture (rows * h, columns * w, 3) of tiles (n, h, w, 3), row by row."""
  _, h, w, _ = tiles.shape
  tiles = tiles.reshape(rows, columns, h, w, 3).swapaxes(1, 2)
  return tiles.reshape(rows * h, columns * w, 3)


def encode_each(
  loaded: export.Tokenizer, crops: Iterable[np.ndarray], batch_size: int
) -> Iterator[np.ndarray]:
  """Tokens (n, h, w) of crops; the next batch is computed meanwhile."""
  encoded = (
    (loaded.encode(batch), count) for batch, count in batches(crops, batch_size)
  )
  # What is taken from the device is one behind what was sent there.
  pairs = itertools.pairwise(itertools.chain(encoded, [None]))
  for (tokens, count), _ in pairs:
    yield np.asarray(tokens)[:count]


def batches(
  rows: Iterable[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray, int]]:
  """(batch, rows in it), filled up to one size, lest it compile again."""
  rows = iter(rows)
  while part := list(itertools.islice(rows, size)):
    filling = [np.zeros_like(part[0])] * (size - len(part))
    yield np.stack([*part, *filling]), len(part)
