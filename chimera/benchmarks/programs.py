"""The programs that are held against each other: Chimera's, and a plain one."""

from collections.abc import Mapping
import time
from typing import Any

import jax
import numpy as np

from chimera.benchmarks import plain
from chimera.clones import state as state_lib
from chimera.run import default_config, engine
from chimera.school import curriculum as curriculum_lib

# The default and each pillar off, by what is set in it; variants by their name.
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
  'default': {},
  'no_school': {'school.enabled': False},
  'no_pid': {'pid.enabled': False},
  'no_q': {'q.enabled': False},
  'no_meld': {'meld.enabled': False},
}
PLAIN = 'plain'


class Program:
  """A compiled step on the first devices, fed with random path_params."""

  def __init__(
    self, name: str, variant: str, devices: int, cycles_per_dispatch: int
  ):
    """`plain`, one of ABLATIONS, or a variant, each in another `variant`."""
    is_variant = name not in (PLAIN, *ABLATIONS)
    variants = [v for v in (variant, name if is_variant else '') if v]
    config = default_config.get_config(','.join(variants))
    config.update_from_flattened_dict(ABLATIONS.get(name, {}))
    config.train.cycles_per_dispatch = cycles_per_dispatch
    self.cycles = cycles_per_dispatch
    self.images = config.train.batch_size * len(config.clone_names)  # a cycle
    make = _plain if name == PLAIN else _engine
    side = config.data.image_size // config.optics.cell
    paths = np.random.default_rng(0).random((1000, side, side, 3), np.float32)
    self._of = make(config, paths, jax.devices()[:devices])

  def trace(self) -> jax.stages.Lowered:
    """Traces the program; whoever compiles that hands it back by `use`."""
    return self._of.trace()

  def use(self, program: jax.stages.Compiled) -> None:
    """Takes the program as it was compiled."""
    self._of.use(program)

  def run(self, dispatches: int) -> float:
    """Seconds."""
    start = time.perf_counter()
    for _ in range(dispatches):
      self._of.dispatch()
      jax.block_until_ready(self._of.state)  # see `Engine.dispatch`
    return time.perf_counter() - start


def _plain(
  config: Any, paths_NxHxWxC: np.ndarray, devices: list[jax.Device]
) -> plain.Learner:
  spec = state_lib.create_spec(config)
  cycles = config.train.cycles_per_dispatch
  return plain.Learner(config, spec, paths_NxHxWxC, devices, cycles)


def _engine(
  config: Any, paths_NxHxWxC: np.ndarray, devices: list[jax.Device]
) -> engine.Engine:
  bins = curriculum_lib.bin_samples(paths_NxHxWxC[..., 2].mean((1, 2)))
  spec = state_lib.create_spec(config)
  made = engine.Engine(config, spec, bins, paths_NxHxWxC, devices)
  grid = paths_NxHxWxC.shape[1:3]
  born = state_lib.create_states(config, spec, bins, grid)
  made.place(state_lib.stack(born), 0)
  return made
