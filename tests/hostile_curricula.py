"""Curriculum files that mean harm: what they may do is to be refused.

  python -m tests.hostile_curricula --count=100000

writes mutations of a curriculum, and the handmade ones below, and loads each:
nothing may run, nothing but a ValueError of one line may be raised, and memory
must stay under four times the size that a file may have.
"""

import argparse
import gc
import os
import pathlib
import pickle
import struct
import sys
import tempfile
import time
import tracemalloc
from typing import NamedTuple

import numpy as np

from chimera.school import curriculum, curriculum_file

SAMPLES = 2000
CAP = 16 * SAMPLES + 4096  # bytes; see curriculum_file.load_curriculum
RAN = 'RAN'  # what a file that is executed leaves in the current folder


class Seen(NamedTuple):
  """Of many loads: how many were let in, and the greatest memory, in bytes."""

  loaded: int
  refused: int
  peak: int


class _Runs:
  def __init__(self, *call):
    self._call = call

  def __reduce__(self):
    return self._call


def whole(samples=SAMPLES, protocol=4):
  order = np.random.default_rng(0).permutation(samples)
  scores = np.empty(samples, np.float32)
  scores[order] = np.arange(samples)
  return pickle.dumps(curriculum.bin_samples(scores), protocol)


def _bins(**changes):
  bins = pickle.loads(whole())
  return pickle.dumps(
    bins | {int(k[1:]): v for k, v in changes.items()}, protocol=4
  )


def handmade():
  """By name, what is written by hand; none of it may be let in."""
  make = (os.mkdir, (RAN,))
  n = CAP - 16
  long = b'\x80\x04\x8b' + struct.pack('<i', n - 8) + b'\x7f' * (n - 8) + b'.'
  number = b'J\x00\x00\x00\x00'
  return {
    'empty': b'',
    'a stop alone': b'.',
    'a call': pickle.dumps(_Runs(*make), 4),
    'a call, protocol 0': pickle.dumps(_Runs(*make), 0),
    'a call in a bin': _bins(_3=[_Runs(*make)]),
    'a call as a bin': _bins(_3=_Runs(*make)),
    'eval': pickle.dumps(_Runs(eval, (f'__import__("os").mkdir("{RAN}")',))),
    'GLOBAL and REDUCE': f"cos\nmkdir\n(S'{RAN}'\ntR.".encode(),
    'INST': f"(S'{RAN}'\nios\nmkdir\n.".encode(),
    'OBJ': f"(cos\nmkdir\nS'{RAN}'\no.".encode(),
    'NEWOBJ': f"cos\nmkdir\n(S'{RAN}'\nt\x81.".encode(),
    'STACK_GLOBAL': b'\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x03RAN\x85R.',
    'BUILD': b'\x80\x04}}b.',
    'a persistent id': b'Pos.mkdir\n.',
    'an extension': b'\x80\x02\x82\x01.',
    'a memo of 2 ** 31': b'\x80\x04]r\xff\xff\xff\x7f.',
    'a memo by text': b']p99999999999\n.',
    'a frame of 2 ** 63': b'\x80\x04\x95' + b'\xff' * 8 + b'}.',
    'a frame of a gigabyte': b'\x80\x04\x95' + struct.pack('<Q', 2**30) + b'}.',
    'a frame in a frame': b'\x80\x04' + (b'\x95' + b'\0' * 8) * 3000 + b'}.',
    'a LONG4 of the whole size': long,
    'a LONG4 of two gigabytes': b'\x80\x04\x8b\xff\xff\xff\x7f.',
    'a LONG of many digits': b'L' + b'9' * (n - 8) + b'L\n.',
    'bytes of 2 ** 62': b'\x80\x04\x8e' + struct.pack('<Q', 2**62) + b'.',
    'a text of four bytes a letter': (
      b'\x80\x04X'
      + struct.pack('<I', n - 8)
      + '\U0001f600'.encode()
      + b'a' * (n - 12)
      + b'.'
    ),
    'nothing but lists': b'\x80\x04' + b']' * n + b'.',
    'nothing but dicts': b'\x80\x04' + b'}' * n + b'.',
    'nothing but marks': b'\x80\x04' + b'(' * n + b'.',
    'nothing but memos': b'\x80\x04]' + b'\x94' * n + b'.',
    'lists in lists': b'\x80\x04' + b']' * (n // 2) + b'a' * (n // 2) + b'.',
    'a list in itself': b'\x80\x04]\x94h\x00a.',
    'numbers beyond the samples': b'\x80\x04](' + number * (n // 5) + b'e.',
    'tuples in tuples as a key': b'\x80\x04})' + b'\x85' * (n - 9) + b'K\x00s.',
    'a key twice': whole()[:-2] + b'K\x03]su.',
    'a key that is true': whole().replace(b'K\x01]', b'\x88]', 1),
    'a sample that is true': _bins(_3=[True]),
    'a sample that is a float': _bins(_3=[1.0]),
    'a sample twice': _bins(_3=pickle.loads(whole())[4]),
    'a negative sample': _bins(_3=[-1, *pickle.loads(whole())[3][1:]]),
    'a sample too many': _bins(_3=[*pickle.loads(whole())[3], SAMPLES]),
    'a bin too few': pickle.dumps({k: [k] for k in range(9)}, 4),
    'something after the end': whole() + b'cos\nmkdir\n.',
    'larger than it may be': whole() + b'\0' * CAP,
    'a recent protocol': b'\x80\xff' + whole()[2:],
  }


def mutate(data, rng):
  """Bytes changed, cut out, repeated, put in: one to eight times over."""
  data = bytearray(data)
  for _ in range(rng.integers(1, 9)):
    at, to = sorted(rng.integers(len(data) + 1, size=2))
    to = min(to, at + int(rng.integers(1, 64)))
    match rng.integers(6):
      case 0 if at < len(data):
        data[at] ^= 1 << int(rng.integers(8))
      case 1:
        del data[at:to]
      case 2:
        data[at:at] = data[at:to] * int(rng.integers(1, 40))
      case 3:
        data[at:at] = rng.bytes(int(rng.integers(1, 12)))
      case 4:
        del data[at:]
      case _ if at < len(data):
        # Opcodes that take much, mostly behind the header where they count.
        at = at if rng.integers(2) else min(at, 16)
        data[at] = rng.choice(list(b'](}\x94\x95\x8a\x8b\x8e\x8cXcRbiorjp0'))
  return bytes(data)


def load(folder, data, *, tied):
  """One file, tied to its dataset or not: its bins, or None where refused.

  Raises:
    AssertionError: it was refused otherwise than it should be.
  """
  path = pathlib.Path(folder, 'c.pkl')
  path.write_bytes(data)
  tie = curriculum_file._tie(
    data if tied else b'other', 'd', 'mean_radius', SAMPLES
  )
  path.with_suffix('.json').write_bytes(tie)
  try:
    return curriculum_file.load_curriculum(path, samples=SAMPLES, digest='d')
  except ValueError as e:
    line = str(e)
  assert '\n' not in line
  assert line.startswith(f'Curriculum {path} must be whole')
  return None


def measure(folder, data, *, tied):
  """What `load` returns, and the bytes that it took."""
  tracemalloc.reset_peak()
  before, _ = tracemalloc.get_traced_memory()
  bins = load(folder, data, tied=tied)
  return bins, tracemalloc.get_traced_memory()[1] - before


def attack(folder, count, seed=0):
  """Loads what is handmade and `count` mutations, in `folder`."""
  rng = np.random.default_rng(seed)
  originals = [whole(protocol=p) for p in (2, 3, 4, 5)]
  hand = list(handmade().values())
  assert all(load(folder, data, tied=True) for data in originals)
  loaded = peak = 0
  os.chdir(folder)
  gc.collect()
  tracemalloc.start()
  for i in range(len(hand) + count):
    if i < len(hand):
      data = hand[i]
    else:
      # Mutations of what is hostile already, now and then.
      base = originals[i % 4] if i % 5 else hand[i % len(hand)]
      data = mutate(base, rng)
    bins, took = measure(folder, data, tied=i % 8 > 0)
    if took > peak:
      # What the process does but once, such as to enlarge its table of
      # interned strings, is not the file's doing.
      took = min(took, measure(folder, data, tied=i % 8 > 0)[1])
    peak = max(peak, took)
    assert not os.path.exists(RAN), f'file {i} was executed'
    if bins is not None:
      assert i >= len(hand), list(handmade())[i]
      assert sorted(bins) == list(range(10))
      ids_N = np.sort(np.concatenate([*map(np.array, bins.values())]))
      np.testing.assert_array_equal(ids_N, np.arange(SAMPLES))
      loaded += 1
  tracemalloc.stop()
  return Seen(loaded, len(hand) + count - loaded, peak)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--count', type=int, default=100_000)
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    seen = attack(folder, parser.parse_args().count)
    os.chdir('/')
  assert seen.peak < 4 * CAP, f'{seen.peak} bytes'
  sys.stdout.write(
    f'{len(handmade())} handmade files and their like: {seen.refused} refused, '
    f'{seen.loaded} let in (whole after all), nothing executed; memory at most '
    f'{seen.peak} bytes, {seen.peak / CAP:.2f} times the size cap of {CAP} '
    f'bytes; {time.monotonic() - start:.0f} s.\n'
  )


if __name__ == '__main__':
  main()
