"""A folder that changes between tokenize commands, some of which are killed."""

import itertools
import os
import pathlib
import tempfile
from unittest import mock

import hypothesis
from hypothesis import strategies as st
import numpy as np

from chimera.system import disk
from chimera.tokenizer import store, tokens
from configs import chimera as chimera_config
from tests import sweep
from tests.sweeps import gray

FILES = [f'{i}.png' for i in range(6)]
FILE = st.sampled_from(FILES)
CHANGES = st.one_of(
  # Pairs of tokens high and wide, and what they show.
  st.tuples(
    st.just('paint'), FILE, st.integers(1, 3), st.integers(1, 3), st.integers(0)
  ),
  st.tuples(st.just('paint'), FILE, st.just(1), st.just(2), st.integers(0)),
  st.tuples(st.just('spoil'), FILE),
  st.tuples(st.just('remove'), FILE),
  st.tuples(st.just('touch'), FILE),
  st.tuples(st.just('rename'), FILE, FILE),
)
# What is done to the folder, and before which write the command is killed.
ROUNDS = st.lists(
  st.tuples(
    st.lists(CHANGES, max_size=4), st.one_of(st.none(), st.integers(0, 9))
  ),
  min_size=2,
  max_size=6,
)


class _Killed(BaseException):
  pass


def _change(home, there, kind, name, *rest):
  """Changes a file, and `there`: what each shows, None for no picture."""
  path = home / name
  if kind == 'paint':
    height, width, seed = rest
    rng = np.random.default_rng(seed)
    there[name] = rng.integers(16, size=(2 * height, 2 * width))
    path.write_bytes(gray.png(there[name]))
  elif kind == 'spoil':
    there[name] = None
    path.write_bytes(b'no picture')
  elif name in there:
    if kind == 'remove':
      path.unlink()
      del there[name]
    elif kind == 'touch':
      os.utime(path)
    else:
      there[rest[0]] = there.pop(name)
      path.rename(home / rest[0])


def _rows(picture):
  """Its tokens (n,), row by row."""
  return picture.reshape(-1)


def _published(out):
  """[(name, its rows)] as tokens.json has them; nothing where it is not."""
  if not (out / store.META).exists():
    return []
  found, meta = store.load(out)
  found, sources = iter(found), meta['sources']
  rows = [
    np.array(list(itertools.islice(found, s['rows'] * s['columns'])))
    for s in sources
  ]
  assert next(found, None) is None
  return list(zip((s['file'] for s in sources), rows, strict=True))


def _stands_in_the_way(out, there):
  """Whether some rows, in tokens.json or in the journal, must move."""
  pictures = {k: _rows(v) for k, v in there.items() if v is not None}
  for name in (store.META, store.PARTIAL):
    if (out / name).exists():
      for s in disk.read_sealed(out / name)['sources']:
        count = s['rows'] * s['columns']
        if len(pictures.get(s['file'], ())) != count:
          return True
  return not pictures


def _is_right(found, before, there):
  """Each row is of what is there, and none of before has moved."""
  pictures = {k: _rows(v) for k, v in there.items() if v is not None}
  assert {name for name, _ in found} == set(pictures)
  for name, rows in found:
    np.testing.assert_array_equal(rows, pictures[name])
  assert [len(rows) for _, rows in before] == [
    len(rows) for _, rows in found[: len(before)]
  ]
  for (old, was), (new, rows) in zip(before, found):
    # Only what was renamed has another name, and then it is the same.
    if old != new:
      np.testing.assert_array_equal(was, rows)


@sweep.of(ci=50, long=2000)
@hypothesis.given(ROUNDS)
def test_rows_are_of_what_is_there_and_never_move(rounds):
  config = chimera_config.get_config()
  config.tokens.crop = 'whole'
  config.tokens.shard = 1  # of 4 tokens each
  config.tokens.batch_size = 3
  write, unlink, writes = disk.write, pathlib.Path.unlink, []

  def act(does, path, *rest, **more):
    if path.name.startswith('tokens') and path.suffix != '.tmp':
      if len(writes) == stop:
        raise _Killed
      writes.append(path)
    return does(path, *rest, **more)

  with (
    tempfile.TemporaryDirectory() as place,
    mock.patch.object(tokens, 'open_tokenizer', return_value=gray.Tokenizer()),
    mock.patch.object(disk, 'write', lambda *a: act(write, *a)),
    mock.patch.object(
      pathlib.Path, 'unlink', lambda *a, **k: act(unlink, *a, **k)
    ),
  ):
    home, out = pathlib.Path(place, 'm'), pathlib.Path(place, 'o')
    home.mkdir()
    there, stop = {}, None
    for changes, stop in [*rounds, ([], None)]:
      for change in changes:
        _change(home, there, *change)
      before = _published(out)
      writes.clear()
      try:
        tokens.tokenize(str(home), 'none', str(out), config)
      except ValueError:
        stop = None
        assert _stands_in_the_way(out, there)
        after = _published(out)
        assert [name for name, _ in after] == [name for name, _ in before]
        for (_, a), (_, b) in zip(before, after):
          np.testing.assert_array_equal(a, b)
      except _Killed:
        stop = None
        after = _published(out)
        if [n for n, _ in after] != [n for n, _ in before] or any(
          not np.array_equal(a, b) for (_, a), (_, b) in zip(before, after)
        ):
          _is_right(after, before, there)
      else:
        _is_right(_published(out), before, there)
        shards = {p.name for p in out.glob('*.npy')}
        meta = store.load(out).meta
        assert shards == {s['file'] for s in meta['shards']}
