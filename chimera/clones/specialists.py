"""What tells one clone from another: the design document's section 4.3.

A specialist is a block of the config, `config.specialists.NAME`; a `Mission` is
the same as arrays, for the compiled step. Importing this imports no JAX.
"""

from collections.abc import Mapping
import math
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_collections
import numpy as np

from chimera.clones import terms as terms_lib
from chimera.school import curriculum

if TYPE_CHECKING:
  import jax

  from chimera.agents import pid as pid_lib
  from chimera.agents import q_learning
  from chimera.clones import learning


class Mission(NamedTuple):
  """What tells the clones apart: data, never a Python branch."""

  clone: 'jax.Array'  # its number, int32; all else is float32
  weight: 'jax.Array'  # of its parameters in the meld
  # 1.0 where its class follows the tracked varentropy, else 0.0
  enrols: 'jax.Array'
  pid: 'pid_lib.Mission'  # base weights, targets and gains, each (K,)
  q: 'q_learning.Mission'  # bounds of the learning rate's scale
  rate: 'jax.Array'  # times the config's learning rate
  bounds: 'learning.Bounds'  # of shares in its gradients


def lessons(config: ml_collections.ConfigDict) -> list[tuple[int, ...]]:
  """The bins of each clone's lessons; without the School all of them."""
  if not config.school.enabled:
    return [tuple(range(curriculum.BINS))]
  return [config.specialists[name].bins for name in config.clone_names]


def base_weights(config: Mapping[str, Any], name: str) -> dict[str, float]:
  """A clone's weight of each loss term at rest.

  Args:
    config: the run's, or what config.json holds of it.
    name: of the clone.
  """
  emphasis = config['specialists'][name]['emphasis']
  share = config['loss']['emphasis']
  return {
    term: config['loss'][term] * (1 + share * (emphasis[term] - 1))
    for term in emphasis
  }


def targets(config: ml_collections.ConfigDict, name: str) -> dict[str, float]:
  """Where a clone's PID wants each loss term, as a multiple of the usual loss.

  Over their geometric mean of all clones: what one asks for the others forgo,
  so that all together ask for no term more than for another. Of adv it is the
  share of the gradient at the reconstruction, as it stands in the block. Where
  `loss.emphasis` is 0, nobody asks for more than another: of adv for the mean.
  """

  def of(name: str) -> dict[str, float]:
    return {t: config.specialists[name].pid.target[t] for t in terms_lib.TERMS}

  of_all = [of(name) for name in config.clone_names]
  asked = of(name)
  for t in asked:
    mean = statistics.geometric_mean(each[t] for each in of_all)
    asked[t] = asked[t] if config.loss.emphasis else mean
    asked[t] /= 1.0 if t == 'adv' else mean
  return asked


def create_missions(
  config: ml_collections.ConfigDict,
  bins: dict[int, list[int]],
  rate: float = 1.0,
) -> list[Mission]:
  """One Mission a clone, in the order of config.clone_names.

  Their learning rate is `rate` times what the config says.
  """
  # They import JAX, for which those who want the weights alone need not wait.
  from chimera.agents import pid as pid_lib
  from chimera.agents import q_learning

  c = config
  terms = terms_lib.of(c.model.quantizer)
  samples = sum(map(len, bins.values()))
  # Without a School all draw from everything.
  is_by_mass = c.meld.weights == 'mass' and c.school.enabled
  missions = []
  for i, name in enumerate(c.clone_names):
    block = c.specialists[name]
    base = base_weights(c, name)
    asked = targets(c, name)
    gain = np.full(len(terms), float(c.pid.enabled))
    mass = sum(len(bins[b]) for b in block.bins) / samples
    missions.append(
      Mission(
        clone=np.array(i, np.int32),
        weight=_float32(mass if is_by_mass else 1.0),
        enrols=_float32(block.enrols),
        pid=pid_lib.Mission(
          base_K=_float32([base[t] for t in terms]),
          target_K=_float32([asked[t] for t in terms]),
          relative_K=_float32([t != 'adv' for t in terms]),
          proportional_K=_float32(gain * block.pid.proportional),
          integral_K=_float32(gain * block.pid.integral),
          derivative_K=_float32(gain * block.pid.derivative),
        ),
        q=q_learning.Mission(
          low=_float32(block.q.low if c.q.enabled else 1.0),
          high=_float32(block.q.high if c.q.enabled else 1.0),
        ),
        rate=_float32(rate),
        bounds=bounds(c, asked['adv']),
      )
    )
  return missions


def fitting_devices(clones: int, batch_size: int) -> list[int]:
  """Numbers of devices: as many clones on each, or as many devices for each.

  Of the latter each has as large a part of its clone's batch.
  """
  shared = [n for n in range(1, clones) if clones % n == 0]
  less = [n for n in range(1, math.isqrt(batch_size) + 1) if not batch_size % n]
  parts = sorted({*less, *(batch_size // n for n in less)})
  return shared + [clones * n for n in parts]


def bounds(
  config: ml_collections.ConfigDict, target_adv: float = math.inf
) -> 'learning.Bounds':
  """Within what the shares are held, of a clone with that target of adv."""
  from chimera.clones import learning

  if not (config.pid.enabled and config.pid.bounded):
    return learning.Bounds(*map(_float32, (1.0, 0.0, 1.0)))
  most_adv = min(1.0, target_adv * math.exp(config.pid.limit))
  return learning.Bounds(*map(_float32, (most_adv, *config.pid.vq_share)))


def _float32(x: Any) -> np.ndarray:
  return np.asarray(x, np.float32)
