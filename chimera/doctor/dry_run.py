"""A dry run: what a training would take, before anything is trained.

The compiled step is the run's own, and runs a few cycles on path_params of one
random sample: its cost does not depend on what it sees. Nothing is written.
"""

from collections.abc import Iterator, Sequence
import math
import os
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
from chimera.clones import specialists as specialists_lib
from chimera.clones import state as state_lib
from chimera.data import crops as crops_lib
from chimera.data import images
from chimera.optics import modules as optics
from chimera.optics import poincare, stage_1
from chimera.run import checkpoint, engine
from chimera.school import curriculum
from chimera.school import lessons as lessons_lib
from chimera.system import progress

_CYCLES = 5  # dispatches that are measured
_SECONDS = 20.0  # but none is begun after so long
_MIB = 2**20


class Survey(NamedTuple):
  """What a run would find.

  Attributes:
    photographs: of the training crops; None for path_params.
    held_out_photographs: likewise; None also where they were split before.
    unreadable: files that would be skipped.
    samples: N, of the training set.
    held_out: samples.
    grid: (H, W) of the path_params.
  """

  photographs: int | None
  held_out_photographs: int | None
  unreadable: int
  samples: int
  held_out: int
  grid: tuple[int, int]


def rehearse(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Writes to stdout what `train` would take, as far as it is known.

  Raises:
    ValueError: the data cannot be used.
  """
  sys.stdout.write(f'Dry run of {workdir}: nothing is trained or written.\n\n')
  found = survey(config, workdir)
  for name, *lines in _sections(config, workdir, found):
    for line in lines:
      sys.stdout.write(f'{name:12}{line}'.rstrip() + '\n')
      name = ''
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
    sources = {crop.source for crop in data.crops}
    return Survey(
      len(sources) if has_photographs else None,
      None,
      0,
      len(data.paths_NxHxWxC),
      len(data.held_out_paths),
      data.paths_NxHxWxC.shape[1:3],
    )
  if not has_photographs:
    paths, train_N, held_out = stage_1.split_path_params(config)
    return Survey(None, None, 0, len(train_N), len(held_out), paths.shape[1:3])
  logging.info('Looking at the photographs of %s.', c.data.source)
  plan = crops_lib.plan_crops(**config.data)
  return Survey(
    len({crop.source for crop in plan.train}),
    len({crop.source for crop in plan.held_out}),
    len(plan.skipped),
    len(plan.train),
    len(plan.held_out),
    (c.data.image_size // c.optics.cell,) * 2,
  )


def drawn(
  bins: dict[int, list[int]],
  lessons: Sequence[tuple[int, ...]],
  *,
  batch_size: int,
  mix: float,
) -> list[float]:
  """Samples of each bin that all clones together draw a cycle, on average.

  Args:
    bins: the curriculum.
    lessons: bins of each clone.
    batch_size: B, a clone.
    mix: round(mix * B) of them come from everything, the rest from the lesson.
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
  """Bytes that the compiled step holds on each device.

  Args:
    compiled: `jit(f).lower(...).compile()`, its state donated.
    shard: the resident training set, on the devices.
    devices: how many.
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


def _sections(
  config: ml_collections.ConfigDict, workdir: str, found: Survey
) -> Iterator[tuple[str, ...]]:
  """(title, line, ...), the quick ones first."""
  c = config
  yield ('Data', *_data(config, found))
  spec = state_lib.create_spec(config)
  yield ('Tokens', *_tokens(config, spec.tokenizer.codes, found.grid))
  # The sizes of the bins follow from the number of samples alone.
  bins = curriculum.bin_samples(np.arange(found.samples, dtype=np.float32))
  yield ('Lessons', *_lessons(config, spec, bins))
  host = state_lib.stack(state_lib.create_states(c, spec, bins, found.grid))
  yield ('Parameters', *_parameters(config, host))
  devices = engine.choose_devices(c.devices, len(c.clone_names))
  shards = engine.Shards(config, _stand_ins(found), devices)
  shard = shards.deal(host.school.enrolled_L, 0)
  missions = engine.put(
    state_lib.stack(specialists_lib.create_missions(c, bins)), devices
  )
  state = engine.put(host, devices)
  logging.info('Compiling the step for %d device(s).', len(devices))
  start = time.perf_counter()
  compiled = (
    step_lib.make_train_step(
      spec,
      devices,
      cycles=c.train.cycles_per_dispatch,
      resident=shards.resident,
    )
    .lower(state, missions, shard)
    .compile()
  )
  compile_seconds = time.perf_counter() - start
  parts = memory(compiled, shard, len(devices))
  yield ('Memory', *_memory(config, parts, devices))
  seconds = []
  while len(seconds) < _CYCLES + 1 and sum(seconds) < _SECONDS:
    start = time.perf_counter()
    state, _ = compiled(state, missions, shard)
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - start)
  # The first one still fetches and places.
  seconds = seconds[1:] or seconds
  first = checkpoint.open_steps(c, workdir).latest() or 0
  yield ('Time', *_time(config, compile_seconds, seconds, first))
  yield ('Start', _start(config, first))


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
  of = ''
  if found.held_out_photographs is not None:
    of = f' from {found.held_out_photographs} others'
  yield f'{found.held_out} crops{of} held out'
  if found.unreadable:
    yield f'{found.unreadable} files are not readable images'


def _tokens(
  config: ml_collections.ConfigDict, codes: int, grid: tuple[int, int]
) -> Iterator[str]:
  c = config
  h, w = (n // c.model.downsample for n in grid)
  bits = h * w * math.log2(codes)
  yield (
    f'{grid[0]}x{grid[1]} path_params -> {h}x{w} = {h * w} tokens of '
    f'{codes} codes'
  )
  rate = f'{bits:.0f} bits a sample'
  if not images.is_path_params(c.data.source):
    rate += f', {bits / c.data.image_size**2:.3f} a pixel'
  yield rate


def _lessons(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  bins: dict[int, list[int]],
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
    of = [
      name
      for name, lesson in zip(c.clone_names, lessons)
      if b in lesson and c.school.enabled
    ]
    each = mean * c.train.cycles / len(bins[b])
    yield (
      f'{b:3}  {len(bins[b]):7}  {mean:13.2f}  {each:11.1f}  '
      f'{", ".join(of) or "-"}'
    )
  who = [name for name in c.clone_names if c.specialists[name].enrols]
  if spec.school.enrol_from and who:
    yield (
      f'from cycle {spec.school.enrol_from} on, by varentropy, others are '
      f'given to {", ".join(who)}'
    )


def _parameters(
  config: ml_collections.ConfigDict, host: state_lib.CloneState
) -> Iterator[str]:
  c = config
  clones = len(c.clone_names)
  yield f'tokenizer {_count(host.master.params) // clones:,}'
  yield f'critic    {_count(host.critic.params) // clones:,}, one a clone'
  if not images.is_path_params(c.data.source):
    model = optics.Optics(
      cell=c.optics.cell, width=c.optics.width, radius=c.optics.radius
    )
    side = c.data.image_size
    variables = jax.eval_shape(
      model.init, jax.random.key(0), jnp.zeros((1, side, side, 3))
    )
    yield f'optics    {_count(variables):,}'


def _count(tree: Any) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _memory(
  config: ml_collections.ConfigDict,
  parts: dict[str, int],
  devices: list[jax.Device],
) -> Iterator[str]:
  n = len(devices)
  yield (
    f'{n} {devices[0].device_kind} device(s), {len(config.clone_names) // n} '
    'clone(s) on each, which holds'
  )
  for name, size in parts.items():
    yield f'{name:12} {size / _MIB:9,.0f} MiB'
  if limit := (devices[0].memory_stats() or {}).get('bytes_limit'):
    yield f'{"of":12} {limit / _MIB:9,.0f} MiB'


def _time(
  config: ml_collections.ConfigDict,
  compile_seconds: float,
  seconds: list[float],
  first: int,
) -> Iterator[str]:
  n = config.train.cycles_per_dispatch
  cycle = statistics.median(seconds) / n
  yield f'compiled in {progress.format_seconds(compile_seconds)}'
  yield f'{cycle:.3g} s a cycle, the median of {len(seconds)} x {n} cycles'
  left = max(config.train.cycles - first, 0)
  yield (
    f'{left} cycles: about {progress.format_seconds(left * cycle)}, '
    'without stage 1 and evaluations'
  )


def _start(config: ml_collections.ConfigDict, first: int) -> str:
  if first:
    return f'resumes from cycle {first} of {config.train.cycles}'
  return f'from {config.init_from}' if config.init_from else 'newborn'
