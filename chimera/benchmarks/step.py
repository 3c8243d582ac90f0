"""The compiled step on each layout of devices that there is."""

import argparse
import statistics

import rich.console

from chimera.benchmarks import programs
from chimera.run import default_config

_say = rich.console.Console().print


def step(args: argparse.Namespace) -> None:
  """Prints each layout's cycles a second; medians of rounds that alternate."""
  import jax

  config = default_config.get_config(args.variant)
  devices = jax.devices()
  _say(f'{len(devices)} x {devices[0].device_kind}')
  programs = {
    n: programs.Program(config, n, args.cycles_per_dispatch)
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
