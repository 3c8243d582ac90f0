"""Lessons: what is drawn, held by a shard, recorded and re-enrolled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.school import curriculum, lessons

LESSONS = ((9,), (0, 1, 2, 3), (4, 5, 6), (7, 8))


def _bins(samples: int = 100) -> dict[int, np.ndarray]:
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


def _drawn_with_mix(mix: float, batch_size: int, cycles: int) -> np.ndarray:
  """Ids (cycles, batch_size) of lessons of the class of 90 to 99."""
  state = _state((9,))
  draw = jax.jit(
    lambda rng: lessons.draw_lesson(
      rng, state, _shard(100), batch_size=batch_size, mix=mix
    )[0]
  )
  return jax.vmap(draw)(jax.random.split(jax.random.key(0), cycles))


def test_mix_draws_its_share_of_a_lesson_from_everything():
  ids = _drawn_with_mix(0.25, 8, 2000)
  assert np.min(ids[:, 2:]) == 90
  counts = np.bincount(np.ravel(ids[:, :2]), minlength=100)
  # 4,000 draws of 100 samples: 40 each, standard deviation 6.3.
  assert np.all(np.abs(counts - 40) < 5 * 6.3)


def test_half_of_three_samples_are_two():
  of_class = (_drawn_with_mix(0.5, 3, 50) >= 90).mean(0)
  assert of_class[2] == 1
  assert of_class[:2].max() < 0.4  # of one in ten


def test_the_enrolled_are_drawn_evenly_although_they_are_padded():
  bins = {**_bins(), 9: np.array([90, 91, 92])}
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
    error_N=jnp.zeros(len(seen)),
    seen_N=jnp.asarray(seen, jnp.int32),
    fence=jnp.float32(0),
  )


def test_record_tracks_what_was_seen_and_leaves_out_what_is_not_finite():
  state = _tracked([0.0] * 5, [-1] * 5)
  state = lessons.record(
    state,
    jnp.array([3, 1, 4, 0, 2]),
    jnp.array([0.5, jnp.nan, 1.5, jnp.inf, 2.5]),
    jnp.array([0.25, 0.01, 0.5, 0.01, 1.5]),
    jnp.int32(7),
  )
  state = lessons.record(
    state, *(jnp.array([x]) for x in (2, 1.0, jnp.nan)), jnp.int32(8)
  )
  np.testing.assert_array_equal(state.varentropy_N, [0, 0, 2.5, 0.5, 1.5])
  # Over 0.5, the median of the three that are sound.
  np.testing.assert_array_equal(state.error_N, [0, 0, 3, 0.5, 1])
  np.testing.assert_array_equal(state.seen_N, [-1, -1, 7, 7, 7])


def test_who_was_last_seen_early_is_no_outlier_for_it():
  """Errors fall to a twentieth; who is really beyond all others is found."""
  rng, count = np.random.default_rng(0), 400
  hard_N = np.exp(rng.uniform(-0.5, 0.5, count))
  hard_N[7] *= 8
  state = _tracked([0.0] * count, [-1] * count)
  record = jax.jit(lessons.record)
  for cycle in range(60):
    ids = rng.permutation(count)[:32]
    error_X = 0.5 * 0.95**cycle * hard_N[ids]
    seen = np.zeros(32, np.float32), error_X.astype(np.float32)
    state = record(state, ids, *seen, jnp.int32(cycle))
  assert 0 < np.sum(state.seen_N < 20) < 40
  state = state._replace(
    fence=lessons.find_fence(state.error_N, state.seen_N, distances=1.5)
  )
  np.testing.assert_array_equal(lessons.outliers(state), [7])


def test_the_fence_is_that_of_tukey_over_what_was_seen():
  # Of 1, 2, 4, 8, 16 (logs 0 to 4, in base 2) the quartiles are 2 and 8:
  # 1.5 times two doublings beyond 8. The never seen one does not count.
  error_N = jnp.array([16.0, 1.0, 100.0, 4.0, 2.0, 8.0])
  seen_N = jnp.array([3, 0, -1, 1, 5, 2])
  find = functools.partial(lessons.find_fence, error_N, seen_N)
  assert find(distances=1.5) == pytest.approx(64, rel=1e-5)
  assert find(distances=0.5) == pytest.approx(16, rel=1e-5)


def test_before_anything_was_seen_there_is_no_fence():
  state = _tracked([0.0] * 5, [-1] * 5)
  assert not lessons.is_outlier(state).any()
  assert lessons.find_fence(state.error_N, state.seen_N, distances=1.5) == 0


def test_an_outlier_is_of_no_class_and_drawn_from_everything_alone():
  state = _state((9,))._replace(fence=jnp.float32(0.5))
  state = state._replace(error_N=state.error_N.at[90:95].set(0.6))
  draw = jax.jit(
    lambda rng: lessons.draw_lesson(
      rng, state, _shard(100), batch_size=8, mix=0.0
    )[0]
  )
  ids = jax.vmap(draw)(jax.random.split(jax.random.key(0), 2000))
  counts = np.bincount(np.ravel(ids), minlength=100)
  # Half of 16,000 draws meet an outlier: of 100 samples 80 each instead, and
  # the other five of the class have theirs, 1,600, beside. Five deviations.
  assert np.all(np.abs(counts[:95] - 80) < 45)
  assert np.all(np.abs(counts[95:] - 1680) < 200)


def test_an_outlier_is_not_re_enrolled():
  # As below, but the first of them lies beyond the fence.
  state = _tracked([4.0, 1.5, 0.0, 1.1, 0.0], [0, 10, -1, 20, -1])
  state = state._replace(
    error_N=jnp.array([0.1, 0.1, 0.0, 0.3, 0.0]), fence=jnp.float32(0.2)
  )
  again = lessons.re_enrol(
    jax.random.key(0), state, jnp.int32(20), half_life=10.0, floor=0.0
  )
  np.testing.assert_array_equal(again.enrolled_L[:2], [0, 1])


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
    error_N=jnp.zeros(samples),
    seen_N=jnp.zeros(samples, jnp.int32),
    fence=jnp.float32(0),
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
    seen = ids.astype(jnp.float32)
    state = lessons.record(state, ids, seen, seen, step)
    return lessons.re_enrol(rng, state, step, half_life=10.0, floor=0.1)

  after = cycle(state, jax.random.key(0), jnp.int32(1))
  for a, b in zip(state, after):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
