"""A run that learns nothing: all of it but the step, which takes so long to
compile."""

import jax
import numpy as np

from chimera.run import engine
from tests import tiny


class Still:
  """An engine that leaves the clones as they are."""

  def __init__(self, config, spec, bins, paths, devices, rate, team):
    self.cycles = 1
    self._devices = devices[:1]
    self._step = jax.jit(lambda x: x + 1)

  def place(self, host, done):
    self.state = engine.put(host, self._devices)

  def fetch(self, *names):
    there = {'master': self.state.master, **vars(self)}
    return engine.fetch([there[name] for name in names])

  def dispatch(self):
    self._step(self.state.step)
    clones = self.state.step.size
    seen = tiny.metrics(clones)
    seen |= {'sick': np.zeros(clones), 'healthy': np.ones(clones)}
    self.seen = {k: v[None] for k, v in seen.items()}
    self.specialists = self.state.generator.params

  def deal_if_due(self, done):
    pass
