"""A dry run: what a training would take, before anything is trained.

The compiled step is the run's own, and runs a few cycles on path_params of one
random sample: its cost does not depend on what it sees. Nothing is written, but
what stage 1 noted of its files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import itertools
import math
import os
import resource
import statistics
import sys
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from chimera import step as step_lib
from chimera.clones import specialists
from chimera.clones import state as state_lib
from chimera.data import crops as crops_lib
from chimera.data import folders, images, skipped
from chimera.monitor import writers
from chimera.optics import modules as optics
from chimera.optics import poincare, stage_1
from chimera.run import audition, checkpoint, engine
from chimera.school import curriculum
from chimera.school import lessons as lessons_lib
from chimera.system import progress

_CYCLES = 5  # dispatches that are measured
_SECONDS = 20.0  # but none is begun after so long
_SAID = 100  # skipped files that are said by name: nothing lists the others


class Survey(NamedTuple):
  """What a run would find."""

  samples: int  # N, of the training set
  held_out: int  # samples
  grid: tuple[int, int]  # (H, W) of the path_params
  photographs: int | None = None  # of the training crops; None for path_params
  held_out_photographs: int | None = None  # likewise; None if split before
  skipped: Mapping[str, str] | None = None  # files, and why
  left_out: Mapping[str, int] | None = None  # what is no image, by kind
  copies: int = 0  # photographs that are near copies of others


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Writes to stdout what `train` would take, as far as it is known.

  Raises:
    ValueError: the data cannot be used.
  """
  c = config
  sys.stdout.write(f'Dry run of {workdir}: nothing is trained or written.\n\n')
  steps = checkpoint.open_steps(c, workdir)
  steps.check()
  found = survey(config, workdir)
  _say('Data', *_data(config, found))
  spec = state_lib.create_spec(config)
  if warning := spec.schedule.warning:
    logging.warning('%s', warning)
  _say('Tokens', *_tokens(config, spec.tokenizer.codes, found.grid))
  # The sizes of the bins follow from the number of samples alone.
  bins = curriculum.bin_samples(np.arange(found.samples, dtype=np.float32))
  _say('Lessons', *_lessons(config, spec, bins))
  host = state_lib.stack(state_lib.create_states(c, spec, bins, found.grid))
  _say('Parameters', *_parameters(config, host))
  clones = len(c.clone_names)
  devices = engine.choose_devices(c.devices, clones, c.train.batch_size)
  replicas = engine.replicas(devices, clones)
  first = steps.latest() or 0
  if not first and audition.images(config):
    _hear(config, spec, host, found, engine.local(devices))
  shards = engine.Shards(config, _stand_ins(found), devices)
  shard = shards.deal(host.school.enrolled_L, 0)
  missions, state = (
    engine.put(x, devices)
    for x in (state_lib.stack(specialists.create_missions(c, bins)), host)
  )
  logging.info('Compiling the step for %d device(s).', len(devices))
  start = time.perf_counter()
  n = c.train.cycles_per_dispatch
  step = step_lib.make_train_step(
    spec,
    tuple(devices),
    cycles=n,
    resident=shards.resident,
    replicas=replicas,
  )
  compiled = step.lower(state, missions, shard).compile()
  compiled_in = progress.format_seconds(time.perf_counter() - start)
  parts = memory(compiled, shard, len(devices))
  if limit := (devices[0].memory_stats() or {}).get('bytes_limit'):
    parts['of'] = limit
  shared = (
    f'{replicas} for each clone'
    if replicas > 1
    else f'{clones // len(devices)} clone(s) on each'
  )
  seconds = []
  while len(seconds) < _CYCLES + 1 and sum(seconds) < _SECONDS:
    start = time.perf_counter()
    state, _ = compiled(state, missions, shard)
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - start)
  seconds = seconds[1:] or seconds  # the first one still fetches and places
  cycle = statistics.median(seconds) / n
  _say(
    'Memory',
    f'{len(devices)} {devices[0].device_kind} device(s), {shared}, which holds',
    *(f'{name:12} {size / 2**20:9,.0f} MiB' for name, size in parts.items()),
    f'{_peak(devices[0])}, without stage 1 and evaluations',
  )
  _say(
    'Time',
    f'compiled in {compiled_in}',
    f'{cycle:.3g} s a cycle, the median of {len(seconds)} x {n} cycles',
    *_left(config, first, cycle),
  )
  _say('Start', _start(config, first))


def _say(title: str, *lines: str) -> None:
  for line in lines:
    sys.stdout.write(f'{title:12}{line}'.rstrip() + '\n')
    title = ''
  sys.stdout.flush()


def survey(config: ml_collections.ConfigDict, workdir: str) -> Survey:
  """Looks at the sources, or at what a workdir has made of them.

  Raises:
    ValueError: the data cannot be used.
  """
  c = config
  has_photographs = not images.is_path_params(c.data.source)
  if os.path.exists(os.path.join(workdir, 'latents.npy')):
    data = stage_1.prepare(config, workdir)
    n, *grid, _ = data.paths_NxHxWxC.shape
    sources = _sources(data.crops) if has_photographs else None
    return Survey(n, len(data.held_out_paths), tuple(grid), sources)
  if not has_photographs:
    paths, train_N, held_out = stage_1.split_path_params(config)
    return Survey(len(train_N), len(held_out), paths.shape[1:3])
  logging.info('Looking at the photographs of %s.', c.data.source)
  plan = crops_lib.plan_crops(**config.data)
  stage_1.check_crops(config, len(plan.train))
  grid = (c.data.image_size // c.optics.cell,) * 2
  sources = map(_sources, (plan.train, plan.held_out))
  found = plan.skipped, plan.left_out, plan.copies
  return Survey(len(plan.train), len(plan.held_out), grid, *sources, *found)


def _sources(crops: Iterable[crops_lib.Crop]) -> int:
  return len({crop.source for crop in crops})


def drawn(
  bins: dict[int, np.ndarray],
  lessons: Sequence[tuple[int, ...]],
  *,
  batch_size: int,
  mix: float,
) -> list[float]:
  """Samples of each bin that all clones together draw a cycle, on average.

  Each clone draws round(mix * batch_size) from everything, and the rest of its
  batch from its lesson, which is some of the bins.
  """
  from_whole = round(mix * batch_size)
  sizes = {b: len(ids) for b, ids in bins.items()}
  whole = sum(sizes.values())
  return [
    len(lessons) * from_whole * sizes[b] / whole
    + sum(
      (batch_size - from_whole) * sizes[b] / sum(sizes[i] for i in lesson)
      for lesson in lessons
      if b in lesson
    )
    for b in sorted(bins)
  ]


def memory(
  compiled: Any, shard: lessons_lib.Shard, devices: int
) -> dict[str, int]:
  """Bytes that the compiled step, its state donated, holds on each device.

  The shard, the resident training set, is spread over all of them.
  """
  m = compiled.memory_analysis()
  resident = sum(x.nbytes for x in jax.tree.leaves(shard)) // devices
  parts = {
    'training set': resident,
    'clones': m.argument_size_in_bytes - resident,
    'outputs': m.output_size_in_bytes - m.alias_size_in_bytes,
    'temporaries': m.temp_size_in_bytes,
  }
  return parts | {'together': sum(parts.values())}


def _hear(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  host: state_lib.CloneState,
  found: Survey,
  devices: Sequence[jax.Device],
) -> list[float]:
  """The losses of one cycle of the audition, for what it holds."""
  logging.info('Trying a cycle of the audition.')
  start_P, paths = host.master.params[0], _stand_ins(found)
  stage = audition.open_stage(config, spec, start_P, paths, devices, cycles=1)
  rates = audition.first_round(config.train.learning_rate, audition.RATES)
  return [loss for loss, _ in stage.play(rates)]


def _peak(device: jax.Device) -> str:
  """What was held at most until now, as it was measured."""
  if size := (device.memory_stats() or {}).get('peak_bytes_in_use'):
    return f'it held at most {size / 2**20:,.0f} MiB'
  writers.load()  # as the run will
  size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  size *= 1 if sys.platform == 'darwin' else 1024
  return f'this process held at most {size / 2**20:,.0f} MiB'


def _stand_ins(found: Survey) -> np.ndarray:
  """N times one random sample, without the memory of N."""
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (*found.grid, 3)).astype(np.float32)
  sample = np.asarray(poincare.denormalize(jnp.asarray(x)))
  return np.broadcast_to(sample, (found.samples, *sample.shape))


def _data(config: ml_collections.ConfigDict, found: Survey) -> Iterator[str]:
  yield config.data.source
  if found.photographs is None:
    yield f'{found.samples} path_params to train on, {found.held_out} held out'
    return
  side = config.data.image_size
  crops = f'{found.samples} crops of {side}x{side}'
  yield f'{crops} from {found.photographs} photographs to train on'
  others = found.held_out_photographs
  of = '' if others is None else f' from {others} others'
  yield f'{found.held_out} crops{of} held out'
  if found.copies:
    yield f'{found.copies} near copies, on the side of what they copy'
  if found.left_out:
    yield f'Left out: {folders.words(found.left_out)}'
  if found.skipped:
    head, *files = skipped.lines(found.skipped, _SAID)
    yield head
    yield from files


def _tokens(
  config: ml_collections.ConfigDict, codes: int, grid: tuple[int, int]
) -> Iterator[str]:
  h, w = (n // config.model.downsample for n in grid)
  bits = h * w * math.log2(codes)
  cells = f'{grid[0]}x{grid[1]} path_params'
  yield f'{cells} -> {h}x{w} = {h * w} tokens of {codes} codes'
  rate = f'{bits:.0f} bits a sample'
  if not images.is_path_params(config.data.source):
    rate += f', {bits / config.data.image_size**2:.3f} a pixel'
  yield rate


def _lessons(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  bins: dict[int, np.ndarray],
) -> Iterator[str]:
  c = config
  lessons = [c.specialists[name].bins for name in c.clone_names]
  means = drawn(bins, lessons, batch_size=spec.batch_size, mix=spec.school.mix)
  yield (
    f'{len(c.clone_names)} clones draw {spec.batch_size} samples a cycle, '
    f'{round(spec.school.mix * spec.batch_size)} of them from everything'
  )
  yield 'bin  samples  drawn a cycle  each in all  lesson of'
  for b, mean in enumerate(means):
    mine = [b in lesson and c.school.enabled for lesson in lessons]
    of = ', '.join(itertools.compress(c.clone_names, mine)) or '-'
    each = mean * c.train.cycles / len(bins[b])
    yield f'{b:3}  {len(bins[b]):7}  {mean:13.2f}  {each:11.1f}  {of}'
  who = ', '.join(k for k in c.clone_names if c.specialists[k].enrols)
  if (first := spec.school.enrol_from) and who:
    yield f'from cycle {first} on, by varentropy, others are given to {who}'


def _parameters(
  config: ml_collections.ConfigDict, host: state_lib.CloneState
) -> Iterator[str]:
  c = config
  clones = len(c.clone_names)
  yield f'tokenizer {_count(host.master.params) // clones:,}'
  yield f'critic    {_count(host.critic.params) // clones:,}, one a clone'
  if not images.is_path_params(c.data.source):
    side, o = c.data.image_size, c.optics
    model = optics.Optics(cell=o.cell, width=o.width, radius=o.radius)
    x = jnp.zeros((1, side, side, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    yield f'optics    {_count(variables):,}'


def _count(tree: Any) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _left(
  config: ml_collections.ConfigDict, first: int, cycle: float
) -> Iterator[str]:
  """What is left to do, and how long that takes by the seconds of a cycle."""
  c = config
  left = max(c.train.cycles - first, 0)
  about = progress.format_seconds(left * cycle)
  yield f'{left} cycles: about {about}, without stage 1 and evaluations'
  if (cost := audition.cycles(c)) and not first:
    about = progress.format_seconds(cost * cycle)
    as_many = f'as {cost} cycles'
    yield f'before them an audition of rates, {as_many}: about {about}'


def _start(config: ml_collections.ConfigDict, first: int) -> str:
  if first:
    return f'resumes from cycle {first} of {config.train.cycles}'
  return f'from {config.init_from}' if config.init_from else 'newborn'
