"""What Chimera costs, measured: `python -m chimera.benchmark WHAT`.

curriculum   score, sort and save a million samples, against a bare mean.
radius       the encoder whose radius means complexity, against the free one.
step         the compiled step on each layout of devices that there is.
"""

import argparse
from collections.abc import Callable
from concurrent import futures
import multiprocessing
import pathlib
import statistics
import tempfile
import time
from typing import Any

import rich.console

_GRID = (16, 16, 3)


def _write_latents(path: pathlib.Path, samples: int) -> None:
  """Random path_params, written without ever being in memory together."""
  import numpy as np

  rng = np.random.default_rng(0)
  header = {'descr': '<f4', 'fortran_order': False, 'shape': (samples, *_GRID)}
  with open(path, 'wb') as f:
    np.lib.format.write_array_header_1_0(f, header)
    for start in range(0, samples, 8192):
      n = min(8192, samples - start)
      x = rng.random((n, *_GRID), np.float32)
      # Each sample has a radius of its own.
      x[..., 2] *= rng.random((n, 1, 1), np.float32) * (np.pi / 2)
      f.write(x)


def _peak_mb() -> float:
  import resource

  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _bare(path: pathlib.Path) -> tuple[float, float]:
  """Seconds and peak MB of the plain mean over the memory map."""
  import numpy as np

  latents = np.load(path, mmap_mode='r')
  start = time.perf_counter()
  latents[..., 2].mean((1, 2))
  return time.perf_counter() - start, _peak_mb()


def _prepare(path: pathlib.Path, chunk: int) -> tuple[float, float]:
  """Seconds and peak MB of all that prepare-curriculum does here."""
  import numpy as np

  from chimera import school

  latents = np.load(path, mmap_mode='r')
  start = time.perf_counter()
  scores = school.score(latents, metric='mean_radius', chunk=chunk)
  school.save_curriculum(
    path.with_name('curriculum_bins_benchmark.pkl'),
    school.bin_samples(scores),
    digest=school.digest(latents, scores),
    metric='mean_radius',
  )
  return time.perf_counter() - start, _peak_mb()


def _in_child(f: Callable[..., Any], *args: Any) -> Any:
  """Runs f in a fresh process, whose peak memory is its own."""
  spawn = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(f, *args).result()


def curriculum(args: argparse.Namespace) -> None:
  """Prints both speeds, their ratio and both peaks; medians of the rounds."""
  console = rich.console.Console()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'latents.npy')
    _write_latents(path, args.samples)
    gigabytes = path.stat().st_size / 1e9
    rounds = [
      (_in_child(_bare, path), _in_child(_prepare, path, args.chunk))
      for _ in range(args.rounds)
    ]
  seconds = []
  names = ('latents[..., 2].mean((1, 2))', 'score, sort, digest and save')
  console.print(f'{args.samples:,} samples, {gigabytes:.2f} GB')
  for name, runs in zip(names, zip(*rounds)):
    seconds.append(statistics.median(s for s, _ in runs))
    console.print(
      f'{name:30s} {seconds[-1]:6.3f} s  {gigabytes / seconds[-1]:6.2f} GB/s  '
      f'peak {max(peak for _, peak in runs):5.0f} MB'
    )
  console.print(f'speed against the bare mean: {seconds[0] / seconds[1]:.2f}')


def radius(args: argparse.Namespace) -> None:
  """Prints PSNR and rank correlation of both encoders for each seed."""
  from chimera import latents
  from configs import chimera as chimera_config

  config = chimera_config.get_config()
  rows = latents.compare_radius(
    args.train,
    args.held_out,
    seeds=args.seeds,
    steps=args.steps,
    image_size=config.data.image_size,
    count=config.data.train_count,
    held_out_count=args.held_out_count,
    cell=config.optics.cell,
    width=config.optics.width,
    batch_size=config.optics.batch_size,
    learning_rate=config.optics.learning_rate,
    noise=config.optics.noise,
  )
  console = rich.console.Console()
  psnr = {'free': [], 'contrast': []}
  for row in rows:
    psnr[row['radius']].append(row['psnr'])
    console.print(
      f'seed {row["seed"]}  {row["radius"]:8s}  PSNR {row["psnr"]:.2f} dB  '
      f'rank correlation {row["correlation"]:6.3f}  {row["seconds"]:4.0f} s'
    )
  cost = statistics.mean(psnr['free']) - statistics.mean(psnr['contrast'])
  console.print(f'mean cost: {cost:.2f} dB')


def step(args: argparse.Namespace) -> None:
  """Prints each layout's cycles a second; medians of rounds that alternate."""
  import jax
  import numpy as np

  from chimera import school
  from chimera import state as state_lib
  from chimera import step as step_lib
  from configs import chimera as chimera_config

  config = chimera_config.get_config(args.variant)
  rng = np.random.default_rng(0)
  paths = rng.random((1000, *_GRID), np.float32)
  bins = school.bin_samples(paths[..., 2].mean((1, 2)))
  spec = state_lib.create_spec(config)
  states = state_lib.create_states(config, spec, bins, _GRID[:2])
  missions = state_lib.stack(state_lib.create_missions(config, bins))
  console = rich.console.Console()
  console.print(f'{len(jax.devices())} x {jax.devices()[0].device_kind}')
  layouts, seconds = {}, {}
  for n in (n for n in (1, 2, 4) if n <= len(jax.devices())):
    devices = jax.devices()[:n]
    (whole,) = school.make_shards(
      paths, [], resident_mb=64, rotating_samples=0, rotation=0, seed=0
    )
    state = step_lib.put(state_lib.stack(states), devices)
    rest = (
      step_lib.put(missions, devices),
      step_lib.put_shared(whole, devices),
    )
    train_step = step_lib.make_train_step(
      spec, devices, cycles=args.cycles_per_dispatch
    )
    start = time.perf_counter()
    state, _ = jax.block_until_ready(train_step(state, *rest))
    console.print(
      f'{n} device(s): compiled in {time.perf_counter() - start:.0f} s'
    )
    layouts[n], seconds[n] = [train_step, state, rest], []
  for _ in range(args.rounds):
    for n, (train_step, state, rest) in layouts.items():
      start = time.perf_counter()
      for _ in range(args.dispatches):
        state, _ = train_step(state, *rest)
      jax.block_until_ready(state)
      seconds[n].append(time.perf_counter() - start)
      layouts[n][1] = state
  for n, times in seconds.items():
    rate = args.dispatches * args.cycles_per_dispatch / statistics.median(times)
    images = rate * len(states) * spec.batch_size
    console.print(
      f'{n} device(s): {rate:7.2f} cycles/s  {images:7.0f} images/s  '
      f'x {statistics.median(seconds[1]) / statistics.median(times):.2f}'
    )


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m chimera.benchmark')
  commands = parser.add_subparsers(dest='command', required=True)
  command = commands.add_parser('curriculum')
  command.add_argument('--samples', type=int, default=1_000_000)
  command.add_argument('--chunk', type=int, default=256)
  command.add_argument('--rounds', type=int, default=5)
  command.set_defaults(run=curriculum)
  command = commands.add_parser('radius')
  command.add_argument('--train', default='photos')
  command.add_argument('--held_out', default='')
  command.add_argument('--held_out_count', type=int, default=512)
  command.add_argument('--seeds', type=int, default=3)
  command.add_argument('--steps', type=int, default=900)
  command.set_defaults(run=radius)
  command = commands.add_parser('step')
  command.add_argument('--variant', default='')
  command.add_argument('--cycles_per_dispatch', type=int, default=1)
  command.add_argument('--dispatches', type=int, default=10)
  command.add_argument('--rounds', type=int, default=5)
  command.set_defaults(run=step)
  args = parser.parse_args()
  args.run(args)


if __name__ == '__main__':
  main()
