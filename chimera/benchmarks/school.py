"""The School on a large training set, against a bare mean over it."""

import argparse
from collections.abc import Callable
from concurrent import futures
import multiprocessing
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import rich.console

_WRITTEN = 8192  # samples at a time
_say = rich.console.Console().print


def _write_latents(path: pathlib.Path, samples: int, grid: int) -> None:
  """Random path_params, written without ever being in memory together."""
  rng = np.random.default_rng(0)
  shape = (samples, grid, grid, 3)
  header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
  with open(path, 'wb') as f:
    np.lib.format.write_array_header_1_0(f, header)
    for start in range(0, samples, _WRITTEN):
      x = rng.random((min(_WRITTEN, samples - start), *shape[1:]), np.float32)
      # Each sample has a radius of its own.
      x[..., 2] *= rng.random((len(x), 1, 1), np.float32) * (np.pi / 2)
      f.write(x.data)


def _peak_mb() -> float:
  # What getrusage says is the parent's, where that was more.
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.partition('VmHWM:')[2].split()[0]) / 1024


def _bare(path: pathlib.Path) -> tuple[float, float]:
  """Seconds and peak MB of the plain mean over the memory map."""
  latents = np.load(path, mmap_mode='r')
  start = time.perf_counter()
  latents[..., 2].mean((1, 2))
  return time.perf_counter() - start, _peak_mb()


def _prepare(path: pathlib.Path) -> tuple[float, float]:
  """Seconds and peak MB of all that prepare-curriculum does here."""
  from chimera.school import curriculum_file

  latents = np.load(path, mmap_mode='r')
  there = path.with_name('curriculum_bins_benchmark.pkl')
  start = time.perf_counter()
  curriculum_file.make_or_check(
    there, latents, metric='mean_radius', afresh=True
  )
  return time.perf_counter() - start, _peak_mb()


def _in_child(f: Callable[..., Any], *args: Any) -> Any:
  """Runs f in a fresh process, whose peak memory is its own."""
  spawn = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(f, *args).result()


def curriculum(args: argparse.Namespace) -> None:
  """Prints both speeds, their ratio and both peaks; medians of the rounds."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'latents.npy')
    _write_latents(path, args.samples, args.grid)
    gigabytes = path.stat().st_size / 1e9
    rounds = [
      (_in_child(_bare, path), _in_child(_prepare, path))
      for _ in range(args.rounds)
    ]
  _say(f'{args.samples:,} samples, {gigabytes:.2f} GB')
  medians = []
  names = ('latents[..., 2].mean((1, 2))', 'score, sort, digest and save')
  for name, runs in zip(names, zip(*rounds)):
    seconds, peaks = zip(*runs)
    medians.append(s := statistics.median(seconds))
    _say(
      f'{name:30s} {s:6.3f} s  {gigabytes / s:6.2f} GB/s  '
      f'peak {max(peaks):5.0f} MB'
    )
  _say(f'speed against the bare mean: {medians[0] / medians[1]:.2f}')
