"""What a run spends beside the step: on rows, checkpoints, evaluations."""

import argparse
from collections.abc import Callable
import contextlib
import functools
import os
import pkgutil
import shutil
import statistics
import tempfile
import threading
import time
from typing import Any, NamedTuple
from unittest import mock

import ml_collections
import rich.console

from chimera.benchmarks import dashboard
from chimera.run import default_config

# Whose calls are timed, each as module:function or module:Class.method.
PARTS = {
  'log rows': ('chimera.monitor.observers:Observers.saw',),
  'TensorBoard': ('chimera.monitor.writers:_Run._call',),
  'dashboard': ('chimera.monitor.live:Live._draw',),
  'checkpoints': (
    'chimera.run.checkpoint:Checkpointer.save',
    'chimera.run.steps:Steps._commit',
  ),
  'evaluations': (
    'chimera.evaluation.exam:examine',
    'chimera.evaluation.exam:save_figures',
    'chimera.evaluation.exam:save_preview',
    'chimera.monitor.observers:Observers.evaluated',
  ),
  'report': ('chimera.monitor.report:write',),
  'tokenizer': ('chimera.run.results:save_tokenizer',),
}
_ALL = 'all'
_BEGIN = 'chimera.monitor.observers:Observers.compiled'


class Spent(NamedTuple):
  """On one part."""

  calls: int
  wall: float  # seconds that the training waits
  # Of the thread that calls; of all threads where the training waits.
  cpu: float


def loop(args: argparse.Namespace) -> None:
  """Prints what each part takes of a run from its first cycle to its end.

  Of runs of --cycles, on a terminal of 160x48; medians. A run's first
  evaluation compiles, as everybody's does.
  """
  from chimera.optics import stage_1

  config = default_config.get_config(args.variant)
  config.train.cycles = args.cycles
  config.optics.steps = 60
  rounds = []
  with tempfile.TemporaryDirectory() as home:
    prepared = f'{home}/prepared'
    os.mkdir(prepared)
    stage_1.prepare(config, prepared)
    for i in range(args.rounds):
      workdir = shutil.copytree(prepared, f'{home}/{i}')
      drawn = mock.patch.dict(os.environ, TERM='xterm-256color')
      with drawn, dashboard.terminal(160, 48):
        rounds.append(measure(config, workdir))
  say = rich.console.Console().print
  for name in rounds[0]:
    calls, wall, cpu = (
      statistics.median(spent) for spent in zip(*(of[name] for of in rounds))
    )
    of_wall, of_cpu = (
      statistics.median(100 * of[name][i] / of[_ALL][i] for of in rounds)
      for i in (1, 2)
    )
    say(
      f'{name:12s} {calls:5.0f} calls   waited for {wall:6.2f} s '
      f'{of_wall:6.2f} %   CPUs {cpu:6.2f} s {of_cpu:6.2f} %'
    )


def measure(
  config: ml_collections.ConfigDict, workdir: str
) -> dict[str, Spent]:
  """A run in a prepared workdir, from its first cycle on, and its parts."""
  from chimera import train
  from chimera.optics import stage_1

  meter = _Meter()
  with contextlib.ExitStack() as patches:

    def replace(name: str, how: Callable[..., Any]) -> None:
      by = how(pkgutil.resolve_name(name))
      patches.enter_context(mock.patch(name.replace(':', '.'), by))

    for part, names in PARTS.items():
      for name in names:
        replace(name, functools.partial(meter.timed, part))
    replace(_BEGIN, meter.begun)
    train.train(config, workdir, stage_1.prepare(config, workdir))
    return {_ALL: meter.whole(), **meter.parts}


class _Meter:
  """Times calls from outside."""

  def __init__(self) -> None:
    self.parts = dict.fromkeys(PARTS, Spent(0, 0.0, 0.0))
    self._main = threading.get_ident()
    self._inside = threading.local()
    self._lock = threading.Lock()

  def begun(self, f: Callable[..., Any]) -> Callable[..., Any]:
    """f, with whose first call the run begins."""

    def call(*args: Any) -> None:
      self._start = time.perf_counter(), time.process_time()
      f(*args)

    return call

  def whole(self) -> Spent:
    wall, cpu = self._start
    return Spent(1, time.perf_counter() - wall, time.process_time() - cpu)

  def timed(self, part: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """f, whose calls but those from inside another part are `part`."""

    def call(*args: Any, **keywords: Any) -> Any:
      if getattr(self._inside, 'part', False):
        return f(*args, **keywords)
      is_waited_for = threading.get_ident() == self._main
      clock = time.process_time if is_waited_for else time.thread_time
      self._inside.part = True
      wall, cpu = time.perf_counter(), clock()
      try:
        return f(*args, **keywords)
      finally:
        self._inside.part = False
        wall = (time.perf_counter() - wall) * is_waited_for
        with self._lock:
          old = self.parts[part]
          self.parts[part] = Spent(
            old.calls + 1, old.wall + wall, old.cpu + clock() - cpu
          )

    return call
