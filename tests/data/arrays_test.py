"""Arrays from files that nobody vouches for; see images_test.py too."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from chimera.data import arrays
from chimera.system import disk


def _npy(shape, data, descr='<f4'):
  header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
  text = header.encode() + b'\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data


@pytest.mark.parametrize(
  ('data', 'complaint'),
  [
    (_npy('(2,)', bytes(7)), 'promises 8 bytes, and 7 follow'),
    (_npy('(2,)', bytes(9)), 'promises 8 bytes, and 9 follow'),
    (_npy(f'({2**40}, {2**40}, 3)', bytes(8)), 'promises'),
    (_npy('(-1, 3)', bytes(8)), 'shape'),
    (_npy('(-2, -1)', bytes(8)), 'shape'),
    (_npy('(1,)', bytes(8), '|O'), 'object'),
    (_npy('(1,)', bytes(8), '|V99999999999'), ''),
    (_npy('((((', bytes(8)), ''),
    (_npy('(' * 500, bytes(8)), ''),
    (_npy('9' * 5000, bytes(8)), ''),
    (_npy('{[]: 1}', bytes(8)), ''),
    (_npy('2', bytes(8)), ''),
    (b'\x93NUMPY\x09\x00', 'unknown format'),
    (b'\x93NUMPY\x01\x00\xff\xff', ''),
    (b'', ''),
  ],
)
@pytest.mark.parametrize('suffix', ['npy', 'npz'])
def test_a_header_that_lies_takes_no_memory(tmp_path, data, complaint, suffix):
  path = tmp_path / f'a.{suffix}'
  if suffix == 'npy':
    path.write_bytes(data)
  else:
    with zipfile.ZipFile(path, 'w') as file:
      file.writestr('latents.npy', data)
  with pytest.raises(disk.BROKEN, match=complaint):
    arrays.read(str(path))


def test_an_npz_that_grows_a_hundredfold_is_refused(tmp_path):
  path = str(tmp_path / 'a.npz')
  np.savez_compressed(path, latents=np.zeros(10**6, np.float32))
  with pytest.raises(ValueError, match='would grow from'):
    arrays.read(path)


def test_a_member_longer_than_its_directory_says_is_refused(tmp_path):
  path = tmp_path / 'a.npz'
  x = np.random.default_rng(0).random(1000, np.float32)
  np.savez_compressed(path, latents=x)
  np.testing.assert_array_equal(arrays.read(str(path)), x)
  data = bytearray(path.read_bytes())
  struct.pack_into('<I', data, data.rindex(b'PK\x01\x02') + 24, 400)
  path.write_bytes(data)
  with pytest.raises(zipfile.BadZipFile, match='CRC'):
    arrays.read(str(path))


@pytest.mark.parametrize(
  ('data', 'complaint'),
  [
    (b'\x80\x04]r\xff\xff\xff\x7f.', 'keeps its object'),
    (b']p99999999999\n.', 'keeps its object'),
    (b'\x80\x04' + b']' * 20_000 + b'.', 'more than an array'),
    (b'\x80\x04})' + b'\x85' * 20_000 + b'K\x00s.', 'more than an array'),
    (b'\x80\x04\x8e' + struct.pack('<Q', 2**62) + b'.', ''),
    (b'Pos\n.', 'PERSID'),
    (b'\x80\x02\x82\x01.', 'EXT1'),
  ],
)
def test_a_pickle_that_asks_for_much_is_refused_before_it_is_run(
  tmp_path, monkeypatch, data, complaint
):
  monkeypatch.setattr(arrays, '_ArrayUnpickler', None)
  (tmp_path / 'a.pkl').write_bytes(data)
  with pytest.raises(ValueError, match=complaint):
    arrays.read(str(tmp_path / 'a.pkl'))


def test_mutated_files_are_read_or_broken(tmp_path):
  x = np.random.default_rng(0).random((4, 2, 2, 3), np.float32)
  np.save(tmp_path / 'a.npy', x)
  np.savez_compressed(tmp_path / 'a.npz', latents=x)
  (tmp_path / 'a.pkl').write_bytes(pickle.dumps({'latents': x}, 5))
  rng = np.random.default_rng(0)
  for path in sorted(tmp_path.iterdir()):
    whole = path.read_bytes()
    refused = 0
    for _ in range(400):
      data = bytearray(whole)
      for _ in range(rng.integers(1, 6)):
        data[rng.integers(min(len(data), 160))] = rng.integers(256)
      path.write_bytes(data)
      try:
        arrays.read(str(path))
      except disk.BROKEN:
        refused += 1
    assert refused > 100


def test_a_shape_is_told_without_the_array(tmp_path, monkeypatch):
  latents = np.zeros((7, 8, 9, 3), np.float32)
  np.save(tmp_path / 'a.npy', latents)
  np.savez(tmp_path / 'a.npz', latents=latents, more=np.zeros(3))
  (tmp_path / 'a.pkl').write_bytes(pickle.dumps({'latents': latents}))
  for name in ('a.npy', 'a.npz', 'a.pkl'):
    assert arrays.read_shape(str(tmp_path / name)) == (7, 8, 9, 3)
  monkeypatch.setattr(np, 'frombuffer', lambda *_: 1 / 0)
  assert arrays.read_shape(str(tmp_path / 'a.npz')) == (7, 8, 9, 3)
  (tmp_path / 'b.npy').write_bytes((tmp_path / 'a.npy').read_bytes()[:-1])
  with pytest.raises(disk.BROKEN, match='promises'):
    arrays.read_shape(str(tmp_path / 'b.npy'))


def test_latents_are_as_they_were_written_or_one_line_names_them(tmp_path):
  path = tmp_path / 'latents.npy'
  whole = np.random.default_rng(0).random((7, 8, 9, 3)).astype(np.float32)
  np.save(path, whole)
  np.testing.assert_array_equal(arrays.read_latents(path), whole)
  data = path.read_bytes()
  for broken in (data[:-1], data + b'x', data[:50], b'', b'x' * 200):
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r'latents\.npy must hold') as e:
      arrays.read_latents(path)
    assert '\n' not in str(e.value)
  for other in (whole[0], whole[:0], whole[..., :2], whole.astype(np.float64)):
    np.save(path, other)
    with pytest.raises(ValueError, match=r'latents\.npy must hold'):
      arrays.read_latents(path)
