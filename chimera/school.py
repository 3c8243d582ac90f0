"""The School: score, sort into ten bins, hand each clone its lessons.

The design document's section 3, and clone D's curriculum of section 4.3.
Scoring, sorting and saving are host work done once; `draw_lesson`, `record`
and `re_enrol` run inside the compiled step, for one clone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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


def lesson_length(
  bins: dict[int, list[int]], lessons: tuple[tuple[int, ...], ...]
) -> int:
  """The greatest number of samples that one clone's bins hold: L."""
  return max(sum(len(bins[b]) for b in lesson) for lesson in lessons)


def create_state(
  bins: dict[int, list[int]],
  lesson_bins: tuple[int, ...],
  *,
  samples: int,
  length: int,
) -> SchoolState:
  """Enrols the samples of `lesson_bins`, padded to `length` by repeating."""
  lesson = [i for b in lesson_bins for i in bins[b]]
  if not lesson:
    raise ValueError(
      f'A lesson needs at least one sample, got bins {lesson_bins}: mend '
      '--config.school.lessons.'
    )
  if len(lesson) > length:
    raise ValueError(
      f'length must be at least {len(lesson)}, got length = {length}.'
    )
  return SchoolState(
    enrolled_L=np.resize(np.asarray(lesson, np.int32), length),
    enrolled_count=np.asarray(len(lesson), np.int32),
    varentropy_N=np.zeros(samples, np.float32),
    seen_N=np.full(samples, -1, np.int32),
  )


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
