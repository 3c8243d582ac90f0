"""A folder of tokens, read."""

import numpy as np
from PIL import Image
import pytest

from chimera.data import images
from chimera.system import disk
from chimera.tokenizer import export, pictures, store, tokens
from tests import tiny


def _shards(folder, parts, **meta):
  """Writes a store of these shards."""
  folder.mkdir()
  shards = []
  for k, part in enumerate(parts):
    file = f'tokens-{k:05d}.npy'
    np.save(folder / file, part)
    digest = disk.digest(folder / file)
    shards.append({'file': file, 'count': len(part), 'sha256': digest})
  meta |= {'count': sum(map(len, parts)), 'shards': shards}
  disk.write_sealed(folder / store.META, meta)
  return folder


def _source(file, first, rows, columns):
  return {'file': file, 'first': first, 'rows': rows, 'columns': columns}


def test_whole_photographs_come_out_in_grids_of_their_own(tmp_path):
  sources = [
    _source('a', 0, 2, 3),
    _source('b', 6, 1, 1),
    _source('c', 7, 3, 1),
  ]
  parts = [np.arange(4), np.arange(4, 8), np.arange(8, 10)]
  parts = [part.astype(np.int16) for part in parts]
  folder = _shards(
    tmp_path / 't', parts, crop='whole', grid=[], sources=sources
  )
  found = store.load(folder)
  np.testing.assert_array_equal(found.tokens_Nxhxw, np.arange(10))
  assert found.tokens_Nxhxw.dtype == np.int16
  assert [grid.tolist() for grid in found.grids()] == [
    *([[0, 1, 2], [3, 4, 5]], [[6]], [[7], [8], [9]]),
  ]


def test_crops_come_out_in_the_grid_of_all_and_one_shard_as_a_map(tmp_path):
  rows = np.arange(2 * 2 * 3).reshape(2, 2, 3)
  sources = [_source('a', 0, 1, 1), _source('b', 1, 1, 1)]
  how = {'crop': 'center', 'grid': [2, 3], 'sources': sources}
  found = store.load(_shards(tmp_path / 'one', [rows], **how))
  assert isinstance(found.tokens_Nxhxw, np.memmap)
  assert not found.tokens_Nxhxw.flags.writeable
  for grid, row in zip(found.grids(), rows, strict=True):
    np.testing.assert_array_equal(grid, row)
  two = store.load(_shards(tmp_path / 'two', [rows[:1], rows[1:]], **how))
  np.testing.assert_array_equal(two.tokens_Nxhxw, rows)


def test_a_store_in_tiles_is_read_and_drawn_tile_by_tile(tmp_path):
  """As Chimera wrote them before pictures were of any size."""
  tokenizer = tiny.save_tokenizer(tmp_path / 'tokenizer', **tiny.OLDER)
  loaded = export.load(tokenizer)
  rng = np.random.default_rng(0)
  # 20 x 40 pixels and 16 x 10, of which 2 x 3 squares and one were made.
  sizes = {'a.png': (20, 40, 2, 3), 'inner/b.png': (16, 10, 1, 1)}
  squares = rng.integers(0, 256, (7, 16, 16, 3), np.uint8)
  found = np.asarray(loaded.encode(squares)).astype(np.int16)
  sources, first = [], 0
  for file, (height, width, rows, columns) in sizes.items():
    size = {'height': height, 'width': width, 'bytes': 1, 'sha256': 'x'}
    sources.append(_source(file, first, rows, columns) | size)
    first = store.end(sources[-1])
  assert first == 7
  folder = _shards(
    tmp_path / 'tokens',
    [found[:4], found[4:]],
    format=2,
    crop='tiles',
    image_size=16,
    grid=[2, 2],
    codes=16,
    dtype='int16',
    codebook_digest=loaded.codebook_digest,
    tokenizer_digest=loaded.meta['files'][export.WEIGHTS],
    shard=4,
    order='photographs as in sources; within one, tiles row by row',
    sources=sources,
    skipped=[],
  )
  read = store.load(folder)
  np.testing.assert_array_equal(read.tokens_Nxhxw, found)
  a, b = read.grids()
  bands = [np.concatenate(found[i : i + 3], axis=1) for i in (0, 3)]
  np.testing.assert_array_equal(a, np.concatenate(bands))
  np.testing.assert_array_equal(b, found[6])
  pictures.detokenize(str(folder), str(tokenizer), str(tmp_path / 'drawn'))
  tiles = images.to_uint8(np.asarray(loaded.decode(found)))
  bands = [np.concatenate(tiles[i : i + 3], axis=1) for i in (0, 3)]
  drawn = np.asarray(Image.open(tmp_path / 'drawn' / 'a.png.png'))
  np.testing.assert_array_equal(drawn, np.concatenate(bands)[:20, :40])
  drawn = np.asarray(Image.open(tmp_path / 'drawn' / 'inner' / 'b.png.png'))
  np.testing.assert_array_equal(drawn, tiles[6, :, :10])


def test_arrays_come_in_parts_of_one_size():
  arrays = [np.arange(2), np.arange(2, 9), np.arange(9, 9), np.arange(9, 11)]
  found = [part.tolist() for part in store.in_parts(arrays, 3)]
  assert found == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
  assert [len(p) for p in store.in_parts([np.zeros((6, 2))], 3)] == [3, 3]
  assert list(store.in_parts([], 3)) == []


def test_arrays_are_taken_as_parts_are_asked_for():
  taken = []

  def arrays():
    for i in range(5):
      taken.append(i)
      yield np.full(2, i)

  parts = store.in_parts(arrays(), 3)
  assert next(parts).tolist() == [0, 0, 1]
  assert taken == [0, 1]


def _change(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
  ('change', 'complaint'),
  [
    (lambda out: (out / store.META).write_text('{}'), 'not hold whole tokens'),
    (lambda out: (out / store.META).write_text('no'), 'not hold whole tokens'),
    (lambda out: (out / store.META).unlink(), 'No tokens in'),
    (
      lambda out: (out / 'tokens-00001.npy').unlink(),
      'not hold whole tokens.*No such file.*tokens-00001.npy',
    ),
    (
      lambda out: _change(out / store.META, '"rows": 1', '"rows": 3'),
      'tokens.json is not as it was written',
    ),
    (
      lambda out: disk.write_json(
        out / store.META, disk.read_sealed(out / store.META)
      ),
      'tokens.json has no seal.*tokenize anew',
    ),
    (
      lambda out: (out / 'tokens-00000.npy').write_bytes(b'\x93NUMPY'),
      'tokens-00000.npy is not as it was written',
    ),
  ],
)
def test_broken_tokens_are_refused(
  folder, tokenizer, config, tmp_path, change, complaint
):
  tokens.tokenize(str(folder), str(tokenizer), str(tmp_path), config)
  change(tmp_path)
  with pytest.raises(ValueError, match=complaint):
    store.load(tmp_path)


@pytest.mark.parametrize(
  ('spoil', 'complaint'),
  [
    ({'grid': [2, 2]}, r'\(2,\) tokens, not as tokens.json says'),
    ({'count': 3}, 'not as many tokens as tokens.json says'),
    ({'shards': [{'file': 'tokens-00000.npy'}]}, "'sha256'"),
  ],
)
def test_what_the_shards_and_the_json_do_not_agree_on_is_refused(
  tmp_path, spoil, complaint
):
  folder = _shards(tmp_path / 't', [np.arange(2)], crop='whole', grid=[])
  disk.write_sealed(folder / store.META, store.load(folder).meta | spoil)
  with pytest.raises(ValueError, match=complaint) as e:
    store.load(folder)
  assert str(e.value).startswith(f'{folder} does not hold whole tokens')
  assert '\n' not in str(e.value)


def test_what_is_no_folder_of_tokens_is_said_to_be_none(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'must be a folder, got .*file'):
    store.load(tmp_path / 'file')
  with pytest.raises(ValueError, match=r'No tokens in .*nowhere \('):
    store.load(tmp_path / 'nowhere')
  (tmp_path / store.PARTIAL).write_text('')
  with pytest.raises(ValueError, match='yet: give the same tokenize command'):
    store.load(tmp_path)
