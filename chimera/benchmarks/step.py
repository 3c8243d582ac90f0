"""The compiled step against a plain learner, on each layout of devices."""

import argparse
import math
import re
import statistics
import time
from typing import Any

import rich.console
import rich.table

from chimera.clones import specialists
from chimera.run import default_config

# `%x = (f32[8,2]{1,0}, f32[3]{0}) all-reduce(...)`, or without the brackets.
_COLLECTIVE = re.compile(
  r'= (\(.*?\)|\S+) (?:all-reduce|all-gather|reduce-scatter|all-to-all|'
  r'collective-permute)(-start)?\('
)
_ARRAY = re.compile(r'\b(?:f|bf|s|u)(\d+)\[([\d,]*)\]')
_COLUMNS = (
  'program', 'cycles/s', 'images/s', 'cost of a cycle', 'trace s', 'compile s',
  'peak MB', 'GFLOP', 'of matmul', 'shared MB',
)  # fmt: skip


def _say(x: Any) -> None:
  rich.console.Console(width=120).print(x)


def step(args: argparse.Namespace) -> None:
  """Prints a table a layout; medians of rounds that alternate.

  The cost of a cycle is the median ratio to the plain learner's step of as many
  images in the same round, and between which two the middle half lies. Peak
  memory and FLOPs are XLA's own of a device; `of matmul` is the rate of FLOPs
  over that of a float32 matmul of 2048 x 2048, measured in every round;
  `shared` is what collectives give a device in a cycle.
  """
  import jax

  config = default_config.get_config(args.variant)
  clones = len(config.clone_names)
  devices = jax.devices()
  _say(f'{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}')
  fitting = specialists.fitting_devices(clones, config.train.batch_size)
  there = [n for n in fitting if n <= len(devices)]
  chosen = [n for n in there if args.devices in ('', str(n))]
  if not chosen:
    raise ValueError(
      f'--devices must be one of {", ".join(map(str, there))}, got '
      f'{args.devices}.'
    )
  for n in chosen:
    _race(args, n)


def _race(args: argparse.Namespace, devices: int) -> None:
  from chimera.benchmarks import programs

  names = [programs.PLAIN, *args.programs.split(',')]
  racers, rows = {}, {}
  for name in names:
    racers[name] = program = programs.Program(
      name, args.variant, devices, args.cycles_per_dispatch
    )
    start = time.perf_counter()
    traced = program.trace()
    before = time.perf_counter()
    compiled = traced.compile()
    rows[name] = _facts(compiled, before - start, time.perf_counter() - before)
    program.use(compiled)
    program.run(1)
  rounds = []
  for _ in range(args.rounds):
    rounds.append({k: p.run(args.dispatches) for k, p in racers.items()})
    rounds[-1]['ceiling'] = _ceiling(devices)
  table = rich.table.Table(*_COLUMNS, title=f'{devices} device(s)')
  for name, program in racers.items():
    cycles = args.dispatches * program.cycles
    rates = [cycles / r[name] for r in rounds]
    ratios = [r[name] / r[programs.PLAIN] for r in rounds]
    rate = statistics.median(rates)
    trace, compilation, peak, flops, shared = rows[name]
    share = statistics.median(
      devices * flops * x / r['ceiling'] for x, r in zip(rates, rounds)
    )
    low, middle, high = statistics.quantiles([*ratios, *ratios], n=4)
    table.add_row(
      name,
      f'{rate:.2f}',
      f'{rate * program.images:.0f}',
      f'{middle:.3f} ({low:.2f} to {high:.2f})',
      f'{trace:.1f}',
      f'{compilation:.1f}',
      f'{peak / 1e6:.0f}',
      f'{flops / 1e9:.2f}',
      f'{100 * share:.0f} %',
      f'{shared / 1e6:.1f}',
    )
  _say(table)


def _facts(
  compiled: Any, trace: float, compilation: float
) -> tuple[float, float, float, float, float]:
  """(seconds to trace, to compile; peak bytes, FLOPs and shared bytes a cycle)
  of a device."""
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  cost = cost[0] if isinstance(cost, list) else cost
  peak = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )
  return trace, compilation, peak, cost['flops'], shared(compiled.as_text())


def shared(hlo: str) -> int:
  """Bytes of the results of a program's collectives, each counted once."""
  found = 0
  for line in hlo.splitlines():
    if of := _COLLECTIVE.search(line):
      results = sum(
        math.prod(map(int, dims.split(','))) * int(bits) // 8
        if dims
        else int(bits) // 8
        for bits, dims in _ARRAY.findall(of[1])
      )
      # One that is only started names what it takes as well.
      found += results // 2 if of[2] else results
  return found


def _ceiling(devices: int) -> float:
  """FLOP/s of a matmul on all devices; CPU devices are one and the same."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones((2048, 2048))
  multiply = jax.jit(lambda x: x @ x)
  multiply(x).block_until_ready()
  start = time.perf_counter()
  multiply(x).block_until_ready()
  seconds = time.perf_counter() - start
  machines = 1 if jax.default_backend() == 'cpu' else devices
  return machines * 2 * 2048**3 / seconds
