"""A folder of tokens: what lies there, and how it is read.

  tokens-00000.npy ...  (n, h, w), int16 or int32 by the codebook's size; (n,)
                        with crop = 'whole'
  tokens.json           grid, codebook, order, sources, digests; written last,
                        and sealed: one other digit would shift all rows
  skipped.csv           which files gave no rows, and why

With crop = 'center' a row is a photograph: the largest centered square of it,
or another rectangle, resized. With 'whole' it is a token: a photograph has as
many as its size asks for, row by row, and its entry says how many rows and
columns; beyond the right and lower edge it is mirrored. Photographs follow the
order of their paths. A store that an earlier Chimera made with 'tiles' has a
row a square of image_size.
"""

from collections.abc import Iterable, Iterator
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from chimera.system import disk

META = 'tokens.json'
PARTIAL = 'tokens.partial.json'


class Tokens(NamedTuple):
  """What a folder of tokens holds."""

  # (N, h, w), or (N,) with crop = 'whole'; a read-only memory map where it is
  # one shard
  tokens_Nxhxw: np.ndarray
  meta: dict[str, Any]  # what tokens.json says

  def grids(self) -> Iterator[np.ndarray]:
    """Each photograph's tokens (h, w), in the order of meta['sources'].

    Of an older store in tiles, those of all its tiles, joined.
    """
    h, w = self.meta['grid'] or (1, 1)  # of a row
    for source in self.meta['sources']:
      part = self.tokens_Nxhxw[source['first'] : end(source)]
      rows, columns = source['rows'], source['columns']
      part = part.reshape(rows, columns, h, w).swapaxes(1, 2)
      yield part.reshape(rows * h, columns * w)


def load(folder: str | os.PathLike) -> Tokens:
  """Reads what `tokenize` wrote.

  Raises:
    ValueError: no tokens there, or not as they were written.
  """
  home = pathlib.Path(folder)
  disk.check_folder(home, 'What holds tokens')
  try:
    meta = disk.read_sealed(home / META)
  except FileNotFoundError as e:
    yet = ' yet: give the same tokenize command again'
    hint = yet if (home / PARTIAL).exists() else ''
    raise ValueError(f'No tokens in {home}{hint} ({e.filename}).') from e
  except (OSError, ValueError) as e:
    raise _broken(home, e) from e
  try:
    parts = open_shards(home, meta)
  except ValueError:
    # tokenize may have put others in the place of the shards.
    if disk.read_sealed(home / META) == meta:
      raise
    return load(folder)
  if meta.get('format') == 1:  # what was skipped is a name alone
    meta = meta | {'skipped': [{'file': name} for name in meta['skipped']]}
  return Tokens(parts[0] if len(parts) == 1 else np.concatenate(parts), meta)


def open_shards(home: pathlib.Path, meta: dict[str, Any]) -> list[np.ndarray]:
  """The shards, (n, h, w) each, read-only memory maps.

  Raises:
    ValueError: one is not as it was written.
  """
  try:
    parts = []
    for shard in meta['shards']:
      path = home / shard['file']
      if disk.digest(path) != shard['sha256']:
        raise ValueError(f'{shard["file"]} is not as it was written')
      parts.append(np.load(path, mmap_mode='r', allow_pickle=False))
      if parts[-1].shape != (shard['count'], *meta['grid']):
        raise ValueError(f'{parts[-1].shape} tokens, not as {META} says')
    if sum(map(len, parts)) != meta['count']:
      raise ValueError(f'not as many tokens as {META} says')
    return parts
  except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
    raise _broken(home, e) from e


def _broken(home: pathlib.Path, error: Exception) -> ValueError:
  return ValueError(
    f'{home} does not hold whole tokens ({error}): tokenize anew into another '
    '--out.'
  )


def in_parts(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
  """What they hold one behind the other, in arrays of `size` rows."""
  held, count = [], 0
  for array in arrays:
    held.append(array)
    count += len(array)
    while count >= size:
      joined = np.concatenate(held)
      yield joined[:size]
      held, count = [joined[size:]], count - size
  if count:
    yield np.concatenate(held)


def end(entry: dict[str, Any]) -> int:
  """The row behind the last one of a source."""
  return entry['first'] + entry['rows'] * entry['columns']
