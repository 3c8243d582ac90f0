"""What is found in folders as people have them, and what is left out."""

import errno
import io
import os
import shutil
import sys
import tarfile
import types

import numpy as np
from PIL import Image, ImageFile
import pytest

from chimera.data import folders, images


def _png(seed=0):
  f = io.BytesIO()
  noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
  Image.fromarray(noise).save(f, 'PNG')
  return f.getvalue()


def _fill(home, *names, data=None):
  for name in names:
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    (home / name).write_bytes(_png() if data is None else data)
  return home


def _search(home):
  found = folders.search(home, '--x')
  names = [os.path.relpath(source, home) for source in found.sources]
  return names, dict(found.left_out), dict(found.unread)


def test_no_two_bundled_photographs_share_a_scene():
  assert 'motorcycle_left.png' in folders.PHOTOGRAPHS
  assert 'motorcycle_right.png' not in folders.PHOTOGRAPHS
  assert len(set(folders.PHOTOGRAPHS)) == len(folders.PHOTOGRAPHS)


def test_hidden_files_and_folders_are_left_out_and_counted(tmp_path):
  _fill(tmp_path, 'a.png', '._a.png', '.thumbnails/a.png', '@eaDir/a.png')
  assert _search(tmp_path) == (['a.png'], {'hidden': 3}, {})
  # But a source may be in a hidden folder.
  assert _search(tmp_path / '.thumbnails') == (['a.png'], {}, {})


def test_a_run_s_own_pictures_are_no_photographs(tmp_path):
  run, plain = tmp_path / 'runs' / 'a', tmp_path / 'b'
  (run / 'previews').mkdir(parents=True)
  plain.mkdir()
  (run / 'config.json').write_text('{}')
  for path in (run / 'previews' / '0000050.png', plain / 'x.png'):
    Image.new('RGB', (4, 4)).save(path)
  (plain / 'config.json').write_text('{}')
  found = folders.search(str(tmp_path), '--x')
  assert found.sources == [str(plain / 'x.png')]
  assert found.left_out['workdir'] == 1
  # But where one is asked for itself.
  assert len(folders.search(str(run), '--x').sources) == 1


def test_links_in_a_tar_are_counted_among_what_is_left_out(tmp_path):
  with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
    info = tarfile.TarInfo('a.png')
    info.type, info.linkname = tarfile.SYMTYPE, 'b.png'
    archive.addfile(info)
  with pytest.raises(ValueError, match=r'No readable image in .*: 1 link\.'):
    folders.search(tmp_path / 'a.tar', '--x')


def test_a_folder_called_photos_is_told_from_the_bundled_photographs(
  tmp_path, monkeypatch, warnings
):
  _fill(tmp_path, 'photos/a.png')
  monkeypatch.chdir(tmp_path)
  assert len(folders.list_sources('photos', '--x')) == len(folders.PHOTOGRAPHS)
  [line] = warnings
  assert './photos' in line
  assert folders.list_sources('./photos', '--x') == [
    str(tmp_path / 'photos' / 'a.png')
  ]


def test_links_are_followed_and_loops_end(tmp_path):
  home = _fill(tmp_path / 'home', 'a.png', 'z/b.png')
  _fill(tmp_path / 'others', 'c.png', 'deep/d.png')
  (home / 'a folder').symlink_to('z')  # which is there under its own name
  (home / 'others').symlink_to('../others')
  (tmp_path / 'others' / 'back').symlink_to(home)
  (home / 'up').symlink_to('..')
  (home / 'z' / 'self').symlink_to('.')
  (home / 'itself').symlink_to('itself')
  (home / 'file').symlink_to('a.png')
  (home / 'nowhere').symlink_to('gone')
  assert _search(home) == (
    ['a.png', 'file', 'others/c.png', 'others/deep/d.png', 'z/b.png'],
    {'link back': 4, 'broken link': 2},
    {},
  )
  # A link may be the source, too.
  (tmp_path / 'link').symlink_to('home')
  assert len(_search(tmp_path / 'link')[0]) == 5


def test_files_of_other_kinds_are_said_once_by_kind(tmp_path, warnings):
  for i, form in enumerate((None, 'zip', 'tar')):
    home = _fill(tmp_path / f'{i}', 'a.JPG')
    names = 'b.txt', 'c.TXT', 'd.mp4', 'e', 'f.a b', 'g.heic.txt', '.h.png'
    _fill(home, *names, data=b'x')
    if form:
      shutil.make_archive(str(home), form, home)
      home = tmp_path / f'{i}.{form}'
    for _ in range(2):
      (source,) = folders.list_sources(home, '--x')
      assert source.endswith('a.JPG')
    assert warnings.pop() == (
      f'Left out of {home}: 3 .txt, 1 .mp4, 1 hidden, 1 without a suffix, 1 '
      'of other kinds.'
    )
    assert not warnings


def test_of_many_kinds_twenty_are_said_by_name():
  kinds = {f'.{i:02d}': 2 for i in range(22)} | {'.m': 3, '': 5}
  line = folders.words(kinds)
  assert line.startswith('3 .m, 2 .00, 2 .01, ')
  assert line.endswith('2 .18, 11 of other kinds')
  assert folders.words({'.heic': 4}) == '4 .heic (needs pillow-heif)'


def test_a_folder_of_other_kinds_alone_is_refused_by_their_names(tmp_path):
  _fill(tmp_path, 'a.docx', data=b'x')
  with pytest.raises(ValueError, match=r'; left out: 1 \.docx\. Fix --x'):
    folders.list_sources(tmp_path, '--x')


@pytest.mark.parametrize(
  ('form', 'data'),
  [
    ('JPEG', b''),
    ('PNG', b''),
    ('GIF', b''),
    ('WEBP', b''),
    ('JPEG2000', b''),
    ('AVIF', b''),
    # A sound, a raw photograph, an SVG, a text that begins as a BMP does.
    (None, b'RIFF\x24\0\0\0WAVEfmt \0'),
    (None, b'II*\0\x10\0\0\0CR\x02\0....'),
    (None, b'<svg xmlns="http'),
    (None, b'BMW is a carmaker'),
  ],
)
def test_a_file_of_another_name_is_judged_by_its_first_bytes(
  tmp_path, form, data
):
  _fill(tmp_path, 'a.png')
  f = io.BytesIO(data)
  if form:
    Image.new('RGB', (8, 8)).save(f, form)
  for name in ('b', 'b.jpg_large', 'b.txt'):
    _fill(tmp_path, name, data=f.getvalue())
  names, left_out, _ = _search(tmp_path)
  assert (len(names), sum(left_out.values())) == ((4, 0) if form else (1, 3))
  shutil.make_archive(str(tmp_path / 'c'), 'tar', tmp_path)
  assert len(folders.search(tmp_path / 'c.tar', '--x').sources) == len(names)


def test_what_pillow_reads_is_known_by_its_suffix_and_no_more():
  suffixes = images.suffixes()
  wanted = '.jpg .JPEG .jfif .png .webp .bmp .tif .gif .avif .jp2 .ppm .pgm'
  assert {suffix.lower() for suffix in wanted.split()} <= suffixes
  # Films, documents, stubs that read nothing, and what starts Ghostscript.
  assert not suffixes & {'.mpg', '.pdf', '.eps', '.h5', '.wmf', '.grib'}


def test_heic_is_read_where_its_library_is_installed(monkeypatch):
  class Heic(ImageFile.ImageFile):
    format = 'HEIC'

  def register():
    Image.register_open('HEIC', Heic, lambda start: False)
    Image.register_extension('HEIC', '.HEIC')

  fake = types.SimpleNamespace(register_heif_opener=register)
  monkeypatch.setitem(sys.modules, 'pillow_heif', fake)
  monkeypatch.setattr(Image, 'ID', [*Image.ID])
  monkeypatch.setattr(Image, 'OPEN', {**Image.OPEN})
  monkeypatch.setattr(Image, 'EXTENSION', {**Image.EXTENSION})
  images._formats.cache_clear()
  assert '.heic' in images.suffixes()
  monkeypatch.undo()
  images._formats.cache_clear()


def test_a_folder_of_shards_is_one_source(tmp_path):
  for i in range(3):
    with tarfile.open(tmp_path / f'{i:06d}.tar', 'w') as shard:
      for name, data in (
        *((f'{i}a.jpg', _png(i)), (f'./{i}b.PNG', _png(10 + i))),
        *((f'{i}a.txt', b'a cat'), ('._x.png', b'x'), ('in/.y/z.png', b'x')),
      ):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        shard.addfile(info, io.BytesIO(data))
  _fill(tmp_path, 'c.png', 'd.zip')
  _fill(tmp_path, 'broken.tar', data=b'x' * 600)
  names, left_out, unread = _search(tmp_path)
  assert names == [
    *(f'{i:06d}.tar!{name}' for i in range(3) for name in
      (f'./{i}b.PNG', f'{i}a.jpg')),
    'c.png', 'd.zip',
  ]  # fmt: skip
  assert left_out == {'.txt': 3, 'hidden': 6}
  assert list(unread) == [f'{tmp_path}/broken.tar']
  assert 'not a readable archive' in unread[f'{tmp_path}/broken.tar']
  source = folders.search(tmp_path, '--x').sources[1]
  assert images.load_photograph(source).shape == (8, 8, 3)


def test_what_is_no_file_is_not_opened(tmp_path):
  _fill(tmp_path, 'a.png')
  os.mkfifo(tmp_path / 'pipe')
  os.mkfifo(tmp_path / 'pipe.tar')
  assert _search(tmp_path) == (['a.png'], {'no file': 2}, {})


def test_depth_has_no_limit_but_that_of_paths(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for i in range(600):
    os.mkdir('d' * 9)
    os.chdir('d' * 9)
    if i in (100, 590):
      _fill(type(tmp_path)(), f'{i}.png')
  names, _, unread = _search(tmp_path)
  assert [os.path.basename(name) for name in names] == ['100.png']
  assert list(unread.values()) == ['File name too long']
  os.chdir(tmp_path)
  shutil.rmtree('d' * 9)


def test_a_folder_that_cannot_be_searched_is_said(
  tmp_path, monkeypatch, warnings
):
  (tmp_path / 'inner').mkdir()
  _fill(tmp_path, 'a.png')
  scan = os.scandir

  def refuse(path):
    if str(path).endswith('inner'):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return scan(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  assert folders.list_sources(tmp_path, '--x') == [str(tmp_path / 'a.png')]
  assert warnings == [
    f'{tmp_path}/inner is not searched for images: Permission denied.'
  ]
