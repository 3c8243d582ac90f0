"""Checkpoints: what a run saves, is bound to, and goes on from."""

import math
import os
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from chimera.clones import state as state_lib
from chimera.run import config_json, preflight
from chimera.run import steps as steps_lib
from chimera.system import preemption, provenance


class Checkpointer:
  """The checkpoints of a run, and in `extra` what they hold beside the state:

  `config` and `curriculum`, digests of what the run is bound to; `best`, cycle
  and held-out path_l1 of the best evaluation so far; `is_evaluated`, False
  where that of this cycle is still to come; `rows` of the last table; `rate`,
  how many times the config's learning rate is.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str,
    bins: dict[int, np.ndarray],
    steps: steps_lib.Steps | None = None,
  ):
    self._config = config
    self._workdir = workdir
    self._stable = state_lib.create_spec(config).schedule.stable
    self._steps = open_steps(config, workdir) if steps is None else steps
    self.bound = {
      'config': provenance.digest(preflight.binding(config_json.keys(config))),
      'curriculum': provenance.digest(
        {str(k): ids.tolist() for k, ids in bins.items()}
      ),
    }
    self.begin()

  def begin(self) -> None:
    """As a run that has no checkpoint."""
    self.extra: dict[str, Any] = {
      **self.bound,
      'best': {'cycle': None, 'score': None},
      'is_evaluated': True,
      'rows': [],
      'rate': 1.0,
    }

  def restore(
    self, born: state_lib.CloneState
  ) -> tuple[int, state_lib.CloneState, Any] | None:
    """(cycles done, state, specialists) of the newest whole one, if any."""
    restored = self._steps.restore(saved(born))
    if restored is None:
      return None
    done, tree, extra = restored
    for name, digest in self.bound.items():
      if extra.get(name) != digest:
        raise ValueError(
          f'The checkpoints in {self._workdir} must be of this {name}, and are '
          'of another (a digest differs): give another --workdir, and '
          f'--config.init_from={self._workdir} to start from this one.'
        )
    self.extra = extra
    return done, tree['state'], tree['specialists']

  def evaluated(self, done: int, figures: dict[str, dict[str, float]]) -> None:
    """An evaluation; the best is that of the master's least path_l1."""
    score, best = figures['master']['path_l1'], self.extra['best']['score']
    if score < (math.inf if best is None else best):  # NaN never is
      self.extra['best'] = {'cycle': done, 'score': score}
    self.extra['is_evaluated'] = True

  def is_due(self, done: int) -> bool:
    """Whether a checkpoint is to be made of this cycle."""
    c = self._config
    is_best = c.train.keep_best and self.extra['best']['cycle'] == done
    is_over = done == c.train.cycles
    # From the last one before a decay a longer run can go on.
    is_fork = done == self._stable - self._stable % c.train.cycles_per_dispatch
    is_round = done % c.train.checkpoint_every == 0
    return is_best or is_over or is_fork or is_round

  def save(
    self,
    done: int,
    state: state_lib.CloneState,
    specialists: Any,
    watch: preemption.Watch,
  ) -> None:
    """Saves all that goes on; what cannot be written is tried again later.

    It is read back while the training goes on. Where it cannot be, the next one
    is waited for, and if that cannot be either, or if there is no next one, it
    is an OSError, or Stopped if that is by a signal.
    """
    is_second = self._steps.has_failed()
    there = self._steps.latest() or 0
    is_over = done == self._config.train.cycles
    lost = f'Cycles {there + 1} to {done} are not saved'
    if state.health.sick.any() and not is_over:
      watch.stop(f'{lost}, their clones are sick.')
      logging.warning('%s: their clones are sick.', lost)
      return
    best = self.extra['best']['cycle'] if self._config.train.keep_best else None
    is_last = is_over or watch.signum is not None
    args = done, saved(state, specialists), self.extra, best
    try:
      try:
        self._steps.save(*args, wait=is_second or is_last)
      except steps_lib.UnreadableError as e:
        if is_second:
          raise
        logging.warning('%s It is tried again.', e)
        self._steps.save(*args)
      if watch.signum is not None:
        self._steps.settle()  # what is said to be saved is
    except OSError as e:
      watch.stop(f'{lost}: {e}')
      if is_over or isinstance(e, steps_lib.UnreadableError):
        raise OSError(
          f'{lost}: {e} Make room, or give a --workdir on another disk: the '
          f'same command goes on from cycle {there}.'
        ) from e
      logging.warning('%s: %s The next one is tried.', lost, e)


def restore(
  config: ml_collections.ConfigDict,
  workdir: str,
  born: state_lib.CloneState,
  bins: dict[int, np.ndarray],
) -> tuple[int, state_lib.CloneState, Any]:
  """The newest whole one up to `train.cycles`, of a run of whatever length.

  `Checkpointer.restore`; that there is none is a ValueError too.
  """
  steps = steps_lib.Steps(
    _folder(workdir), keep=config.train.keep, most=config.train.cycles
  )
  restored = Checkpointer(config, workdir, bins, steps).restore(born)
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

  From the specialists, the clones as they were before the last meld, nothing
  goes on, but they are evaluated; None where but shapes count.
  """
  if specialists is None:
    specialists = state.generator.params
  return {'state': state, 'specialists': specialists}


def _folder(workdir: str) -> str:
  return os.path.join(workdir, 'checkpoints')


def open_steps(
  config: ml_collections.ConfigDict, workdir: str
) -> steps_lib.Steps:
  """The steps of a run, of those there what one of this length goes on from."""
  schedule = state_lib.create_spec(config).schedule
  return steps_lib.Steps(
    _folder(workdir),
    keep=config.train.keep,
    plan=steps_lib.Plan(schedule.cycles, schedule.stable),
  )
