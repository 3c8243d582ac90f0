"""Training with the dashboard and without."""

import argparse
from collections.abc import Iterator
import contextlib
import json
import os
import pty
import statistics
import termios
import threading
import time

import rich.console

from chimera.run import default_config


def _say(x: str) -> None:
  rich.console.Console().print(x)


def dashboard(args: argparse.Namespace) -> None:
  """Prints the step's speed with the dashboard up over that without it.

  On a terminal of 160x48 of its own; a row of the history every ten cycles.
  """
  from chimera.benchmarks import programs
  from chimera.monitor import history, live

  config = default_config.get_config(args.variant)
  clone = {f'lambda/{k}': v for k, v in config.loss.items()}
  clone |= {'loss/total': 1.0, 'critic/loss': 1.0, 'agent/lr': 1e-3}
  rows: list[history.Row] = []
  look = live.Look('benchmark', json.loads(config.to_json()), rows)
  program = programs.Program('default', args.variant, 1, 1)
  program.run(1)

  def train() -> float:
    seconds = 0.0
    for _ in range(max(1, args.dispatches // 10)):
      seconds += program.run(10)
      clones = dict.fromkeys(config.clone_names, clone)
      rows.append(history.Row(len(rows), time.time(), clones, {}))
    return seconds

  ratios = []
  for _ in range(args.rounds):
    without = train()
    with terminal(160, 48), live.Live(look, os.devnull):
      with_it = train()
    ratios.append(without / with_it)
  _say(
    'cycles/s with the dashboard over without: median '
    f'{statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}'
  )


@contextlib.contextmanager
def terminal(width: int, height: int) -> Iterator[None]:
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
  try:
    yield
  finally:
    for fd, old in plain.items():
      os.dup2(old, fd)
      os.close(old)
    os.close(theirs)
