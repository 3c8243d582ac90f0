"""A run under examination, beside the reference, and a finding."""

import math
from typing import NamedTuple

import numpy as np

from chimera.doctor import readings
from chimera.doctor import reference as reference_lib

# A run of fewer cycles, or log cycles, is judged by what must never be.
CYCLES, ROWS = 200, 8
LATE = 0.75  # the share of a run after which it is late


class Finding(NamedTuple):
  """One thing that is wrong."""

  name: str  # one of `symptoms`
  seen: str  # with the figure, and what the reference shows
  why: str  # it matters
  turn: str  # which keys


class Case(NamedTuple):
  """All that a check looks at."""

  run: readings.Run
  curves: dict[str, readings.Curve]
  figures: dict[str, float]  # of its data; none where the workdir has none
  reference: reference_lib.Reference
  long: bool  # whether it went far enough to be judged by how it went
  differences: list[str]  # of its config from the reference's

  def late(self, name: str) -> float:
    """Median of a curve in the last quarter of what was done; NaN aside."""
    cycles, values = self.curves[name]
    chosen = values[(cycles > LATE * self.run.cycles) & np.isfinite(values)]
    return float(np.median(chosen)) if len(chosen) else math.nan

  def usual(self, name: str) -> tuple[float, float]:
    """Of the reference's data, or its curve: the least and greatest.

    Of the curve those of the cycles that are late in this run; where it is
    longer, or not yet at its first ones, the nearest.
    """
    if name in self.reference.figures:
      return self.reference.figures[name]
    band = self.reference.bands[name]
    end = min(self.run.cycles, band.cycles[-1])
    late = (band.cycles > LATE * end) & (band.cycles <= end)
    if not late.any():
      late = band.cycles == band.cycles[np.argmin(abs(band.cycles - end))]
    return float(np.median(band.low[late])), float(np.median(band.high[late]))

  def shown(self, name: str, form: str = '.2g') -> str:
    """The same as '0.1 to 0.2', or one figure where both read alike."""
    low, high = (format(v, form) for v in self.usual(name))
    return low if low == high else f'{low} to {high}'
