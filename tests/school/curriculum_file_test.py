"""The curriculum file: what is written, held against it, and never run."""

import errno
import functools
import hashlib
import json
import os
import pathlib
import pickle
import tracemalloc

import numpy as np
import pytest

from chimera.school import curriculum, curriculum_file


def _latents(samples: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  x = rng.random((samples, 4, 4, 3), np.float32)
  x[..., 2] *= rng.random((samples, 1, 1), np.float32)
  return x


def _bins(samples: int = 100) -> dict[int, np.ndarray]:
  return curriculum.bin_samples(np.arange(samples, dtype=np.float32))


def _lists(bins) -> dict[int, list[int]]:
  return {k: ids.tolist() for k, ids in bins.items()}


def _save(path: pathlib.Path, bins=None, digest: str = 'd') -> None:
  curriculum_file.save_curriculum(
    path, bins or _bins(), digest=digest, metric='mean_radius'
  )


def _check(path: pathlib.Path, bins=None, digest='d', metric='mean_radius'):
  curriculum_file.check_curriculum(
    path, bins or _bins(), digest=digest, metric=metric
  )


def _refused(path: pathlib.Path, match: str, **keywords) -> None:
  with pytest.raises(ValueError, match=match) as e:
    _check(path, **keywords)
  assert '\n' not in str(e.value)
  assert 'python -m chimera.main prepare-curriculum' in str(e.value)


def test_a_curriculum_is_plain_and_known_again(tmp_path):
  path = tmp_path / 'curriculum_bins_x.pkl'
  _save(path)
  _check(path)
  assert pickle.loads(path.read_bytes()) == _lists(_bins())
  tie = json.loads((tmp_path / 'curriculum_bins_x.json').read_text())
  assert tie['samples'] == 100
  assert tie['metric'] == 'mean_radius'
  assert sorted(os.listdir(tmp_path)) == [
    'curriculum_bins_x.json',
    'curriculum_bins_x.pkl',
  ]


@pytest.mark.parametrize(
  'samples', [10, 19, 999, 10_000, 10_001, 10_010, 99_999, 700_000]
)
def test_it_is_what_pickle_writes_of_lists(tmp_path, samples):
  scores = np.random.default_rng(0).random(samples, np.float32)
  bins = curriculum.bin_samples(scores)
  _save(tmp_path / 'c.pkl', bins)
  _check(tmp_path / 'c.pkl', bins)
  expected = pickle.dumps(_lists(bins), protocol=4)
  assert (tmp_path / 'c.pkl').read_bytes() == expected
  tie = json.loads((tmp_path / 'c.json').read_text())
  assert tie['curriculum'] == hashlib.sha256(expected).hexdigest()


def test_an_unpickler_that_knows_no_globals_reads_it(tmp_path):
  class NoGlobals(pickle.Unpickler):
    def find_class(self, module, name):
      raise AssertionError(f'{module}.{name}')

  _save(tmp_path / 'c.pkl')
  with open(tmp_path / 'c.pkl', 'rb') as f:
    assert NoGlobals(f).load() == _lists(_bins())


def test_a_save_that_dies_leaves_the_old_curriculum(tmp_path, monkeypatch):
  path = tmp_path / 'c.pkl'
  _save(path)
  monkeypatch.setattr(os, 'replace', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    _save(path, _bins(50), digest='other')
  _check(path)


def test_other_bins_or_another_metric_are_refused(tmp_path):
  path = tmp_path / 'c.pkl'
  _save(path)
  swapped = _bins()
  swapped[0], swapped[9] = swapped[9], swapped[0]
  _refused(path, 'other latents', bins=swapped)
  _refused(path, 'another metric', metric='total_variation')
  path.write_bytes(pickle.dumps(_lists(swapped), protocol=4))
  _refused(path, r'c\.pkl is .* or is not as it was written')


def test_a_curriculum_of_other_latents_is_stale(tmp_path):
  latents = _latents(100)

  def of(latents):
    scores = curriculum.score(latents, metric='mean_radius')
    return {
      'bins': curriculum.bin_samples(scores),
      'digest': curriculum.digest(latents, scores),
    }

  path = tmp_path / 'c.pkl'
  _save(path, **of(latents))
  _check(path, **of(latents))
  for changed in (latents[::-1], latents[:, ::-1], latents + 1e-3):
    _refused(path, 'other latents', **of(changed))


def test_the_digest_sees_every_score_the_shape_and_bytes_all_over(monkeypatch):
  latents = _latents(100)

  def of(latents):
    scores = curriculum.score(latents, metric='mean_radius')
    return curriculum.digest(latents, scores)

  moved = latents.copy()
  moved[57, 1, 2, 0] += 1  # no score is another
  assert of(moved) != of(latents)
  monkeypatch.setattr(curriculum, '_DIGESTED', 10)
  darker = latents.copy()
  darker[57, ..., 2] *= 0.5  # beside the tenth ones, whose bytes are seen
  assert of(darker) != of(latents)
  square, wide = (
    np.zeros((12, h, w, 3), np.float32) for h, w in [(4, 4), (2, 8)]
  )
  assert of(square) != of(wide)


@pytest.mark.parametrize('name', ['c.pkl', 'c.json'])
def test_every_flip_and_every_cut_is_noticed(tmp_path, name):
  path = tmp_path / 'c.pkl'
  _save(path)
  whole = (tmp_path / name).read_bytes()
  for at in range(len(whole)):
    flipped = bytearray(whole)
    flipped[at] ^= 1 << at % 8
    for data in (flipped, whole[:at]):
      (tmp_path / name).write_bytes(data)
      _refused(path, 'not as it was written')
  (tmp_path / name).write_bytes(whole + b'.')
  _refused(path, 'not as it was written')


class _Bomb:
  def __reduce__(self):
    return os.mkdir, ('EXECUTED',)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'c.pkl'
  for hostile in (_Bomb(), {**_lists(_bins()), 3: [_Bomb()]}):
    for protocol in (0, 2, 4, 5):
      _save(path)
      path.write_bytes(pickle.dumps(hostile, protocol=protocol))
      _refused(path, 'not as it was written')
      assert not (tmp_path / 'EXECUTED').exists()
  # Where it is trusted, it does run.
  pickle.loads(path.read_bytes())
  assert (tmp_path / 'EXECUTED').exists()


@pytest.mark.parametrize('name', ['c.pkl', 'c.json'])
def test_of_a_huge_file_no_more_is_read_than_there_should_be(tmp_path, name):
  path = tmp_path / 'c.pkl'
  _save(path)
  with open(tmp_path / name, 'r+b') as f:
    f.truncate(2**40)
  tracemalloc.start()
  _refused(path, 'not as it was written')
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**20


@pytest.mark.parametrize('name', ['c.pkl', 'c.json'])
def test_a_curriculum_that_is_no_file_is_not_opened(tmp_path, name):
  path = tmp_path / 'c.pkl'
  _save(path)
  (tmp_path / name).unlink()
  os.mkfifo(tmp_path / name)  # whoever opens it waits for ever
  _refused(path, 'is not a file')


def test_a_missing_curriculum_or_tie_is_refused(tmp_path):
  path = tmp_path / 'c.pkl'
  _refused(path, 'No such file')
  _save(path)
  path.with_suffix('.json').unlink()
  _refused(path, 'No such file')


def test_preparing_makes_then_knows_then_refuses_then_makes_anew(tmp_path):
  path = tmp_path / 'c.pkl'
  prepare = functools.partial(
    curriculum_file.make_or_check, path, metric='mean_radius'
  )
  bins, scores = prepare(_latents(40))
  written = path.stat().st_mtime_ns
  np.testing.assert_allclose(
    scores, _latents(40)[..., 2].mean((1, 2)), rtol=1e-6
  )
  assert _lists(prepare(_latents(40))[0]) == _lists(bins)
  assert path.stat().st_mtime_ns == written
  with pytest.raises(ValueError, match='prepare-curriculum'):
    prepare(_latents(40, seed=1))
  assert path.stat().st_mtime_ns == written
  again, _ = prepare(_latents(40, seed=1), afresh=True)
  known, _ = prepare(_latents(40, seed=1))
  assert _lists(known) == _lists(again) != _lists(bins)


def test_whatever_ends_a_first_save_the_same_command_makes_it(
  tmp_path, monkeypatch
):
  path = tmp_path / 'c.pkl'
  prepare = functools.partial(
    curriculum_file.make_or_check, path, metric='mean_radius'
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
  assert _lists(prepare(_latents(40))[0]) == _lists(bins)
