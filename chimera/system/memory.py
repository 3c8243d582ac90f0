"""Memory that is given back is kept for the next one who asks.

XLA on a CPU takes its scratch anew for each dispatch. From 32 MB on, glibc has
the kernel map it and takes it back afterwards, so that every page of it is
cleared and mapped again in every cycle: a tenth to a quarter of the time.
https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
"""

import ctypes
import os

# <malloc.h>: one arena, as the others are at most 64 MB and map what is
# larger; no mappings; up to 2 GB that are free at its end stay.
_ARENA_MAX = (-8, 1)
_MMAP_MAX = (-4, 0)
_TRIM_THRESHOLD = (-1, 2**31 - 1)


def keep_freed() -> bool:
  """Tells glibc, before there are threads; whether it took it.

  Nothing is done with another libc, or where the environment has settings of
  its own for malloc.
  """
  is_settled = 'GLIBC_TUNABLES' in os.environ or any(
    name.startswith('MALLOC_') for name in os.environ
  )
  try:
    is_glibc = bool(os.confstr('CS_GNU_LIBC_VERSION'))
  except (AttributeError, OSError, ValueError):  # Windows; macOS
    is_glibc = False
  if is_settled or not is_glibc:
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return all(mallopt(*x) for x in (_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD))
