"""Works on threads: in order, few ahead, and what they raise."""

import threading
import time

import pytest

from chimera.system import cpus, threads


def test_works_are_taken_in_order_by_several_threads():
  names = set()

  def work(i):
    names.add(threading.current_thread().name)
    time.sleep(0.001 * (i % 3))
    return i * i

  assert list(threads.map_ahead(work, range(50))) == [i * i for i in range(50)]
  assert len(names) == cpus.count()


def test_few_works_are_begun_before_they_are_wanted():
  begun = []
  works = iter(range(10_000))
  taken = threads.map_ahead(begun.append, works, ahead=3)
  next(taken)
  most = 3 * cpus.count() + 1
  assert next(works) == most
  taken.close()
  assert len(begun) <= most


def test_what_a_work_raises_is_raised_in_its_turn():
  def work(i):
    if i == 3:
      raise ValueError(f'work {i}')
    return i

  taken = threads.map_ahead(work, range(10))
  assert [next(taken) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(ValueError, match='work 3'):
    next(taken)
