"""Lessons: who is enrolled, what is resident, what is drawn and remembered.

Design document 3.4, and of 4.3 the curriculum that follows varentropy.
`draw_lesson`, `record` and `re_enrol` run inside the compiled step, for one
clone.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chimera.system import axes

_LEAST_ERROR = 1e-12


@dataclasses.dataclass(frozen=True)
class Spec:
  """What is the same for all clones; the config's `school` explains each."""

  mix: float
  enrol_from: int
  enrol_every: int
  half_life: float
  floor: float
  fence: float


class Shard(NamedTuple):
  """What of the training set is resident on one clone's device."""

  samples_RxHxWxC: jax.Array  # the resident rows of path_params, float32
  # sample index of the leading U rows, which are a fair sample of the whole set
  # (U = R = N where everything is resident), int32
  ids_U: jax.Array
  # sample index -> resident row, -1 where not resident, int32
  row_of_N: jax.Array


class SchoolState(NamedTuple):
  """Who is enrolled with one clone, and what it remembers of every sample."""

  # sample indices; the leading `enrolled_count` are the class, the rest only
  # makes the clones' shapes agree, int32
  enrolled_L: jax.Array
  enrolled_count: jax.Array  # scalar, int32
  # last tracked varentropy, 0 where never seen, float32
  varentropy_N: jax.Array
  # likewise the mean absolute error of its reconstruction, over the median of
  # all lessons of that cycle
  error_N: jax.Array
  seen_N: jax.Array  # cycle in which both were tracked, -1 where never, int32
  # the excess beyond which a sample is an outlier, 0 at first for none, float32
  fence: jax.Array


def lesson_length(
  bins: dict[int, np.ndarray],
  lessons: Sequence[tuple[int, ...]],
  *,
  batch_size: int = 1,
) -> int:
  """L, the greatest number of samples that one clone's bins hold.

  Raises:
    ValueError: a lesson holds fewer samples than a batch.
  """
  sizes = [sum(len(bins[k]) for k in set(lesson)) for lesson in lessons]
  if batch_size > min(sizes):
    raise ValueError(
      'batch_size must be at most the samples of the smallest lesson '
      f'({min(sizes)}), got batch_size = {batch_size}: fix '
      '--config.train.batch_size or --config.data.train_count.'
    )
  return max(sizes)


def create_state(
  bins: dict[int, np.ndarray],
  lesson_bins: tuple[int, ...],
  *,
  samples: int,
  length: int,
) -> SchoolState:
  """Enrols the samples of `lesson_bins`, padded to `length` by repeating."""
  lesson = np.concatenate([bins[k] for k in sorted(set(lesson_bins))])
  if not 0 < len(lesson) <= length:
    raise ValueError(
      f'length must be at least {max(1, len(lesson))}, got {length}.'
    )
  return SchoolState(
    enrolled_L=np.resize(lesson.astype(np.int32), length),
    enrolled_count=np.asarray(len(lesson), np.int32),
    varentropy_N=np.zeros(samples, np.float32),
    error_N=np.zeros(samples, np.float32),
    seen_N=np.full(samples, -1, np.int32),
    fence=np.zeros((), np.float32),
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
  classes = [np.asarray(x) for x in enrolled_MxL]
  leading = rotate(
    latents_NxHxWxC,
    classes,
    rotating_samples=rotating_samples,
    rotation=rotation,
    seed=seed,
  )
  return [
    Shard(np.concatenate([rows, latents_NxHxWxC[enrolled_L]]), *ids)
    for (rows, *ids), enrolled_L in zip(leading, classes)
  ]


def rotate(
  latents_NxHxWxC: np.ndarray,
  enrolled_MxL: Sequence[np.ndarray],
  *,
  rotating_samples: int,
  rotation: int,
  seed: int,
) -> list[Shard]:
  """What of `make_shards` another rotation changes: of the rows the first U."""
  samples = len(latents_NxHxWxC)
  order_N = np.random.default_rng(seed).permutation(samples)
  rows_U = np.arange(min(rotating_samples, samples))
  shards = []
  for clone, enrolled_L in enumerate(enrolled_MxL):
    start = (rotation * len(enrolled_MxL) + clone) * len(rows_U)
    # Sorted: the memory map is read forward.
    ids_U = np.sort(order_N[(start + rows_U) % samples])
    ids_R = np.concatenate([ids_U, enrolled_L])
    row_of_N = np.full(samples, -1, np.int32)
    row_of_N[ids_R] = np.arange(len(ids_R))
    rows = np.asarray(latents_NxHxWxC[ids_U], np.float32)
    shards.append(Shard(rows, ids_U.astype(np.int32), row_of_N))
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

  The leading round(mix * B) samples are drawn from everything, the others from
  the class; so is one of the class that is not resident, or an outlier. Returns
  ids_B, the sample indices (int32), and the samples x_BxHxWxC.
  """
  whole_rng, class_rng = jax.random.split(rng)
  whole_B = jax.random.randint(
    whole_rng, (batch_size,), 0, shard.ids_U.shape[0]
  )
  seat_B = jax.random.randint(class_rng, (batch_size,), 0, state.enrolled_count)
  class_B = state.enrolled_L[seat_B]
  row_B = shard.row_of_N[class_B]
  from_whole_B = jnp.arange(batch_size) < round(mix * batch_size)
  from_whole_B |= (row_B < 0) | is_outlier(state, class_B)
  ids_B = jnp.where(from_whole_B, shard.ids_U[whole_B], class_B)
  x_BxHxWxC = shard.samples_RxHxWxC[jnp.where(from_whole_B, whole_B, row_B)]
  return ids_B, x_BxHxWxC


def remember(
  rng: jax.Array,
  state: SchoolState,
  ids_B: jax.Array,
  varentropy_B: jax.Array,
  error_B: jax.Array,
  cycle: jax.Array,
  enrols: jax.Array,
  *,
  spec: Spec,
) -> SchoolState:
  """Tracks every clone's lesson, renews the fence, re-enrols by mission.

  `enrols` is above 0 where a clone's class follows the tracked varentropy.
  """
  state = record(
    state,
    *(axes.gather(x) for x in (ids_B, varentropy_B, error_B)),
    cycle,
  )
  if spec.fence:
    # All clones remember the same.
    error_N, seen_N, fence = axes.in_common(
      (state.error_N, state.seen_N, state.fence)
    )
    fence = jax.lax.cond(
      (cycle > 0) & (cycle % spec.enrol_every == 0),
      lambda: find_fence(error_N, seen_N, distances=spec.fence),
      lambda: fence,
    )
    state = state._replace(fence=fence)
  if not spec.enrol_from:
    return state
  is_due = (
    (enrols > 0)
    & (cycle >= spec.enrol_from)
    & ((cycle - spec.enrol_from) % spec.enrol_every == 0)
  )

  def re_enrol_if(is_due, rng, state, cycle):
    return jax.lax.cond(
      is_due,
      lambda s: re_enrol(
        rng, s, cycle, half_life=spec.half_life, floor=spec.floor
      ),
      lambda s: s,
      state,
    )

  return axes.one_by_one(re_enrol_if)(is_due, rng, state, cycle)


def record(
  state: SchoolState,
  ids_X: jax.Array,
  varentropy_X: jax.Array,
  error_X: jax.Array,
  cycle: jax.Array,
) -> SchoolState:
  """Tracks what was seen in this cycle; what is not finite is left out.

  Errors fall as the clones learn. Over those of its own cycle what was seen
  long ago is compared with what was seen now.
  """
  samples = state.seen_N.shape[0]
  is_sound_X = jnp.isfinite(varentropy_X) & jnp.isfinite(error_X)
  ids_X = jnp.where(is_sound_X, ids_X, samples)
  usual = jnp.nanmedian(jnp.where(is_sound_X, error_X, jnp.nan))
  excess_X = error_X / jnp.maximum(usual, _LEAST_ERROR)
  return state._replace(
    varentropy_N=state.varentropy_N.at[ids_X].set(varentropy_X, mode='drop'),
    error_N=state.error_N.at[ids_X].set(excess_X, mode='drop'),
    seen_N=state.seen_N.at[ids_X].set(cycle, mode='drop'),
  )


def find_fence(
  error_N: jax.Array, seen_N: jax.Array, *, distances: float
) -> jax.Array:
  """Tukey's fence of the excesses seen so far, of their logarithms.

  The third quartile, and `distances` times that between it and the first; 1.5
  in https://en.wikipedia.org/wiki/Outlier#Tukey's_fences. What is harder than
  most is learned and comes nearer; noise and broken files stay beyond.
  """
  log_N = jnp.where(seen_N < 0, jnp.nan, jnp.log(error_N))
  first, third = jnp.nanquantile(log_N, jnp.array([0.25, 0.75]))
  fence = jnp.exp(third + distances * (third - first))
  return jnp.where(jnp.isfinite(fence), fence, 0.0)


def is_outlier(state: SchoolState, ids: Any = slice(None)) -> jax.Array:
  """Whether each of those samples was last seen beyond the fence, bool."""
  return (state.fence > 0) & (state.error_N[ids] > state.fence)


def outliers(state: SchoolState) -> np.ndarray:
  """Of one clone on the host: sample indices, by rising excess."""
  beyond = np.flatnonzero(is_outlier(state))
  return beyond[np.argsort(state.error_N[beyond], kind='stable')]


def re_enrol(
  rng: jax.Array,
  state: SchoolState,
  cycle: jax.Array,
  *,
  half_life: float,
  floor: float,
) -> SchoolState:
  """Enrols the samples of the highest tracked varentropy, over the whole set.

  Rank by `varentropy * 0.5 ** ((cycle - seen) / half_life)`, never seen and
  outliers are 0, ties by lot. So that nothing is forgotten, each sample is
  enrolled by lot with probability `floor * count / N`. The size of the class
  stays.
  """
  lot_rng, tie_rng = jax.random.split(rng)
  samples, length = state.seen_N.shape[0], state.enrolled_L.shape[0]
  age_N = (cycle - state.seen_N).astype(jnp.float32)
  priority_N = jnp.where(
    (state.seen_N < 0) | is_outlier(state),
    0.0,
    state.varentropy_N * 0.5 ** (age_N / half_life),
  )
  tie_N = jax.random.uniform(tie_rng, (samples,))
  # Far below float32's resolution of any varentropy that matters.
  priority_N += 1e-9 * tie_N
  share = floor * state.enrolled_count / samples
  by_lot_N = jax.random.uniform(lot_rng, (samples,)) < share
  priority_N = jnp.where(by_lot_N, 1e30 * (1 + tie_N), priority_N)
  _, enrolled_L = jax.lax.top_k(priority_N, length)
  return state._replace(enrolled_L=enrolled_L.astype(jnp.int32))
