"""What is freed is there for the next one, without the kernel's clearing it."""

import os
import subprocess
import sys

import pytest

from chimera.system import memory

# Takes 256 MiB, writes to each page and frees them, on a thread, as XLA does.
SCRATCH = """
import ctypes, resource, sys, threading
from chimera.system import memory

print(memory.keep_freed())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def use():
  scratch = libc.malloc(ctypes.c_size_t(2**28))
  ctypes.memset(scratch, 1, 2**28)
  libc.free(scratch)

for _ in range(3):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  thread = threading.Thread(target=use)
  thread.start()
  thread.join()
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


IS_GLIBC = 'CS_GNU_LIBC_VERSION' in os.confstr_names


def _run(**environment: str) -> tuple[str, list[int]]:
  ours = ('GLIBC_TUNABLES', 'MALLOC_')
  env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
  said = subprocess.run(
    [sys.executable, '-c', SCRATCH],
    env=env | environment,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  return said[0], [int(x) for x in said[1:]]


def test_scratch_is_cleared_once_and_not_in_every_cycle():
  # Without settings of its own each of the three is 65,536 pages of 4 KiB, or
  # as many fewer as they are larger.
  taken, (first, second, third) = _run()
  assert taken == str(IS_GLIBC)
  assert first > 64
  if IS_GLIBC:
    assert max(second, third) < first / 20


@pytest.mark.parametrize(
  'settings',
  [
    {'MALLOC_MMAP_THRESHOLD_': '1048576'},
    {'GLIBC_TUNABLES': 'glibc.malloc.mmap_max=1000'},
  ],
)
def test_what_the_user_says_of_malloc_stays(settings):
  taken, (_, second, third) = _run(**settings)
  assert taken == 'False'
  if IS_GLIBC:
    assert min(second, third) > 64


def test_nothing_is_done_with_another_libc(monkeypatch):
  def confstr(name: str) -> str:
    raise ValueError('unrecognized configuration name')

  monkeypatch.setattr(os, 'confstr', confstr)
  assert not memory.keep_freed()
