"""Tokens on disk: whole, resumable, of one language."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from chimera.system import disk
from chimera.tokenizer import export, tokens
from configs import chimera as chimera_config
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tiny.save_tokenizer(tmp_path_factory.mktemp('export') / 'tokenizer')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Nine photographs of several sizes, a corrupt one and a speck."""
  home = tmp_path_factory.mktemp('photographs')
  rng = np.random.default_rng(0)
  for i in range(9):
    size = (17 + 6 * i, 40 - 3 * i)
    picture = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(picture).save(home / f'{i}.png')
  (home / '3.5.jpg').write_bytes(b'no picture')
  Image.new('RGB', (3, 40)).save(home / '4.5.png')  # a cell is 4 pixels
  (home / 'inner').mkdir()
  shutil.copy(home / '0.png', home / 'inner' / '0.png')
  return home


@pytest.fixture
def config():
  c = chimera_config.get_config()
  c.tokens.batch_size = 4
  c.tokens.shard = 7
  return c


def _change(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))


def _tokenize(folder, tokenizer, out, config):
  tokens.tokenize(str(folder), str(tokenizer), str(out), config)
  return tokens.load(out)


def test_the_rows_are_the_tokens_of_the_centered_squares(
  folder, tokenizer, config, tmp_path
):
  found, meta = _tokenize(folder, tokenizer, tmp_path, config)
  names = [f'{i}.png' for i in range(9)] + ['inner/0.png']
  assert [s['file'] for s in meta['sources']] == names
  assert meta['skipped'] == ['3.5.jpg', '4.5.png']
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


def test_tiles_hold_the_whole_photograph(folder, tokenizer, config, tmp_path):
  config.tokens.crop = 'tiles'
  found, meta = _tokenize(folder, tokenizer, tmp_path, config)
  # 17 + 6 i by 40 - 3 i pixels in tiles of 16.
  rows = [-(-(17 + 6 * i) // 16) for i in [*range(9), 0]]
  columns = [-(-(40 - 3 * i) // 16) for i in [*range(9), 0]]
  assert [s['rows'] for s in meta['sources']] == rows
  assert [s['columns'] for s in meta['sources']] == columns
  assert len(found) == sum(r * c for r, c in zip(rows, columns))
  last = meta['sources'][-1]
  assert last['first'] + last['rows'] * last['columns'] == len(found)
  picture = np.asarray(Image.open(folder / '0.png'))
  loaded = export.load(tokenizer)
  first = loaded.encode(picture[None, :16, :16])[0]
  np.testing.assert_array_equal(found[0], first)


@pytest.mark.parametrize('crop', ['center', 'tiles'])
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
  # The journal at first and after each shard, the shards, tokens.json.
  for stop in range(1 + 2 * len(meta['shards']) + 1):
    out = tmp_path / f'{stop}'
    written.clear()
    with pytest.raises(KeyboardInterrupt):
      _tokenize(folder, tokenizer, out, config)
    with pytest.raises(ValueError, match='No tokens in'):
      tokens.load(out)
    stop = -1
    again, said = _tokenize(folder, tokenizer, out, config)
    np.testing.assert_array_equal(again, whole)
    assert said == meta
    assert not (out / tokens.PARTIAL).exists()


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
  whole, _ = tokens.load(tmp_path / 'whole')
  assert run('tokens-00001.npy', tmp_path / 'b') == -signal.SIGKILL
  journal = json.loads((tmp_path / 'b' / tokens.PARTIAL).read_text())
  assert journal['count'] == 2
  assert run('none', tmp_path / 'b') == 0
  np.testing.assert_array_equal(tokens.load(tmp_path / 'b')[0], whole)


def test_a_finished_folder_is_left_as_it_is(
  folder, tokenizer, config, tmp_path
):
  _tokenize(folder, tokenizer, tmp_path, config)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
  _tokenize(folder, tokenizer, tmp_path, config)
  assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
  config.tokens.crop = 'tiles'
  with pytest.raises(ValueError, match='differs in crop'):
    _tokenize(folder, tokenizer, tmp_path, config)


def test_a_journal_that_a_killed_process_left_goes_with_the_next(
  folder, tokenizer, config, tmp_path
):
  _, meta = _tokenize(folder, tokenizer, tmp_path, config)
  disk.write_sealed(tmp_path / tokens.PARTIAL, meta)
  _tokenize(folder, tokenizer, tmp_path, config)
  assert not (tmp_path / tokens.PARTIAL).exists()


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
  _change(tmp_path / tokens.PARTIAL, '"count": 7', '"count": 9')
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
  assert said == meta


def test_join_is_the_inverse_of_cut():
  picture = np.arange(20 * 37 * 3, dtype=np.uint8).reshape(20, 37, 3)
  tiles, rows, columns = tokens.cut(picture, 16)
  assert tiles.shape == (6, 16, 16, 3)
  assert (rows, columns) == (2, 3)
  whole = tokens.join(tiles, rows, columns)
  np.testing.assert_array_equal(whole[:20, :37], picture)
  np.testing.assert_array_equal(whole[20:40][::-1][-12:], whole[20:32][::-1])
  np.testing.assert_array_equal(whole[20], whole[19])  # mirrored
  np.testing.assert_array_equal(whole[:, 38], whole[:, 35])


def test_large_codebooks_take_int32(folder, config, tmp_path):
  big = tiny.save_tokenizer(tmp_path / 'big', codes=40_000)
  found, meta = _tokenize(folder, big, tmp_path / 'tokens', config)
  assert found.dtype == np.int32
  assert meta['dtype'] == 'int32'
  assert found.max() > 1 << 15


@pytest.mark.parametrize(
  ('change', 'complaint'),
  [
    (lambda out: (out / tokens.META).write_text('{}'), 'not hold whole tokens'),
    (lambda out: (out / tokens.META).write_text('no'), 'not hold whole tokens'),
    (lambda out: (out / tokens.META).unlink(), 'No tokens in'),
    (lambda out: (out / 'tokens-00001.npy').unlink(), 'No tokens in'),
    (
      lambda out: _change(out / tokens.META, '"rows": 1', '"rows": 3'),
      'tokens.json is not as it was written',
    ),
    (
      lambda out: disk.write_json(
        out / tokens.META, disk.read_sealed(out / tokens.META)
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
  _tokenize(folder, tokenizer, tmp_path, config)
  change(tmp_path)
  with pytest.raises(ValueError, match=complaint):
    tokens.load(tmp_path)
