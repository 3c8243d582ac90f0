"""The record of a run that went back to a checkpoint."""

import json
import os

import jax
import numpy as np

from chimera.system import disk

NAME = 'rollbacks.json'


class Rollbacks:
  """How often a run went back and from where, on the disk: no kill undoes it.

  After as many roll-backs as are `allowed` the run stops.
  """

  def __init__(self, workdir: str, allowed: int):
    self._path = os.path.join(workdir, NAME)
    self._allowed = allowed
    self.reasons: list[str] = []
    try:
      with open(self._path, encoding='utf-8') as f:
        found = json.load(f)
      if not isinstance(found, list):
        raise ValueError(f'it holds a {type(found).__name__}')
      self.reasons = [str(reason) for reason in found]
    except FileNotFoundError:
      pass
    except (ValueError, RecursionError) as e:
      raise ValueError(
        f'{self._path} must be a list of what made the run go back, but {e}: '
        'fix by deleting it.'
      ) from e

  def add(self, reason: str) -> None:
    """Notes one; one too many is a FloatingPointError."""
    if len(self.reasons) >= self._allowed:
      raise FloatingPointError(
        f'{reason}, after {len(self.reasons)} roll-back(s). In another '
        '--workdir give a lower --config.train.learning_rate with '
        '--config.train.audition=False, or widen --config.meld.loss_bound and '
        '--config.meld.update_bound; or allow more by --config.train.rollbacks.'
      )
    self.reasons.append(reason)
    disk.write_json(self._path, self.reasons)

  def key_data(self, seed: int) -> np.ndarray:
    """Of the run's random key: another one after each roll-back."""
    key = jax.random.key(seed)
    if self.reasons:
      # From the far end of what is folded in, away from any cycle.
      key = jax.random.fold_in(key, np.uint32(2**32 - len(self.reasons)))
    return np.asarray(jax.random.key_data(key))
