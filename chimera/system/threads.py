"""Many works on threads, in order, somewhat ahead of who takes them."""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
from typing import TypeVar

from chimera.system import cpus

_AHEAD = 16  # works a thread

In = TypeVar('In')
Out = TypeVar('Out')


def map_ahead(
  function: Callable[[In], Out], works: Iterable[In], ahead: int = _AHEAD
) -> Iterator[Out]:
  """function(work) of each, in order; `ahead` works a thread are begun at most.

  However many there are, no more than these are in memory. What a work raises
  is raised in its turn.
  """
  workers = cpus.count()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    begun: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
      for work in works:
        begun.append(pool.submit(function, work))
        if len(begun) > ahead * workers:
          yield begun.popleft().result()
      while begun:
        yield begun.popleft().result()
    finally:
      for future in begun:
        future.cancel()
