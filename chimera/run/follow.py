"""What a host does that is not the first: what that one says."""

import contextlib
import sys

import ml_collections

from chimera.clones import state as state_lib
from chimera.run import engine as engine_lib
from chimera.system import hosts, preemption


def follow(
  config: ml_collections.ConfigDict, team: hosts.Team, watch: preemption.Watch
) -> int:
  """The exit code, once the first host says that it ends.

  Nothing is read or written here: the training set, the clones and the rate
  are what the first host sends. A signal is passed on to it, and all end by it
  when it has saved; before there is an engine nothing is lost by ending here.
  """
  engine = None
  with contextlib.ExitStack() as deferred:
    while True:
      order, what = team.hear(watch.signum)
      if order == 'end':
        line, code = what
        watch.signum = None  # it was heeded
        if line:
          sys.stderr.write(f'{line}\n')
        return code
      if order == 'open':
        deferred.enter_context(watch.deferred())
        engine = _open(config, team, *what)
      else:
        getattr(engine, order)(*what)


def _open(config, team, bins, rate) -> engine_lib.Engine:
  devices = engine_lib.choose_devices(
    config.devices, len(config.clone_names), config.train.batch_size
  )
  spec = state_lib.create_spec(config)
  return engine_lib.Engine(config, spec, bins, None, devices, rate, team)
