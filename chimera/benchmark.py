"""What Chimera costs, measured: `python -m chimera.benchmark WHAT`.

curriculum   score, sort and save a million samples, against a bare mean.
step         the compiled step on each layout of devices that there is.
dashboard    training with the dashboard and without.
tokens       tokenizing a folder, against bare `encode` on arrays in memory.
door         the look at a batch of floats before they are encoded.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import pty
import resource
import statistics
import tempfile
import termios
import threading
import time
from typing import Any

import numpy as np
import rich.console

from chimera.run import default_config

_GRID = (16, 16, 3)
_say = rich.console.Console().print


def _write_latents(path: pathlib.Path, samples: int) -> None:
  """Random path_params, written without ever being in memory together."""
  rng = np.random.default_rng(0)
  latents = np.lib.format.open_memmap(path, 'w+', np.float32, (samples, *_GRID))
  for start in range(0, samples, 8192):
    x = rng.random((min(8192, samples - start), *_GRID), np.float32)
    # Each sample has a radius of its own.
    x[..., 2] *= rng.random((len(x), 1, 1), np.float32) * (np.pi / 2)
    latents[start : start + len(x)] = x


def _peak_mb() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _bare(path: pathlib.Path) -> tuple[float, float]:
  """Seconds and peak MB of the plain mean over the memory map."""
  latents = np.load(path, mmap_mode='r')
  start = time.perf_counter()
  latents[..., 2].mean((1, 2))
  return time.perf_counter() - start, _peak_mb()


def _prepare(path: pathlib.Path, chunk: int) -> tuple[float, float]:
  """Seconds and peak MB of all that prepare-curriculum does here."""
  from chimera.school import curriculum_file

  latents = np.load(path, mmap_mode='r')
  there = path.with_name('curriculum_bins_benchmark.pkl')
  start = time.perf_counter()
  curriculum_file.make_or_check(
    there, latents, metric='mean_radius', chunk=chunk, afresh=True
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
    _write_latents(path, args.samples)
    gigabytes = path.stat().st_size / 1e9
    rounds = [
      (_in_child(_bare, path), _in_child(_prepare, path, args.chunk))
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


class _Program:
  """The step on the first devices, fed with random path_params."""

  def __init__(self, config: Any, devices: int, cycles: int):
    import jax

    from chimera.clones import state as state_lib
    from chimera.run import engine
    from chimera.school import curriculum as curriculum_lib

    config.train.cycles_per_dispatch = cycles
    paths = np.random.default_rng(0).random((1000, *_GRID), np.float32)
    bins = curriculum_lib.bin_samples(paths[..., 2].mean((1, 2)))
    spec = state_lib.create_spec(config)
    states = state_lib.create_states(config, spec, bins, _GRID[:2])
    self._wait = jax.block_until_ready
    self._engine = engine.Engine(
      config, spec, bins, paths, jax.devices()[:devices]
    )
    self._engine.place(state_lib.stack(states), 0)
    self.images = len(states) * spec.batch_size * cycles

  def run(self, dispatches: int) -> float:
    """Seconds."""
    start = time.perf_counter()
    for _ in range(dispatches):
      self._engine.dispatch()
    self._wait(self._engine.state)
    return time.perf_counter() - start


def step(args: argparse.Namespace) -> None:
  """Prints each layout's cycles a second; medians of rounds that alternate."""
  import jax

  config = default_config.get_config(args.variant)
  devices = jax.devices()
  _say(f'{len(devices)} x {devices[0].device_kind}')
  programs = {
    n: _Program(config, n, args.cycles_per_dispatch)
    for n in range(1, len(devices) + 1)
    if len(config.clone_names) % n == 0
  }
  for n, program in programs.items():
    _say(f'{n} device(s): first dispatch {program.run(1):.0f} s')
  rounds = [
    {n: program.run(args.dispatches) for n, program in programs.items()}
    for _ in range(args.rounds)
  ]
  seconds = {n: statistics.median(r[n] for r in rounds) for n in programs}
  for n, program in programs.items():
    rate = args.dispatches / seconds[n]
    cycles, images = rate * args.cycles_per_dispatch, rate * program.images
    _say(
      f'{n} device(s): {cycles:7.2f} cycles/s  {images:7.0f} images/s  '
      f'x {seconds[1] / seconds[n]:.2f}'
    )


def dashboard(args: argparse.Namespace) -> None:
  """Prints the step's speed with the dashboard up over that without it.

  On a terminal of 160x48 of its own; a row of the history every ten cycles.
  """
  from chimera.monitor import history, live

  config = default_config.get_config(args.variant)
  clone = {f'lambda/{k}': v for k, v in config.loss.items()}
  clone |= {'loss/total': 1.0, 'critic/loss': 1.0, 'agent/lr': 1e-3}
  rows: list[history.Row] = []
  look = live.Look('benchmark', json.loads(config.to_json()), rows)
  program = _Program(config, 1, 1)
  program.run(1)

  def train() -> float:
    seconds = 0.0
    for _ in range(args.dispatches // 10):
      seconds += program.run(10)
      clones = dict.fromkeys(config.clone_names, clone)
      rows.append(history.Row(len(rows), time.time(), clones, {}))
    return seconds

  ratios = []
  for _ in range(args.rounds):
    without = train()
    with _terminal(160, 48), live.Live(look, os.devnull):
      with_it = train()
    ratios.append(without / with_it)
  _say(
    'cycles/s with the dashboard over without: median '
    f'{statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}'
  )


def tokens(args: argparse.Namespace) -> None:
  """Images/s of `tokenize` over those of `encode`, round by round."""
  from PIL import Image

  from chimera.data import crops as crops_lib
  from chimera.tokenizer import export
  from chimera.tokenizer import tokens as tokens_lib

  config = default_config.get_config()
  loaded = export.load(args.tokenizer)
  plan = crops_lib.plan_crops(
    args.source,
    held_out_source='',
    held_out_fraction=0.5,
    image_size=loaded.image_size,
    train_count=args.count,
    held_out_count=1,
    crop='random',
    max_scale=3.0,
    seed=0,
  )
  crops = crops_lib.read_crops(plan.train, image_size=loaded.image_size)
  batch = min(config.tokens.batch_size, len(crops))
  starts = range(0, len(crops) - batch + 1, batch)

  def bare() -> float:
    start = time.perf_counter()
    for i in starts:
      np.asarray(loaded.encode(crops[i : i + batch]))
    return len(starts) * batch / (time.perf_counter() - start)

  ratios = []
  with tempfile.TemporaryDirectory() as home:
    folder = os.path.join(home, 'crops')
    os.mkdir(folder)
    for i, crop in enumerate(crops):
      Image.fromarray(crop).save(f'{folder}/{i:06d}.png')
    bare()
    for i in range(args.rounds):
      before = bare()
      start = time.perf_counter()
      tokens_lib.tokenize(folder, args.tokenizer, f'{home}/{i}', config)
      rate = len(crops) / (time.perf_counter() - start)
      ratios.append(rate / statistics.mean([before, bare()]))
      _say(f'tokenize {rate:.0f} images/s, {ratios[-1]:.3f} of bare encode')
  _say(f'median {statistics.median(ratios):.3f}')


def door(args: argparse.Namespace) -> None:
  """Prints the door's share of `encode`, of NumPy's floats and of JAX's."""
  import jax

  from chimera.tokenizer import door as door_lib
  from chimera.tokenizer import export

  loaded = export.load(args.tokenizer)
  shape = loaded.image_size, loaded.image_size, 3
  rng = np.random.default_rng(0)
  floats = rng.random((args.batch, *shape), np.float32) * 2 - 1

  def seconds(f: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    return time.perf_counter() - start

  for x in (floats, jax.device_put(floats)):
    rounds = [
      (seconds(door_lib.images, x, shape), seconds(loaded.encode, x))
      for _ in range(args.rounds + 1)
    ][1:]  # the first one compiles
    look, whole = map(statistics.median, zip(*rounds))
    share = statistics.median(a / b for a, b in rounds)
    _say(
      f'{type(x).__name__:9s} {1e3 * look:6.2f} ms of {1e3 * whole:6.1f} ms '
      f'for {len(x)} images: {100 * share:.2f} % of encode'
    )


@contextlib.contextmanager
def _terminal(width: int, height: int) -> Iterator[None]:
  """Puts stdout and stderr on a terminal of that size."""
  ours, theirs = pty.openpty()
  termios.tcsetwinsize(theirs, (height, width))
  plain = {fd: os.dup(fd) for fd in (1, 2)}

  def read() -> None:
    # A terminal that is not read stops who writes to it.
    with contextlib.suppress(OSError):
      while os.read(ours, 1 << 16):
        pass
    os.close(ours)

  threading.Thread(target=read, daemon=True).start()
  for fd in plain:
    os.dup2(theirs, fd)
  yield
  for fd, old in plain.items():
    os.dup2(old, fd)
    os.close(old)
  os.close(theirs)


# The flags of each, beside --rounds, and their defaults.
COMMANDS = {
  curriculum: {'samples': 1_000_000, 'chunk': 256},
  step: {'variant': '', 'cycles_per_dispatch': 1, 'dispatches': 10},
  dashboard: {'variant': '', 'dispatches': 60},
  tokens: {
    'tokenizer': 'runs/chimera/tokenizer',
    'source': 'photos',
    'count': 2000,
  },
  door: {'tokenizer': 'runs/chimera/tokenizer', 'batch': 64},
}


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m chimera.benchmark')
  commands = parser.add_subparsers(dest='command', required=True)
  for run, flags in COMMANDS.items():
    command = commands.add_parser(run.__name__)
    command.set_defaults(run=run)
    for name, value in {**flags, 'rounds': 5}.items():
      command.add_argument(f'--{name}', type=type(value), default=value)
  args = parser.parse_args()
  args.run(args)


if __name__ == '__main__':
  main()
