"""The curriculum: score every sample, sort, cut into ten bins.

Design document, sections 3.2 and 3.3. Host work, done once.
"""

from collections.abc import Callable, Iterable, Iterator
import hashlib
import mmap

from absl import logging
import numpy as np

BINS = 10
CLASSES = {
  'Remedial Structure': (0,),
  'General Ed': (1, 2, 3),
  'Advanced Placement': (4, 5, 6),
  'Honors Seminar': (7, 8),
  'Gifted & Talented': (9,),
}
BIN_NAMES = tuple(name for name, bins in CLASSES.items() for _ in bins)

_DIGESTED = 4096  # samples whose every byte enters the digest
_MAPPED_BYTES = 2**24  # of a memory map, held at a time


def _mean_radius(x_nxHxWxC: np.ndarray) -> np.ndarray:
  return x_nxHxWxC[..., 2].mean((1, 2))


def _total_variation(x_nxHxWxC: np.ndarray) -> np.ndarray:
  down = np.abs(np.diff(x_nxHxWxC, axis=1)).mean((1, 2, 3))
  across = np.abs(np.diff(x_nxHxWxC, axis=2)).mean((1, 2, 3))
  return down + across


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'mean_radius': _mean_radius,
  'total_variation': _total_variation,
}


def _chunks(latents_NxHxWxC: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
  """Yields runs of samples; pages of a memory map are let go behind them."""
  mapped = getattr(latents_NxHxWxC, '_mmap', None)
  # A copy-on-write map would lose its changes.
  drop = mapped is not None and latents_NxHxWxC.mode == 'r'
  held = 0
  for start in range(0, len(latents_NxHxWxC), chunk):
    x = latents_NxHxWxC[start : start + chunk]
    yield x
    held += x.nbytes
    if drop and held >= _MAPPED_BYTES:
      mapped.madvise(mmap.MADV_DONTNEED)
      held = 0


def score(
  latents_NxHxWxC: np.ndarray, *, metric: str, chunk: int
) -> np.ndarray:
  """Scores the complexity of every sample in one pass.

  'mean_radius' is the design document's `mean(path_params[..., 2])`, in
  [0, pi/2] radians: the wider the path on the sphere, the more complex.
  'total_variation' is the mean absolute difference between neighbors down
  plus that across, over all three channels.

  An array or a memory map, which is read `chunk` samples at a time, to
  scores_N, float32.
  """
  scores = [METRICS[metric](x) for x in _chunks(latents_NxHxWxC, chunk)]
  return np.concatenate(scores).astype(np.float32)


def digest(latents_NxHxWxC: np.ndarray, scores_N: np.ndarray) -> str:
  """SHA-256 of the dataset as the School saw it: what stales a curriculum.

  Covers the shape, every score, and all bytes of some 4,096 samples spread
  evenly. (SHA-256 of every byte takes ten times as long as the scores.)
  """
  h = hashlib.sha256(repr(latents_NxHxWxC.shape).encode())
  h.update(np.ascontiguousarray(scores_N))
  stride = max(1, len(latents_NxHxWxC) // _DIGESTED)
  for x_nxHxWxC in _chunks(latents_NxHxWxC, stride):
    h.update(np.ascontiguousarray(x_nxHxWxC[0]))
  return h.hexdigest()


def bin_samples(scores_N: np.ndarray) -> dict[int, list[int]]:
  """Sorts by score and cuts the order into ten bins.

  Ties go by index; bin k ends at N * (k + 1) / 10, rounded, so that the bins'
  sizes differ by one at most.

  Raises:
    ValueError: if there are fewer than ten samples, or a score is negative
      or not finite.
  """
  samples = len(scores_N)
  if samples < BINS:
    raise ValueError(
      f'The School needs at least {BINS} samples, got {samples}: fix '
      '--config.data.train_count or --config.data.source.'
    )
  if not np.all(np.isfinite(scores_N) & (scores_N >= 0)):
    raise ValueError(
      'Scores must be finite and not negative: the latents are broken; fix '
      'with `python -m chimera.main prepare-latents`.'
    )
  # The bits of a float32 >= 0 sort like the float, and the index below them
  # breaks ties: four times as fast as a stable argsort. (+ 0.0 unsigns -0.)
  bits_N = (scores_N.astype(np.float32) + 0.0).view(np.uint32)
  key_N = bits_N.astype(np.uint64) << 32 | np.arange(samples, dtype=np.uint64)
  order_N = np.sort(key_N) & 0xFFFFFFFF
  cuts = [(samples * k + BINS // 2) // BINS for k in range(1, BINS)]
  return {k: part.tolist() for k, part in enumerate(np.split(order_N, cuts))}


def smallest_lesson(samples: int, lessons: Iterable[Iterable[int]]) -> int:
  """Samples of the smallest lesson, each being some of the ten bins."""
  cuts = [(samples * k + BINS // 2) // BINS for k in range(BINS + 1)]
  return min(sum(cuts[b + 1] - cuts[b] for b in bins) for bins in lessons)


def place(
  scores_M: np.ndarray, bins: dict[int, list[int]], scores_N: np.ndarray
) -> np.ndarray:
  """The bin_M that other samples, say held-out ones, would have gone to."""
  floors = [scores_N[bins[k][0]] for k in range(1, BINS)]
  return np.searchsorted(floors, scores_M, side='right')


def radius_check(scores_N: np.ndarray, gradients_N: np.ndarray) -> float:
  """Spearman's rank correlation of the scores with gradient magnitudes.

  Says whether the score means complexity at all; warns below 0.5.
  https://en.wikipedia.org/wiki/Spearman%27s_rank_correlation_coefficient
  """
  ranks_N, others_N = map(_ranks, (scores_N, gradients_N))
  with np.errstate(invalid='ignore', divide='ignore'):  # all are alike: NaN
    correlation = float(np.corrcoef(ranks_N, others_N)[0, 1])
  if not correlation >= 0.5:
    logging.warning(
      "The complexity scores follow the images' gradients by a rank "
      'correlation of %.2f only (expected 0.5 or more): the bins mean little.',
      correlation,
    )
  return correlation


def _ranks(x_N: np.ndarray) -> np.ndarray:
  """From 1 on; what is alike has the mean of its ranks."""
  _, which_N, count_U = np.unique(x_N, return_inverse=True, return_counts=True)
  return (np.cumsum(count_U) - (count_U - 1) / 2)[which_N]
