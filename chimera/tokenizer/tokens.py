"""A folder of images to tokens on disk: what `store` describes.

A row stays where it is: people have labels by row. The same command over other
photographs tokenizes those that changed anew, in place, and appends those that
are new; what would move rows is refused.

The work is streamed, a shard at a time: `tokens.partial.json` says what is
done, and the same command goes on from there. It is written after a shard, but
as seldom as keeps it to a twentieth of the time. A shard that others read
is not written over: what takes its place has a name of its own,
tokens-00000-0123abcd.npy, until tokens.json leads there.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import copy
import io
import itertools
import math
import os
import pathlib
import re
import time
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from chimera.data import fingerprints, folders, images
from chimera.data import skipped as skipped_lib
from chimera.system import cpus, disk, lock, progress
from chimera.tokenizer import export, store, windows
from chimera.tokenizer import tiles as tiles_lib

FORMAT = 2  # 1 has no fingerprints; `store.load` reads it
_SHARD = re.compile(r'tokens-\d{5,}(-[0-9a-f]{8})?\.npy')
_AHEAD = 32  # photographs cut before they are needed
_SELDOM = 20  # times as long as writing the journal took, until it is again
_ANEW = 1024  # photographs whose tokens wait for their place in the shards


def tokenize(
  source: str, tokenizer: str, out: str, config: ml_collections.ConfigDict
) -> None:
  """Tokenizes every image of `source` into `out`, or what of it is not there.

  Raises:
    ValueError: no image there, no tokenizer, or `out` holds other tokens or is
      in use, or rows of it would move.
  """
  if not out:
    raise ValueError('tokenize needs a folder for its tokens: give --out=DIR.')
  loaded = open_tokenizer(tokenizer)
  paths = folders.list_sources(source, 'FOLDER')
  # By the photographs' paths within the folder or the archive.
  within = os.path.abspath(source)
  within = os.path.join(within, '') if os.path.isdir(within) else f'{within}!'
  within = images.BUNDLED if source == 'photos' else within
  sources = {path.removeprefix(within): path for path in paths}
  home = pathlib.Path(out)
  is_whole = config.tokens.crop == 'whole'
  if is_whole and any(config.tokens.size):
    raise ValueError(
      'With tokens.crop=whole a photograph keeps its size, got tokens.size='
      f'{config.tokens.size}: leave out --config.tokens.size.'
    )
  size = _size(config.tokens.size, loaded)
  grid = [n // loaded.side for n in size]
  request = {
    'format': FORMAT,
    'crop': config.tokens.crop,
    'image_size': loaded.image_size,
    'grid': [] if is_whole else grid,
    'codes': loaded.codes,
    'dtype': 'int16' if loaded.codes <= 1 << 15 else 'int32',
    'codebook_digest': loaded.codebook_digest,
    'tokenizer_digest': loaded.meta['files'][export.WEIGHTS],
    'shard': config.tokens.shard * (math.prod(loaded.grid) if is_whole else 1),
    # 'tiles' since some were: it goes on with a store of then.
    'order': 'photographs as in sources; within one, '
    f'{"tokens" if is_whole else "tiles"} row by row',
  }
  with lock.hold(home, '--out'):
    whole, done = (
      _read(home / name, request) for name in (store.META, store.PARTIAL)
    )
    if whole is None and done is None and any(home.glob('tokens-*.npy')):
      raise ValueError(
        f'{home} holds tokens without {store.META}: give another --out.'
      )
    nothing = {'count': 0, 'shards': [], 'sources': [], 'skipped': []}
    done = done or copy.deepcopy(whole) or {**request, **nothing}
    work = _Work(home, loaded, size, sources, whole, done)
    work.take_stock()
    work.renew(config.tokens.batch_size)
    work.append(config.tokens.batch_size)
    work.finish()


def open_tokenizer(tokenizer: str) -> export.Tokenizer:
  """An exported tokenizer of images.

  Raises:
    ValueError: it is of path_params, or there is none.
  """
  loaded = export.load(tokenizer)
  if loaded.parts.optics is None:
    raise ValueError(
      f'{tokenizer} is a tokenizer of path_params and sees no images: use '
      'chimera.load and its encode.'
    )
  return loaded


def check_size(picture: np.ndarray, loaded: export.Tokenizer) -> None:
  """ValueError where a picture is smaller than a cell."""
  height, width = picture.shape[:2]
  cell = loaded.parts.optics.cell
  if min(height, width) < cell:
    raise ValueError(
      f'it must be at least a cell of {cell} pixels, got {width} x {height}'
    )


def _size(wanted: tuple[int, int], loaded: export.Tokenizer) -> tuple[int, int]:
  """Height and width of a centered crop, pixels."""
  size = tuple(n or loaded.image_size for n in wanted)
  if any(n % loaded.side for n in size):
    raise ValueError(
      f'tokens.size must be multiples of {loaded.side}, the side of a token, '
      f'got {wanted}: fix --config.tokens.size.'
    )
  return size


def _read(path: pathlib.Path, request: dict[str, Any]) -> dict[str, Any] | None:
  """What tokens.json or the journal says, if it is of this request."""
  home = path.parent
  try:
    there = disk.read_sealed(path)
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as e:
    raise ValueError(
      f'{home} holds tokens that cannot be gone on with ({e}): give another '
      '--out.'
    ) from e
  if there.get('format') == 1:
    raise ValueError(
      f'{home} holds tokens of an earlier Chimera, which did not note what its '
      'photographs were: they can be read, but to tokenize give another --out.'
    )
  if differ := [k for k, v in request.items() if there.get(k) != v]:
    raise ValueError(
      f'{home} holds tokens of another request, which differs in '
      f'{", ".join(differ)}: give another --out.'
    )
  return there


class _Work:
  """One tokenize command, from what is done to what the photographs are."""

  def __init__(
    self,
    home: pathlib.Path,
    loaded: export.Tokenizer,
    size: tuple[int, int],
    sources: dict[str, str],
    whole: dict[str, Any] | None,
    done: dict[str, Any],
  ):
    self._home = home
    self._loaded = loaded
    self._size = size  # of a centered crop, pixels
    self._unit = 'crop' if done['crop'] == 'center' else 'token'  # of a row
    self._sources = sources
    self._whole = whole  # what tokens.json says
    self._done = done  # what it will say
    self._parts = store.open_shards(home, done)
    # The files that tokens.json or the journal may lead to.
    self._taken = {
      shard['file']: shard['sha256']
      for meta in (whole or done, done)
      for shard in meta['shards']
    }
    self._changed: list[dict[str, Any]] = []  # of done['sources']
    self._todo: list[str] = []  # names
    self._due = 0.0  # when the journal is written again

  def take_stock(self) -> None:
    """Holds what is done against the photographs.

    Raises:
      ValueError: some of what has rows are gone.
    """
    done, sources = self._done, self._sources
    # What is not whole in the shards, the last of a journal, is not done.
    done['sources'] = [
      s for s in done['sources'] if store.end(s) <= done['count']
    ]
    self._follow_names()
    then = {e['file']: e for e in (*done['sources'], *done['skipped'])}
    there = {name: sources[name] for name in then if name in sources}
    now = fingerprints.look_again(then, there)
    changes = fingerprints.compare(then, now)
    rows = {s['file'] for s in done['sources']}
    if gone := [name for name in changes.gone if name in rows]:
      seen = {s['file'] for s in (self._whole or done)['sources']}
      raise ValueError(
        f'{self._home} holds rows of images that are gone '
        f'({fingerprints.several(gone)}): put them back, '
        + (
          'or give another --out.'
          if seen.intersection(gone)
          else f'or delete {store.PARTIAL} there, with all since {store.META}.'
        )
      )
    for name in now.keys() - changes.changed:
      then[name] |= now[name]
    self._changed = [s for s in done['sources'] if s['file'] in changes.changed]
    again = {*changes.changed, *changes.gone}
    done['skipped'] = [
      entry
      for entry in done['skipped']
      if entry['file'] not in again and entry.get('reader') == images.reader()
    ]
    known = rows | {e['file'] for e in done['skipped']}
    self._todo = [name for name in sources if name not in known]
    news = changes._replace(
      changed=[s['file'] for s in self._changed],
      new=self._todo if self._whole else [],
      gone=[],
    )
    if any(news):
      logging.info('Since the last time, %s.', news)
    if done['count'] and not self._whole:
      logging.info('Going on from %s %d.', self._unit, done['count'])

  def _follow_names(self) -> None:
    """What was renamed keeps its rows."""
    entries = self._done['sources']
    gone = [entry for entry in entries if entry['file'] not in self._sources]
    if not gone:
      return
    known = {entry['file'] for entry in entries}
    new = {k: path for k, path in self._sources.items() if k not in known}
    by_digest = {}
    for name, taken in fingerprints.look_again({}, new).items():
      by_digest.setdefault(taken['sha256'], []).append(name)
    for entry in gone:
      if names := by_digest.get(entry['sha256']):
        logging.info('%s is %s now.', entry['file'], names[0])
        entry['file'] = names.pop(0)

  def renew(self, batch_size: int) -> None:
    """Tokenizes what changed anew, in place.

    Raises:
      ValueError: it makes more rows now, or fewer.
    """
    for i in range(0, len(self._changed), _ANEW):
      some = self._changed[i : i + _ANEW]
      pictures = self._pictures_anew(some)
      tokens_nxhxw = np.concatenate(list(self._encode(pictures, batch_size)))
      at_n = np.concatenate([np.arange(s['first'], store.end(s)) for s in some])
      first = 0
      for k, part in enumerate(self._parts):
        is_here_n = (at_n >= first) & (at_n < first + len(part))
        if is_here_n.any():
          self._parts[k] = np.array(part)
          self._parts[k][at_n[is_here_n] - first] = tokens_nxhxw[is_here_n]
          self._done['shards'][k] = self._write(k, self._parts[k])
        first += len(part)
      self._note()

  def _pictures_anew(
    self, changed: list[dict[str, Any]]
  ) -> Iterator[np.ndarray]:
    read = self._read_ahead([entry['file'] for entry in changed])
    for entry, (picture, facts) in zip(changed, read):
      count = entry['rows'] * entry['columns']
      rows = facts.get('rows', 0) * facts.get('columns', 0)
      if rows != count:
        why = facts.get('reason', f'it makes {rows} now')
        raise ValueError(
          f'{entry["file"]} has changed, and its {count} row(s) in '
          f'{self._home} cannot be made anew ({why}): put it back as it was, '
          'or give another --out.'
        )
      entry |= facts
      yield picture

  def append(self, batch_size: int) -> None:
    """Tokenizes what has no rows, a shard at a time."""
    done = self._done
    end = store.end(done['sources'][-1]) if done['sources'] else 0
    if not self._todo and end == done['count']:
      return
    # All shards but the last are full; that one is filled up.
    k, begun = divmod(end, done['shard'])
    before = self._parts[k][:begun] if begun else None
    done['shards'], done['count'] = done['shards'][:k], k * done['shard']
    with progress.bar('Photographs', len(self._todo)) as report:
      pictures = self._new_pictures(end, report)
      encoded = self._encode(pictures, batch_size)
      rows = itertools.chain([before] if begun else [], encoded)
      for part in store.in_parts(rows, done['shard']):
        if not self._taken and not done['count']:
          # A shard without a journal would be anyone's.
          disk.write_sealed(self._home / store.PARTIAL, done)
        part = part.astype(done['dtype'])
        done['shards'].append(self._write(len(done['shards']), part))
        done['count'] += len(part)
        self._note()

  def _note(self) -> None:
    """Writes the journal, which has an entry a photograph, if it is due."""
    now = time.monotonic()
    if now >= self._due:
      disk.write_sealed(self._home / store.PARTIAL, self._done)
      self._due = now + _SELDOM * (time.monotonic() - now)

  def _encode(
    self, pictures: Iterator[np.ndarray], batch_size: int
  ) -> Iterator[np.ndarray]:
    """Rows of tokens (n, ...) of pictures, in their order."""
    if self._done['crop'] == 'center':
      yield from tiles_lib.encode_each(self._loaded, pictures, batch_size)
      return
    pixels = batch_size * self._loaded.image_size**2
    for shape, group in itertools.groupby(pictures, lambda p: p.shape):
      most = max(1, pixels // (shape[0] * shape[1]))
      while part := list(itertools.islice(group, most)):
        # Few sizes of batches, since each is compiled.
        batches = [np.stack(part)] if len(part) == most else part
        for batch in batches:
          yield np.asarray(self._loaded.encode(batch)).reshape(-1)

  def _new_pictures(
    self, first: int, report: Callable[[int, str], None]
  ) -> Iterator[np.ndarray]:
    read = self._read_ahead(self._todo)
    for i, (name, (picture, facts)) in enumerate(zip(self._todo, read)):
      if picture is not None:
        self._done['sources'].append({'file': name, **facts, 'first': first})
        first = store.end(self._done['sources'][-1])
        yield picture
      else:
        self._done['skipped'].append({'file': name, **facts})
      report(i + 1, '')

  def finish(self) -> None:
    """Has tokens.json lead to what was made."""
    home, done = self._home, self._done
    done['skipped'].sort(key=lambda entry: entry['file'])
    skipped = {entry['file']: entry['reason'] for entry in done['skipped']}
    if not done['count']:
      name, reason = next(iter(skipped.items()))
      raise ValueError(
        f'None of {len(self._sources)} image(s) can be used, the first is '
        f'{name} ({reason}): fix the folder.'
      )
    if done == self._whole:
      logging.info('Nothing to do: %s is whole.', home)
    else:
      skipped_lib.tell(skipped, home)
      disk.write_sealed(home / store.META, done)
      counts = done['count'], self._unit, len(done['sources'])
      logging.info('%d %s(s) of %d photograph(s) in %s.', *counts, home)
    (home / store.PARTIAL).unlink(missing_ok=True)
    files = {shard['file'] for shard in done['shards']}
    for path in home.glob('tokens-*.npy'):
      if _SHARD.fullmatch(path.name) and path.name not in files:
        path.unlink()

  def _write(self, k: int, part_nxhxw: np.ndarray) -> dict[str, Any]:
    """Shard k, in the place of no file that is led to; its entry."""
    buffer = io.BytesIO()
    np.save(buffer, part_nxhxw, allow_pickle=False)
    data = buffer.getvalue()
    digest = disk.digest(data)
    file = f'tokens-{k:05d}.npy'
    if self._taken.get(file, digest) != digest:
      file = f'tokens-{k:05d}-{digest[:8]}.npy'
    disk.write(self._home / file, data)
    self._taken[file] = digest
    return {'file': file, 'count': len(part_nxhxw), 'sha256': digest}

  def _read_ahead(
    self, names: list[str]
  ) -> Iterator[tuple[np.ndarray | None, dict[str, Any]]]:
    """(what is encoded, its facts) of photographs, in order, read by threads.

    Of what cannot be used None, and the reason.
    """
    workers = cpus.count()
    # Of large photographs few fit into memory.
    ahead = 2 * workers if self._done['crop'] == 'whole' else _AHEAD
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      waiting = [pool.submit(self._cut, name) for name in names[:ahead]]
      for name in [*names[ahead:], *[None] * len(waiting)]:
        yield waiting.pop(0).result()
        if name is not None:
          waiting.append(pool.submit(self._cut, name))

  def _cut(self, name: str) -> tuple[np.ndarray | None, dict[str, Any]]:
    taken = fingerprints.UNREADABLE
    try:
      with fingerprints.opened(self._sources[name]) as (f, taken):
        picture = images.decode(f)
      check_size(picture, self._loaded)
    except disk.BROKEN as e:
      reason = {'reason': images.why(e)}
      # What the machine failed at is tried again, even by the same reader.
      if not (isinstance(e, MemoryError) or getattr(e, 'errno', None)):
        reason['reader'] = images.reader()
      return None, {**taken, **reason}
    height, width = picture.shape[:2]
    if self._done['crop'] == 'center':
      cut, rows, columns = images.center(picture, self._size), 1, 1
    else:
      cut = windows.pad(picture, self._loaded.side)
      rows, columns = (n // self._loaded.side for n in cut.shape[:2])
    shape = {'height': height, 'width': width, 'rows': rows, 'columns': columns}
    return cut, {**shape, **taken}
