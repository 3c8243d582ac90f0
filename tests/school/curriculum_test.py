"""Scores, bins, and what is read off them."""

import logging as std_logging
import tracemalloc

import numpy as np
import pytest

from chimera.school import curriculum


def _latents(samples: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  x = rng.random((samples, 4, 4, 3), np.float32)
  x[..., 2] *= rng.random((samples, 1, 1), np.float32)
  return x


def _bins(samples: int = 100) -> dict[int, np.ndarray]:
  return curriculum.bin_samples(np.arange(samples, dtype=np.float32))


def test_mean_radius_is_the_mean_of_the_third_channel():
  latents = np.zeros((2, 2, 2, 3), np.float32)
  latents[..., 0] = 3.0
  latents[1, ..., 2] = [[0.1, 0.2], [0.3, 0.4]]
  scores = curriculum.score(latents, metric='mean_radius')
  assert scores.dtype == np.float32
  np.testing.assert_allclose(scores, [0.0, 0.25], rtol=1e-6)


def test_a_radius_below_0_by_rounding_is_a_score_of_0():
  latents = np.full((1, 2, 2, 3), -3e-7, np.float32)
  assert curriculum.score(latents, metric='mean_radius').tolist() == [0.0]


def test_total_variation_is_the_mean_step_down_plus_across():
  latents = np.zeros((1, 2, 2, 3), np.float32)
  latents[0, ..., 1] = [[0.0, 0.3], [0.6, 0.9]]
  scores = curriculum.score(latents, metric='total_variation')
  np.testing.assert_allclose(scores, [0.6 / 3 + 0.3 / 3], rtol=1e-6)


@pytest.mark.parametrize('read', [1, 7, 64])
def test_runs_of_any_size_score_alike_from_memory_and_from_a_map(
  tmp_path, monkeypatch, read
):
  latents = _latents(53)
  monkeypatch.setattr(curriculum, '_READ_BYTES', read * latents[0].nbytes)
  np.save(tmp_path / 'x.npy', latents)
  mapped = np.load(tmp_path / 'x.npy', mmap_mode='r')
  expected = np.mean(latents[..., 2].reshape(53, -1), 1)
  for x in (latents, mapped):
    scores = curriculum.score(x, metric='mean_radius')
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
  np.testing.assert_array_equal(mapped, latents)


def test_scoring_a_copy_on_write_map_keeps_its_changes(tmp_path, monkeypatch):
  monkeypatch.setattr(curriculum, '_MAPPED_BYTES', 1)
  np.save(tmp_path / 'x.npy', _latents(20))
  mapped = np.load(tmp_path / 'x.npy', mmap_mode='c')
  mapped[3] = 7.0
  curriculum.score(mapped, metric='mean_radius')
  assert np.all(mapped[3] == 7.0)


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
  assert {ids.dtype for ids in bins.values()} == {np.dtype(np.int32)}


def test_ties_go_by_index():
  bins = curriculum.bin_samples(np.full(20, 0.5, np.float32))
  assert {k: ids.tolist() for k, ids in bins.items()} == {
    k: [2 * k, 2 * k + 1] for k in range(10)
  }


@pytest.mark.parametrize('different', [1, 2, 40, 2**24])
@pytest.mark.parametrize('samples', [10, 997, 20_000])
def test_sorting_agrees_with_a_stable_argsort(monkeypatch, samples, different):
  monkeypatch.setattr(curriculum, '_SORTED', 500)
  rng = np.random.default_rng(0)
  scores = rng.integers(0, different, samples).astype(np.float32) / 7
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


def test_held_out_samples_of_one_score_go_to_its_bins_as_the_others_did():
  # Of a hundred 35 are blank: all of three bins, and half of the fourth.
  scores = np.maximum(np.arange(100, dtype=np.float32), 34)
  placed = curriculum.place(
    np.array([34.0, 35.0, 34.0, 34.0, 40.0, 34.0, 34.0]), _bins(), scores
  )
  # In the middles of five parts of 35: 3.5, 10.5, 17.5, 24.5, 31.5.
  np.testing.assert_array_equal(placed, [0, 3, 1, 1, 4, 2, 3])


def test_radius_check_is_the_rank_correlation_and_warns_below_a_half(caplog):
  scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
  # sum of squared rank differences 2: 1 - 6 * 2 / (5 * 24) = 0.9.
  gradients = np.array([1.0, 3.0, 2.0, 40.0, 50.0])
  with caplog.at_level(std_logging.WARNING, 'absl'):
    assert curriculum.radius_check(scores, gradients) == pytest.approx(0.9)
    assert not caplog.records
    assert curriculum.radius_check(scores, -gradients) == pytest.approx(-0.9)
    assert np.isnan(curriculum.radius_check(np.ones(5), gradients))
  assert len([r for r in caplog.records if 'expected 0.5' in r.message]) == 2


def test_radius_check_gives_what_is_alike_the_mean_of_its_ranks():
  # Ranks 1.5, 1.5, 3, 4 and 1, 2, 3.5, 3.5: covariance 4 of 4.5.
  found = curriculum.radius_check(
    np.array([2, 2, 5, 7]), np.array([1, 3, 4, 4])
  )
  assert found == pytest.approx(8 / 9)


def test_the_digest_is_the_same_from_memory_and_from_a_map(tmp_path):
  latents = _latents(33)
  np.save(tmp_path / 'x.npy', latents)
  mapped = np.load(tmp_path / 'x.npy', mmap_mode='r')
  one, other = (
    curriculum.digest(x, curriculum.score(x, metric='mean_radius'))
    for x in (latents, mapped)
  )
  assert one == other


def test_sorting_takes_little_memory_beside_the_order():
  # 10^8 scores and their order are 0.8 of the 1 GB that they may take.
  scores = np.random.default_rng(0).random(3_000_000, np.float32)
  for x in (scores, np.zeros_like(scores)):
    tracemalloc.start()
    curriculum.bin_samples(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(x) + 48 * 2**20
