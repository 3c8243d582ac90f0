"""Whether a source holds what it held, by its contents."""

import hashlib
import json
import os
import shutil
import tarfile
import zipfile

import pytest

from chimera.data import fingerprints, folders, images


def _look(home, then=None):
  sources = {p.name: str(p) for p in sorted(home.iterdir())}
  return fingerprints.look_again(then or {}, sources)


@pytest.fixture
def home(tmp_path):
  folder = tmp_path / 'home'
  folder.mkdir()
  for i in range(5):
    (folder / f'{i}').write_bytes(b'%d' % i)
  return folder


def test_a_fingerprint_is_the_digest_and_what_the_file_system_said(home):
  path = home / '3'
  with fingerprints.opened(str(path)) as (f, taken):
    assert f.read() == b'3'
  seen = path.stat()
  assert taken == {
    'sha256': hashlib.sha256(b'3').hexdigest(),
    'stat': [1, seen.st_mtime_ns, seen.st_ctime_ns],
  }
  assert json.loads(json.dumps(taken)) == taken


def test_changed_new_and_gone_are_told_by_name(home):
  then = _look(home)
  (home / '1').write_bytes(b'x')
  (home / '2').unlink()
  (home / '5').write_bytes(b'')
  os.utime(home / '3', (1, 1))
  now = _look(home, then)
  changes = fingerprints.compare(then, now)
  assert changes == (['1'], ['5'], ['2'])
  assert str(changes) == 'changed: 1; new: 5; gone: 2'
  assert now['3']['sha256'] == then['3']['sha256']
  assert now['3']['stat'][1] == 10**9
  assert now['4'] == then['4']
  assert not any(fingerprints.compare(now, _look(home, now)))


def test_of_the_same_size_and_age_contents_decide(home):
  then = _look(home)
  before = (home / '1').stat()
  (home / '1').write_bytes(b'x')
  os.utime(home / '1', ns=(before.st_atime_ns, before.st_mtime_ns))
  assert (home / '1').stat().st_mtime_ns == before.st_mtime_ns
  assert fingerprints.compare(then, _look(home, then)).changed == ['1']


def test_what_is_as_it_was_is_not_read(home, monkeypatch):
  then = _look(home)
  os.utime(home / '3', (1, 1))
  opened = []
  open_source = images.open_source

  def look(source):
    opened.append(os.path.basename(source))
    return open_source(source)

  monkeypatch.setattr(images, 'open_source', look)
  _look(home, then)
  assert opened == ['3']


def test_what_cannot_be_opened_is_known_as_such(home):
  then = _look(home)
  (home / '1').unlink()
  (home / '1').mkdir()
  os.mkfifo(home / '5')
  now = _look(home, then)
  assert now['1'] == now['5'] == fingerprints.UNREADABLE
  assert fingerprints.compare(then, now) == (['1'], ['5'], [])
  assert not any(fingerprints.compare(now, _look(home, now)))
  (home / '5').unlink()
  (home / '5').write_bytes(b'now it is a file')
  assert fingerprints.compare(now, _look(home, now)) == (['5'], [], [])


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_members_are_known_by_their_own_contents(home, tmp_path, kind):
  path = tmp_path / f'a.{kind}'

  def pack():
    with (
      zipfile.ZipFile(path, 'w') if kind == 'zip' else tarfile.open(path, 'w')
    ) as archive:
      for file in sorted(home.iterdir()):
        (archive.write if kind == 'zip' else archive.add)(file, file.name)

  def look(then):
    names = [str(i) for i in range(5)]
    sources = {name: f'{path}!{name}' for name in names}
    return fingerprints.look_again(then, sources)

  pack()
  then = look({})
  assert {k: v['sha256'] for k, v in then.items()} == {
    str(i): hashlib.sha256(b'%d' % i).hexdigest() for i in range(5)
  }
  (home / '2').write_bytes(b'y')
  pack()
  assert fingerprints.compare(then, look(then)) == (['2'], [], [])
  path.unlink()
  assert look(then) == {}


def test_bundled_photographs_and_links_are_files_too(home, tmp_path):
  source = images.BUNDLED + folders.PHOTOGRAPHS[0]
  [then] = fingerprints.look_again({}, {'a': source}).values()
  with images.open_source(source) as f:
    assert then['sha256'] == hashlib.sha256(f.read()).hexdigest()
  link = tmp_path / 'link'
  link.symlink_to(home / '1')
  then = fingerprints.look_again({}, {'a': str(link)})
  link.unlink()
  link.symlink_to(home / '2')
  now = fingerprints.look_again(then, {'a': str(link)})
  assert fingerprints.compare(then, now).changed == ['a']


def test_what_takes_its_place_as_it_is_opened_is_noticed(home, monkeypatch):
  open_source = images.open_source

  def meanwhile(source):
    f = open_source(source)
    (home / 'new').write_bytes(b'x')
    os.replace(home / 'new', source)
    return f

  monkeypatch.setattr(images, 'open_source', meanwhile)
  then = _look(home)
  monkeypatch.undo()
  assert fingerprints.compare(then, _look(home, then)).changed == sorted(then)


def test_a_copy_is_what_it_was(home, tmp_path):
  then = _look(home)
  copy = tmp_path / 'copy'
  shutil.copytree(home, copy)
  assert not any(fingerprints.compare(then, _look(copy, then)))


@pytest.mark.parametrize(
  ('count', 'said'),
  [(0, ''), (1, '0'), (3, '0, 1, 2'), (9, '0, 1, 2 and 6 more')],
)
def test_three_names_are_said(count, said):
  assert fingerprints.several(map(str, range(count))) == said
