"""The conditions that the ledger holds methods against: what is set wrong, or
what the data are.
"""

from collections.abc import Callable, Mapping
import types
from typing import Any, NamedTuple

import numpy as np

_NONE: Mapping[str, Any] = types.MappingProxyType({})


class Condition(NamedTuple):
  """What is wrong."""

  times: Mapping[str, float] = _NONE  # the config's value, by key
  put: Mapping[str, Any] = _NONE  # in its place, by key
  data: Callable[[Any, int], Any] | None = None  # of stage 1's, by the seed
  # Whether a `control` that is tuned to it is another one.
  has_its_own: bool = False


def rare(data: Any, seed: int) -> Any:
  """Nine in ten samples of the easiest 40 %, with replacement."""
  scores_N = data.paths_NxHxWxC[..., 2].mean((1, 2))
  easy, hard = np.split(np.argsort(scores_N), [2 * len(scores_N) // 5])
  rng, n = np.random.default_rng(seed), len(scores_N)
  count = round(0.9 * n)
  rows = [rng.choice(easy, count), rng.choice(hard, n - count)]
  return _rows(data, np.sort(np.concatenate(rows)))


def corrupted(data: Any, seed: int) -> Any:
  """One sample in twenty is noise, and another one the same as others."""
  from chimera.optics import poincare

  paths, rng = np.array(data.paths_NxHxWxC), np.random.default_rng(seed)
  n, order = len(paths) // 20, rng.permutation(len(paths))
  noise, same = order[:n], order[n : 2 * n]
  noise_X = rng.uniform(-1, 1, paths[noise].shape).astype(np.float32)
  paths[noise] = poincare.denormalize(noise_X)
  rows = np.arange(len(paths))
  rows[same] = same[0]
  return _rows(data._replace(paths_NxHxWxC=paths), rows)


def _rows(data: Any, rows: np.ndarray) -> Any:
  gradients_N = data.gradients_N
  return data._replace(
    paths_NxHxWxC=data.paths_NxHxWxC[rows],
    crops=[data.crops[i] for i in rows],
    gradients_N=None if gradients_N is None else gradients_N[rows],
  )


TUNED = 'tuned'
CONDITIONS: dict[str, Condition] = {
  TUNED: Condition(),
  'rate/30': Condition({'train.learning_rate': 1 / 30}),
  'rate/10': Condition({'train.learning_rate': 1 / 10}),
  'rate/3': Condition({'train.learning_rate': 1 / 3}),
  'rate*3': Condition({'train.learning_rate': 3}),
  'rate*10': Condition({'train.learning_rate': 10}),
  'rate*30': Condition({'train.learning_rate': 30}),
  'adv*30': Condition({'loss.adv': 30}),
  'vq*10': Condition({'loss.vq': 10}),
  'vq/10': Condition({'loss.vq': 1 / 10}),
  'cold': Condition(put={'train.warmup': 0}),
  'batch2': Condition(put={'train.batch_size': 2}, has_its_own=True),
  'rare': Condition(data=rare, has_its_own=True),
  'corrupted': Condition(data=corrupted, has_its_own=True),
}
