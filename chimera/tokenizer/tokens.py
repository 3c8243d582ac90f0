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

  # a row a crop; a read-only memory map where it is one shard
  tokens_Nxhxw: np.ndarray
  meta: dict[str, Any]  # what tokens.json says


def tokenize(
  source: str, tokenizer: str, out: str, config: ml_collections.ConfigDict
) -> None:
  """Tokenizes every image of `source` into `out`, or goes on with it.

  Args:
    source: a folder or an archive of images, or 'photos'.
    tokenizer: folder of an exported tokenizer.
    out: folder.
    config: tokens.crop, tokens.batch_size and tokens.shard are read.

  Raises:
    ValueError: no image there, no tokenizer, or `out` holds other tokens or is
      in use.
  """
  if not out:
    raise ValueError('tokenize needs a folder for its tokens: give --out=DIR.')
  loaded = open_tokenizer(tokenizer)
  sources = images.list_sources(source, 'FOLDER')
  names = _names(source, sources)
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
    hint = ''
    if (home / PARTIAL).exists():
      hint = ' yet: give the same tokenize command again'
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
  """Refuses a picture without a cell.

  Raises:
    ValueError: it is smaller.
  """
  height, width = picture.shape[:2]
  cell = loaded.parts.optics.cell
  if min(height, width) < cell:
    raise ValueError(
      f'{path} must be at least a cell of {cell} pixels, got {width} x '
      f'{height}: give a larger image.'
    )


def _names(source: str, sources: list[str]) -> list[str]:
  """The photographs' paths within the folder or the archive."""
  if source == 'photos':
    return [name.removeprefix(images.BUNDLED) for name in sources]
  home = os.path.abspath(source)
  if os.path.isdir(source):
    return [os.path.relpath(path, home) for path in sources]
  return [path.removeprefix(f'{home}!') for path in sources]


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
  seen = len(done['sources']) + len(done['skipped'])
  first = sum(s['rows'] * s['columns'] for s in done['sources'])
  # Crops of the next photograph that stand in a shard already.
  ahead = done['count'] - first
  found: list[dict[str, Any]] = []  # by photograph; one skipped has no 'first'
  waiting: list[np.ndarray] = []  # tokens that are in no shard yet

  def crops() -> Iterator[np.ndarray]:
    nonlocal first, ahead
    read = _read_ahead(sources[seen:], loaded, done['crop'])
    for name, (tiles, facts) in zip(names[seen:], read):
      found.append({'file': name, **facts})
      if facts:
        found[-1]['first'] = first
        first += len(tiles)
        yield from tiles[ahead:]
        ahead = 0

  def settle() -> None:
    """What is whole in the shards counts as done."""
    while found and _end(found[0]) <= done['count']:
      entry = found.pop(0)
      if 'first' in entry:
        done['sources'].append(entry)
      else:
        done['skipped'].append(entry['file'])

  def close(count: int) -> None:
    """Writes the next shard, then what is done with it."""
    rows = np.concatenate(waiting)
    waiting[:] = [rows[count:]]
    file = f'tokens-{len(done["shards"]):05d}.npy'
    data = _npy(rows[:count].astype(done['dtype']))
    if not done['count']:
      # A shard without a journal would be anyone's.
      disk.write_sealed(home / PARTIAL, done)
    disk.write(home / file, data)
    done['shards'].append(
      {'file': file, 'count': count, 'sha256': disk.digest(data)}
    )
    done['count'] += count
    settle()
    disk.write_sealed(home / PARTIAL, done)

  with progress.bar('Photographs', len(sources)) as report:
    for part in encode_each(loaded, crops(), batch_size):
      waiting.append(part)
      while sum(map(len, waiting)) >= done['shard']:
        close(done['shard'])
      report(len(done['sources']) + len(done['skipped']) + len(found), '')
  left = sum(map(len, waiting))
  if not done['count'] + left:
    raise ValueError(
      f'None of {len(sources)} image(s) is readable and at least a cell of '
      f'{loaded.parts.optics.cell} pixels: mend the folder.'
    )
  if left:
    close(left)
  settle()
  if done['skipped']:
    logging.warning(
      'Skipped %d unreadable or too small image(s), the first is %s',
      len(done['skipped']),
      done['skipped'][0],
    )
  disk.write_sealed(home / META, done)
  (home / PARTIAL).unlink()
  logging.info(
    '%d crop(s) of %d photograph(s) in %s.',
    done['count'],
    len(done['sources']),
    home,
  )


def _end(entry: dict[str, Any]) -> int:
  """The crop after a photograph's last; a skipped one has none."""
  return entry.get('first', 0) + entry.get('rows', 0) * entry.get('columns', 0)


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
    return tiles, {
      'height': height,
      'width': width,
      'rows': rows,
      'columns': columns,
    }

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    waiting = [pool.submit(read, path) for path in sources[:_AHEAD]]
    for path in [*sources[_AHEAD:], *[None] * len(waiting)]:
      yield waiting.pop(0).result()
      if path is not None:
        waiting.append(pool.submit(read, path))


def encode_each(
  loaded: export.Tokenizer, crops: Iterable[np.ndarray], batch_size: int
) -> Iterator[np.ndarray]:
  """Tokens (n, h, w), a batch at a time, the next one computed meanwhile."""
  waiting = None
  for batch, count in batches(crops, batch_size):
    tokens = loaded.encode(batch)
    if waiting is not None:
      yield np.asarray(waiting[0])[: waiting[1]]
    waiting = tokens, count
  if waiting is not None:
    yield np.asarray(waiting[0])[: waiting[1]]


def batches(
  rows: Iterable[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray, int]]:
  """(batch, rows in it), filled up to one size, lest it compile again."""
  rows = iter(rows)
  while part := list(itertools.islice(rows, size)):
    filling = [np.zeros_like(part[0])] * (size - len(part))
    yield np.stack([*part, *filling]), len(part)


def _npy(x: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, x, allow_pickle=False)
  return buffer.getvalue()
