"""The checkpoints of a run: what they hold, are bound to, and which stay."""

import math
import os
from typing import Any

from absl import logging
import ml_collections

from chimera.clones import state as state_lib
from chimera.run import checkpoint, preflight
from chimera.system import preemption, provenance


class Keeper:
  """The checkpoints of a run, and what they hold beside the state.

  Attributes:
    extra: `config` and `curriculum`, digests of what the run is bound to;
      `best`, cycle and held-out path_l1 of the best evaluation so far;
      `is_judged`, False where the evaluation of this cycle is still to come;
      `rows` of the last table, once the last cycle is done.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str,
    bins: dict[int, list[int]],
  ):
    self._config = config
    self._workdir = workdir
    self._checkpoints = open_checkpoints(config, workdir)
    self._bound = {
      'config': provenance.digest(preflight.binding(config)),
      'curriculum': provenance.digest({str(k): v for k, v in bins.items()}),
    }
    self.begin()

  def begin(self) -> None:
    """As a run that has no checkpoint."""
    self.extra: dict[str, Any] = {
      **self._bound,
      'best': {'cycle': None, 'score': None},
      'is_judged': True,
      'rows': [],
    }

  def restore(
    self, born: state_lib.CloneState
  ) -> tuple[int, state_lib.CloneState, Any] | None:
    """(cycles done, state, specialists) of the newest whole one, if any.

    Args:
      born: newborn clones.

    Raises:
      ValueError: it is of another config or curriculum.
    """
    restored = self._checkpoints.restore(saved(born))
    if restored is None:
      return None
    done, tree, extra = restored
    for name, digest in self._bound.items():
      if extra.get(name) != digest:
        raise ValueError(
          f'The checkpoints in {self._workdir} must be of this {name}, and are '
          'of another (a digest differs): give a new --workdir.'
        )
    self.extra = extra
    return done, tree['state'], tree['specialists']

  def judged(self, done: int, figures: dict[str, dict[str, float]]) -> None:
    """An evaluation; the best is that of the master's least path_l1."""
    score, best = figures['master']['path_l1'], self.extra['best']['score']
    if score < (math.inf if best is None else best):  # NaN never is
      self.extra['best'] = {'cycle': done, 'score': score}
    self.extra['is_judged'] = True

  def is_due(self, done: int) -> bool:
    """Whether a checkpoint is to be made of this cycle."""
    config = self._config
    return (
      done % config.train.checkpoint_every == 0
      or done == config.train.cycles
      or (config.train.keep_best and self.extra['best']['cycle'] == done)
    )

  def save(
    self,
    done: int,
    state: state_lib.CloneState,
    specialists: Any,
    watch: preemption.Watch,
  ) -> None:
    """Saves all that goes on; what cannot be written is tried again later.

    Raises:
      preemption.Stopped: it cannot, and a signal ends the run.
      OSError: it cannot, and the run is over.
    """
    there = self._checkpoints.latest() or 0
    is_over = done == self._config.train.cycles
    lost = f'Cycles {there + 1} to {done} are not saved'
    if state.health.sick.any() and not is_over:
      watch.stop(f'{lost}, their clones are sick.')
      logging.warning('%s: their clones are sick.', lost)
      return
    best = self.extra['best']['cycle'] if self._config.train.keep_best else None
    try:
      self._checkpoints.save(done, saved(state, specialists), self.extra, best)
    except OSError as e:
      watch.stop(f'{lost}: {e}')
      if is_over:
        raise OSError(
          f'{lost}: {e} Make room: the same command goes on from cycle {there}.'
        ) from e
      logging.warning('%s: %s The next one is tried.', lost, e)


def restore(
  config: ml_collections.ConfigDict,
  workdir: str,
  born: state_lib.CloneState,
  bins: dict[int, list[int]],
) -> tuple[int, state_lib.CloneState, Any]:
  """(cycles done, state, specialists) of the newest whole checkpoint.

  Raises:
    ValueError: there is none, or it is of another config or curriculum.
  """
  restored = Keeper(config, workdir, bins).restore(born)
  if restored is None:
    raise ValueError(
      f'There must be a trained tokenizer, got none in {workdir}: run '
      '`python -m chimera.main train` with the same flags first.'
    )
  return restored


def saved(
  state: state_lib.CloneState, specialists: Any = None
) -> dict[str, Any]:
  """A checkpoint's tree.

  Args:
    state: of all clones.
    specialists: the clones as they were before the last meld, from which
      nothing goes on, but which are evaluated; None where but shapes count.
  """
  if specialists is None:
    specialists = state.generator.params
  return {'state': state, 'specialists': specialists}


def open_checkpoints(
  config: ml_collections.ConfigDict, workdir: str
) -> checkpoint.Checkpoints:
  return checkpoint.Checkpoints(
    os.path.join(workdir, 'checkpoints'), keep=config.train.keep
  )
