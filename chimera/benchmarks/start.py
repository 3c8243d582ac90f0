"""From the command to the first finished cycle, with and without a cache."""

import argparse
import builtins
import json
import os
import pathlib
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import rich.console

# What happens until then, each from the end of the one before it; `imports` are
# taken out of all others.
PHASES = (
  *('imports', 'preparation', 'state', 'observers', 'audition', 'engine'),
  *('tracing', 'compilation', 'first cycle'),
)
_say = rich.console.Console().print


def start(args: argparse.Namespace) -> None:
  """Prints seconds on the clock and of all CPUs, by phase; medians of rounds.

  Of fresh processes in a prepared workdir, which take --flags: one without
  anything compiled, and one after it.
  """
  flags = [*shlex.split(args.flags), '--config.train.log_every=1']
  found: dict[str, list[dict[str, list[float]]]] = {'cold': [], 'warm': []}
  with tempfile.TemporaryDirectory() as home:
    prepared, workdir = pathlib.Path(home, 'prepared'), f'{home}/workdir'
    _main(['prepare-curriculum', f'--workdir={prepared}', *flags], home)
    for i in range(args.rounds):
      for kind, rounds in found.items():
        shutil.copytree(prepared, workdir)
        line = _main([f'--workdir={workdir}', *flags], f'{home}/{i}')
        rounds.append(json.loads(line))
        shutil.rmtree(workdir)
        _say(f'round {i}, {kind}: {rounds[-1]["all"][0]:.1f} s')
  _say(f'{"":12s} {"cold":>7s} {"CPU":>7s} {"warm":>7s} {"CPU":>7s}')
  for phase in (*PHASES, 'all'):
    cells = (
      statistics.median(one[phase][clock] for one in rounds)
      for rounds in found.values()
      for clock in (0, 1)
    )
    _say(f'{phase:12s} {" ".join(f"{cell:7.2f}" for cell in cells)}')


def _main(flags: list[str], cache: str) -> str:
  """The last line that a fresh process says, which keeps programs in `cache`.

  Raises:
    ValueError: it fails.
  """
  done = subprocess.run(
    [sys.executable, '-m', __name__, str(time.time()), *flags],
    env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache},
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise ValueError(f'--flags: {done.stderr.strip().splitlines()[-1]}')
  return (done.stdout.splitlines() or [''])[-1]


class _Clock:
  """When each phase ended, and the seconds in imports; clock, and all CPUs."""

  def __init__(self, born: float):
    self._born = born
    self._import = builtins.__import__
    self._depth = 0
    self._imports = [0.0, 0.0]
    self._ends: dict[str, list[float]] = {}

  def now(self) -> list[float]:
    return [time.time() - self._born, time.process_time()]

  def importing(self, *args: Any, **keywords: Any) -> Any:
    """In the place of `__import__`."""
    self._depth += 1
    start = self.now()
    try:
      return self._import(*args, **keywords)
    finally:
      self._depth -= 1
      if not self._depth:
        took = (b - a for a, b in zip(start, self.now()))
        self._imports = [a + b for a, b in zip(self._imports, took)]

  def end(self, phase: str) -> None:
    now = self.now()
    self._ends[phase] = [a - b for a, b in zip(now, self._imports)]

  def ends(self, owner: Any, name: str, before: str, after: str = '') -> None:
    """A phase ends where owner.name is called, and another where it is done."""
    f = getattr(owner, name)

    def call(*args: Any, **keywords: Any) -> Any:
      self.end(before)
      found = f(*args, **keywords)
      if after:
        self.end(after)
      return found

    setattr(owner, name, call)

  def phases(self) -> dict[str, list[float]]:
    found, last = {'imports': self._imports}, [0.0, 0.0]
    for phase in PHASES[1:]:
      at = self._ends[phase]
      found[phase], last = [b - a for a, b in zip(last, at)], at
    return found | {'all': self.now()}


def _run(born: float, flags: list[str]) -> None:
  """The command, until its first log row: then JSON of seconds, by phase."""
  clock = _Clock(born)
  builtins.__import__ = clock.importing
  import jax

  from chimera import train
  from chimera.monitor import observers
  from chimera.system import progress

  def heard(event: str, _: float, **__: Any) -> None:
    # The step is the last of all programs.
    if event.endswith('jaxpr_to_mlir_module_duration'):
      clock.end('tracing')
    elif event.endswith('backend_compile_duration'):
      clock.end('compilation')

  def update(*_: Any, **__: Any) -> None:
    clock.end('first cycle')
    sys.stdout.write(json.dumps(clock.phases()))
    sys.stdout.flush()
    os._exit(0)

  jax.monitoring.register_event_duration_secs_listener(heard)
  clock.ends(train, 'newborn', 'preparation', 'state')
  clock.ends(train, 'find_rate', 'observers', 'audition')
  clock.ends(observers.Observers, 'compiling', 'engine')
  progress.Progress.update = update
  sys.argv = ['chimera', *flags]
  runpy.run_module('chimera.main', run_name='__main__')


if __name__ == '__main__':
  _run(float(sys.argv[1]), sys.argv[2:])
