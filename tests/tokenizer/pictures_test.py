"""Tokens back to pictures, and pictures beside what they were."""

import os
import shutil
import tarfile
import zipfile

import numpy as np
from PIL import Image
import pytest

from chimera.system import disk, lock
from chimera.tokenizer import export, pictures, store, tokens
from tests import tiny


def _tokenize(folder, tokenizer, out, config):
  tokens.tokenize(str(folder), str(tokenizer), str(out), config)
  return store.load(out)


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
  config.tokens.crop = 'whole'
  _tokenize(folder, tokenizer, tmp_path / 'tokens', config)
  out = tmp_path / 'pictures'
  pictures.detokenize(str(tmp_path / 'tokens'), str(tokenizer), str(out))
  assert (out / 'inner' / '0.png.png').exists()
  assert not (out / '3.5.jpg.png').exists()
  for i in range(9):
    with Image.open(out / f'{i}.png.png') as picture:
      assert picture.size == (40 - 3 * i, 17 + 6 * i)
  # What comes back by way of a store is what comes back without one.
  for name in ('0.png', '8.png'):
    picture = np.asarray(Image.open(folder / name))
    back = export.load(tokenizer).reconstruct(picture)
    drawn = np.asarray(Image.open(out / f'{name}.png'))
    np.testing.assert_array_equal(drawn, back)


def test_no_picture_is_drawn_outside_of_its_folder(
  folder, tokenizer, config, tmp_path
):
  _tokenize(folder, tokenizer, tmp_path / 'tokens', config)
  path = tmp_path / 'tokens' / store.META
  meta = disk.read_sealed(path)
  meta['sources'][0]['file'] = '../../0.png'
  disk.write_sealed(path, meta)
  with pytest.raises(ValueError, match='drawn within'):
    pictures.detokenize(
      str(tmp_path / 'tokens'), str(tokenizer), str(tmp_path / 'p' / 'q')
    )
  assert not (tmp_path / '0.png.png').exists()


def test_no_picture_takes_another_s_place(folder, tokenizer, config, tmp_path):
  with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
    for i, name in enumerate(('a.png', './a.png', 'b/a.png', 'b//a.png')):
      archive.add(folder / f'{i}.png', name)
  made, out = tmp_path / 'tokens', tmp_path / 'out'
  rows, _ = _tokenize(tmp_path / 'a.tar', tokenizer, made, config)
  pictures.detokenize(str(made), str(tokenizer), str(out))
  assert len(rows) == 4
  drawn = {str(p.relative_to(out)) for p in out.rglob('*.png')}
  assert drawn == {
    *('a.png.png', 'a.png.2.png'),
    *('b/a.png.png', 'b/a.png.2.png'),
  }


def test_a_folder_in_the_place_of_a_picture_is_said_to_be_in_the_way(
  folder, tokenizer, config, tmp_path
):
  _tokenize(folder, tokenizer, tmp_path / 'tokens', config)
  (tmp_path / 'out' / '3.png.png').mkdir(parents=True)
  with pytest.raises(ValueError, match=r"3\.png\.png cannot .*rename '3\.png'"):
    pictures.detokenize(
      str(tmp_path / 'tokens'), str(tokenizer), str(tmp_path / 'out')
    )


def test_detokenized_pictures_take_no_photograph_s_place(
  folder, tokenizer, config, tmp_path
):
  home, made = tmp_path / 'home', tmp_path / 'tokens'
  home.mkdir()
  shutil.copy(folder / '0.png', home / 'photo')
  shutil.copy(folder / '1.png', home / 'photo.png')
  (home / 'photo.png.png').write_bytes(b'cut short')  # skipped
  before = {p: p.read_bytes() for p in home.iterdir()}
  _tokenize(home, tokenizer, made, config)
  for _ in range(2):
    pictures.detokenize(str(made), str(tokenizer), str(home))
  names = {p.name for p in home.iterdir() if p not in before}
  assert names == {'photo.2.png', 'photo.png.2.png'}
  assert {p: p.read_bytes() for p in before} == before


def test_of_large_crops_fewer_are_decoded_at_a_time(
  folder, tokenizer, config, tmp_path, monkeypatch
):
  monkeypatch.setattr(pictures, '_BATCH', 4)
  sizes = []

  def decode(self, tokens_nxhxw):
    sizes.append(tokens_nxhxw.shape)
    return plain(self, tokens_nxhxw)

  plain = pictures.export.Tokenizer.decode
  monkeypatch.setattr(pictures.export.Tokenizer, 'decode', decode)
  for size, batch in (((16, 16), 4), ((32, 16), 2), ((64, 64), 1)):
    config.tokens.size = size
    made = tmp_path / f'{size}'
    _tokenize(folder, tokenizer, made, config)
    sizes.clear()
    pictures.detokenize(str(made), str(tokenizer), str(tmp_path / 'out'))
    assert {shape[0] for shape in sizes} == {batch}


def test_reconstructions_do_not_wait_in_memory(
  folder, tokenizer, tmp_path, monkeypatch
):
  drawn, loaded = [], []
  load = pictures._load
  monkeypatch.setattr(
    pictures, '_load', lambda path: loaded.append(path) or load(path)
  )
  monkeypatch.setattr(
    pictures, '_save', lambda path, _: drawn.append(len(loaded))
  )
  paths = [str(folder / f'{i}.png') for i in range(3)]
  pictures.reconstruct(paths, str(tokenizer), str(tmp_path / 'out'))
  # All are looked at before any is drawn, and each once more when it is.
  assert loaded == [*paths, *paths]
  assert drawn == [4, 5, 6]


def test_a_thin_strip_is_not_enlarged_without_end(tokenizer, tmp_path):
  Image.new('RGB', (3000, 4)).save(tmp_path / 'strip.png')
  pictures.reconstruct(
    [str(tmp_path / 'strip.png')], str(tokenizer), str(tmp_path / 'out')
  )
  with Image.open(tmp_path / 'out' / 'strip.png.png') as picture:
    assert picture.size == (3 * (3000 + 4) - 4, 23 + 4)


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
  back = export.load(tokenizer).reconstruct(original)
  seen = picture[23::12, 2 * (40 * 12 + 4) :: 12]
  np.testing.assert_array_equal(seen, back)
  assert '40 x 17 pixels, 5 x 3 tokens; PSNR' in caplog.text
  assert '16 x 65 pixels, 2 x 9 tokens; PSNR' in caplog.text


def test_what_is_drawn_takes_no_other_s_place(folder, tokenizer, tmp_path):
  home = tmp_path / 'home'
  for i, name in enumerate(('a/x.png', 'b/x.png', 'x.png', 'x.png.png')):
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / f'{i}.png', home / name)
  before = {p: p.read_bytes() for p in home.rglob('*.png')}
  # Twice the same is once; x.png.png is not among them.
  paths = [str(home / name) for name in ('a/x.png', 'b/x.png', 'x.png')]
  paths.append(paths[0])
  pictures.reconstruct(paths, str(tokenizer), str(home))
  found = {p.name for p in home.iterdir() if p not in before}
  assert found == {
    *('a', 'b', 'x.png.2.png', 'x.png.3.png', 'x.png.4.png'),
  }
  assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
  'name',
  ['skimage:cat.png', 'b.zip!c.png', os.fsdecode(b'\xff.png'), 'x' * 255],
)
def test_a_file_of_any_name_is_reconstructed(
  folder, tokenizer, tmp_path, monkeypatch, name
):
  monkeypatch.chdir(tmp_path)
  shutil.copy(folder / '0.png', name)
  with zipfile.ZipFile('b.zip', 'w') as archive:
    archive.write(folder / '8.png', 'c.png')
  pictures.reconstruct([name], str(tokenizer), 'out')
  [drawn] = os.listdir('out')
  if len(name) < 250:
    assert drawn == f'{name}.png'
  picture = np.asarray(Image.open(os.path.join('out', drawn)))
  original = np.asarray(Image.open(folder / '0.png'))
  np.testing.assert_array_equal(picture[23::12, : 40 * 12 : 12], original)


def test_what_is_no_file_is_bundled_or_in_an_archive(
  folder, tokenizer, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with zipfile.ZipFile('b.zip', 'w') as archive:
    archive.write(folder / '0.png', 'c.png')
  paths = ['b.zip!c.png', 'skimage:cell.png']
  pictures.reconstruct(paths, str(tokenizer), 'out')
  assert sorted(os.listdir('out')) == ['b.zip!c.png.png', 'cell.png.png']


def test_a_file_in_the_place_of_reconstructions_is_said_to_be_one(
  folder, tokenizer, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'reconstructions').write_text('')
  with pytest.raises(ValueError, match='--out must be a folder, got recon'):
    pictures.reconstruct([str(folder / '0.png')], str(tokenizer), '')


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
