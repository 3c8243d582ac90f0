"""A CPU as several devices, before JAX is imported.

XLA works off a program of small parts on one core for most of the time. On two
cores two devices train 1.2 times as fast as one, and the optics learn 1.5 times
as fast. More devices than cores are a little faster still, but can wait for
each other for good: whoever waits keeps a thread of a pool that has one a core.
"""

import os
import sys

_COUNT = 'JAX_NUM_CPU_DEVICES'
_FORCED = '--xla_force_host_platform_device_count'


def count() -> int:
  """Cores that this process may use: those of its cpuset, where it has one."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def split(clones: int) -> None:
  """As many devices as divide the clones, one a core at most.

  What the environment says of their number stays. Where JAX is imported it is
  too late, and nothing is done.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if _COUNT in os.environ or _FORCED in flags or 'jax' in sys.modules:
    return
  most = min(count(), clones)
  devices = next(n for n in range(most, 0, -1) if clones % n == 0)
  os.environ[_COUNT] = str(devices)
