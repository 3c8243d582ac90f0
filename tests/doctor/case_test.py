"""What a check looks at: a run late, and what the reference shows late."""

import math

import numpy as np

from chimera.doctor import case, readings, reference

_FIGURES = {'near': (0.101, 0.149), 'apart': (0.101, 0.151)}


def _case(values, at=100):
  cycles = np.arange(10, 101, 10)
  run = readings.Run('', {}, (), [_Row(at)], [], ())
  band = reference.Band(cycles, cycles / 10, cycles / 20, cycles / 10)
  return case.Case(
    run,
    {'x': readings.Curve(cycles, np.array(values, float))},
    {},
    reference.Reference({}, {}, _FIGURES, {'x': band}),
    True,
    [],
  )


class _Row:
  def __init__(self, cycle):
    self.cycle = cycle


def test_late_is_the_median_of_the_last_quarter_without_what_is_no_number():
  # Cycles 80, 90 and 100.
  assert _case([0] * 7 + [1, math.nan, 4]).late('x') == 2.5
  assert math.isnan(_case([1] * 7 + [math.inf] * 3).late('x'))


def test_the_reference_shows_its_least_and_greatest_late():
  found = _case([0] * 10)
  assert found.usual('x') == (4.5, 9.0)
  assert found.shown('x', '.1f') == '4.5 to 9.0'


def test_a_run_that_goes_on_is_held_against_the_same_cycles():
  # 40 and 50 of the ten are late at 52; a longer run has the reference's end.
  assert _case([0] * 10, at=52).usual('x') == (2.25, 4.5)
  assert _case([0] * 10, at=3).usual('x') == (0.5, 1.0)
  assert _case([0] * 10, at=5000).usual('x') == (4.5, 9.0)


def test_figures_of_the_data_that_read_alike_are_one():
  found = _case([0] * 10)
  assert found.shown('near', '.1f') == '0.1'
  assert found.shown('apart', '.1f') == '0.1 to 0.2'
