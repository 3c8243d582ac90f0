"""Archives of images: their members, and those that mean harm."""

import contextlib
import io
import os
import pathlib
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from chimera.data import archives


def _zip(path, **contents):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, data in contents.items():
      archive.writestr(name.replace('_', '.'), data)
  return str(path)


def _tar(path, mode='w', **contents):
  with tarfile.open(path, mode) as archive:
    for name, data in contents.items():
      info = tarfile.TarInfo(name.replace('_', '.'))
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return str(path)


@pytest.mark.parametrize('make', [_zip, _tar])
def test_members_are_sorted_and_read_by_name(tmp_path, make):
  path = make(
    tmp_path / f'a.{make.__name__[1:]}', b_png=b'bb', a_PNG=b'a', c_txt=b'c'
  )
  names = archives.members(path)
  assert names == ['a.PNG', 'b.png', 'c.txt']
  sources = [f'{path}!{name}' for name in names]
  read = [archives.read(*archives.split(source)) for source in sources]
  assert read == [b'a', b'bb', b'c']
  assert archives.read(path, 'b.png', most=1) == b'b'
  assert archives.read(path, 'b.png', most=9) == b'bb'
  with pytest.raises(ValueError, match='holds no'):
    archives.read(path, 'd.png')


def test_a_hard_link_is_its_file_and_other_links_are_counted(tmp_path):
  path = _tar(tmp_path / 'a.tar', a_png=b'a')
  with tarfile.open(path, 'a') as archive:
    for name, kind, target in (
      ('b.png', tarfile.LNKTYPE, 'a.png'),
      ('c.png', tarfile.SYMTYPE, 'a.png'),
      ('d.png', tarfile.LNKTYPE, 'gone.png'),
      ('e', tarfile.DIRTYPE, ''),
      ('f.png', tarfile.FIFOTYPE, ''),
    ):
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, target
      archive.addfile(info)
  assert archives.members(path) == ['a.png', 'b.png']
  assert archives.read(path, 'b.png') == b'a'
  assert archives.others(path) == {'link': 2, 'no file': 1}


def test_an_archive_is_indexed_once_until_it_changes(tmp_path, monkeypatch):
  path = _tar(tmp_path / 'a.tar', a_png=b'a')
  opened = []
  open_tar = tarfile.open
  monkeypatch.setattr(
    archives.tarfile, 'open', lambda *a: opened.append(a) or open_tar(*a)
  )
  for _ in range(3):
    assert archives.read(path, 'a.png') == b'a'
  assert len(opened) == 1
  monkeypatch.undo()
  _tar(tmp_path / 'a.tar', a_png=b'a' * 20_000)
  assert len(archives.read(path, 'a.png')) == 20_000


@pytest.mark.parametrize('suffix', ['tar.gz', 'tgz', 'tar.xz', 'tar.bz2'])
def test_a_compressed_tar_is_refused_in_one_line(tmp_path, suffix):
  with pytest.raises(ValueError, match='unpack it, or make it'):
    archives.members(str(tmp_path / f'a.{suffix}'))


def test_an_encrypted_zip_is_refused_in_one_line(tmp_path):
  path = _zip(tmp_path / 'a.zip', a_png=b'a')
  data = bytearray((tmp_path / 'a.zip').read_bytes())
  data[data.index(b'PK\x01\x02') + 8] |= 1
  (tmp_path / 'a.zip').write_bytes(data)
  with pytest.raises(ValueError, match='must not be encrypted'):
    archives.members(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
  monkeypatch.setattr(archives, 'MAX_BYTES', 1000)
  for path in (
    _zip(tmp_path / 'a.zip', a_png=bytes(1001), b_png=bytes(1000)),
    _tar(tmp_path / 'a.tar', a_png=bytes(1001), b_png=bytes(1000)),
  ):
    with pytest.raises(ValueError, match='1001 bytes are more than 1000'):
      archives.read(path, 'a.png')
    assert len(archives.read(path, 'b.png')) == 1000


def test_a_zip_whose_directory_lies_gives_no_more_than_it_says(tmp_path):
  path = _zip(tmp_path / 'a.zip', a_png=bytes(10**6))
  data = bytearray((tmp_path / 'a.zip').read_bytes())
  struct.pack_into('<I', data, data.index(b'PK\x01\x02') + 24, 10)
  (tmp_path / 'a.zip').write_bytes(data)
  with pytest.raises(ValueError, match='broken'):
    archives.read(path, 'a.png')


@pytest.mark.parametrize('place', [0, 512])
def test_a_tar_that_leads_back_into_itself_ends(tmp_path, monkeypatch, place):
  path = _tar(tmp_path / 'a.tar', a_png=b'', b_png=b'')
  data = bytearray((tmp_path / 'a.tar').read_bytes())
  # The member is as long as its own header, backwards.
  header = data[place : place + 512]
  header[124:136] = (-512).to_bytes(12, 'big', signed=True)
  header[148:156] = b' ' * 8
  header[148:156] = b'%06o\0 ' % sum(header)
  data[place : place + 512] = header
  (tmp_path / 'a.tar').write_bytes(data)
  step, steps = tarfile.TarFile.next, []

  def count(file):
    steps.append(1)
    assert len(steps) < 10
    return step(file)

  monkeypatch.setattr(tarfile.TarFile, 'next', count)
  # A later tarfile takes the broken header for the end, unless it is the first.
  with (
    contextlib.suppress(ValueError)
    if place
    else pytest.raises(
      ValueError, match=r'is not a readable archive: .* Make it anew'
    )
  ):
    assert archives.members(path) == ['a.png']


@pytest.mark.parametrize('make', [_zip, _tar])
def test_a_broken_archive_is_one_line(tmp_path, make):
  path = make(tmp_path / f'a.{make.__name__[1:]}', a_png=b'a' * 999, b_png=b'b')
  whole = (tmp_path / os.path.basename(path)).read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for i in range(400):
    data = bytearray(whole)
    for _ in range(rng.integers(1, 9)):
      data[rng.integers(len(data))] = rng.integers(256)
    if i % 4 == 0:
      del data[rng.integers(len(data)) :]
    with open(path, 'wb') as f:
      f.write(data)
    archives._index.cache_clear()
    try:
      for name in archives.members(path):
        archives.read(*archives.split(f'{path}!{name}'))
    except ValueError as e:
      line = str(e)
      assert '\n' not in line
      refused += 1
  assert refused > 20


def test_only_a_file_is_an_archive(tmp_path):
  (tmp_path / 'a.zip').mkdir()
  assert archives.split(f'{tmp_path}/a.zip!b.png') is None
  os.mkfifo(tmp_path / 'b.zip')
  with pytest.raises(ValueError, match='not a file'):
    archives.members(str(tmp_path / 'b.zip'))


def test_a_tar_that_was_cut_between_two_files_is_said(tmp_path, warnings):
  path = _tar(tmp_path / 'a.tar', a_png=b'a' * 700, b_png=b'b' * 700)
  assert archives.members(path) == ['a.png', 'b.png']
  assert not warnings
  cut = tmp_path / 'cut.tar'
  cut.write_bytes(pathlib.Path(path).read_bytes()[: 512 + 1024])
  assert archives.members(cut) == ['a.png']
  assert warnings == [f'{cut} has no end: it may have been cut.']
