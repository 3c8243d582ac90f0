"""The curriculum file: what comes back, and what is refused unrun."""

import errno
import functools
import json
import os
import pathlib
import pickle

import numpy as np
import pytest

from chimera.school import curriculum, curriculum_file
from chimera.system import disk
from tests import hostile_curricula


def _latents(samples: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  x = rng.random((samples, 4, 4, 3), np.float32)
  x[..., 2] *= rng.random((samples, 1, 1), np.float32)
  return x


def _bins(samples: int = 100) -> dict[int, list[int]]:
  return curriculum.bin_samples(np.arange(samples, dtype=np.float32))


def _save(path: pathlib.Path, bins=None, digest: str = 'd') -> None:
  curriculum_file.save_curriculum(
    path, bins or _bins(), digest=digest, metric='mean_radius'
  )


def _refused(path: pathlib.Path, match: str, samples=100, digest='d') -> None:
  with pytest.raises(ValueError, match=match) as e:
    curriculum_file.load_curriculum(path, samples=samples, digest=digest)
  assert '\n' not in str(e.value)
  assert 'python -m chimera.main prepare-curriculum' in str(e.value)


def test_a_curriculum_comes_back_and_is_plain(tmp_path):
  path = tmp_path / 'curriculum_bins_x.pkl'
  _save(path)
  assert (
    curriculum_file.load_curriculum(path, samples=100, digest='d') == _bins()
  )
  assert pickle.loads(path.read_bytes()) == _bins()
  tie = json.loads((tmp_path / 'curriculum_bins_x.json').read_text())
  assert tie['samples'] == 100
  assert tie['metric'] == 'mean_radius'
  assert sorted(os.listdir(tmp_path)) == [
    'curriculum_bins_x.json',
    'curriculum_bins_x.pkl',
  ]


def test_a_save_that_dies_leaves_the_old_curriculum(tmp_path, monkeypatch):
  path = tmp_path / 'c.pkl'
  _save(path)
  monkeypatch.setattr(os, 'replace', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    _save(path, _bins(50), digest='other')
  assert (
    curriculum_file.load_curriculum(path, samples=100, digest='d') == _bins()
  )


def test_new_bins_beside_an_old_tie_are_refused(tmp_path):
  path = tmp_path / 'c.pkl'
  _save(path)
  swapped = _bins()
  swapped[0], swapped[9] = swapped[9], swapped[0]
  path.write_bytes(pickle.dumps(swapped, protocol=4))
  _refused(path, 'not the file that its .json was written for')


def test_a_curriculum_of_other_latents_is_stale(tmp_path):
  latents = _latents(100)
  scores = curriculum.score(latents, metric='mean_radius', chunk=32)
  path = tmp_path / 'c.pkl'
  digest = curriculum.digest(latents, scores)
  _save(path, curriculum.bin_samples(scores), digest)
  assert curriculum_file.load_curriculum(path, samples=100, digest=digest)
  for changed in (latents[::-1], latents[:, ::-1], latents + 1e-3):
    scores = curriculum.score(changed, metric='mean_radius', chunk=32)
    other = curriculum.digest(changed, scores)
    _refused(path, 'other latents', digest=other)
  scores = curriculum.score(latents, metric='total_variation', chunk=32)
  _refused(path, 'another metric', digest=curriculum.digest(latents, scores))


@pytest.mark.parametrize(
  ('bins', 'match'),
  [
    ([1, 2], 'keys 0 to 9'),
    ({k: [k] for k in range(9)}, 'keys 0 to 9'),
    ({**_bins(), 3: (1, 2)}, 'opcode'),
    ({**_bins(), 3: [[30]]}, 'more than 10 lists'),
    ({**_bins(), 3: [30.0]}, 'opcode BINFLOAT'),
    ({**_bins(), 3: [True]}, 'opcode NEWTRUE'),
    ({**_bins(), 3: ['x']}, 'opcode'),
    ({**_bins(), 3: []}, 'each of 100 samples once'),
    ({**_bins(), 3: [29, *range(31, 40)]}, 'each of 100 samples once'),
    ({**_bins(), 3: [-1, *range(31, 40)]}, 'beyond 0 to 99'),
    ({**_bins(), 3: [100, *range(31, 40)]}, 'beyond 0 to 99'),
  ],
)
def test_a_malformed_curriculum_is_refused(tmp_path, bins, match):
  path = tmp_path / 'c.pkl'
  disk.write(path, data := pickle.dumps(bins, protocol=4))
  tie = curriculum_file._tie(data, 'd', 'mean_radius', 100)
  path.with_suffix('.json').write_bytes(tie)
  _refused(path, match)


class _Bomb:
  def __reduce__(self):
    return os.mkdir, ('EXECUTED',)


@pytest.mark.parametrize('protocol', [0, 2, 4, 5])
@pytest.mark.parametrize('place', ['whole', 'in a bin'])
def test_a_hostile_pickle_is_refused_and_not_executed(
  tmp_path, monkeypatch, protocol, place
):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'c.pkl'
  _save(path)
  bins = _Bomb() if place == 'whole' else {**_bins(), 3: [_Bomb()]}
  path.write_bytes(pickle.dumps(bins, protocol=protocol))
  _refused(path, 'opcode')
  assert not (tmp_path / 'EXECUTED').exists()


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'garbage',
    b'\x80\x04.',
    b'\x80\x04N.',
    b'\x80\x04e.',
    b'\x80\x04}(]s.',
    b'\x80\x04}K\x01a.',
    b'\x80\x04}(]]u.',
    b'\x80\x04]r\xff\xff\xff\x7f.',  # LONG_BINPUT: a memo of 2 ** 31
    b'\x80\x04\x8c\x02os\x8c\x06system\x93.',  # STACK_GLOBAL
    b'cos\nsystem\n(S"true"\ntR.',  # GLOBAL, REDUCE
    b'\x80\x04}' + b'0' * 100_000,
    pickle.dumps(_bins(), protocol=4)[:-40],
  ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, data):
  path = tmp_path / 'c.pkl'
  _save(path)
  path.write_bytes(data)
  _refused(path, 'must be whole')


@pytest.mark.parametrize('name', hostile_curricula.handmade())
def test_a_handmade_hostile_curriculum_is_refused(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  data = hostile_curricula.handmade()[name]
  assert hostile_curricula.load(tmp_path, data, tied=True) is None
  assert sorted(os.listdir()) == ['c.json', 'c.pkl']


@pytest.mark.parametrize('name', ['a call in a bin', 'STACK_GLOBAL', 'INST'])
def test_the_hostile_curricula_run_where_they_are_trusted(
  tmp_path, monkeypatch, name
):
  monkeypatch.chdir(tmp_path)
  pickle.loads(hostile_curricula.handmade()[name])
  assert os.listdir() == [hostile_curricula.RAN]


def test_2000_mutated_curricula_are_refused_in_less_than_four_times_the_cap(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  seen = hostile_curricula.attack(tmp_path, 2000)
  assert seen.refused > 1900
  assert seen.peak < 4 * hostile_curricula.CAP


def test_the_size_cap_of_a_curriculum_is_as_documented(tmp_path):
  path = tmp_path / 'c.pkl'
  _save(path)
  path.write_bytes(b'\0' * (16 * 100 + 4096))
  _refused(path, 'must be whole')
  path.write_bytes(b'\0' * (16 * 100 + 4097))
  _refused(path, 'is larger than 5696 bytes')


def test_a_curriculum_that_is_no_file_is_not_opened(tmp_path):
  path = tmp_path / 'c.pkl'
  _save(path)
  path.unlink()
  os.mkfifo(path)  # whoever opens it waits for ever
  _refused(path, 'is not a file')


@pytest.mark.parametrize('text', ['', '[]', '3', '{"latents": 3}', '[' * 9999])
def test_a_broken_tie_is_refused(tmp_path, text):
  path = tmp_path / 'c.pkl'
  _save(path)
  path.with_suffix('.json').write_text(text)
  _refused(path, 'must be whole')


def test_a_missing_curriculum_or_tie_is_refused(tmp_path):
  path = tmp_path / 'c.pkl'
  _refused(path, 'No such file')
  _save(path)
  path.with_suffix('.json').unlink()
  _refused(path, 'No such file')


def test_preparing_makes_then_loads_then_refuses_then_mends(tmp_path):
  path = tmp_path / 'c.pkl'
  prepare = functools.partial(
    curriculum_file.prepare_curriculum, path, metric='mean_radius', chunk=16
  )
  bins, scores = prepare(_latents(40))
  written = path.stat().st_mtime_ns
  np.testing.assert_allclose(
    scores, _latents(40)[..., 2].mean((1, 2)), rtol=1e-6
  )
  assert prepare(_latents(40))[0] == bins
  assert path.stat().st_mtime_ns == written
  with pytest.raises(ValueError, match='prepare-curriculum'):
    prepare(_latents(40, seed=1))
  assert path.stat().st_mtime_ns == written
  again, _ = prepare(_latents(40, seed=1), afresh=True)
  assert prepare(_latents(40, seed=1))[0] == again != bins


def test_whatever_ends_a_first_save_the_same_command_makes_it(
  tmp_path, monkeypatch
):
  path = tmp_path / 'c.pkl'
  prepare = functools.partial(
    curriculum_file.prepare_curriculum, path, metric='mean_radius', chunk=16
  )
  replace = os.replace
  for allowed in range(2):
    left = [replace] * allowed

    def full(*paths, left=left):
      if not left:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      left.pop()(*paths)

    with monkeypatch.context() as patched:
      patched.setattr(os, 'replace', full)
      with pytest.raises(OSError, match='No space left'):
        prepare(_latents(40))
  bins, _ = prepare(_latents(40))
  assert prepare(_latents(40))[0] == bins
