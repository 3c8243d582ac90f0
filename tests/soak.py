"""A long run with faults drawn by chance all along.

`python -m tests.nothing_is_lost soak=2000 --seed=0` trains that many
cycles of tests/tiny.py by `chimera.main`. Meanwhile clones are poisoned, three
of them for so long that the run goes back, and the disk is full for some
writers and some cycles. In the first half SIGTERM ends one process after the
other, a bit flips in the newest checkpoint, and the same command goes on. The
second half is one life. Then the run must be complete, its master finite all
the time, and the process no greater than in the first quarter of that life.
"""

import collections
import contextlib
import ctypes
import errno
import gc
import os
import pathlib
import pickle
import random
import re
import signal
import sys
import time
import traceback
import tracemalloc

import jax
import numpy as np
import tensorstore

from chimera import main
from chimera import step as step_lib
from chimera.clones import terms
from chimera.evaluation import exam, sheets
from chimera.monitor import history
from chimera.run import engine, rollbacks
from chimera.run import steps as steps_lib
from chimera.system import disk
from tests import tiny

# By what the greatest measure of the last quarter of the cycles may exceed that
# of the first, beyond what TensorStore is known to keep. Threads come as pools
# need them. Memory: a life that only steps stands to 0.5 MB over 4,000 cycles;
# what is allocated and freed around it scatters the heap by some 20 MB.
MARGIN = {'MB': 32, 'threads': 4, 'files': 4}
POISONS = (np.nan, np.inf, 1e30)
# Chances a cycle.
POISON, DIVERGE, FULL = 1 / 12, 1 / 150, 1 / 12
FULL_CYCLES = 12  # at most in a row
FULL_OF = ('checkpoint', 'digests', 'history', 'preview', 'tensorboard')
LIVES = (8, 25, 80, 250)  # cycles, at least, until SIGTERM
FLIP = 1 / 2  # chance that it finds its newest checkpoint damaged


class Faults:
  """Draws them, and notes what came of them.

  Attributes:
    rng: of all that is drawn.
    tally: how many of each kind there were.
    lost: what must not have been, a line each.
    full: the writers that find no room.
    at: cycles done.
    measures: of this life's process, taken every so many cycles.
    kept: bytes that TensorStore holds of what it saved.
  """

  def __init__(self, rng: random.Random, cycles: int):
    self.rng = rng
    self.tally = collections.Counter()
    self.lost = []
    self.full = set()
    self.at = 0
    self._cycles = cycles

  def begin(self, expected, kept_a_leaf):
    """A life of a process; it goes on from the expected cycle."""
    self.measures = []
    self.kept, self._kept_a_leaf = 0.0, kept_a_leaf
    self._expected = expected
    self._is_diverging = False
    self._signal_at = None
    if expected * 2 < self._cycles:
      self._signal_at = expected + self.rng.choice(LIVES)
    self._moment = self.rng.choice(('stepping', 'saving', 'evaluating'))
    self.full = set()
    self._full_until = 0

  def restored(self, cycle, whole):
    """The run goes on from there, or back to there."""
    expected = max(whole, default=0)
    if self._expected is not None:
      expected, self._expected = self._expected, None
      self.tally['resumed'] += bool(cycle)
    else:
      self.tally['rolled back'] += 1
    if cycle != expected:
      self.lost.append(f'went on from cycle {cycle}, not {expected}')
    self._is_diverging = False
    self.at = cycle

  def save(self, tree):
    self.reach('saving')
    self.kept += self._kept_a_leaf * len(jax.tree.leaves(tree))

  def refuse(self, writer):
    if writer in self.full:
      self.tally[f'no room for {writer}'] += 1
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def reach(self, moment):
    """The run is at it: the place for a signal."""
    if (
      self._signal_at and self.at >= self._signal_at and moment == self._moment
    ):
      self._signal_at = None
      self.tally[f'SIGTERM while {moment}'] += 1
      os.kill(os.getpid(), signal.SIGTERM)

  def before(self, state, mission, devices):
    """What the step is given instead."""
    rng = self.rng
    self.reach('stepping')
    if self.at >= self._full_until:
      self.full = set()
      if rng.random() < FULL:
        self.full = set(rng.sample(FULL_OF, rng.randint(1, len(FULL_OF))))
        self._full_until = self.at + rng.randint(1, FULL_CYCLES)
    self._is_diverging |= rng.random() < DIVERGE
    if self._is_diverging:
      self.tally['cycles without three clones'] += 1
      return state, weigh(mission, [0, 1, 2], np.nan, devices)
    if rng.random() < POISON:
      clones = rng.sample(range(4), rng.randint(1, 2))
      site = rng.choice(('gradients', 'params', 'moments'))
      poison = rng.choice(POISONS)
      self.tally[f'{poison} in {site} of {len(clones)} clone(s)'] += 1
      if site == 'gradients':
        return state, weigh(mission, clones, poison, devices)
      return spoil(state, site, clones, poison, devices), mission
    return state, mission

  def after(self, state):
    self.at += 1
    master = engine.fetch(state.master.params)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(master)):
      self.lost.append(f'the master of cycle {self.at} is not finite')
    if self.at % max(1, self._cycles // 40) == 0:
      self.measures.append(measure(self.at, self.kept))


def weigh(mission, clones, poison, devices):
  """Of the term that reaches a clone's own gradients, and only those."""
  base_MxK = np.array(engine.fetch(mission.pid.base_K))
  base_MxK[clones, terms.TERMS.index('adv')] = poison
  return mission._replace(
    pid=mission.pid._replace(base_K=engine.put(base_MxK, devices))
  )


def spoil(state, site, clones, poison, devices):
  """One number of each clone's network gone bad."""
  host = jax.tree.map(np.array, engine.fetch(state))
  net = host.generator
  vectors = [net.params]
  if site == 'moments':
    vectors = [net.opt_state[0].mu, net.opt_state[0].nu]
  for params_MxP in vectors:
    params_MxP[clones, 1] = poison
  return engine.put(host, devices)


@contextlib.contextmanager
def injected(faults):
  """The product, with the faults between it and the machine."""
  from clu import metric_writers

  make_step, examine = step_lib.make_train_step, exam.examine
  seal, restore = disk.write_sealed, steps_lib.Steps.restore
  save, draw = steps_lib.Steps.save, sheets.save
  writer = metric_writers.SummaryWriter
  scalars = writer.write_scalars

  def faulty_make_step(spec, devices, **keywords):
    step = make_step(spec, devices, **keywords)

    def faulty_step(state, mission, shard):
      with jax.transfer_guard('allow'):
        state, mission = faults.before(state, mission, devices)
        state, metrics = step(state, mission, shard)
        faults.after(state)
      return state, metrics

    return faulty_step

  def faulty_examine(*args, **keywords):
    faults.reach('evaluating')
    return examine(*args, **keywords)

  def faulty_save(self, step, tree, *args, **keywords):
    faults.save(tree)
    orbax = self._orbax.save

    def faulty_orbax(*args, **keywords):
      orbax(*args, **keywords)
      faults.refuse('checkpoint')

    self._orbax.save = faulty_orbax
    try:
      save(self, step, tree, *args, **keywords)
    finally:
      self._orbax.save = orbax

  def faulty_seal(path, value):
    if path.name == 'digests.json':
      faults.refuse('digests')
    seal(path, value)

  def faulty_restore(self, target):
    restored = restore(self, target)
    faults.restored(
      restored[0] if restored else 0, whole_steps(self._directory)
    )
    return restored

  def faulty_open(path, mode='r', **keywords):
    if mode != 'ab' or 'history' not in faults.full:
      return open(path, mode, **keywords)
    with open(path, mode, **keywords) as f:
      f.write(b'{"cycle": 1')  # as far as there was room
    faults.refuse('history')

  def faulty_draw(*args):
    faults.refuse('preview')
    draw(*args)

  def faulty_scalars(*args):
    faults.refuse('tensorboard')
    scalars(*args)

  patches = (
    (step_lib, 'make_train_step', faulty_make_step),
    (exam, 'examine', faulty_examine),
    (disk, 'write_sealed', faulty_seal),
    (steps_lib.Steps, 'restore', faulty_restore),
    (steps_lib.Steps, 'save', faulty_save),
    (history, 'open', faulty_open),
    (sheets, 'save', faulty_draw),
    (writer, 'write_scalars', faulty_scalars),
  )
  before = [(place, name, vars(place).get(name)) for place, name, _ in patches]
  for place, name, value in patches:
    setattr(place, name, value)
  try:
    yield
  finally:
    for place, name, value in before:
      if value is None:
        delattr(place, name)
      else:
        setattr(place, name, value)


def flip(folder, rng):
  """A bit of a folder."""
  files = [p for p in sorted(folder.rglob('*')) if p.is_file()]
  path = rng.choice([p for p in files if p.stat().st_size])
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)


def whole_steps(checkpoints):
  """The steps that may be gone on from, rising."""
  return sorted(
    int(path.name)
    for path in checkpoints.glob('[0-9]*')
    if path.name.isdecimal() and steps_lib._verify(path)
  )


def kept_a_leaf(path):
  """Bytes that a leaf leaves in memory for good where it is saved.

  Orbax asks `tensorstore.KvStore.Spec.to_json` of each, which keeps a reference
  to every string of its answer (seen in 0.1.86).
  """
  spec = tensorstore.KvStore.Spec({'driver': 'file', 'path': f'{path}/'})
  spec.to_json()
  tracemalloc.start()
  for _ in range(1000):
    spec.to_json()
  gc.collect()
  kept = tracemalloc.get_traced_memory()[0] / 1000
  tracemalloc.stop()
  return kept


def measure(at, kept=0.0):
  """What the process holds, once all that may go has gone; and is known for."""
  gc.collect()
  # What is free, but not given back, is no growth.
  ctypes.CDLL(None).malloc_trim(0)
  status = pathlib.Path('/proc/self/status').read_text()
  return {
    'cycle': at,
    'MB': (int(re.search(r'VmRSS:\s+(\d+)', status)[1]) >> 10)
    - round(kept / 2**20),
    'MB kept by TensorStore': round(kept / 2**20),
    'threads': int(re.search(r'Threads:\s+(\d+)', status)[1]),
    'files': len(os.listdir('/proc/self/fd')),
  }


def shown(found):
  return ', '.join(f'{value} {name}' for name, value in found.items())


def missing(workdir, setting, tally):
  """What a complete run lacks, a line each."""
  cycles, every = setting['train.cycles'], setting['train.log_every']
  names = list(tiny.get_config().clone_names)
  lost = [
    f'{name} is missing'
    for name in (
      *('config.json', 'evaluation.json', 'report.html', 'tokenizer'),
      *('latents.npy', 'manifest.csv'),
      *((rollbacks.NAME,) if tally['rolled back'] else ()),
      *(f'previews/{cycles:07d}.png', f'checkpoints/{cycles}'),
    )
    if not (workdir / name).exists()
  ]
  lost += [
    f'{folder} has no TensorBoard'
    for folder in (workdir, *(workdir / name for name in names))
    if not any(folder.glob('events.out.tfevents.*'))
  ]
  if cycles not in whole_steps(workdir / 'checkpoints'):
    lost.append('the last checkpoint is not whole')
  seen = [row.cycle for row in history.read(str(workdir)) if row.clones]
  if sorted(seen) != seen:
    lost.append('the history is not in order')
  absent = set(range(every, cycles + 1, every)) - set(seen)
  # What is not written when a process ends went with it.
  if len(absent) > tally['no room for history']:
    lost.append(f'the history lacks {sorted(absent)}')
  return lost


def grown(measures):
  """What grew between the first and the last quarter of them, a line each."""
  part = max(1, len(measures) // 4)
  lost = []
  for name, margin in MARGIN.items():
    before = max(m[name] for m in measures[:part])
    after = max(m[name] for m in measures[-part:])
    print(f'{name}: at most {before} in the first quarter, {after} in the last')
    if after > before + margin:
      lost.append(f'{name} grew from {before} to {after}, by over {margin}')
  return lost


def live(faults, argv, workdir, expected):
  """A life in a process of its own: its exit code, and the faults as it left
  them.
  """
  left = workdir.with_suffix('.faults')
  sys.stdout.flush()
  pid = os.fork()
  if not pid:
    code = 1
    try:
      checkpoints = workdir / 'checkpoints' / '1000.orbax-checkpoint-tmp'
      faults.begin(expected, kept_a_leaf(checkpoints))
      with injected(faults):
        code = main.main(argv)
      left.write_bytes(pickle.dumps(faults))
    finally:
      if code == 1:
        traceback.print_exc()
      sys.stderr.flush()
      os._exit(code)
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  return code, pickle.loads(left.read_bytes())


def soak(workdir, setting, rng):
  """Runs it and prints a tally; returns what was lost, a line each."""
  cycles = setting['train.cycles']
  argv = [
    'chimera',
    f'--config={tiny.__file__}',
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in setting.items()),
  ]
  faults, lives, expected, code = Faults(rng, cycles), 0, 0, 143
  start = time.monotonic()
  while code == 143:
    code, faults = live(faults, argv, workdir, expected)
    lives += 1
    last = shown(faults.measures[-1]) if faults.measures else 'none'
    print(f'life {lives}, to cycle {faults.at}, last measure: {last}')
    whole = whole_steps(workdir / 'checkpoints')
    if code == 143 and len(whole) > 1 and faults.rng.random() < FLIP:
      flip(workdir / 'checkpoints' / str(whole.pop()), faults.rng)
      faults.tally['bit flipped in the newest checkpoint'] += 1
    expected = max(whole, default=0)
  lost = faults.lost
  if code:
    lost.append(f'exit code {code} at cycle {faults.at}')
  lost += missing(workdir, setting, faults.tally) + grown(faults.measures)
  for what, times in sorted(faults.tally.items()):
    print(f'{times:5d} {what}')
  for found in faults.measures:
    print(shown(found))
  print(
    f'{cycles} cycles in {lives} lives and {time.monotonic() - start:.0f} s: '
    f'the master always finite, {len(faults.measures)} measures of the last'
  )
  return lost
