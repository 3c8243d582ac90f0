"""The compiled step as a benchmark runs it."""

import time
from typing import Any

import numpy as np

GRID = (16, 16, 3)


class Program:
  """The step on the first devices, fed with random path_params."""

  def __init__(self, config: Any, devices: int, cycles: int):
    import jax

    from chimera.clones import state as state_lib
    from chimera.run import engine
    from chimera.school import curriculum as curriculum_lib

    config.train.cycles_per_dispatch = cycles
    paths = np.random.default_rng(0).random((1000, *GRID), np.float32)
    bins = curriculum_lib.bin_samples(paths[..., 2].mean((1, 2)))
    spec = state_lib.create_spec(config)
    states = state_lib.create_states(config, spec, bins, GRID[:2])
    self._wait = jax.block_until_ready
    self._engine = engine.Engine(
      config, spec, bins, paths, jax.devices()[:devices]
    )
    self._engine.place(state_lib.stack(states), 0)
    self.images = len(states) * spec.batch_size * cycles

  def run(self, dispatches: int) -> float:
    """Seconds."""
    start = time.perf_counter()
    for _ in range(dispatches):
      self._engine.dispatch()
    self._wait(self._engine.state)
    return time.perf_counter() - start
