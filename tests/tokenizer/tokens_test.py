"""Tokens on disk: whole, resumable, of one language, of these photographs."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image
import pytest

from chimera.data import images
from chimera.system import disk
from chimera.tokenizer import export, pictures, store, tokens
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]


def _change(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))


def _tokenize(folder, tokenizer, out, config):
  tokens.tokenize(str(folder), str(tokenizer), str(out), config)
  return store.load(out)


@pytest.mark.parametrize(
  ('error', 'again'),
  [(MemoryError(), True), (OSError(errno.EIO, 'I/O'), True)]
  + [(OSError('image file is truncated'), False)],
)
def test_what_the_machine_failed_at_is_tried_again(
  folder, tokenizer, config, tmp_path, monkeypatch, error, again
):
  plain, fails = images.decode, [error]

  def decode(f):
    if fails and f.name.endswith('0.png'):
      raise fails.pop()
    return plain(f)

  monkeypatch.setattr(images, 'decode', decode)
  _, meta = _tokenize(folder, tokenizer, tmp_path / 'out', config)
  assert (len(meta['sources']), fails) == (9, [])
  _, meta = _tokenize(folder, tokenizer, tmp_path / 'out', config)
  assert len(meta['sources']) == 9 + again


def test_the_rows_are_the_tokens_of_the_centered_squares(
  folder, tokenizer, config, tmp_path
):
  found, meta = _tokenize(folder, tokenizer, tmp_path, config)
  names = [f'{i}.png' for i in range(9)] + ['inner/0.png']
  assert [s['file'] for s in meta['sources']] == names
  assert [s['file'] for s in meta['skipped']] == ['3.5.jpg', '4.5.png']
  assert meta['skipped'][1]['reason'].endswith('4 pixels, got 3 x 40')
  listed = (tmp_path / 'skipped.csv').read_text().splitlines()
  assert [line.partition(',')[0] for line in listed] == [
    *('source', '3.5.jpg', '4.5.png')
  ]
  loaded = export.load(tokenizer)
  squares = []
  for name in names:
    picture = np.asarray(Image.open(folder / name))
    side = min(picture.shape[:2])
    top, left = ((n - side) // 2 for n in picture.shape[:2])
    square = Image.fromarray(picture[top : top + side, left : left + side])
    squares.append(
      np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS))
    )
  np.testing.assert_array_equal(found, loaded.encode(np.stack(squares)))
  assert found.dtype == np.int16
  assert meta['codebook_digest'] == loaded.codebook_digest
  assert [s['count'] for s in meta['shards']] == [7, 3]


def test_whole_photographs_have_as_many_tokens_as_they_need(
  folder, tokenizer, config, tmp_path
):
  config.tokens.crop = 'whole'
  found, meta = _tokenize(folder, tokenizer, tmp_path, config)
  # 17 + 6 i by 40 - 3 i pixels in tokens of 8 x 8.
  rows = [-(-(17 + 6 * i) // 8) for i in [*range(9), 0]]
  columns = [-(-(40 - 3 * i) // 8) for i in [*range(9), 0]]
  assert [s['rows'] for s in meta['sources']] == rows
  assert [s['columns'] for s in meta['sources']] == columns
  assert [(s['height'], s['width']) for s in meta['sources']] == [
    (17 + 6 * i, 40 - 3 * i) for i in [*range(9), 0]
  ]
  assert found.shape == (sum(r * c for r, c in zip(rows, columns)),)
  # A shard holds as many tokens as there are in seven squares of 16 pixels.
  assert {s['count'] for s in meta['shards'][:-1]} == {7 * 4}
  last = meta['sources'][-1]
  assert last['first'] + last['rows'] * last['columns'] == len(found)
  # 17 x 40 pixels, mirrored below.
  picture = np.asarray(Image.open(folder / '0.png'))
  picture = np.concatenate([picture, picture[:9:-1]])
  assert picture.shape == (24, 40, 3)
  first = export.load(tokenizer).encode(picture)
  np.testing.assert_array_equal(found[:15].reshape(3, 5), first)


def test_photographs_of_one_size_are_encoded_in_batches(
  tokenizer, config, tmp_path, monkeypatch
):
  mine = tmp_path / 'mine'
  mine.mkdir()
  for i, height in enumerate([16] * 6 + [32, 16]):
    _paint(mine / f'{i}.png', i, height, 16)
  encode, seen = export.Tokenizer.encode, []

  def look(self, x):
    seen.append(x.shape)
    return encode(self, x)

  config.tokens.crop = 'whole'
  with monkeypatch.context() as m:
    m.setattr(export.Tokenizer, 'encode', look)
    _tokenize(mine, tokenizer, tmp_path / 'out', config)
  # Four at a time; what is left over of a size one by one.
  one = (16, 16, 3)
  assert seen == [(4, *one), one, one, (32, 16, 3), one]
  names = [f'{i}.png' for i in range(8)]
  _is_right(tmp_path / 'out', mine, tokenizer, names)


def test_a_centered_rectangle_has_any_size_that_is_asked_for(
  tokenizer, config, tmp_path
):
  mine = tmp_path / 'mine'
  mine.mkdir()
  _paint(mine / '0.png', 0, 40, 33)
  config.tokens.size = (0, 24)  # of its own height, 16
  found, meta = _tokenize(mine, tokenizer, tmp_path / 'out', config)
  assert meta['grid'] == [2, 3]
  # The largest of that shape, 22 x 33 pixels, from row 9 on.
  window = Image.open(mine / '0.png').crop((0, 9, 33, 31))
  seen = np.asarray(window.resize((24, 16), Image.Resampling.LANCZOS))
  expected = export.load(tokenizer).encode(seen)
  np.testing.assert_array_equal(found, [expected])
  (grid,) = store.load(tmp_path / 'out').grids()
  np.testing.assert_array_equal(grid, expected)
  pictures.detokenize(
    str(tmp_path / 'out'), str(tokenizer), str(tmp_path / 'd')
  )
  with Image.open(tmp_path / 'd' / '0.png.png') as picture:
    assert picture.size == (24, 16)
  config.tokens.size = (16, 20)
  with pytest.raises(ValueError, match=r'multiples of 8.*got \(16, 20\)') as e:
    _tokenize(mine, tokenizer, tmp_path / 'out', config)
  assert '\n' not in str(e.value)
  config.tokens.crop = 'whole'
  with pytest.raises(ValueError, match=r'keeps its size, got .*\(16, 20\)'):
    _tokenize(mine, tokenizer, tmp_path / 'whole', config)


@pytest.mark.parametrize('crop', ['center', 'whole'])
def test_what_was_interrupted_goes_on_to_the_same_tokens(
  folder, tokenizer, config, tmp_path, monkeypatch, crop
):
  config.tokens.crop = crop
  whole, meta = _tokenize(folder, tokenizer, tmp_path / 'whole', config)
  written = []
  write = disk.write

  def die(path, data):
    if len(written) == stop:
      raise KeyboardInterrupt
    written.append(path)
    write(path, data)

  monkeypatch.setattr(disk, 'write', die)
  monkeypatch.setattr(tokens, '_SELDOM', 0)
  # The journal at first and after each shard, the shards, skipped.csv,
  # tokens.json.
  for stop in range(1 + 2 * len(meta['shards']) + 2):
    out = tmp_path / f'{stop}'
    written.clear()
    with pytest.raises(KeyboardInterrupt):
      _tokenize(folder, tokenizer, out, config)
    with pytest.raises(ValueError, match='No tokens in'):
      store.load(out)
    stop = -1
    again, said = _tokenize(folder, tokenizer, out, config)
    np.testing.assert_array_equal(again, whole)
    assert said == meta
    assert not (out / store.PARTIAL).exists()


def test_kill_9_in_mid_stream_loses_nothing(folder, tokenizer, tmp_path):
  """A real process, killed after its second shard."""
  program = f"""
import os, signal, sys
from chimera import main
from chimera.system import disk
write = disk.write
def kill(path, data):
  write(path, data)
  if path.name == sys.argv[1]:
    os.kill(os.getpid(), signal.SIGKILL)
disk.write = kill
sys.exit(main.main(['chimera', 'tokenize', {str(folder)!r},
  '--config={ROOT}/configs/chimera.py', '--tokenizer={tokenizer}',
  '--config.tokens.shard=2', '--config.tokens.batch_size=4',
  f'--out={{sys.argv[2]}}']))
"""

  def run(last, out):
    return subprocess.run(
      [sys.executable, '-c', program, last, str(out)], check=False
    ).returncode

  assert run('none', tmp_path / 'whole') == 0
  whole, _ = store.load(tmp_path / 'whole')
  assert run('tokens-00001.npy', tmp_path / 'b') == -signal.SIGKILL
  journal = json.loads((tmp_path / 'b' / store.PARTIAL).read_text())
  assert journal['count'] == 2
  assert run('none', tmp_path / 'b') == 0
  np.testing.assert_array_equal(store.load(tmp_path / 'b')[0], whole)


def test_a_journal_that_takes_long_is_written_seldom(
  folder, tokenizer, config, tmp_path, monkeypatch
):
  whole, _ = _tokenize(folder, tokenizer, tmp_path / 'whole', config)
  config.tokens.shard = 2
  monkeypatch.setattr(tokens, '_SELDOM', 1e9)
  written, write = [], disk.write_sealed
  monkeypatch.setattr(
    disk, 'write_sealed', lambda p, x: written.append(p.name) or write(p, x)
  )
  out = tmp_path / 'seldom'
  with monkeypatch.context() as m:
    _kill_at(m, 'tokens-00002.npy')
    with pytest.raises(KeyboardInterrupt):
      _tokenize(folder, tokenizer, out, config)
  # Before the first shard, and after it.
  assert written == [store.PARTIAL] * 2
  assert disk.read_sealed(out / store.PARTIAL)['count'] == 2
  again, _ = _tokenize(folder, tokenizer, out, config)
  np.testing.assert_array_equal(again, whole)


def test_a_finished_folder_is_left_as_it_is(
  folder, tokenizer, config, tmp_path
):
  _tokenize(folder, tokenizer, tmp_path, config)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
  _tokenize(folder, tokenizer, tmp_path, config)
  assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
  config.tokens.crop = 'whole'
  with pytest.raises(ValueError, match='differs in crop'):
    _tokenize(folder, tokenizer, tmp_path, config)


def test_a_journal_that_a_killed_process_left_goes_with_the_next(
  folder, tokenizer, config, tmp_path
):
  _, meta = _tokenize(folder, tokenizer, tmp_path, config)
  disk.write_sealed(tmp_path / store.PARTIAL, meta)
  _tokenize(folder, tokenizer, tmp_path, config)
  assert not (tmp_path / store.PARTIAL).exists()


def test_a_journal_with_another_digit_is_not_gone_on_with(
  folder, tokenizer, config, tmp_path, monkeypatch
):
  write = disk.write

  def die(path, data):
    if path.name == 'tokens-00001.npy':
      raise KeyboardInterrupt
    write(path, data)

  monkeypatch.setattr(disk, 'write', die)
  with pytest.raises(KeyboardInterrupt):
    _tokenize(folder, tokenizer, tmp_path, config)
  monkeypatch.undo()
  _change(tmp_path / store.PARTIAL, '"count": 7', '"count": 9')
  before = {p: p.read_bytes() for p in tmp_path.iterdir()}
  with pytest.raises(ValueError, match=r'not as it was written.*--out') as e:
    _tokenize(folder, tokenizer, tmp_path, config)
  assert '\n' not in str(e.value)
  assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_archive_gives_the_tokens_of_its_folder(
  folder, tokenizer, config, tmp_path
):
  whole, meta = _tokenize(folder, tokenizer, tmp_path / 'a', config)
  shutil.make_archive(str(tmp_path / 'photographs'), 'zip', folder)
  archive = tmp_path / 'photographs.zip'
  found, said = _tokenize(archive, tokenizer, tmp_path / 'b', config)
  np.testing.assert_array_equal(found, whole)
  assert said['shards'] == meta['shards']
  assert [(s['file'], s['sha256']) for s in said['sources']] == [
    (s['file'], s['sha256']) for s in meta['sources']
  ]
  # And in the place of its folder nothing has changed.
  _tokenize(archive, tokenizer, tmp_path / 'a', config)
  assert store.load(tmp_path / 'a').meta['shards'] == meta['shards']


def test_large_codebooks_take_int32(folder, config, tmp_path):
  big = tiny.save_tokenizer(tmp_path / 'big', codes=40_000)
  found, meta = _tokenize(folder, big, tmp_path / 'tokens', config)
  assert found.dtype == np.int32
  assert meta['dtype'] == 'int32'
  assert found.max() > 1 << 15


def _paint(path, seed, height=20, width=20):
  """A picture of its own, whose tokens are its own too."""
  rng = np.random.default_rng(seed)
  ramp = np.linspace(-200, 200, width)[:, None] * rng.normal(size=3)
  picture = rng.integers(256, size=3) + ramp + np.zeros((height, 1, 1))
  picture += rng.uniform(0, 99) * rng.normal(size=picture.shape)
  Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(path)


def _rows(tokenizer, path, crop):
  """Tokens of one photograph, as they should be."""
  picture = np.asarray(Image.open(path))
  height, width = picture.shape[:2]
  if crop == 'whole':
    padding = ((0, -height % 8), (0, -width % 8), (0, 0))
    picture = np.pad(picture, padding, mode='symmetric')
    return np.asarray(export.load(tokenizer).encode(picture)).reshape(-1)
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  square = Image.fromarray(picture[top : top + side, left : left + side])
  square = np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS))
  return np.asarray(export.load(tokenizer).encode(square))[None]


def _is_right(out, folder, tokenizer, names):
  """Every row is of the photograph as it lies there, in this order."""
  found, meta = store.load(out)
  assert [s['file'] for s in meta['sources']] == names
  right = [_rows(tokenizer, folder / name, meta['crop']) for name in names]
  np.testing.assert_array_equal(found, np.concatenate(right))
  files = {p.name for p in out.iterdir() if p.name != 'skipped.csv'}
  assert files == {store.META, *(s['file'] for s in meta['shards'])}


@pytest.fixture
def mine(folder, tmp_path):
  """The photographs, to be changed."""
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'mine'))


NAMES = [*(f'{i}.png' for i in range(9)), 'inner/0.png']


@pytest.mark.parametrize('crop', ['center', 'whole'])
def test_what_changed_is_made_anew_and_what_is_new_appended(
  mine, tokenizer, config, tmp_path, said, crop
):
  config.tokens.crop = crop
  config.tokens.shard = 6
  full = {'center': 6, 'whole': 6 * 4}[crop]
  out = tmp_path / 'out'
  _, before = _tokenize(mine, tokenizer, out, config)
  kept = {s['file']: (out / s['file']).stat() for s in before['shards']}
  _paint(mine / '2.png', 4, 29, 34)  # as large as it was
  _paint(mine / '!.png', 2)  # before all others, by its name
  _paint(mine / '3.5.jpg', 3)  # repaired
  said.clear()
  _, meta = _tokenize(mine, tokenizer, out, config)
  assert said[0] == 'Since the last time, changed: 2.png; new: !.png, 3.5.jpg.'
  _is_right(out, mine, tokenizer, [*NAMES, '!.png', '3.5.jpg'])
  assert [s['file'] for s in meta['skipped']] == ['4.5.png']
  assert {s['count'] for s in meta['shards'][:-1]} == {full}
  # The shards that nothing happened to are the files that they were.
  for shard in meta['shards']:
    if shard in before['shards']:
      assert (out / shard['file']).stat() == kept[shard['file']]
  # 2.png is in one, or as tokens 30 to 49 in two; the last is filled up.
  changed = [s for s in before['shards'] if s not in meta['shards']]
  assert len(changed) == {'center': 2, 'whole': 3}[crop]
  said.clear()
  _tokenize(mine, tokenizer, out, config)
  assert said == [f'Nothing to do: {out} is whole.']


def test_of_many_names_three_are_said(mine, tokenizer, config, tmp_path, said):
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  for i in range(5):
    _paint(mine / f'{i}.png', i)
  said.clear()
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  assert said[0] == (
    'Since the last time, changed: 0.png, 1.png, 2.png and 2 more.'
  )
  _is_right(tmp_path / 'out', mine, tokenizer, NAMES)


@pytest.mark.parametrize('crop', ['center', 'whole'])
def test_an_update_that_is_killed_shows_the_old_or_the_new(
  mine, tokenizer, config, tmp_path, monkeypatch, crop
):
  config.tokens.crop = crop
  _tokenize(mine, tokenizer, tmp_path / 'was', config)
  # Its last shard has a name of its own since.
  _paint(mine / 'inner' / '0.png', 5, 17, 40)
  was, meta = _tokenize(mine, tokenizer, tmp_path / 'was', config)
  assert meta['shards'][-1]['file'].count('-') == 2
  for name in ('1.png', '5.png', 'inner/0.png'):
    with Image.open(mine / name) as picture:
      width, height = picture.size
    _paint(mine / name, 7, height, width)
  _paint(mine / '!.png', 8, 50, 50)
  right = [*NAMES, '!.png']
  shutil.copytree(tmp_path / 'was', tmp_path / 'new')
  _tokenize(mine, tokenizer, tmp_path / 'new', config)
  _is_right(tmp_path / 'new', mine, tokenizer, right)
  new, meta = store.load(tmp_path / 'new')
  acts = {'write': disk.write, 'unlink': pathlib.Path.unlink}
  done = []

  def act(name, path, *rest, **more):
    if len(done) == stop:
      raise KeyboardInterrupt
    done.append(path)
    return acts[name](path, *rest, **more)

  monkeypatch.setattr(disk, 'write', lambda *a: act('write', *a))
  monkeypatch.setattr(
    pathlib.Path,
    'unlink',
    lambda path, **k: (
      act('unlink', path, **k)
      if path.suffix in ('.npy', '.json')
      else acts['unlink'](path, **k)
    ),
  )
  seen = set()
  for stop in range(99):
    out = pathlib.Path(shutil.copytree(tmp_path / 'was', tmp_path / f'{stop}'))
    done.clear()
    try:
      _tokenize(mine, tokenizer, out, config)
      break
    except KeyboardInterrupt:
      pass
    found = store.load(out).tokens_Nxhxw
    is_new = len(found) == len(new)
    np.testing.assert_array_equal(found, new if is_new else was)
    seen.add(is_new)
    keep, stop = stop, -1
    _tokenize(mine, tokenizer, out, config)
    stop = keep
    again, said = store.load(out)
    np.testing.assert_array_equal(again, new)
    assert said['sources'] == meta['sources']
    files = {s['file'] for s in said['shards']}
    assert set(os.listdir(out)) == {*files, 'skipped.csv', store.META}
  assert seen == {False, True}
  assert stop > 8


def _kill_at(monkeypatch, name):
  """The next tokenize dies before it writes a file of that name."""
  write = disk.write

  def die(path, data):
    if pathlib.Path(path).name == name:
      raise KeyboardInterrupt
    write(path, data)

  monkeypatch.setattr(disk, 'write', die)


def _begun(mine, tokenizer, config, out, monkeypatch):
  """Two shards of 28 tokens, as a kill leaves them."""
  config.tokens.crop = 'whole'
  with monkeypatch.context() as m:
    m.setattr(tokens, '_SELDOM', 0)
    _kill_at(m, 'tokens-00002.npy')
    with pytest.raises(KeyboardInterrupt):
      _tokenize(mine, tokenizer, out, config)
  journal = disk.read_sealed(out / store.PARTIAL)
  ends = [
    (s['file'], s['first'], s['first'] + s['rows'] * s['columns'])
    for s in journal['sources']
  ]
  whole = [name for name, _, end in ends if end <= 56]
  begun = [name for name, first, end in ends if first < 56 < end]
  # Tokens 50 to 69 are 3.png's: not all of them are there.
  assert (whole, begun) == (['0.png', '1.png', '2.png'], ['3.png'])


@pytest.mark.parametrize('name', ['3.png', '4.png', '7.png'])
@pytest.mark.parametrize('size', [(16, 16), (50, 50)])
def test_what_changed_behind_a_killed_run_moves_nothing(
  mine, tokenizer, config, tmp_path, monkeypatch, name, size
):
  _begun(mine, tokenizer, config, tmp_path / 'out', monkeypatch)
  _paint(mine / name, 1, *size)
  _paint(mine / '!.png', 2)
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  # What had no rows yet follows in the order of the names.
  names = ['0.png', '1.png', '2.png', '!.png', *NAMES[3:]]
  _is_right(tmp_path / 'out', mine, tokenizer, names)


def test_what_changed_in_the_rows_of_a_killed_run_is_made_anew(
  mine, tokenizer, config, tmp_path, monkeypatch, said
):
  _begun(mine, tokenizer, config, tmp_path / 'out', monkeypatch)
  _paint(mine / '1.png', 1, 23, 37)
  said.clear()
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  assert said[:2] == [
    'Since the last time, changed: 1.png.',
    'Going on from token 56.',
  ]
  _is_right(tmp_path / 'out', mine, tokenizer, NAMES)


def _files(home):
  return {p: p.read_bytes() for p in home.rglob('*') if p.is_file()}


def test_what_would_move_rows_is_refused_by_name_and_leaves_all_as_it_is(
  mine, tokenizer, config, tmp_path, monkeypatch
):
  killed, whole = tmp_path / 'killed', tmp_path / 'whole'
  _begun(mine, tokenizer, config, killed, monkeypatch)
  _tokenize(mine, tokenizer, whole, config)
  kept = (mine / '1.png').read_bytes()
  changes = {
    r'1\.png has changed, and its 15 row\(s\).*it makes 4 now': (16, 16),
    r'1\.png has changed, and its 15 row\(s\).*it makes 49 now': (50, 50),
    r'1\.png has changed.*at least a cell of 4 pixels, got 3 x 2': (2, 3),
    r'1\.png has changed, and its 15 row\(s\)': None,
    r'holds rows of images that are gone \(1\.png\)': 'gone',
  }
  for out in (killed, whole):
    before = _files(out)
    for complaint, size in changes.items():
      if size == 'gone':
        (mine / '1.png').unlink()
      elif size is None:
        (mine / '1.png').write_bytes(b'no picture')
      else:
        _paint(mine / '1.png', 1, *size)
      with pytest.raises(ValueError, match=f'{complaint}.*--out') as e:
        tokens.tokenize(str(mine), str(tokenizer), str(out), config)
      assert '\n' not in str(e.value)
      assert _files(out) == before
    (mine / '1.png').write_bytes(kept)
    _tokenize(mine, tokenizer, out, config)
    _is_right(out, mine, tokenizer, NAMES)


def test_rows_that_nobody_has_seen_yet_go_with_their_journal(
  mine, tokenizer, config, tmp_path, monkeypatch
):
  out = tmp_path / 'out'
  config.tokens.crop = 'whole'
  _tokenize(mine, tokenizer, out, config)
  before = _files(out)
  for name in ('x.png', 'y.png', 'z.png'):
    _paint(mine / name, 3, 23, 37)
  with monkeypatch.context() as m:
    write, shards = disk.write, []

    def die(path, data):
      if pathlib.Path(path).suffix == '.npy':
        shards.append(path)
      if len(shards) == 2:
        raise KeyboardInterrupt
      write(path, data)

    m.setattr(disk, 'write', die)
    with pytest.raises(KeyboardInterrupt):
      _tokenize(mine, tokenizer, out, config)
  journal = disk.read_sealed(out / store.PARTIAL)
  assert journal['sources'][-1]['file'] >= 'x.png'
  for name in ('x.png', 'y.png', 'z.png'):
    (mine / name).unlink()
  complaint = r'gone \(x\.png.*or delete tokens\.partial\.json there'
  with pytest.raises(ValueError, match=complaint):
    tokens.tokenize(str(mine), str(tokenizer), str(out), config)
  (out / store.PARTIAL).unlink()
  _tokenize(mine, tokenizer, out, config)
  assert _files(out) == before


def test_what_only_looks_changed_is_not_made_anew(
  mine, tokenizer, config, tmp_path, monkeypatch, said
):
  out = tmp_path / 'out'
  _, meta = _tokenize(mine, tokenizer, out, config)
  before = {p: p.stat() for p in out.glob('*.npy')}
  monkeypatch.setattr(
    export.Tokenizer, 'encode', lambda self, x: pytest.fail('encoded')
  )
  os.utime(mine / '2.png', (1, 1))  # touched
  shutil.copy(mine / '3.png', tmp_path / 'copy')
  os.replace(tmp_path / 'copy', mine / '3.png')  # copied
  os.replace(mine / '5.png', mine / 'z.png')  # renamed
  (mine / '3.5.jpg').unlink()  # gave no rows
  said.clear()
  _, now = _tokenize(mine, tokenizer, out, config)
  assert '5.png is z.png now.' in said
  names = ['z.png' if name == '5.png' else name for name in NAMES]
  assert [s['file'] for s in now['sources']] == names
  assert [s['file'] for s in now['skipped']] == ['4.5.png']
  assert now['shards'] == meta['shards']
  assert {p: p.stat() for p in out.glob('*.npy')} == before
  # And the next time nobody reads them.
  monkeypatch.setattr(tokens.images, 'open_source', None)
  said.clear()
  _tokenize(mine, tokenizer, out, config)
  assert said == [f'Nothing to do: {out} is whole.']


def test_what_another_pillow_may_read_is_tried_again(
  mine, tokenizer, config, tmp_path, monkeypatch, said
):
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  decode = tokens.images.decode

  def read(f):
    data = f.read()
    f.seek(0)
    return decode(f) if len(data) > 20 else np.zeros((20, 20, 3), np.uint8)

  monkeypatch.setattr(tokens.images, 'decode', read)
  said.clear()
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  assert said == [f'Nothing to do: {tmp_path / "out"} is whole.']
  monkeypatch.setattr(tokens.images, 'reader', lambda: 'a later one')
  found, meta = _tokenize(mine, tokenizer, tmp_path / 'out', config)
  assert [s['file'] for s in meta['skipped']] == ['4.5.png']
  assert meta['sources'][-1]['file'] == '3.5.jpg'
  assert len(found) == 11


def test_names_that_were_exchanged_are_two_changes(
  mine, tokenizer, config, tmp_path
):
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  os.replace(mine / '1.png', mine / 'x')
  os.replace(mine / '2.png', mine / '1.png')
  os.replace(mine / 'x', mine / '2.png')
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  _is_right(tmp_path / 'out', mine, tokenizer, NAMES)


def test_of_the_size_and_the_age_that_it_had_it_is_known_as_changed(
  tokenizer, config, tmp_path
):
  mine = tmp_path / 'mine'
  mine.mkdir()
  for i in range(3):
    _paint(mine / f'{i}.bmp', i)
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  before = (mine / '1.bmp').stat()
  _paint(mine / '1.bmp', 9)
  times = before.st_atime_ns, before.st_mtime_ns
  os.utime(mine / '1.bmp', ns=times)  # as whoever unpacks or synchronizes does
  after = (mine / '1.bmp').stat()
  assert after.st_size == before.st_size
  assert after.st_mtime_ns == before.st_mtime_ns
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  names = ['0.bmp', '1.bmp', '2.bmp']
  _is_right(tmp_path / 'out', mine, tokenizer, names)


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_a_member_of_an_archive_that_changed_is_made_anew(
  mine, tokenizer, config, tmp_path, said, kind
):
  archive = tmp_path / f'mine.{kind}'
  shutil.make_archive(str(tmp_path / 'mine'), kind, mine)
  _tokenize(archive, tokenizer, tmp_path / 'out', config)
  _paint(mine / '4.png', 1)
  _paint(mine / 'inner' / '1.png', 2)
  shutil.make_archive(str(tmp_path / 'mine'), kind, mine)
  said.clear()
  _tokenize(archive, tokenizer, tmp_path / 'out', config)
  assert said[0].startswith('Since the last time, changed: ')
  assert said[0].endswith('4.png; new: inner/1.png.') or kind == 'tar'
  names = [s['file'] for s in store.load(tmp_path / 'out').meta['sources']]
  assert len(names) == 11
  _is_right(tmp_path / 'out', mine, tokenizer, names)


def test_what_is_read_while_it_is_renewed_is_the_old_or_the_new(
  mine, tokenizer, config, tmp_path, monkeypatch
):
  out = tmp_path / 'out'
  _tokenize(mine, tokenizer, out, config)
  _paint(mine / '1.png', 1)
  digest = disk.digest

  def meanwhile(source):
    monkeypatch.undo()
    tokens.tokenize(str(mine), str(tokenizer), str(out), config)
    return digest(source)

  monkeypatch.setattr(disk, 'digest', meanwhile)
  found, _ = store.load(out)
  np.testing.assert_array_equal(
    found[1:2], _rows(tokenizer, mine / '1.png', 'center')
  )


def test_tokens_of_before_there_were_fingerprints_are_read(
  folder, tokenizer, config, tmp_path
):
  out = tmp_path / 'out'
  whole, meta = _tokenize(folder, tokenizer, out, config)
  shape = ('file', 'height', 'width', 'rows', 'columns', 'first')
  meta |= {
    'format': 1,
    'order': 'photographs by path; within one, tiles row by row',
    'names_digest': '0' * 64,
    'sources': [{k: s[k] for k in shape} for s in meta['sources']],
    'skipped': [s['file'] for s in meta['skipped']],
  }
  disk.write_sealed(out / store.META, meta)
  before = _files(out)
  found, said = store.load(out)
  np.testing.assert_array_equal(found, whole)
  assert said == meta | {'skipped': [{'file': x} for x in meta['skipped']]}
  pictures.detokenize(str(out), str(tokenizer), str(tmp_path / 'drawn'))
  assert (tmp_path / 'drawn' / '8.png.png').exists()
  with pytest.raises(ValueError, match=r'earlier Chimera.*another --out') as e:
    _tokenize(folder, tokenizer, out, config)
  assert '\n' not in str(e.value)
  assert _files(out) == before
  (out / store.META).rename(out / store.PARTIAL)
  with pytest.raises(ValueError, match=r'earlier Chimera.*another --out'):
    _tokenize(folder, tokenizer, out, config)


def test_any_name_that_a_file_can_have_is_tokenized_and_drawn(
  tokenizer, config, tmp_path
):
  mine = tmp_path / 'mine'
  names = [
    b'\xff\xfe.png',  # not UTF-8
    b'a\nb\r.png',
    b'[1]*?\\.png',
    b'x' * 251 + b'.png',  # no more bytes fit into a name
    b'\xd1\x84' * 125 + b'.png',
  ]
  bad = b'\xff no.png'
  os.makedirs(os.fsencode(mine))
  for i, name in enumerate(names):
    _paint(mine / os.fsdecode(name), i)
  (mine / os.fsdecode(bad)).write_bytes(b'no picture')
  out = tmp_path / 'out'
  _, meta = _tokenize(mine, tokenizer, out, config)
  assert {os.fsencode(s['file']) for s in meta['sources']} == set(names)
  assert [os.fsencode(s['file']) for s in meta['skipped']] == [bad]
  assert bad in (out / 'skipped.csv').read_bytes()
  ordered = [s['file'] for s in meta['sources']]
  _is_right(out, mine, tokenizer, ordered)
  drawn = tmp_path / 'drawn'
  pictures.detokenize(str(out), str(tokenizer), str(drawn))
  found = os.listdir(os.fsencode(drawn))
  assert {n + b'.png' for n in names[:3]} < set(found)
  assert len(found) == len(names)


def test_a_file_named_like_a_member_is_a_file(tokenizer, config, tmp_path):
  mine = tmp_path / 'mine'
  mine.mkdir()
  _paint(mine / 'a.zip!b.png', 1)
  _paint(tmp_path / 'b.png', 2)
  with zipfile.ZipFile(mine / 'a.zip', 'w') as archive:
    archive.write(tmp_path / 'b.png', 'b.png')
  _tokenize(mine, tokenizer, tmp_path / 'out', config)
  _is_right(tmp_path / 'out', mine, tokenizer, ['a.zip!b.png'])


def test_a_file_in_the_place_of_a_folder_is_said_to_be_one(
  folder, tokenizer, config, tmp_path
):
  file = folder / '0.png'
  with pytest.raises(ValueError, match=r'got the file .*0\.png\. Fix FOLDER'):
    tokens.tokenize(str(file), str(tokenizer), str(tmp_path), config)
