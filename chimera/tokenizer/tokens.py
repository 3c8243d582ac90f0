"""A folder of images to tokens on disk.

What `tokenize` leaves in its folder:

  tokens-00000.npy ...  (n, h, w), int16 or int32 by the codebook's size
  tokens.json           grid, codebook, order, sources, digests; written last,
                        and sealed: one other digit would shift all rows

One row is one crop. With crop = 'center' that is the largest centered square of
a photograph, resized; with 'tiles' all of it, in squares of image_size from the
top left, row by row, edges padded by their mirror image. Rows follow the
photographs in the order of their paths.

The work is streamed, a shard at a time: `tokens.partial.json` says after each
what is done, and the same command goes on from there.
"""

from collections.abc import Iterable, Iterator
import concurrent.futures
import io
import itertools
import os
import pathlib
from typing import Any, NamedTuple

from absl import logging
import ml_collections
import numpy as np

from chimera.data import images
from chimera.system import disk, lock, progress
from chimera.tokenizer import export

FORMAT = 1
META = 'tokens.json'
PARTIAL = 'tokens.partial.json'
_AHEAD = 32  # photographs decoded before they are needed


class Tokens(NamedTuple):
  """What a folder of tokens holds."""

  tokens_Nxhxw: np.ndarray  # a read-only memory map where it is one shard
  meta: dict[str, Any]  # what tokens.json says


def tokenize(
  source: str, tokenizer: str, out: str, config: ml_collections.ConfigDict
) -> None:
  """Tokenizes every image of `source` into `out`, or goes on with it.

  Raises:
    ValueError: no image there, no tokenizer, or `out` holds other tokens or is
      in use.
  """
  if not out:
    raise ValueError('tokenize needs a folder for its tokens: give --out=DIR.')
  loaded = open_tokenizer(tokenizer)
  sources = images.list_sources(source, 'FOLDER')
  # The photographs' paths within the folder or the archive.
  within = os.path.abspath(source)
  within = os.path.join(within, '') if os.path.isdir(within) else f'{within}!'
  within = images.BUNDLED if source == 'photos' else within
  names = [path.removeprefix(within) for path in sources]
  home = pathlib.Path(out)
  request = {
    'format': FORMAT,
    'crop': config.tokens.crop,
    'image_size': loaded.image_size,
    'grid': list(loaded.grid),
    'codes': loaded.codes,
    'dtype': 'int16' if loaded.codes <= 1 << 15 else 'int32',
    'codebook_digest': loaded.codebook_digest,
    'tokenizer_digest': loaded.meta['files'][export.WEIGHTS],
    'shard': config.tokens.shard,
    'order': 'photographs by path; within one, tiles row by row',
    'names_digest': disk.digest('\n'.join(names).encode()),
  }
  with lock.hold(home, '--out'):
    done = _begin(home, request)
    if done is None:
      logging.info('Nothing to do: %s is whole.', home)
      return
    if done['count']:
      logging.info('Going on from crop %d.', done['count'])
    _stream(home, loaded, sources, names, done, config.tokens.batch_size)


def load(folder: str | os.PathLike) -> Tokens:
  """Reads what `tokenize` wrote.

  Raises:
    ValueError: no tokens there, or not as they were written.
  """
  home = pathlib.Path(folder)
  try:
    meta = disk.read_sealed(home / META)
    parts = []
    for shard in meta['shards']:
      path = home / shard['file']
      if disk.digest(path) != shard['sha256']:
        raise ValueError(f'{shard["file"]} is not as it was written')
      parts.append(np.load(path, mmap_mode='r', allow_pickle=False))
    tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if tokens.shape != (meta['count'], *meta['grid']):
      raise ValueError(f'{tokens.shape} tokens, not as {META} says')
    return Tokens(tokens, meta)
  except FileNotFoundError as e:
    yet = ' yet: give the same tokenize command again'
    hint = yet if (home / PARTIAL).exists() else ''
    raise ValueError(f'No tokens in {home}{hint} ({e.filename}).') from e
  except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
    raise ValueError(
      f'{home} does not hold whole tokens ({e}): tokenize anew into another '
      '--out.'
    ) from e


def cut(picture: np.ndarray, size: int) -> tuple[np.ndarray, int, int]:
  """tiles (rows * columns, size, size, 3) of a picture, rows and columns.

  Beyond the right and the lower edge the picture is mirrored.
  """
  height, width = picture.shape[:2]
  rows, columns = -(-height // size), -(-width // size)
  padding = ((0, rows * size - height), (0, columns * size - width), (0, 0))
  tiles = np.pad(picture, padding, mode='symmetric')
  tiles = tiles.reshape(rows, size, columns, size, 3).transpose(0, 2, 1, 3, 4)
  return tiles.reshape(rows * columns, size, size, 3), rows, columns


def join(tiles: np.ndarray, rows: int, columns: int) -> np.ndarray:
  """The picture (rows * size, columns * size, 3): the inverse of `cut`."""
  size = tiles.shape[1]
  tiles = tiles.reshape(rows, columns, size, size, 3)
  return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * size, columns * size, 3)


def open_tokenizer(tokenizer: str) -> export.Tokenizer:
  """An exported tokenizer of images.

  Raises:
    ValueError: it is of path_params, or there is none.
  """
  loaded = export.load(tokenizer)
  if loaded.parts.optics is None:
    raise ValueError(
      f'{tokenizer} is a tokenizer of path_params and sees no images: use '
      'chimera.export.load and its encode.'
    )
  return loaded


def check_size(
  path: str, picture: np.ndarray, loaded: export.Tokenizer
) -> None:
  """ValueError where a picture is smaller than a cell."""
  height, width = picture.shape[:2]
  cell = loaded.parts.optics.cell
  if min(height, width) < cell:
    raise ValueError(
      f'{path} must be at least a cell of {cell} pixels, got {width} x '
      f'{height}: give a larger image.'
    )


def _begin(
  home: pathlib.Path, request: dict[str, Any]
) -> dict[str, Any] | None:
  """What of the request is done in `home`; None where it is all."""
  for name in (META, PARTIAL):
    try:
      there = disk.read_sealed(home / name)
    except FileNotFoundError:
      continue
    except (OSError, ValueError) as e:
      raise ValueError(
        f'{home} holds tokens that cannot be gone on with ({e}): give another '
        '--out.'
      ) from e
    if differ := [k for k, v in request.items() if there.get(k) != v]:
      raise ValueError(
        f'{home} holds tokens of another request, which differs in '
        f'{", ".join(differ)}: give another --out.'
      )
    if name == META:
      load(home)
      # A process may have been killed between the two.
      (home / PARTIAL).unlink(missing_ok=True)
      return None
    return there
  if home.is_dir() and any(home.glob('tokens-*.npy')):
    raise ValueError(f'{home} holds tokens without {META}: give another --out.')
  return {**request, 'count': 0, 'shards': [], 'sources': [], 'skipped': []}


def _stream(
  home: pathlib.Path,
  loaded: export.Tokenizer,
  sources: list[str],
  names: list[str],
  done: dict[str, Any],
  batch_size: int,
) -> None:
  """From the photographs that are not done to shards on disk."""
  first, seen = done['count'], len(done['sources']) + len(done['skipped'])
  # One that is not whole in the shards is read again, with all after it.
  for source in done['sources']:
    if source['first'] + source['rows'] * source['columns'] > done['count']:
      first, seen = source['first'], names.index(source['file'])
      break
  again = set(names[seen:])
  done['sources'] = [s for s in done['sources'] if s['file'] not in again]
  done['skipped'] = [name for name in done['skipped'] if name not in again]
  ahead = done['count'] - first  # its crops that stand in a shard already

  def crops(first: int) -> Iterator[np.ndarray]:
    read = _read_ahead(sources[seen:], loaded, done['crop'])
    for i, (name, (tiles, facts)) in enumerate(zip(names[seen:], read), seen):
      if facts:
        done['sources'].append({'file': name, **facts, 'first': first})
        first += len(tiles)
        yield from tiles
      else:
        done['skipped'].append(name)
      report(i + 1, '')

  with progress.bar('Photographs', len(sources)) as report:
    todo = itertools.islice(crops(first), ahead, None)
    rows = encode_each(loaded, todo, batch_size)
    while shard := list(itertools.islice(rows, done['shard'])):
      buffer = io.BytesIO()
      np.save(buffer, np.stack(shard).astype(done['dtype']), allow_pickle=False)
      data, file = buffer.getvalue(), f'tokens-{len(done["shards"]):05d}.npy'
      if not done['count']:
        # A shard without a journal would be anyone's.
        disk.write_sealed(home / PARTIAL, done)
      disk.write(home / file, data)
      entry = {'file': file, 'count': len(shard), 'sha256': disk.digest(data)}
      done['shards'].append(entry)
      done['count'] += len(shard)
      disk.write_sealed(home / PARTIAL, done)
  if not done['count']:
    raise ValueError(
      f'None of {len(sources)} image(s) is readable and at least a cell of '
      f'{loaded.parts.optics.cell} pixels: fix the folder.'
    )
  if skipped := done['skipped']:
    message = 'Skipped %d unreadable or too small image(s), the first is %s'
    logging.warning(message, len(skipped), skipped[0])
  disk.write_sealed(home / META, done)
  (home / PARTIAL).unlink()
  counts = done['count'], len(done['sources'])
  logging.info('%d crop(s) of %d photograph(s) in %s.', *counts, home)


def _read_ahead(
  sources: list[str], loaded: export.Tokenizer, crop: str
) -> Iterator[tuple[np.ndarray, dict[str, int]]]:
  """(tiles, what they are of) of each photograph, in order, decoded by threads.

  Nothing of what cannot be read.
  """
  size = loaded.image_size

  def read(path: str) -> tuple[np.ndarray, dict[str, int]]:
    try:
      picture = images.load_photograph(path)
      check_size(path, picture, loaded)
    except ValueError as e:
      logging.debug('%s', e)
      return np.empty((0, size, size, 3), np.uint8), {}
    height, width = picture.shape[:2]
    if crop == 'center':
      tiles, rows, columns = images.center(picture, size)[None], 1, 1
    else:
      tiles, rows, columns = cut(picture, size)
    return tiles, dict(height=height, width=width, rows=rows, columns=columns)

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    waiting = [pool.submit(read, path) for path in sources[:_AHEAD]]
    for path in [*sources[_AHEAD:], *[None] * len(waiting)]:
      yield waiting.pop(0).result()
      if path is not None:
        waiting.append(pool.submit(read, path))


def encode_each(
  loaded: export.Tokenizer, crops: Iterable[np.ndarray], batch_size: int
) -> Iterator[np.ndarray]:
  """Tokens (h, w) of each crop; the next batch is computed meanwhile."""
  encoded = (
    (loaded.encode(batch), count) for batch, count in batches(crops, batch_size)
  )
  # What is taken from the device is one behind what was sent there.
  pairs = itertools.pairwise(itertools.chain(encoded, [None]))
  for (tokens, count), _ in pairs:
    yield from np.asarray(tokens)[:count]


def batches(
  rows: Iterable[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray, int]]:
  """(batch, rows in it), filled up to one size, lest it compile again."""
  rows = iter(rows)
  while part := list(itertools.islice(rows, size)):
    filling = [np.zeros_like(part[0])] * (size - len(part))
    yield np.stack([*part, *filling]), len(part)
