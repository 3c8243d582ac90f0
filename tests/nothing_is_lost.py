"""Kills, signals, flipped bits and full disks, against runs of the real thing.

  python -m tests.nothing_is_lost kills=200     kill -9, anywhere
  python -m tests.nothing_is_lost cuts          N, kill, N equals 2N
  python -m tests.nothing_is_lost twins         same seed, same bits
  python -m tests.nothing_is_lost signals=20    SIGTERM, anywhere
  python -m tests.nothing_is_lost flips=200     damaged files
  python -m tests.nothing_is_lost disk          full, limited, read-only
  python -m tests.nothing_is_lost soak=2000     all at once (soak.py)

Or several of them. Each prints what it did; the exit code is 0 if nothing was
lost. A run is `chimera.main` on tests/tiny.py, in a process forked from this
one once all is imported (or a fresh one); it says by a pipe what it is at.
"""

import argparse
import collections
import contextlib
import functools
import json
import logging as std_logging
import os
import pathlib
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import jax

from chimera.monitor import writers
from chimera.run import checkpoint
from chimera.run import steps as steps_lib
from tests import xla

ROOT = pathlib.Path(__file__).parent.parent
PATIENCE = 300.0  # seconds that a run may be silent for


class Run:
  """A run in a process of its own, and what it has said so far."""

  def __init__(
    self, workdir, flags, *, fresh=False, limit=None, cache=None, log=None
  ):
    self.workdir = pathlib.Path(workdir)
    self.said = []  # (word, cycle)
    self._rest = b''
    self._open = True
    self._ours, theirs = os.pipe()
    self.log = log or self.workdir.with_suffix('.log')
    argv = [
      'chimera',
      f'--config={ROOT / "tests" / "tiny.py"}',
      f'--workdir={workdir}',
      *(f'--config.{key}={value}' for key, value in flags.items()),
    ]
    sys.stdout.flush()
    if fresh:
      env = {'JAX_COMPILATION_CACHE_DIR': cache} if cache else {}
      with open(self.log, 'ab') as log:
        self._child = subprocess.Popen(
          [sys.executable, '-m', 'tests.nothing_is_lost', 'run', '--']
          + [json.dumps([theirs, limit, argv])],
          pass_fds=[theirs],
          cwd=ROOT,
          env=os.environ | env,
          stdout=subprocess.DEVNULL,
          stderr=log,
        )
      self.pid = self._child.pid
    else:
      self.pid = os.fork()
      if not self.pid:
        os.close(self._ours)
        with open(self.log, 'ab') as log:
          os.dup2(log.fileno(), 1)
          os.dup2(log.fileno(), 2)
        code = 1
        try:
          if cache:
            import jax

            jax.config.update('jax_compilation_cache_dir', cache)
          code = run(theirs, limit, argv)
        finally:
          sys.stderr.flush()
          os._exit(code)
    os.close(theirs)

  def listen(self, seconds):
    """Takes what is said within that time; False once it is dead."""
    if not self._open:
      return False
    if select.select([self._ours], [], [], seconds)[0]:
      data = os.read(self._ours, 1 << 16)
      if not data:
        os.close(self._ours)
        self._open = False
        return False
      *lines, self._rest = (self._rest + data).split(b'\n')
      self.said += [(w.decode(), int(n)) for w, n in map(bytes.split, lines)]
    return True

  def wait_for(self, word, count=1):
    """Whether it came to say so `count` times."""
    deadline = time.monotonic() + PATIENCE
    while len(self.cycles(word)) < count:
      if not self.listen(1.0):
        return False
      check(time.monotonic() < deadline, f'{word} never came: {self.said[-5:]}')
    return True

  def cycles(self, word):
    return [n for w, n in self.said if w == word]

  def send(self, signum):
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, signum)

  def end(self):
    """The exit code, negative for the signal that killed it."""
    while self.listen(1.0):
      pass
    return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

  def is_saving(self):
    return len(self.cycles('saving')) > len(self.cycles('saved'))

  def committed(self):
    """The newest whole step, as the files stand; 0 is none."""
    # Orbax would start threads, and with threads nothing can be forked.
    folders = (self.workdir / 'checkpoints').glob('[0-9]*')
    steps = [int(p.name) for p in folders if steps_lib._verify(p)]
    return max(steps, default=0)


def run(fd, limit, argv):
  """What the run does: chimera.main, saying what it is at."""
  from chimera import main
  from chimera import step as step_lib
  from chimera.evaluation import exam

  def say(word, cycle=0):
    try:
      os.write(fd, f'{word} {cycle}\n'.encode())
    except BrokenPipeError:
      os._exit(1)  # nobody is left who would stop it

  save, commit = steps_lib.Steps.save, steps_lib.Steps._commit
  restore = steps_lib.Steps.restore
  make_step, examine = step_lib.make_train_step, exam.examine
  at = [0]

  def loud_save(self, step, *args, **kwargs):
    self.has_failed()  # the last one is not limited
    is_short = step in (limit or {}).get('short', ())
    if is_short:
      # Past it the kernel refuses to write, as where a disk is full.
      most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
      resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    say('saving', step)
    try:
      save(self, step, *args, **kwargs)
    finally:
      if is_short:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

  def lossy_save(self, folder, *args, **kwargs):
    orbax_save(self, folder, *args, **kwargs)
    if int(folder.name) in (limit or {}).get('dropped', ()):
      # As a file system that drops what is written.
      files = [path for path in folder.rglob('d/*') if path.is_file()]
      largest = max(files, key=lambda path: path.stat().st_size)
      largest.write_bytes(bytes(largest.stat().st_size))

  def loud_commit(self, folder, *args):
    commit(self, folder, *args)
    say('saved', int(folder.name))

  def loud_restore(self, target):
    restored = restore(self, target)
    at[0] = restored[0] if restored else 0
    say('resumed', at[0])
    return restored

  def loud_make_step(*args, **kwargs):
    step = make_step(*args, **kwargs)
    say('compiling', at[0])

    def loud_step(*args):
      done = step(*args)
      at[0] += kwargs['cycles']
      say('stepped', at[0])
      return done

    return loud_step

  def loud_examine(*args, **keywords):
    say('evaluating', at[0])
    return examine(*args, **keywords)

  orbax_save = steps_lib.ocp.Checkpointer.save
  steps_lib.ocp.Checkpointer.save = lossy_save
  steps_lib.Steps.save = loud_save
  steps_lib.Steps._commit = loud_commit
  steps_lib.Steps.restore = loud_restore
  step_lib.make_train_step = loud_make_step
  exam.examine = loud_examine
  return main.main(argv)


def check(holds, what):
  if not holds:
    raise SystemExit(f'LOST: {what}')


def flags(home, **changes):
  """Of a run of milliseconds a cycle, that melds and re-enrols as it goes."""
  return {
    'data.source': home.parent / 'source.npy',
    'data.held_out_count': 20,
    'devices': 1,
    'eval.batch_size': 20,
    'eval.preview': 2,
    'meld.every': 3,
    'meld.sick_cycles': 2,
    'school.enrol_from': 4,
    'school.enrol_every': 4,
    'school.resident_mb': 0,
    'school.rotating_samples': 24,
    'school.rotate_every': 5,
    'train.log_every': 2,
    'train.checkpoint_every': 4,
    'train.eval_every': 1000,
    'train.cycles': 99999,
    'train.schedule': 'constant',  # so that all compile to the same step
    **{key.replace('__', '.'): value for key, value in changes.items()},
  }


def _melded(cycles):
  """As many, and where that ends between two melds, to the later one."""
  return -(-cycles // 3) * 3


def kills(home, count, rng):
  """More than half of them between a save's first byte and its commit."""
  setting = flags(home, train__eval_every=20)
  save = life(home.parent)
  workdir = home / 'killed'
  expected, tally = 0, collections.Counter()
  for i in range(count):
    fresh = i % 20 == 10  # one in twenty with its imports
    run, start = Run(workdir, setting, fresh=fresh), time.monotonic()
    if not i:
      check(run.wait_for('stepped'), tail(run))
      first_step = time.monotonic() - start
      print(
        f'a life: {first_step:.1f} s to its first step, then {save * 1000:.0f} '
        'ms a save',
        flush=True,
      )
    # Three of five in a save; where that is over too soon, in the next one.
    saves = rng.randint(1, 3) if i % 5 < 3 else 0
    while True:
      if saves:
        check(run.wait_for('saving', saves), tail(run))
        stop = time.monotonic() + rng.uniform(0, save)
      else:
        stop = time.monotonic() + rng.uniform(0, first_step + 1.5)
      while (left := stop - time.monotonic()) > 0:
        check(run.listen(left), tail(run))
      run.listen(0)
      if not saves or run.is_saving():
        break
      saves += 1
    run.send(signal.SIGKILL)
    check(run.end() == -signal.SIGKILL, tail(run))
    for cycle in run.cycles('resumed'):
      check(cycle == expected, f'went on from {cycle}, not {expected}')
      tally['resumed'] += 1
    tally['in a save'] += run.is_saving()
    tally['before its first step'] += not run.cycles('stepped')
    before, expected = expected, run.committed()
    least = max([before, *run.cycles('saved')])
    check(expected >= least, f'{expected} is there, {least} was committed')
    if (i + 1) % 10 == 0:
      print(f'{i + 1} kills, at cycle {expected}: {dict(tally)}', flush=True)
  run = Run(workdir, setting)
  check(run.wait_for('saved'), tail(run))
  run.send(signal.SIGKILL)
  run.end()
  check(run.cycles('resumed') == [expected], f'not from {expected}')
  last = run.committed()
  # `life` went so far in one go, or this one does.
  whole = home.parent / 'lives' / 'first'
  if not (whole / 'checkpoints' / str(last)).exists():
    whole = until_saved(Run(home / 'whole', setting), last).workdir
  same(whole, workdir, last)
  rows = [
    [row for row in history_of(w) if row[0] <= last] for w in (whole, workdir)
  ]
  check(rows[0] == rows[1], f'the history differs: {rows}')
  print(
    f'{count} kills, {tally["in a save"]} of them in a save, '
    f'{tally["before its first step"]} before a first step: each time from the '
    f'last committed step; cycle {last} bit for bit as never killed, as are '
    f'{len(rows[0])} rows of history'
  )


@functools.cache
def life(home):
  """Seconds for a save, once all is compiled, the evaluation too."""
  workdir = home / 'lives' / 'first'
  workdir.parent.mkdir(exist_ok=True)
  setting = flags(workdir.parent, train__eval_every=20, train__keep=50)
  run = Run(workdir, setting)
  check(run.wait_for('saved', 4), tail(run))
  check(run.wait_for('saving', 5), tail(run))
  start = time.monotonic()
  check(run.wait_for('saved', 5), tail(run))
  run.send(signal.SIGKILL)
  run.end()
  return time.monotonic() - start


def cuts(home, count, rng):
  """2N cycles equal N cycles, kill, N cycles, wherever the cut is."""
  setting = flags(
    home,
    train__checkpoint_every=1,
    train__eval_every=6,
    train__cycles=18,
    train__keep=50,
  )
  whole = until_saved(Run(home / 'uncut', setting), 18)
  places = (
    ('before a meld', 'saved', 2),
    ('after a meld', 'saved', 3),
    ('before a re-enrolment', 'saved', 8),
    ('after a re-enrolment', 'saved', 9),
    ('in an evaluation', 'evaluating', 6),
    ('after an evaluation', 'saved', 6),
  )
  for i, (name, word, cycle) in enumerate(places[:count]):
    workdir = home / f'cut{i}'
    run = Run(workdir, setting)
    while cycle not in run.cycles(word):
      check(run.listen(PATIENCE), tail(run))
    run.send(signal.SIGKILL)
    run.end()
    at = run.committed()
    run = until_saved(Run(workdir, setting), 18)
    check(run.cycles('resumed') == [at], f'from {run.cycles("resumed")}')
    arrays = same(whole.workdir, workdir, 18)
    rows = [history_of(w) for w in (whole.workdir, workdir)]
    check(rows[0] == rows[1], f'the history differs after a cut {name}')
    print(f'cut {name} (cycle {at}): {arrays} arrays and the history the same')


def until_saved(run, cycle):
  """Lets it run so far, and not on to its report."""
  while cycle not in run.cycles('saved'):
    check(run.listen(PATIENCE), tail(run))
  run.send(signal.SIGKILL)
  run.end()
  return run


def twins(home, count, rng):
  """Two processes, one seed."""
  cycles = _melded(count)
  setting = flags(
    home,
    train__cycles=cycles,
    train__log_every=1,
    train__checkpoint_every=1000,
  )
  both = [Run(home / f'twin{i}', setting) for i in range(2)]
  for run in both:
    until_saved(run, cycles)
  rows = [history_of(run.workdir) for run in both]
  check(rows[0] == rows[1], 'the twins differ')
  losses = [
    float(row[1][c]['loss/base']).hex()
    for row in rows[0][:cycles]
    for c in sorted(row[1])
  ]
  print(
    f'{cycles} cycles, {len(losses)} losses the same, the last {losses[-1]}'
  )
  print(f'{same(both[0].workdir, both[1].workdir, cycles)} arrays the same')


def signals(home, count, rng):
  """SIGTERM at each kind of moment in turn."""
  setting = flags(home, train__eval_every=6)
  moments = ('compiling', 'stepped', 'melding', 'saving', 'evaluating')
  life(home.parent)
  slowest, lost_most, expected = 0.0, 0, 0
  for i in range(count):
    moment = moments[i % len(moments)]
    # Compiled anew, it takes its time; one of either is all its own.
    cache = str(home / f'cache{i}') if moment == 'compiling' else None
    run = Run(home / 'stopped', setting, fresh=i in (5, 6), cache=cache)
    if moment == 'melding':
      check(run.wait_for('stepped'), tail(run))
      # The next step melds.
      while run.cycles('stepped')[-1] % 3 != 2:
        check(run.listen(PATIENCE), tail(run))
    else:
      check(run.wait_for(moment), tail(run))
    time.sleep(rng.uniform(0, 1.0 if moment == 'compiling' else 0.02))
    run.listen(0)
    start = time.monotonic()
    run.send(signal.SIGTERM)
    code = run.end()
    seconds = time.monotonic() - start
    check(code == 143, f'exit code {code} while {moment}: {tail(run)}')
    check(seconds < 10, f'{seconds:.1f} s while {moment}')
    check(run.cycles('resumed') in ([expected], []), f'not from {expected}')
    before, expected = expected, run.committed()
    done = max([before, *run.cycles('stepped')])
    lost = done - expected
    check(lost <= 1, f'{lost} dispatches lost while {moment}')
    slowest, lost_most = max(slowest, seconds), max(lost_most, lost)
    print(
      f'{moment}: exit code 143 after {seconds:.2f} s, cycle {expected} of '
      f'{done} saved',
      flush=True,
    )
  print(
    f'{count} signals: the slowest {slowest:.2f} s, at most {lost_most} '
    'dispatches lost'
  )


def flips(home, count, rng):
  """A damage at a time, over everything that is read again."""
  workdir, setting = limited(home.parent)
  forked(lambda: _flips(workdir, setting, count, rng))


def _flips(workdir, setting, count, rng):
  from chimera import main, train
  from chimera.optics import stage_1
  from chimera.tokenizer import export

  _, job = main.parse(
    ['chimera', f'--config={ROOT / "tests" / "tiny.py"}']
    + [f'--config.{k}={v}' for k, v in setting.items()]
  )
  config = job.config
  data = stage_1.prepare(config, str(workdir))
  bins = train.prepare_curriculum(config, str(workdir), data)
  _, target = train.newborn(config, data, bins)
  checkpoints = checkpoint.open_steps(config, str(workdir))
  check(checkpoints.steps() == [4, 12], checkpoints.steps())
  lines = []
  handler = std_logging.Handler(std_logging.WARNING)
  handler.emit = lambda record: lines.append(record.getMessage())
  std_logging.getLogger('absl').addHandler(handler)

  def restores():
    lines.clear()
    step, *_ = checkpoints.restore(checkpoint.saved(target))
    return step == 4 and len(lines) <= 1 and '\n' not in ''.join(lines)

  def refuses(read):
    def refused():
      lines.clear()
      try:
        read()
      except ValueError as e:
        return '\n' not in str(e)
      # What a finished stage 1 was made of does not bind it.
      return [line[:19] for line in lines] == ['Whether the sources']

    return refused

  readers = {
    'checkpoints/12': restores,
    'latents': refuses(lambda: stage_1.prepare(config, str(workdir))),
    'curriculum': refuses(
      lambda: train.prepare_curriculum(config, str(workdir), data)
    ),
    'tokenizer': refuses(lambda: export.load(workdir / 'tokenizer')),
  }
  files = {
    'checkpoints/12': sorted((workdir / 'checkpoints' / '12').rglob('*')),
    'latents': [
      workdir / 'latents.npy',
      *sorted((workdir / 'optics').iterdir()),
    ],
    'curriculum': sorted(workdir.glob('curriculum_bins_*')),
    'tokenizer': sorted((workdir / 'tokenizer').iterdir()),
  }
  files = {k: [p for p in paths if p.is_file()] for k, paths in files.items()}
  tally = collections.Counter()
  many = [('flip', count), ('cut', count // 4), ('deletion', count // 20)]
  for kind, times in many:
    for i in range(times):
      place = list(readers)[i % len(readers)]
      path = rng.choice([p for p in files[place] if p.stat().st_size])
      whole = path.read_bytes()
      # A curriculum that is not there is made anew: nothing is lost by it.
      if kind == 'deletion' and place == 'curriculum':
        path = workdir / f'curriculum_bins_{config.basename}.json'
        whole = path.read_bytes()
      if kind == 'deletion' and path.name == 'latents.npy':
        path = workdir / 'optics' / 'held_out.npz'
        whole = path.read_bytes()
      while True:
        broken = bytearray(whole)
        at = rng.randrange(len(whole))
        if kind == 'flip':
          broken[at] ^= 1 << rng.randrange(8)
        else:
          broken = broken[:at]
        if path.suffix != '.json' or not means_the_same(broken, whole):
          break
        tally['another blank, drawn again'] += 1
      path.unlink() if kind == 'deletion' else path.write_bytes(broken)
      check(readers[place](), f'{kind} in {path} at byte {at} passed')
      path.write_bytes(whole)
      tally[f'{kind} in {place}'] += 1
  lines.clear()
  check(
    checkpoints.restore(checkpoint.saved(target))[0] == 12 and not lines,
    'not fixed',
  )
  for what, times in sorted(tally.items()):
    print(f'{times:4d} {what}')
  print(f'all {sum(n for _, n in many)} noticed, in one line each')


def means_the_same(a, b):
  """Whether JSON says the same in other characters."""
  try:
    return json.loads(bytes(a)) == json.loads(b)
  except ValueError:
    return False


def limits(home, count, rng):
  """A checkpoint that cannot be written, or read back, costs itself alone."""
  limited(home.parent)


@functools.cache
def limited(home):
  """(workdir, its flags) of a run that lost checkpoints and ended well."""
  workdir = home / 'lives' / 'limited'
  workdir.parent.mkdir(exist_ok=True)
  setting = flags(workdir.parent, train__cycles=12)
  run = Run(workdir, setting, limit={'short': [8], 'dropped': [12]})
  check(run.end() == 2, tail(run))
  check(said(run, ' Cycles 5 to 8 are not saved') == 1, tail(run))
  check(said(run, 'Error: Cycles 5 to 12 are not saved') == 1, tail(run))
  check(steps(run) == ['4'], steps(run))
  print('a limit on files in mid-checkpoint: one warning, 4 is whole')
  print('a last one that is dropped, twice: exit code 2')

  run = Run(run.workdir, setting, limit={'dropped': [8]})
  check(run.end() == 0, tail(run))
  check(run.cycles('resumed') == [4], run.said)
  check(said(run, '/checkpoints/8 cannot be read back') == 1, tail(run))
  check(steps(run) == ['12', '4'], steps(run))
  print('one that is dropped: one warning, then on from 4 to 12')
  return workdir, setting


def disk(home, count, rng):
  """The same where the disk is full, or can be read only; needs root."""
  limits(home, count, rng)
  setting = flags(home, train__cycles=399)
  for name, fill in (('full', _fill), ('read-only', _lock)):
    place = home / name
    place.mkdir()
    if mounted := not subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', place],
      capture_output=True,
    ).returncode:
      try:
        _on_disk(place, name, fill, setting)
      finally:
        subprocess.run(['umount', '-l', place], check=True)
    if not mounted:
      print(f'{name}: mounting is not permitted here, not tried')


def _on_disk(place, name, fill, setting):
  run = Run(place / 'run', setting, log=place.with_suffix('.log'))
  check(run.wait_for('saved', 2), tail(run))
  let_go = fill(place)
  before = len(run.cycles('stepped'))
  check(run.wait_for('stepped', before + 30), tail(run))
  at = run.committed()
  let_go()
  count = len(run.cycles('saved'))
  check(run.wait_for('saved', count + 2), tail(run))
  run.send(signal.SIGTERM)
  check(run.end() == 143, tail(run))
  check(said(run, 'are not saved') > 0, tail(run))
  check(said(run, 'Traceback') == 0, tail(run))
  check(run.committed() == max(run.cycles('stepped')), steps(run))
  print(
    f'{name}: {said(run, "are not saved")} warnings, {at} whole meanwhile, '
    f'the run went on, {run.committed()} saved in the end'
  )


def _fill(place):
  path = place / 'filler'
  with open(path, 'wb', buffering=0) as f, contextlib.suppress(OSError):
    while True:
      f.write(bytes(1 << 12))
  return path.unlink


def _lock(place):
  # Over itself: it may be busy, and what is open stays so.
  for how in (['--bind', place, place], ['-o', 'remount,bind,ro', place]):
    subprocess.run(['mount', *how], check=True)
  return lambda: subprocess.run(['umount', '-l', place], check=True)


def soak(home, count, rng):
  """All at once."""
  from tests import soak

  setting = flags(
    home,
    train__cycles=_melded(count),
    train__checkpoint_every=8,
    train__eval_every=100,
    train__keep=3,
    train__log_every=5,
    train__rollbacks=count,
  )
  lost = soak.soak(home / 'soaked', setting, rng)
  check(not lost, '; '.join(lost))


def steps(run):
  return sorted(os.listdir(run.workdir / 'checkpoints'))


def said(run, text):
  return run.log.read_text().count(text)


def tail(run):
  return f'{run.said[-4:]} {run.log.read_text()[-1500:]}'


def history_of(workdir):
  """What was seen, but for what takes its time."""
  rows = []
  for line in (workdir / 'history.jsonl').read_text().splitlines():
    row = json.loads(line)
    master = {k: v for k, v in row['master'].items() if 'perf/' not in k}
    rows.append((row['cycle'], row['clones'], master))
  return rows


def same(a, b, step):
  """How many arrays two checkpoints hold, bit for bit the same."""
  bodies = [steps_lib._verify(w / 'checkpoints' / str(step)) for w in (a, b)]
  check(all(bodies), f'step {step} is not whole')
  # A digest is of a leaf's bytes; its kind is dtype and shape.
  for key in ('kinds', 'leaves'):
    check(bodies[0][key] == bodies[1][key], f'{a} and {b} differ at {step}')
  return len(bodies[0]['leaves'])


def forked(job):
  """Runs what needs JAX where it can be forked from no longer."""
  sys.stdout.flush()
  pid = os.fork()
  if not pid:
    code = 1
    try:
      job()
      code = 0
    except SystemExit as e:
      print(e)
    finally:
      if code:
        traceback.print_exc()
      sys.stdout.flush()
      os._exit(code)
  check(not os.waitpid(pid, 0)[1], 'see above')


JOBS = {
  f.__name__: f
  for f in (kills, cuts, twins, signals, flips, limits, disk, soak)
}
COUNTS = {
  'kills': 200,
  'cuts': 6,
  'twins': 100,
  'signals': 20,
  'flips': 200,
  'soak': 2000,
}


def main():
  if sys.argv[1:3] == ['run', '--']:
    sys.exit(run(*json.loads(sys.argv[3])))
  # What counts is that it is compiled soon, and once.
  os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 '
    f'--xla_llvm_disable_expensive_passes=true {xla.SOONER}',
  )
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('jobs', nargs='+', metavar='JOB[=COUNT]', type=_job)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  writers.silence_tensorflow()
  # Whatever a run imports, so that its forks have it.
  from clu import asynclib, metric_writers  # noqa: F401
  import matplotlib.figure  # noqa: F401
  import numpy as np
  import tensorflow as tf  # noqa: F401

  from tests import tiny

  with tempfile.TemporaryDirectory(prefix='nothing-is-lost-') as home:
    home = pathlib.Path(home)
    jax.config.update(
      'jax_compilation_cache_dir',
      os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(home / 'cache')),
    )
    np.save(home / 'source.npy', tiny.bins_and_paths()[1])
    for name, count in args.jobs:
      start = time.monotonic()
      place = home / name
      place.mkdir()
      JOBS[name](place, count, random.Random(args.seed))
      print(f'{name}: {time.monotonic() - start:.0f} s', flush=True)


def _job(text):
  name, _, count = text.partition('=')
  if name not in JOBS:
    raise argparse.ArgumentTypeError(f'one of {", ".join(JOBS)}, got {name}')
  return name, int(count) if count else COUNTS.get(name, 0)


if __name__ == '__main__':
  main()
