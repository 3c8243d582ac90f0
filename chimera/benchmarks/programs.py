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


def create(
  name: str, variant: str, devices: int, cycles: int
) -> 'Program | Plain':
  """A program by its name: `plain`, one of ABLATIONS, or a variant."""
  is_variant = name not in (PLAIN, *ABLATIONS)
  variants = [v for v in (variant, name if is_variant else '') if v]
  config = default_config.get_config(','.join(variants))
  config.update_from_flattened_dict(ABLATIONS.get(name, {}))
  config.train.cycles_per_dispatch = cycles
  return (Plain if name == PLAIN else Program)(config, devices)


def _grid(config: Any) -> tuple[int, int, int]:
  side = config.data.image_size // config.optics.cell
  return side, side, 3


class Program:
  """The step on the first devices, fed with random path_params."""

  def __init__(self, config: Any, devices: int):
    grid = _grid(config)
    paths = np.random.default_rng(0).random((1000, *grid), np.float32)
    bins = curriculum_lib.bin_samples(paths[..., 2].mean((1, 2)))
    spec = state_lib.create_spec(config)
    states = state_lib.create_states(config, spec, bins, grid[:2])
    self._engine = engine.Engine(
      config, spec, bins, paths, jax.devices()[:devices]
    )
    self._engine.place(state_lib.stack(states), 0)
    self.cycles = self._engine.cycles  # in one dispatch
    self.images = len(states) * spec.batch_size  # a cycle

  def trace(self) -> jax.stages.Lowered:
    """Traces the program; whoever compiles that hands it back by `use`."""
    return self._engine.trace()

  def use(self, program: jax.stages.Compiled) -> None:
    """Takes the program as it was compiled."""
    self._engine.use(program)

  def run(self, dispatches: int) -> float:
    """Seconds."""
    start = time.perf_counter()
    for _ in range(dispatches):
      self._engine.dispatch()
    jax.block_until_ready(self._engine.state)
    return time.perf_counter() - start


class Plain:
  """The plain learner, data-parallel on the first devices, fed likewise."""

  def __init__(self, config: Any, devices: int):
    grid = _grid(config)
    paths = np.random.default_rng(0).random((1000, *grid), np.float32)
    spec = state_lib.create_spec(config)
    self._learner = plain.Learner(
      config,
      spec,
      paths,
      jax.devices()[:devices],
      config.train.cycles_per_dispatch,
    )
    self.cycles = config.train.cycles_per_dispatch
    self.images = len(config.clone_names) * spec.batch_size

  def trace(self) -> jax.stages.Lowered:
    """Traces the program; whoever compiles that hands it back by `use`."""
    return self._learner.trace()

  def use(self, program: jax.stages.Compiled) -> None:
    """Takes the program as it was compiled."""
    self._learner.use(program)

  def run(self, dispatches: int) -> float:
    """Seconds."""
    start = time.perf_counter()
    for _ in range(dispatches):
      self._learner.dispatch()
    jax.block_until_ready(self._learner.state)
    return time.perf_counter() - start
