"""A run under examination, beside the reference, and a finding."""

import math
from typing import Any, NamedTuple

import numpy as np

from chimera.doctor import readings
from chimera.doctor import reference as reference_lib

# A run of fewer cycles, or log cycles, is judged by what must never be.
CYCLES, ROWS = 200, 8
LATE = 0.75  # the share of a run after which it is late


class Finding(NamedTuple):
  """One thing that is wrong.

  Attributes:
    name: one of `symptoms`.
    seen: with the figure, and what the reference shows.
    why: it matters.
    turn: which keys.
  """

  name: str
  seen: str
  why: str
  turn: str


class Case(NamedTuple):
  """All that a check looks at.

  Attributes:
    run: itself.
    curves: of it.
    figures: of its data; none where the workdir does not hold them.
    reference: what it is held against.
    long: whether it went far enough to be judged by how it went.
    differences: of its config from the reference's.
  """

  run: readings.Run
  curves: dict[str, readings.Curve]
  figures: dict[str, float]
  reference: reference_lib.Reference
  long: bool
  differences: list[str]

  @property
  def settings(self) -> dict[str, Any]:
    return self.run.settings

  def late(self, name: str) -> float:
    """Median of a curve in the last quarter of what was done; NaN aside."""
    cycles, values = self.curves[name]
    chosen = values[(cycles > LATE * self.run.cycles) & np.isfinite(values)]
    return float(np.median(chosen)) if len(chosen) else math.nan

  def usual(self, name: str) -> tuple[float, float]:
    """What the reference shows late, its least and greatest."""
    band = self.reference.bands[name]
    late = band.cycles > LATE * band.cycles[-1]
    return float(np.median(band.low[late])), float(np.median(band.high[late]))

  def shown(self, name: str, form: str = '.2g') -> str:
    """What the reference shows late, as '0.1 to 0.2'."""
    return span(self.usual(name), form)


def span(bounds: tuple[float, float], form: str) -> str:
  """'0.1 to 0.2', or one figure where both read alike."""
  low, high = (format(v, form) for v in bounds)
  return low if low == high else f'{low} to {high}'
