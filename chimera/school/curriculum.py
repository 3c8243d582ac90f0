"""The curriculum: score every sample, sort, cut into ten bins.

Design document, sections 3.2 and 3.3. Host work, done once.
"""

from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import hashlib
import itertools
import mmap

from absl import logging
import numpy as np

from chimera.system import cpus

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
_READ_BYTES = 2**24  # of the latents, scored at a time
_THREADS = 4  # that score; more wait for memory
_MAPPED_BYTES = 2**25  # of a memory map, held at a time by each
_GROUPS = 8  # of samples, sorted one after another; of these at least
_SORTED = 2**20  # samples of a group, about, where there are more


def _mean_radius(x_nxHxWxC: np.ndarray) -> np.ndarray:
  # A radius may lie below 0 by rounding (data.images), a score may not.
  return np.maximum(x_nxHxWxC[..., 2].mean((1, 2)), 0)


def _total_variation(x_nxHxWxC: np.ndarray) -> np.ndarray:
  down = np.abs(np.diff(x_nxHxWxC, axis=1)).mean((1, 2, 3))
  across = np.abs(np.diff(x_nxHxWxC, axis=2)).mean((1, 2, 3))
  return down + across


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'mean_radius': _mean_radius,
  'total_variation': _total_variation,
}


def _runs(latents_NxHxWxC: np.ndarray, size: int) -> Iterator[np.ndarray]:
  """Yields runs of samples; pages of a memory map are let go behind them."""
  mapped = getattr(latents_NxHxWxC, '_mmap', None)
  # A copy-on-write map would lose its changes.
  drop = mapped is not None and latents_NxHxWxC.mode == 'r'
  held = 0
  for start in range(0, len(latents_NxHxWxC), size):
    x = latents_NxHxWxC[start : start + size]
    yield x
    held += x.nbytes
    is_last = start + size >= len(latents_NxHxWxC)
    if drop and (is_last or held >= _MAPPED_BYTES):
      mapped.madvise(mmap.MADV_DONTNEED)
      held = 0


def score(latents_NxHxWxC: np.ndarray, *, metric: str) -> np.ndarray:
  """Scores the complexity of every sample in one pass.

  'mean_radius' is the design document's `mean(path_params[..., 2])`, in
  [0, pi/2] radians: the wider the path on the sphere, the more complex.
  'total_variation' is the mean absolute difference between neighbors down
  plus that across, over all three channels.

  An array or a memory map, which is read a run at a time on a few threads, to
  scores_N, float32.
  """
  samples = len(latents_NxHxWxC)
  scores_N = np.empty(samples, np.float32)
  size = max(1, _READ_BYTES * samples // latents_NxHxWxC.nbytes)

  def score_part(part: slice) -> None:
    start = part.start
    for x_nxHxWxC in _runs(latents_NxHxWxC[part], size):
      scores_N[start : start + len(x_nxHxWxC)] = METRICS[metric](x_nxHxWxC)
      start += len(x_nxHxWxC)

  each = -(-samples // min(cpus.count(), _THREADS))
  parts = (slice(start, start + each) for start in range(0, samples, each))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    list(pool.map(score_part, parts))
  return scores_N


def digest(latents_NxHxWxC: np.ndarray, scores_N: np.ndarray) -> str:
  """SHA-256 of the dataset as the School saw it: what stales a curriculum.

  Covers the shape, every score, and all bytes of some 4,096 samples spread
  evenly. (SHA-256 of every byte takes ten times as long as the scores.)
  """
  h = hashlib.sha256(repr(latents_NxHxWxC.shape).encode())
  h.update(np.ascontiguousarray(scores_N))
  stride = max(1, len(latents_NxHxWxC) // _DIGESTED)
  # 128 at a time, as each of them maps pages around it.
  for x_nxHxWxC in _runs(latents_NxHxWxC, 128 * stride):
    h.update(np.ascontiguousarray(x_nxHxWxC[::stride]))
  return h.hexdigest()


def bin_samples(scores_N: np.ndarray) -> dict[int, np.ndarray]:
  """Sorts by score and cuts the order into ten bins.

  Ties go by index; bin k ends at N * (k + 1) / 10, rounded, so that the bins'
  sizes differ by one at most. Each bin's samples are int32, by score.

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
  # NaN is neither; no array of N beside the scores is made.
  if not (scores_N.min() >= 0 and scores_N.max() < np.inf):
    raise ValueError(
      'Scores must be finite and not negative: the latents are broken; fix '
      'with `python -m chimera.main prepare-latents`.'
    )
  cuts = [(samples * k + BINS // 2) // BINS for k in range(1, BINS)]
  order_N = _sort(np.asarray(scores_N, np.float32))
  return dict(enumerate(np.split(order_N, cuts)))


def _sort(scores_N: np.ndarray) -> np.ndarray:
  """The order_N, int32, of float32 scores >= 0; ties go by index.

  Group by group, from one score to another: what one takes fits a processor's
  cache, and of 10^8 samples it takes little memory.
  """
  samples = len(scores_N)
  some = np.sort(scores_N[:: -(-samples // 4096)])
  groups = max(_GROUPS, samples // _SORTED)
  cuts = some[np.arange(1, groups) * len(some) // groups]
  # Many equal scores are a group of their own.
  often = cuts[1:][cuts[1:] == cuts[:-1]]
  cuts = np.unique([*cuts, *np.nextafter(often, np.float32(np.inf))])
  edges = np.array([0, *cuts, np.inf], np.float32)
  order_N = np.empty(samples, np.int32)
  end = 0
  for low, high in itertools.pairwise(edges):
    begin = end
    for start in range(0, samples, _SORTED):
      part = scores_N[start : start + _SORTED]
      ids = np.flatnonzero((part >= low) & (part < high))
      order_N[end : end + len(ids)] = start + ids
      end += len(ids)
    if high > np.nextafter(low, high):
      ids = order_N[begin:end]
      # The bits of a float32 >= 0 sort like the float, and NumPy sorts 16 of
      # them by radix: three times as fast as all. (+ 0.0 unsigns -0.)
      bits = (scores_N[ids] + 0.0).view(np.uint32)
      order = np.argsort(bits.astype(np.uint16), kind='stable')
      bits = (bits >> 16).astype(np.uint16)
      order = order[np.argsort(bits[order], kind='stable')]
      order_N[begin:end] = ids[order]
  return order_N


def smallest_lesson(samples: int, lessons: Iterable[Iterable[int]]) -> int:
  """Samples of the smallest lesson, each being some of the ten bins."""
  cuts = [(samples * k + BINS // 2) // BINS for k in range(BINS + 1)]
  return min(sum(cuts[b + 1] - cuts[b] for b in bins) for bins in lessons)


def place(
  scores_M: np.ndarray, bins: dict[int, np.ndarray], scores_N: np.ndarray
) -> np.ndarray:
  """The bin_M that other samples, say held-out ones, would have gone to.

  Those of one score that several bins hold go to these as the others did.
  """
  ends = np.cumsum([len(bins[k]) for k in range(BINS)])
  sorted_N = np.sort(scores_N)
  low_M, high_M = (
    np.searchsorted(sorted_N, scores_M, side) for side in ('left', 'right')
  )
  _, group_M, counts = np.unique(
    scores_M, return_inverse=True, return_counts=True
  )
  order_M = np.argsort(group_M, kind='stable')
  turn_M = np.empty(len(scores_M))
  turn_M[order_M] = np.concatenate([np.arange(n) for n in counts])
  among_M = low_M + (turn_M + 0.5) / counts[group_M] * (high_M - low_M)
  # Where there is no such score, with the one below.
  rank_M = np.where(high_M > low_M, among_M, np.maximum(low_M - 1, 0))
  return np.searchsorted(ends, rank_M.astype(int), side='right')


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
