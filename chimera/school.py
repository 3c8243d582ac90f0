"""The School: score, sort into ten bins, hand each clone its lessons.

The design document's section 3, and clone D's curriculum of section 4.3.
Scoring, sorting and saving are host work done once; `draw_lesson`, `record`
and `re_enrol` run inside the compiled step, for one clone.
"""

from collections.abc import Callable, Iterator
import hashlib
import io
import json
import mmap
import os
import pathlib
import pickle
import pickletools
import stat
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from chimera import disk

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
_BYTES_A_SAMPLE = 16  # that a curriculum file may have; pickle takes 5
_BYTES_MORE = 4096  # that it may have besides; and all that its .json may have
_WIDEST = 8  # bytes of the longest argument that an opcode below has
_NUMBERS = frozenset(('BININT', 'BININT1', 'BININT2'))
_OPCODES = frozenset(
  (
    'PROTO',
    'FRAME',
    'MARK',
    'STOP',
    'MEMOIZE',
    'BINPUT',
    'EMPTY_DICT',
    'EMPTY_LIST',
    'BININT',
    'BININT1',
    'BININT2',
    'APPEND',
    'APPENDS',
    'SETITEM',
    'SETITEMS',
  )
)


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

  Args:
    latents_NxHxWxC: path_params, an array or a memory map, which is read
      `chunk` samples at a time.
    metric: a key of METRICS.
    chunk: samples.

  Returns:
    scores_N, float32.

  Raises:
    ValueError: if there is no such metric.
  """
  if metric not in METRICS:
    raise ValueError(
      f'metric must be one of {sorted(METRICS)}, got {metric!r}: mend '
      '--config.school.metric.'
    )
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
      f'The School needs at least {BINS} samples, got {samples}: mend '
      '--config.data.train_count or --config.data.source.'
    )
  if not np.all(np.isfinite(scores_N) & (scores_N >= 0)):
    raise ValueError(
      'Scores must be finite and not negative: the latents are broken; mend '
      'with `python -m chimera.main prepare-latents`.'
    )
  # The bits of a float32 >= 0 sort like the float, and the index below them
  # breaks ties: four times as fast as a stable argsort. (+ 0.0 unsigns -0.)
  bits_N = (scores_N.astype(np.float32) + 0.0).view(np.uint32)
  key_N = bits_N.astype(np.uint64) << 32 | np.arange(samples, dtype=np.uint64)
  order_N = np.sort(key_N) & 0xFFFFFFFF
  cuts = [(samples * k + BINS // 2) // BINS for k in range(1, BINS)]
  return {k: part.tolist() for k, part in enumerate(np.split(order_N, cuts))}


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
  from scipy import stats  # half a second that no other caller needs

  correlation = float(stats.spearmanr(scores_N, gradients_N).statistic)
  if not correlation >= 0.5:
    logging.warning(
      "The complexity scores follow the images' gradients by a rank "
      'correlation of %.2f only (expected 0.5 or more): the bins mean little.',
      correlation,
    )
  return correlation


def save_curriculum(
  path: str | os.PathLike,
  bins: dict[int, list[int]],
  *,
  digest: str,
  metric: str,
) -> None:
  """Writes `curriculum_bins_{basename}.pkl` and the .json that ties it.

  The pickle comes last: where it is, both are.

  Args:
    path: of the pickle, a plain dict of lists of ints; the .json gets the
      same stem.
    bins: what `bin_samples` returned.
    digest: of the dataset they were cut from.
    metric: by which they were sorted.
  """
  path = pathlib.Path(path)
  data = pickle.dumps(bins, protocol=4)
  tie = _tie(data, digest, metric, sum(map(len, bins.values())))
  disk.write(path.with_suffix('.json'), tie)
  disk.write(path, data)


def _tie(data: bytes, digest: str, metric: str, samples: int) -> bytes:
  tie = {
    'latents': digest,
    'curriculum': hashlib.sha256(data).hexdigest(),
    'metric': metric,
    'samples': samples,
  }
  return json.dumps(tie, indent=2).encode()


class _NoGlobals(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    raise pickle.UnpicklingError(f'it asks for {module}.{name}')


class _Narrow(io.BytesIO):
  """Hands out no argument that our opcodes do not have."""

  def read(self, size: int | None = -1) -> bytes:
    if size is None or not 0 <= size <= _WIDEST:
      raise ValueError(f'it holds an opcode with {size} bytes')
    return super().read(size)

  def readline(self, size: int | None = -1) -> bytes:
    raise ValueError('it holds an opcode with a text')


def _scan(data: bytes, samples: int) -> None:
  """Looks a curriculum's pickle through before anything in it is run.

  Even without globals an opcode can ask for gigabytes (LONG_BINPUT), and one
  byte (EMPTY_LIST) for seventy: so the opcodes are known ones, and no more
  than `samples` need.

  Raises:
    ValueError: what should not be there.
  """
  numbers = lists = dicts = others = 0
  stream = _Narrow(data)
  for opcode, _, _ in pickletools.genops(stream):
    if opcode.name not in _OPCODES:
      raise ValueError(f'it holds the opcode {opcode.name}')
    numbers += opcode.name in _NUMBERS
    lists += opcode.name == 'EMPTY_LIST'
    dicts += opcode.name == 'EMPTY_DICT'
    others += opcode.name not in _NUMBERS
    if numbers > samples + BINS or lists > BINS or dicts > 1:
      raise ValueError(f'it holds more than {BINS} lists of {samples} samples')
    # Pickle takes two a thousand numbers, and five a list.
    if others > samples // 100 + 20 * BINS:
      raise ValueError(f'it holds too many opcodes for {samples} samples')
  if stream.tell() != len(data):
    raise ValueError('something follows its end')


def _unpickle(data: bytes, samples: int) -> Any:
  """Reads a pickle of a dict of lists of small ints; executes nothing.

  Raises:
    ValueError: if it holds anything else, or is broken.
  """
  try:
    _scan(data, samples)
    return _NoGlobals(io.BytesIO(data)).load()
  except (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    OverflowError,
    TypeError,
  ) as e:
    raise ValueError(str(e)) from e


def _check_bins(bins: Any, samples: int) -> None:
  if type(bins) is not dict or list(map(type, bins)) != [int] * BINS:
    raise ValueError(f'it is not a dict with the keys 0 to {BINS - 1}')
  if set(bins) != set(range(BINS)):
    raise ValueError(f'it is not a dict with the keys 0 to {BINS - 1}')
  seen_N = np.zeros(samples, bool)
  for k, ids in bins.items():
    if type(ids) is not list or not set(map(type, ids)) <= {int}:
      raise ValueError(f'bin {k} is not a list of ints')
    if ids and not 0 <= min(ids) <= max(ids) < samples:
      raise ValueError(f'bin {k} names samples beyond 0 to {samples - 1}')
    seen_N[np.array(ids, np.int64)] = True
  if not seen_N.all() or sum(map(len, bins.values())) != samples:
    raise ValueError(f'it does not hold each of {samples} samples once')


def _read(path: pathlib.Path, most: int) -> bytes:
  """A file of at most so many bytes, of which no more are read."""
  if not stat.S_ISREG(path.stat().st_mode):
    raise ValueError(f'{path.name} is not a file')
  with open(path, 'rb') as f:
    data = f.read(most + 1)
  if len(data) > most:
    raise ValueError(f'{path.name} is larger than {most} bytes')
  return data


def _load(
  path: pathlib.Path, samples: int, digest: str
) -> dict[int, list[int]]:
  tied = _read(path.with_suffix('.json'), _BYTES_MORE)
  tie = json.loads(tied)
  data = _read(path, _BYTES_A_SAMPLE * samples + _BYTES_MORE)
  bins = _unpickle(data, samples)
  if type(tie) is not dict or tie.get('latents') != digest:
    raise ValueError('it was made from other latents or by another metric')
  if tie.get('curriculum') != hashlib.sha256(data).hexdigest():
    raise ValueError('it is not the file that its .json was written for')
  if tie.get('metric') not in METRICS or tied != _tie(
    data, digest, tie['metric'], samples
  ):
    raise ValueError('its .json is not as it was written')
  del data
  _check_bins(bins, samples)
  return bins


def load_curriculum(
  path: str | os.PathLike, *, samples: int, digest: str
) -> dict[int, list[int]]:
  """Reads the bins that `save_curriculum` wrote, and trusts nothing.

  A file of more than 16 bytes a sample and 4096 is refused unread, one with
  opcodes other than those of ints, lists and a dict unrun; reading takes less
  than four times that size.

  Args:
    path: of the pickle.
    samples: N, how many the dataset has.
    digest: of the dataset as it is now.

  Raises:
    ValueError: if the file is missing, malformed, or of another dataset; one
      line that ends with the command that mends it.
  """
  path = pathlib.Path(path)
  try:
    return _load(path, samples, digest)
  except (OSError, RecursionError, ValueError) as e:
    reason = ' '.join(str(e).split())
    raise ValueError(
      f'Curriculum {path} must be whole and of this dataset, but {reason}: '
      'mend with `python -m chimera.main prepare-curriculum '
      f'--workdir={path.parent}`.'
    ) from e


class Shard(NamedTuple):
  """What of the training set is resident on one clone's device.

  Attributes:
    samples_RxHxWxC: the resident rows of path_params, float32.
    ids_U: sample index of the leading U rows, which are a fair sample of the
      whole set (U = R = N where everything is resident), int32.
    row_of_N: sample index -> resident row, -1 where not resident, int32.
  """

  samples_RxHxWxC: jax.Array
  ids_U: jax.Array
  row_of_N: jax.Array


class SchoolState(NamedTuple):
  """Who is enrolled with one clone, and what it remembers of every sample.

  Attributes:
    enrolled_L: sample indices; the leading `enrolled_count` are the class,
      the rest only makes the clones' shapes agree, int32.
    enrolled_count: scalar, int32.
    varentropy_N: last tracked varentropy, 0 where never seen, float32.
    seen_N: cycle in which it was tracked, -1 where never, int32.
  """

  enrolled_L: jax.Array
  enrolled_count: jax.Array
  varentropy_N: jax.Array
  seen_N: jax.Array


def prepare_curriculum(
  path: str | os.PathLike,
  latents_NxHxWxC: np.ndarray,
  *,
  metric: str,
  chunk: int,
  afresh: bool = False,
) -> tuple[dict[int, list[int]], np.ndarray]:
  """Loads the curriculum at `path`, or makes it where there is none.

  Args:
    path: of `curriculum_bins_{basename}.pkl`.
    latents_NxHxWxC: path_params of the training samples, and no others.
    metric: see `score`.
    chunk: see `score`.
    afresh: makes it even if there is one: the command that mends.

  Returns:
    The bins, and scores_N for the manifest.

  Raises:
    ValueError: see `score`, `bin_samples`, `load_curriculum`.
  """
  scores_N = score(latents_NxHxWxC, metric=metric, chunk=chunk)
  tie = digest(latents_NxHxWxC, scores_N)
  if os.path.exists(path) and not afresh:
    return load_curriculum(path, samples=len(scores_N), digest=tie), scores_N
  bins = bin_samples(scores_N)
  save_curriculum(path, bins, digest=tie, metric=metric)
  return bins, scores_N


def lesson_length(
  bins: dict[int, list[int]],
  lessons: tuple[tuple[int, ...], ...],
  *,
  batch_size: int = 1,
) -> int:
  """L, the greatest number of samples that one clone's bins hold.

  Raises:
    ValueError: if a lesson names no bin of ours, or holds fewer samples than
      a batch.
  """
  for lesson in lessons:
    if not lesson or not set(lesson) <= set(bins):
      raise ValueError(
        f'A lesson must name bins from 0 to {BINS - 1}, got {lesson}: mend '
        '--config.school.lessons.'
      )
  sizes = [sum(len(bins[k]) for k in set(lesson)) for lesson in lessons]
  if batch_size > min(sizes):
    raise ValueError(
      'batch_size must be at most the samples of the smallest lesson '
      f'({min(sizes)}), got batch_size = {batch_size}: mend '
      '--config.train.batch_size or --config.data.train_count.'
    )
  return max(sizes)


def create_state(
  bins: dict[int, list[int]],
  lesson_bins: tuple[int, ...],
  *,
  samples: int,
  length: int,
) -> SchoolState:
  """Enrols the samples of `lesson_bins`, padded to `length` by repeating."""
  lesson = [i for k in sorted(set(lesson_bins)) for i in bins[k]]
  if not 0 < len(lesson) <= length:
    raise ValueError(
      f'length must be at least {max(1, len(lesson))}, got {length}.'
    )
  return SchoolState(
    enrolled_L=np.resize(np.asarray(lesson, np.int32), length),
    enrolled_count=np.asarray(len(lesson), np.int32),
    varentropy_N=np.zeros(samples, np.float32),
    seen_N=np.full(samples, -1, np.int32),
  )


def make_shards(
  latents_NxHxWxC: np.ndarray,
  enrolled_MxL: np.ndarray,
  *,
  resident_mb: float,
  rotating_samples: int,
  rotation: int,
  seed: int,
) -> list[Shard]:
  """Reads what the clones' devices shall hold.

  Args:
    latents_NxHxWxC: the training set, an array or a memory map.
    enrolled_MxL: who is enrolled with each clone.
    resident_mb: a set up to this size (MiB) is resident whole.
    rotating_samples: U, else: a shard is the clone's class (L rows) after U
      rows of everything, which change with every rotation. All M clones
      together have seen everything after N / (M U) rotations.
    rotation: how many have been, from 0.
    seed: of the order in which everything comes by.

  Returns:
    One Shard for all clones where everything is resident, else M of them.
  """
  samples = len(latents_NxHxWxC)
  if latents_NxHxWxC.nbytes <= resident_mb * 2**20:
    ids_N = np.arange(samples, dtype=np.int32)
    return [Shard(np.array(latents_NxHxWxC, np.float32), ids_N, ids_N)]
  order_N = np.random.default_rng(seed).permutation(samples)
  rows_U = np.arange(min(rotating_samples, samples))
  shards = []
  for clone, enrolled_L in enumerate(np.asarray(enrolled_MxL)):
    start = (rotation * len(enrolled_MxL) + clone) * len(rows_U)
    # Sorted: the memory map is read forward.
    ids_U = np.sort(order_N[(start + rows_U) % samples])
    ids_R = np.concatenate([ids_U, enrolled_L])
    row_of_N = np.full(samples, -1, np.int32)
    row_of_N[ids_R] = np.arange(len(ids_R))
    shards.append(
      Shard(
        np.asarray(latents_NxHxWxC[ids_R], np.float32),
        ids_U.astype(np.int32),
        row_of_N,
      )
    )
  return shards


def draw_lesson(
  rng: jax.Array,
  state: SchoolState,
  shard: Shard,
  *,
  batch_size: int,
  mix: float,
) -> tuple[jax.Array, jax.Array]:
  """Draws a lesson from the resident shard, uniformly and with replacement.

  Args:
    rng: key of this clone and cycle.
    state: whose `enrolled_L` the lesson comes from.
    shard: the resident samples.
    batch_size: B.
    mix: the leading round(mix * B) samples are drawn from everything; so is
      an enrolled one that is not resident. 1 is a plain uniform lesson.

  Returns:
    ids_B, the sample indices (int32), and x_BxHxWxC, the samples.
  """
  whole_rng, class_rng = jax.random.split(rng)
  whole_B = jax.random.randint(
    whole_rng, (batch_size,), 0, shard.ids_U.shape[0]
  )
  seat_B = jax.random.randint(class_rng, (batch_size,), 0, state.enrolled_count)
  row_B = shard.row_of_N[state.enrolled_L[seat_B]]
  from_whole_B = jnp.arange(batch_size) < round(mix * batch_size)
  from_whole_B |= row_B < 0
  ids_B = jnp.where(
    from_whole_B, shard.ids_U[whole_B], state.enrolled_L[seat_B]
  )
  x_BxHxWxC = shard.samples_RxHxWxC[jnp.where(from_whole_B, whole_B, row_B)]
  return ids_B, x_BxHxWxC


def record(
  state: SchoolState,
  ids_X: jax.Array,
  varentropy_X: jax.Array,
  cycle: jax.Array,
) -> SchoolState:
  """Tracks what was seen in this cycle; what is not finite is left out."""
  samples = state.seen_N.shape[0]
  ids_X = jnp.where(jnp.isfinite(varentropy_X), ids_X, samples)
  return state._replace(
    varentropy_N=state.varentropy_N.at[ids_X].set(varentropy_X, mode='drop'),
    seen_N=state.seen_N.at[ids_X].set(cycle, mode='drop'),
  )


def re_enrol(
  rng: jax.Array,
  state: SchoolState,
  cycle: jax.Array,
  *,
  half_life: float,
  floor: float,
) -> SchoolState:
  """Enrols the samples of the highest tracked varentropy, over the whole set.

  Rank by `varentropy * 0.5 ** ((cycle - seen) / half_life)`, never seen is 0,
  ties by lot. So that nothing is forgotten, each sample is enrolled by lot
  with probability `floor * count / N`. The size of the class stays.

  Args:
    rng: key of this clone and cycle.
    state: what was tracked.
    cycle: now, scalar int32.
    half_life: cycles in which a tracked varentropy halves.
    floor: expected share of the class enrolled by lot, in [0, 1].
  """
  lot_rng, tie_rng = jax.random.split(rng)
  samples, length = state.seen_N.shape[0], state.enrolled_L.shape[0]
  age_N = (cycle - state.seen_N).astype(jnp.float32)
  priority_N = jnp.where(
    state.seen_N < 0, 0.0, state.varentropy_N * 0.5 ** (age_N / half_life)
  )
  tie_N = jax.random.uniform(tie_rng, (samples,))
  # Far below float32's resolution of any varentropy that matters.
  priority_N += 1e-9 * tie_N
  share = floor * state.enrolled_count / samples
  by_lot_N = jax.random.uniform(lot_rng, (samples,)) < share
  priority_N = jnp.where(by_lot_N, 1e30 * (1 + tie_N), priority_N)
  _, enrolled_L = jax.lax.top_k(priority_N, length)
  return state._replace(enrolled_L=enrolled_L.astype(jnp.int32))
