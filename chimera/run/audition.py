"""The audition: a learning rate for the run, found before its first cycle.

Some rates far apart are tried side by side, then as many about the best of
them. Each is tried by a learner with the batch of one clone, on the same
samples from the same weights, by the base weights and without a critic, and is
judged by how images come back. It rises and falls to almost nothing within
CYCLES. Without the fall the lowest rate would win: its noise is the least, and
what it has not learned shows later (short-horizon bias: Wu et al. 2018,
https://arxiv.org/abs/1803.02021). What is left of that bias is a factor,
HORIZON. The run starts from the weights of the best learner: an audition is no
time lost.
"""

from collections.abc import Sequence
import io
import itertools
import math
import os
import pathlib
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from chimera.clones import learning, specialists, terms
from chimera.clones import state as state_lib
from chimera.meld import optimizer
from chimera.optics import poincare
from chimera.system import disk

NAME = 'audition.json'
WEIGHTS = 'audition.npy'
APART = 8.0  # times, from one rate of the first round to the next
_NEAR = 0.6  # powers of APART from the best to the outermost of the second
HORIZON = 4.0  # times the best rate of CYCLES is best for a whole run
CYCLES = 50  # of a round
RATES = 4  # a round
_WARMUP = state_lib.FOUND_WARMUP / CYCLES  # of the cycles
_JUDGED = 0.25  # of the cycles, the last ones, whose mean loss counts
_ALIKE = 0.03  # of the least loss; what is no worse does as well
CLIFF = 0.15  # of the least loss; what is worse than that is told no further
_DEAD = 1.5  # times the least loss: who is above draws one flat image, or nan


class Audition(NamedTuple):
  """What was tried, in the order of the rates, and what came of it."""

  rates: list[float]
  losses: list[float | None]  # of the last cycles; None where not finite
  found: float
  of: str = ''  # digest of what it was held for
  weights: str = ''  # digest of the file of what the best learner has learned


def read(workdir: str | os.PathLike) -> Audition | None:
  """The audition that a workdir holds, if it is whole."""
  path = os.path.join(workdir, NAME)
  try:
    return Audition(**disk.read_sealed(path))
  except FileNotFoundError:
    return None
  except (OSError, ValueError, TypeError) as e:
    logging.warning('The audition in %s is not readable: %s', path, e)
    return None


def resume(
  workdir: str | os.PathLike, of: str
) -> tuple[Audition, np.ndarray] | None:
  """What `hold` returned for a run that has not come to a checkpoint since.

  None where it was held for another one, or is not whole.
  """
  held = read(workdir)
  if held is None or held.of != of:
    return None
  path = pathlib.Path(workdir, WEIGHTS)
  try:
    data = path.read_bytes()
    if disk.digest(data) != held.weights:
      raise ValueError('it is not as it was written')
    return held, np.load(io.BytesIO(data), allow_pickle=False)
  except (OSError, ValueError) as e:
    logging.warning('The audition in %s is not readable: %s', path, e)
    return None


def save(
  workdir: str | os.PathLike, of: str, held: Audition, best_P: np.ndarray
) -> None:
  """Where `resume` finds it.

  Where it cannot be written, that is a warning: a checkpoint has all of it too.
  """
  data = io.BytesIO()
  np.save(data, best_P)
  weights = disk.digest(data.getvalue())
  with disk.spared(NAME):
    disk.write(pathlib.Path(workdir, WEIGHTS), data.getvalue())
    body = held._replace(of=of, weights=weights)._asdict()
    disk.write_sealed(pathlib.Path(workdir, NAME), body)


def forget(workdir: str | os.PathLike) -> None:
  """Takes away what an earlier run left."""
  with disk.spared(NAME):
    for name in (NAME, WEIGHTS):
      pathlib.Path(workdir, name).unlink(missing_ok=True)


def hold(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  generator_P: np.ndarray,
  paths_NxHxWxC: np.ndarray,
  devices: Sequence[jax.Device],
  *,
  cycles: int = CYCLES,
) -> tuple[Audition, np.ndarray]:
  """Two rounds of rates about `train.learning_rate`.

  Args:
    config: the run's.
    spec: its constants.
    generator_P: the weights from which each learner starts.
    paths_NxHxWxC: the training set, an array or a memory map.
    devices: the learners are shared out among them, or they among these.
    cycles: of a round.

  Returns:
    The audition, and the weights of the learner of the least loss, or those
    given where none was finite.
  """
  given = config.train.learning_rate
  stage = open_stage(
    config, spec, generator_P, paths_NxHxWxC, devices, cycles=cycles
  )
  tried: dict[float, float] = {}
  least, best_P = math.inf, generator_P
  for number in (1, 2):
    rates = second_round(tried, RATES) if tried else first_round(given, RATES)
    logging.info(
      'Audition, round %d of 2: %d learning rates from %.2g to %.2g, %d cycles '
      'each.',
      *(number, len(rates), min(rates), max(rates), cycles),
    )
    for rate, (loss, learned_P) in zip(rates, stage.play(rates)):
      tried[rate] = loss
      if loss < least:
        least, best_P = loss, learned_P
  found, known = choose(tried, given), sorted(tried.items())
  logging.info('Learning rate found: %.2g (given: %.2g).', found, given)
  if _best(tried) in (known[0][0], known[-1][0]):
    logging.warning(
      'The best learning rate is at the edge of those that were tried: look '
      'farther by --config.train.learning_rate=%.2g, in another --workdir.',
      found,
    )
  heard = [loss if math.isfinite(loss) else None for _, loss in known]
  return Audition([rate for rate, _ in known], heard, found), best_P


def open_stage(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  generator_P: np.ndarray,
  paths_NxHxWxC: np.ndarray,
  devices: Sequence[jax.Device],
  *,
  cycles: int,
) -> 'Stage':
  """Where `hold`, of whose arguments these are, tries its rates."""
  weight_K = jnp.array([config.loss[t] for t in spec.terms])
  bounds = specialists.bounds(config)
  rng = np.random.default_rng(config.seed)
  rows_X = rng.integers(len(paths_NxHxWxC), size=cycles * spec.batch_size)
  # Sorted: a memory map is read forward. What order it has is by lot too.
  sorted_X, back_X = np.unique(rows_X, return_inverse=True)
  x = np.asarray(paths_NxHxWxC[sorted_X], np.float32)[back_X]
  x = x.reshape(cycles, spec.batch_size, *x.shape[1:])
  return Stage(spec, weight_K, bounds, generator_P, x, devices)


def images(config: ml_collections.ConfigDict) -> int:
  """How many a run's learners see in it together; 0 where none is held."""
  if not state_lib.is_auditioned(config):
    return 0
  return 2 * CYCLES * RATES * config.train.batch_size


def cycles(config: ml_collections.ConfigDict) -> int:
  """Of the run, in which its clones see as many."""
  return images(config) // (config.train.batch_size * len(config.clone_names))


def first_round(given: float, count: int) -> list[float]:
  """APART from each other, about the given one."""
  middle = (count - 1) / 2
  return [given * APART ** (i - middle) for i in range(count)]


def second_round(tried: dict[float, float], count: int) -> list[float]:
  """About the best; outward where that is the lowest or the highest."""
  rates, best = sorted(tried), _best(tried)
  low = -_NEAR - 1 if best == rates[0] else -_NEAR
  high = _NEAR + 1 if best == rates[-1] else _NEAR
  return [best * APART**p for p in np.linspace(low, high, count).tolist()]


def choose(tried: dict[float, float], given: float) -> float:
  """HORIZON times the rate of the least loss, to two digits.

  That rate is where a parabola is least, in the logarithm of the rate, which is
  fitted to the basin: the losses about the best up to CLIFF above it, and the
  next one on either side, cut there. Each loss is noisy, so the best itself
  would be so too. Below a rate that died it is at most halfway to it from the
  next one tried; where all failed it is the given one.
  """
  rates = sorted(tried)
  heard = [tried[rate] for rate in rates]
  if not math.isfinite(min(heard)):
    logging.warning('No learning rate had a finite loss in the audition.')
    return given
  best, worst = rates.index(_best(tried)), (1 + CLIFF) * min(heard)
  low = high = best
  while low > 0 and heard[low] < worst:
    low -= 1
  while high < len(heard) - 1 and heard[high] < worst:
    high += 1
  x = np.log(rates[low : high + 1])
  at = x[best - low]
  if len(x) > 2:
    y = np.minimum(heard[low : high + 1], worst)
    bend, slope, _ = np.polyfit(x - at, y, 2)
    if bend > 0:
      at = np.clip(at - slope / (2 * bend), x[0], x[-1])
  found = HORIZON * math.exp(at)
  for below, rate in itertools.pairwise(rates[best:]):
    if tried[rate] > _DEAD * min(heard):
      found = min(found, math.sqrt(below * rate))
  return float(f'{found:.1e}')


def _best(tried: dict[float, float]) -> float:
  """The rate of the least loss; the lowest of all that is about as good where
  the highest is among these, and did not get there by falling all the way.

  Learners that died of too high a rate draw one flat image, and have one loss:
  where none is better, lower rates are what is left to try.
  """
  bound = (1 + _ALIKE) * min(tried.values())
  finite = sorted(rate for rate, loss in tried.items() if loss < math.inf)
  pairs = itertools.pairwise(finite)
  falls = all(tried[low] > tried[high] for low, high in pairs)
  if finite and not falls and tried[finite[-1]] <= bound:
    return min(rate for rate, loss in tried.items() if loss <= bound)
  return min(tried, key=tried.get)


class Stage:
  """Where rates are tried: the compiled cycle of learners side by side.

  Where there are more devices than learners, several share a learner's batch.
  """

  def __init__(
    self,
    spec: state_lib.StepSpec,
    weight_K: jax.Array,
    bounds: learning.Bounds,
    generator_P: np.ndarray,
    x_NxBxHxWxC: np.ndarray,
    devices: Sequence[jax.Device],
  ):
    self._cycles = len(x_NxBxHxWxC)
    learners = math.gcd(RATES, len(devices))
    replicas = math.gcd(len(devices) // learners, spec.batch_size)
    self._slots = RATES // learners  # learners a device
    # What is asked of the codes, too, is learned, but by how images come back
    # a rate is judged: codes that collapse ask the least.
    is_of_images_K = [
      t not in ('adv', *terms.KINDS[spec.tokenizer.quantizer.kind].terms)
      for t in spec.terms
    ]
    judged_K = jnp.where(jnp.array(is_of_images_K), weight_K, 0)
    adam = optax.scale_by_adam(
      spec.generator_optimizer.adam_b1, spec.generator_optimizer.adam_b2
    )
    schedule = optimizer.Schedule(
      cycles=self._cycles,
      learning_rate=1.0,
      warmup=round(_WARMUP * self._cycles),
      schedule='cosine',
      decay=0.0,
    )

    def nobody(x_hat: jax.Array) -> tuple[jax.Array, jax.Array, None]:
      return jnp.zeros(len(x_hat)), jnp.zeros_like(x_hat), None

    @jax.default_matmul_precision(spec.precision)
    def cycle(state: Any, step: jax.Array, rate: jax.Array, x: jax.Array):
      params, moments = jax.tree.map(lambda leaf: leaf[0], state)
      gradient, seen, *_ = learning.generate(
        *(params, poincare.normalize(x[step]), weight_K, bounds, nobody, 0.0),
        spec=spec,
        pool=lambda part: jax.lax.psum(part, 'replicas'),
      )
      gradient, terms_K = jax.lax.pmean((gradient, seen.terms_K), 'replicas')
      update, moments = adam.update(gradient, moments)
      params -= rate[0] * schedule(step) * update
      state = params, moments
      loss = jnp.vdot(judged_K, terms_K)
      return jax.tree.map(lambda leaf: leaf[None], (state, loss))

    here = np.array(devices[: learners * replicas]).reshape(learners, replicas)
    mesh = jax.sharding.Mesh(here, ('learners', 'replicas'))
    of_all, of_learner, of_batch = (
      jax.sharding.PartitionSpec(*a)
      for a in ((), ('learners',), (None, 'replicas'))
    )
    self._split, batches = (
      jax.sharding.NamedSharding(mesh, p) for p in (of_learner, of_batch)
    )
    self._cycle = jax.jit(
      jax.shard_map(
        cycle,
        mesh=mesh,
        in_specs=(of_learner, of_all, of_learner, of_batch),
        out_specs=of_learner,
        check_vma=False,  # a learner's replicas are alike by what they share
      ),
      donate_argnums=0,
    )
    self._x = jax.device_put(x_NxBxHxWxC, batches)
    self._born = jax.tree.map(
      lambda leaf: np.stack([np.asarray(leaf)] * learners),
      (generator_P, jax.jit(adam.init)(generator_P)),
    )

  def play(self, rates: Sequence[float]) -> list[tuple[float, np.ndarray]]:
    """Each rate's loss in the last cycles, and the weights learned at it.

    A loss is infinite where it was not finite in one of them.
    """
    parts = np.split(np.asarray(rates, np.float32), self._slots)
    heard, learned = zip(*map(self._play, parts))
    last = np.concatenate(heard, axis=1)[-math.ceil(_JUDGED * self._cycles) :]
    loss_R = np.where(np.isfinite(last).all(0), last.mean(0), math.inf)
    return list(zip(loss_R.tolist(), np.concatenate(learned)))

  def _play(self, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    state = jax.device_put(self._born, self._split)
    rates = jax.device_put(rates, self._split)
    heard = []
    for step in range(self._cycles):
      state, loss = self._cycle(state, np.int32(step), rates, self._x)
      heard.append(np.asarray(loss))  # at once: a signal may come
    return np.array(heard), np.asarray(state[0])
