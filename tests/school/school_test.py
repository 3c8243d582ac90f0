"""The School: bins, the curriculum file, lessons, re-enrolment."""

import errno
import functools
import json
import logging as std_logging
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.school import curriculum, curriculum_file, lessons
from chimera.system import disk
from tests import hostile_curricula

LESSONS = ((9,), (0, 1, 2, 3), (4, 5, 6), (7, 8))


def _latents(samples: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  x = rng.random((samples, 4, 4, 3), np.float32)
  x[..., 2] *= rng.random((samples, 1, 1), np.float32)
  return x


def _bins(samples: int = 100) -> dict[int, list[int]]:
  return curriculum.bin_samples(np.arange(samples, dtype=np.float32))


def _state(lesson: tuple[int, ...], length: int = 40) -> lessons.SchoolState:
  return jax.device_put(
    lessons.create_state(_bins(), lesson, samples=100, length=length)
  )


def _shard(samples: int) -> lessons.Shard:
  """Every sample is resident and filled with its own index."""
  latents = np.broadcast_to(
    np.arange(samples, dtype=np.float32)[:, None, None, None],
    (samples, 2, 2, 3),
  )
  (shard,) = lessons.make_shards(
    latents,
    np.zeros((1, 1), np.int32),
    resident_mb=1,
    rotating_samples=0,
    rotation=0,
    seed=0,
  )
  return jax.device_put(shard)


def test_mean_radius_is_the_mean_of_the_third_channel():
  latents = np.zeros((2, 2, 2, 3), np.float32)
  latents[..., 0] = 3.0
  latents[1, ..., 2] = [[0.1, 0.2], [0.3, 0.4]]
  scores = curriculum.score(latents, metric='mean_radius', chunk=1)
  assert scores.dtype == np.float32
  np.testing.assert_allclose(scores, [0.0, 0.25], rtol=1e-6)


def test_total_variation_is_the_mean_step_down_plus_across():
  latents = np.zeros((1, 2, 2, 3), np.float32)
  latents[0, ..., 1] = [[0.0, 0.3], [0.6, 0.9]]
  scores = curriculum.score(latents, metric='total_variation', chunk=8)
  np.testing.assert_allclose(scores, [0.6 / 3 + 0.3 / 3], rtol=1e-6)


@pytest.mark.parametrize('chunk', [1, 7, 64])
def test_chunks_of_any_size_score_alike_from_memory_and_from_a_map(
  tmp_path, chunk
):
  latents = _latents(53)
  np.save(tmp_path / 'x.npy', latents)
  mapped = np.load(tmp_path / 'x.npy', mmap_mode='r')
  expected = np.mean(latents[..., 2].reshape(53, -1), 1)
  for x in (latents, mapped):
    scores = curriculum.score(x, metric='mean_radius', chunk=chunk)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
  np.testing.assert_array_equal(mapped, latents)


def test_scoring_a_copy_on_write_map_keeps_its_changes(tmp_path, monkeypatch):
  monkeypatch.setattr(curriculum, '_MAPPED_BYTES', 1)
  np.save(tmp_path / 'x.npy', _latents(20))
  mapped = np.load(tmp_path / 'x.npy', mmap_mode='c')
  mapped[3] = 7.0
  curriculum.score(mapped, metric='mean_radius', chunk=1)
  assert np.all(mapped[3] == 7.0)


def test_an_unknown_metric_is_refused():
  with pytest.raises(ValueError, match=r'--config\.school\.metric'):
    curriculum.score(_latents(10), metric='jpeg', chunk=4)


@pytest.mark.parametrize('samples', [10, 11, 15, 99, 1000, 1234])
def test_every_sample_is_in_exactly_one_bin_and_bin_means_rise(samples):
  scores = np.random.default_rng(samples).random(samples).astype(np.float32)
  bins = curriculum.bin_samples(scores)
  assert list(bins) == list(range(10))
  assert sorted(i for ids in bins.values() for i in ids) == list(range(samples))
  sizes = [len(ids) for ids in bins.values()]
  assert max(sizes) - min(sizes) <= 1
  assert np.all(np.diff([scores[ids].mean() for ids in bins.values()]) > 0)
  assert all(
    scores[bins[k]].max() <= scores[bins[k + 1]].min() for k in range(9)
  )
  assert {type(i) for ids in bins.values() for i in ids} == {int}


def test_ties_go_by_index():
  bins = curriculum.bin_samples(np.full(20, 0.5, np.float32))
  assert bins == {k: [2 * k, 2 * k + 1] for k in range(10)}


def test_sorting_agrees_with_a_stable_argsort():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 40, 997).astype(np.float32) / 7
  scores[5] = -0.0
  order = [i for ids in curriculum.bin_samples(scores).values() for i in ids]
  np.testing.assert_array_equal(order, np.argsort(scores, kind='stable'))


@pytest.mark.parametrize('bad', [np.nan, np.inf, -1.0])
def test_a_score_that_is_no_score_is_refused(bad):
  scores = np.ones(20, np.float32)
  scores[3] = bad
  with pytest.raises(ValueError, match='prepare-latents'):
    curriculum.bin_samples(scores)


def test_fewer_than_ten_samples_are_refused():
  with pytest.raises(ValueError, match='at least 10 samples, got 9'):
    curriculum.bin_samples(np.ones(9, np.float32))


def test_bins_bear_the_names_of_the_design_document():
  assert curriculum.BIN_NAMES[0] == 'Remedial Structure'
  assert curriculum.BIN_NAMES[1:4] == ('General Ed',) * 3
  assert curriculum.BIN_NAMES[4:7] == ('Advanced Placement',) * 3
  assert curriculum.BIN_NAMES[7:9] == ('Honors Seminar',) * 2
  assert curriculum.BIN_NAMES[9] == 'Gifted & Talented'


def test_held_out_samples_are_placed_by_the_training_bins_edges():
  scores = np.arange(100, dtype=np.float32)
  placed = curriculum.place(
    np.array([-5.0, 9.5, 10.0, 45.0, 89.9, 90.0, 1e9]), _bins(), scores
  )
  np.testing.assert_array_equal(placed, [0, 0, 1, 4, 8, 9, 9])


def test_radius_check_is_the_rank_correlation_and_warns_below_a_half(caplog):
  scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
  # sum of squared rank differences 2: 1 - 6 * 2 / (5 * 24) = 0.9.
  gradients = np.array([1.0, 3.0, 2.0, 40.0, 50.0])
  with caplog.at_level(std_logging.WARNING, 'absl'):
    assert curriculum.radius_check(scores, gradients) == pytest.approx(0.9)
    assert not caplog.records
    assert curriculum.radius_check(scores, -gradients) == pytest.approx(-0.9)
    with pytest.warns(match='constant'):
      assert np.isnan(curriculum.radius_check(np.ones(5), gradients))
  assert len([r for r in caplog.records if 'expected 0.5' in r.message]) == 2


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


def test_the_digest_is_the_same_from_memory_and_from_a_map(tmp_path):
  latents = _latents(33)
  np.save(tmp_path / 'x.npy', latents)
  mapped = np.load(tmp_path / 'x.npy', mmap_mode='r')
  one, other = (
    curriculum.digest(x, curriculum.score(x, metric='mean_radius', chunk=chunk))
    for x, chunk in ((latents, 5), (mapped, 33))
  )
  assert one == other


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


def test_the_longest_lesson_gives_the_length():
  assert lessons.lesson_length(_bins(), LESSONS) == 40


def test_a_batch_larger_than_a_lesson_is_refused():
  assert lessons.lesson_length(_bins(), LESSONS, batch_size=10) == 40
  with pytest.raises(ValueError, match=r'--config\.train\.batch_size'):
    lessons.lesson_length(_bins(), LESSONS, batch_size=11)


@pytest.mark.parametrize('lesson', LESSONS)
def test_without_mix_200_cycles_of_lessons_come_from_the_enrolled(lesson):
  state = _state(lesson)
  draw = jax.jit(
    lambda rng: lessons.draw_lesson(
      rng, state, _shard(100), batch_size=8, mix=0.0
    )
  )
  ids, x = jax.vmap(draw)(jax.random.split(jax.random.key(0), 200))
  enrolled = {i for k in lesson for i in range(10 * k, 10 * k + 10)}
  assert set(np.unique(ids)) == enrolled
  np.testing.assert_array_equal(
    x, np.broadcast_to(np.asarray(ids)[:, :, None, None, None], x.shape)
  )


def test_mix_draws_its_share_of_a_lesson_from_everything():
  state = _state((9,))
  draw = jax.jit(
    lambda rng: lessons.draw_lesson(
      rng, state, _shard(100), batch_size=8, mix=0.25
    )[0]
  )
  ids = jax.vmap(draw)(jax.random.split(jax.random.key(0), 2000))
  assert np.min(ids[:, 2:]) == 90
  counts = np.bincount(np.ravel(ids[:, :2]), minlength=100)
  # 4,000 draws of 100 samples: 40 each, standard deviation 6.3.
  assert np.all(np.abs(counts - 40) < 5 * 6.3)


def test_the_enrolled_are_drawn_evenly_although_they_are_padded():
  bins = {**_bins(), 9: [90, 91, 92]}
  state = lessons.create_state(bins, (9,), samples=100, length=5)
  np.testing.assert_array_equal(state.enrolled_L, [90, 91, 92, 90, 91])
  ids, _ = lessons.draw_lesson(
    jax.random.key(0), state, _shard(100), batch_size=3000, mix=0.0
  )
  counts = np.bincount(ids, minlength=100)[90:93]
  # 1,000 each, standard deviation 25.8.
  assert np.all(np.abs(counts - 1000) < 5 * 25.8)


def test_an_enrolled_sample_that_is_not_resident_gives_way_to_a_resident():
  state = lessons.create_state(_bins(), (9,), samples=100, length=10)
  latents = np.zeros((100, 2, 2, 3), np.float32)
  latents += np.arange(100)[:, None, None, None]
  (shard,) = lessons.make_shards(
    latents,
    np.array([[90, 91, 92]], np.int32),
    resident_mb=0,
    rotating_samples=5,
    rotation=0,
    seed=0,
  )
  ids, x = lessons.draw_lesson(
    jax.random.key(0), state, shard, batch_size=500, mix=0.0
  )
  assert set(np.asarray(ids)) == {90, 91, 92} | set(shard.ids_U)
  np.testing.assert_array_equal(x[:, 0, 0, 0], ids)


def test_a_small_set_is_resident_whole_and_shared():
  shard = _shard(20)
  assert shard.samples_RxHxWxC.dtype == np.float32
  np.testing.assert_array_equal(shard.ids_U, np.arange(20))
  np.testing.assert_array_equal(shard.row_of_N, np.arange(20))


def test_rotating_shards_hold_the_class_and_in_time_show_everything(tmp_path):
  latents = np.zeros((100, 2, 2, 3), np.float32)
  latents += np.arange(100)[:, None, None, None]
  np.save(tmp_path / 'x.npy', latents)
  enrolled = np.array([[90, 91, 92], [1, 2, 1]], np.int32)
  seen = set()
  for rotation in range(5):
    shards = lessons.make_shards(
      np.load(tmp_path / 'x.npy', mmap_mode='r'),
      enrolled,
      resident_mb=0,
      rotating_samples=10,
      rotation=rotation,
      seed=3,
    )
    assert len(shards) == 2
    for enrolled_L, shard in zip(enrolled, shards):
      assert shard.samples_RxHxWxC.shape == (13, 2, 2, 3)
      assert not isinstance(shard.samples_RxHxWxC, np.memmap)
      assert np.all(shard.row_of_N[enrolled_L] >= 10)
      assert np.sum(shard.row_of_N >= 0) <= 13
      for i in np.flatnonzero(shard.row_of_N >= 0):
        assert shard.samples_RxHxWxC[shard.row_of_N[i], 0, 0, 0] == i
      np.testing.assert_array_equal(
        shard.samples_RxHxWxC[:10, 0, 0, 0], shard.ids_U
      )
      seen |= set(shard.ids_U)
  assert seen == set(range(100))


def _tracked(varentropy, seen, count=2) -> lessons.SchoolState:
  return lessons.SchoolState(
    enrolled_L=jnp.arange(3, dtype=jnp.int32),
    enrolled_count=jnp.int32(count),
    varentropy_N=jnp.asarray(varentropy, jnp.float32),
    seen_N=jnp.asarray(seen, jnp.int32),
  )


def test_record_tracks_what_was_seen_and_leaves_out_what_is_not_finite():
  state = _tracked([0.0] * 5, [-1] * 5)
  state = lessons.record(
    state,
    jnp.array([3, 1, 3, 0]),
    jnp.array([0.5, jnp.nan, 0.5, jnp.inf]),
    jnp.int32(7),
  )
  np.testing.assert_array_equal(state.varentropy_N, [0, 0, 0, 0.5, 0])
  np.testing.assert_array_equal(state.seen_N, [-1, -1, -1, 7, -1])


def test_re_enrolment_takes_the_highest_decayed_varentropy():
  # At cycle 20 with half-life 10: 4 / 4 = 1, 1.5 / 2 = 0.75, 1.1, never.
  state = _tracked([4.0, 1.5, 0.0, 1.1, 0.0], [0, 10, -1, 20, -1])
  again = lessons.re_enrol(
    jax.random.key(0), state, jnp.int32(20), half_life=10.0, floor=0.0
  )
  np.testing.assert_array_equal(again.enrolled_L, [3, 0, 1])
  assert again.enrolled_count == 2
  np.testing.assert_array_equal(again.varentropy_N, state.varentropy_N)
  np.testing.assert_array_equal(again.seen_N, state.seen_N)


def test_the_never_seen_are_enrolled_by_lot():
  state = _tracked([9.0, *[0.0] * 49], [5, *[-1] * 49])
  first = set()
  for seed in range(200):
    again = lessons.re_enrol(
      jax.random.key(seed), state, jnp.int32(5), half_life=9.0, floor=0.0
    )
    assert again.enrolled_L[0] == 0
    first.add(int(again.enrolled_L[1]))
  # 200 draws of 49: some 48 of them come up.
  assert len(first) > 40


def test_the_floor_enrols_its_share_by_lot_from_everything():
  samples, count, floor = 200, 20, 0.25
  state = lessons.SchoolState(
    enrolled_L=jnp.arange(count, dtype=jnp.int32),
    enrolled_count=jnp.int32(count),
    varentropy_N=jnp.linspace(2.0, 1.0, samples),
    seen_N=jnp.zeros(samples, jnp.int32),
  )
  enrol = jax.vmap(
    lambda rng: (
      lessons.re_enrol(
        rng, state, jnp.int32(0), half_life=100.0, floor=floor
      ).enrolled_L
    )
  )
  ids = np.asarray(enrol(jax.random.split(jax.random.key(0), 400)))
  assert all(len(set(row)) == count for row in ids)
  # The lowest ranks can only come by lot, with probability 5 / 200.
  low = np.bincount(ids.ravel(), minlength=samples)[100:]
  assert low.mean() / 400 == pytest.approx(floor * count / samples, rel=0.1)
  assert np.all(low > 0)


def test_state_keeps_its_types_under_jit():
  state = _state((7, 8))

  @jax.jit
  def cycle(state, rng, step):
    ids, _ = lessons.draw_lesson(rng, state, _shard(100), batch_size=8, mix=0.5)
    state = lessons.record(state, ids, ids.astype(jnp.float32), step)
    return lessons.re_enrol(rng, state, step, half_life=10.0, floor=0.1)

  after = cycle(state, jax.random.key(0), jnp.int32(1))
  for a, b in zip(state, after):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_the_benchmark_prints_both_speeds_and_stays_small():
  done = subprocess.run(
    [sys.executable, '-m', 'chimera.benchmark', 'curriculum']
    + ['--samples', '20000', '--rounds', '1'],
    capture_output=True,
    text=True,
    check=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert 'speed against the bare mean' in done.stdout
  assert done.stdout.count(' GB/s ') == 2
