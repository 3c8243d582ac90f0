"""Pictures of any size, worked on in windows.

What lies farther from a place than the `reach` of a function does not matter
there. So the function is applied to windows that overlap by twice its reach,
and of each the middle is kept: the result is that of the whole picture, and
memory that of one window. Where a window touches the picture's border, its
border is the picture's. All lengths are in tokens.
"""

from collections.abc import Callable
import itertools
from typing import NamedTuple

import jax
import numpy as np


class Span(NamedTuple):
  """One window along one axis, and what is kept of it."""

  start: int
  stop: int
  first: int  # kept from here
  last: int  # up to here


def spans(
  length: int, *, window: int, reach: int, period: int = 1
) -> list[Span]:
  """Windows over a length, of which each place is kept once.

  They begin at multiples of `period`.
  """
  if length <= window:
    return [Span(0, length, 0, length)]
  step = (window - 2 * reach) // period * period
  last = -(-(length - window) // period) * period
  starts = [*range(0, last, step), last]
  bounds = [0, *(start + reach for start in starts[1:]), length]
  return [
    Span(start, min(start + window, length), *kept)
    for start, kept in zip(starts, itertools.pairwise(bounds))
  ]


def pad(picture: np.ndarray, side: int) -> np.ndarray:
  """(H, W, 3), mirrored beyond the right and lower edge to whole tokens."""
  below, beside = (-n % side for n in picture.shape[:2])
  return np.pad(picture, ((0, below), (0, beside), (0, 0)), mode='symmetric')


def apply(
  f: Callable[[jax.Array], jax.Array],
  x: np.ndarray | jax.Array,
  *,
  side: int,
  to_side: int,
  window: int,
  reach: int,
  period: int = 1,
) -> np.ndarray:
  """f(x) of x (B, H, W, ...), in windows; a numpy array (B, H', W', ...).

  Args:
    f: of a part of x, whose result at a place does not depend on what is more
      than `reach` from there.
    x: `side` of it are a token's.
    side: of a token in x.
    to_side: of a token in f(x).
    window: the longest side of what f is given.
    reach: less than half the window.
    period: in which f repeats itself: windows begin at its multiples.
  """
  down, across = (
    spans(n // side, window=window, reach=reach, period=period)
    for n in x.shape[1:3]
  )

  def part(y, rows: tuple[int, int], columns: tuple[int, int], unit: int):
    return y[
      :, unit * rows[0] : unit * rows[1], unit * columns[0] : unit * columns[1]
    ]

  bands = []
  for i in down:
    band = []
    for j in across:
      y = f(part(x, i[:2], j[:2], side))
      rows, columns = ((s.first - s.start, s.last - s.start) for s in (i, j))
      band.append(np.asarray(part(y, rows, columns, to_side)))
    bands.append(np.concatenate(band, axis=2))
  return np.concatenate(bands, axis=1)
