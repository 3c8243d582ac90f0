"""Tokens back to pictures, and pictures beside what they were."""

import shutil

import numpy as np
from PIL import Image
import pytest

from chimera.data import images
from chimera.system import disk, lock
from chimera.tokenizer import export, pictures, tokens
from configs import chimera as chimera_config
from tests import tiny


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


def _tokenize(folder, tokenizer, out, config):
  tokens.tokenize(str(folder), str(tokenizer), str(out), config)
  return tokens.load(out)


def test_a_folder_is_written_by_one_process_at_a_time(
  folder, tokenizer, config, tmp_path
):
  made, out = tmp_path / 'tokens', tmp_path / 'out'
  _tokenize(folder, tokenizer, made, config)
  with lock.hold(out):
    with pytest.raises(ValueError, match=r'at work in it.*another --out'):
      _tokenize(folder, tokenizer, out, config)
    with pytest.raises(ValueError, match=r'at work in it.*another --out'):
      pictures.detokenize(str(made), str(tokenizer), str(out))
    assert [p.name for p in out.iterdir()] == ['.lock']


def test_pictures_come_back_in_their_own_size(
  folder, tokenizer, config, tmp_path
):
  config.tokens.crop = 'tiles'
  found, _ = _tokenize(folder, tokenizer, tmp_path / 'tokens', config)
  out = tmp_path / 'pictures'
  pictures.detokenize(str(tmp_path / 'tokens'), str(tokenizer), str(out))
  assert (out / 'inner' / '0.png.png').exists()
  assert not (out / '3.5.jpg.png').exists()
  for i in range(9):
    with Image.open(out / f'{i}.png.png') as picture:
      assert picture.size == (40 - 3 * i, 17 + 6 * i)
  loaded = export.load(tokenizer)
  corner = images.to_uint8(np.asarray(loaded.decode(np.int32(found[:1]))))[0]
  picture = np.asarray(Image.open(out / '0.png.png'))
  np.testing.assert_array_equal(picture[:16, :16], corner)


def test_no_picture_is_drawn_outside_of_its_folder(
  folder, tokenizer, config, tmp_path
):
  _tokenize(folder, tokenizer, tmp_path / 'tokens', config)
  path = tmp_path / 'tokens' / tokens.META
  meta = disk.read_sealed(path)
  meta['sources'][0]['file'] = '../../0.png'
  disk.write_sealed(path, meta)
  with pytest.raises(ValueError, match='drawn within'):
    pictures.detokenize(
      str(tmp_path / 'tokens'), str(tokenizer), str(tmp_path / 'p' / 'q')
    )
  assert not (tmp_path / '0.png.png').exists()


def test_reconstructions_lie_beside_the_original(
  folder, tokenizer, tmp_path, caplog
):
  caplog.set_level('INFO', logger='absl')
  paths = [str(folder / '0.png'), str(folder / '8.png')]
  pictures.reconstruct(paths, str(tokenizer), str(tmp_path))
  picture = np.asarray(Image.open(tmp_path / '0.png.png'))
  # 40 x 17 pixels, enlarged 12 times to be at least 192 high.
  assert picture.shape == (23 + 17 * 12, 3 * (40 * 12 + 4) - 4, 3)
  original = np.asarray(Image.open(folder / '0.png'))
  np.testing.assert_array_equal(picture[23::12, : 40 * 12 : 12], original)
  assert '40 x 17 pixels, 3 x 2 tiles of 16, mirrored beyond' in caplog.text
  assert '16 x 65 pixels, 1 x 5 tiles of 16, mirrored' in caplog.text


def test_tokens_of_another_codebook_are_refused(
  folder, tokenizer, config, tmp_path
):
  _tokenize(folder, tokenizer, tmp_path / 'tokens', config)
  other = tiny.save_tokenizer(tmp_path / 'other', seed=1)
  with pytest.raises(ValueError, match='of another codebook'):
    pictures.detokenize(
      str(tmp_path / 'tokens'), str(other), str(tmp_path / 'p')
    )
  assert not (tmp_path / 'p').exists()


def test_mistakes_are_told_and_leave_nothing(
  folder, tokenizer, config, tmp_path
):
  empty = tmp_path / 'empty'
  empty.mkdir()
  out = tmp_path / 'out'
  with pytest.raises(ValueError, match='No readable image'):
    _tokenize(empty, tokenizer, out, config)
  Image.new('RGB', (2, 2)).save(empty / 'speck.png')
  with pytest.raises(ValueError, match='at least a cell of 4 pixels'):
    _tokenize(empty, tokenizer, out, config)
  with pytest.raises(ValueError, match='must be at least a cell of 4 pixels'):
    pictures.reconstruct([str(empty / 'speck.png')], str(tokenizer), str(out))
  with pytest.raises(ValueError, match='No tokenizer in'):
    _tokenize(folder, tmp_path / 'nowhere', out, config)
  with pytest.raises(ValueError, match='give --out'):
    tokens.tokenize(str(folder), str(tokenizer), '', config)
  parts = tiny.parts()._replace(optics=None, variables=None)
  export.save(tmp_path / 'blind', parts, input_shape=(4, 4, 3), came_from={})
  with pytest.raises(ValueError, match='sees no images'):
    _tokenize(folder, tmp_path / 'blind', out, config)
  assert not out.exists()
