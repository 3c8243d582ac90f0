"""The compiled step on its devices: what it works on there, and where."""

import collections
from collections.abc import Callable, Sequence
import concurrent.futures
import contextlib
import functools
import glob
import importlib.util
import os
from typing import Any, NamedTuple

from absl import logging
import jax
import ml_collections
import numpy as np

from chimera import step as step_lib
from chimera.clones import specialists
from chimera.clones import state as state_lib
from chimera.school import lessons
from chimera.system import hosts

# How XLA and cuDNN say that there is no memory left.
_FULL = ('RESOURCE_EXHAUSTED', 'DNN library initialization failed')


def put(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Host arrays (M, ...) onto the devices as (devices, M / devices, ...).

  Onto R M devices as (devices, 1, ...), each row R times. Of several hosts'
  devices each host puts what its own shall hold.
  """

  def lay(x: np.ndarray, n: int) -> np.ndarray:
    if n > len(x):
      x = np.repeat(x, n // len(x), axis=0)
    return x.reshape(n, len(x) // n, *x.shape[1:])

  return _put(tree, devices, lay)


def put_shared(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Host arrays onto every device, as (devices, ...)."""
  return _put(tree, devices, lambda x, n: np.broadcast_to(x, (n, *x.shape)))


def _put(tree: Any, devices: Sequence[jax.Device], lay: Callable) -> Any:
  """As the step returns it: else it would compile twice and donate nothing."""
  here = [i for i, d in enumerate(devices) if d in local(devices)]
  mesh = jax.sharding.Mesh(np.array(local(devices)), ('devices',))
  spec = jax.sharding.PartitionSpec('devices')
  laid = jax.tree.map(
    lambda x: lay(np.asarray(x), len(devices))[here[0] : here[-1] + 1], tree
  )
  return jax.device_put(laid, jax.sharding.NamedSharding(mesh, spec))


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
  """Those of this host."""
  return [d for d in devices if d.process_index == jax.process_index()]


def fetch(tree: Any, replicas: int = 1, team: hosts.Team | None = None) -> Any:
  """Device arrays (devices, M / devices, ...) as host arrays (M, ...).

  Of a clone's replicas the first one's; of a team the devices of all hosts.
  """
  with team.answering() if team else contextlib.nullcontext():
    there = jax.device_get(tree)
  return jax.tree.map(
    lambda x: np.reshape(x, (-1, *x.shape[2:]))[::replicas],
    team.gather(there) if team else there,
  )


class Engine:
  """The compiled step, `cycles` a dispatch, and what it works on.

  `state` is the clones', `seen` the metrics of the last cycle, `specialists`
  the clones as they were before its meld. They learn at `rate` times the
  config's learning rate.

  Of several hosts each has an engine. What the first one's does it tells the
  others, whose engines do the same: `follow.py`.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    spec: state_lib.StepSpec,
    bins: dict[int, np.ndarray],
    paths_NxHxWxC: np.ndarray,
    devices: list[jax.Device],
    rate: float = 1.0,
    team: hosts.Team | None = None,
  ):
    self._team = team
    self._tell('open', bins, rate)
    if team:
      paths_NxHxWxC = team.share_rows(paths_NxHxWxC)
    self.cycles = config.train.cycles_per_dispatch
    self._replicas = replicas(devices, len(config.clone_names))
    self._devices = devices
    missions = specialists.create_missions(config, bins, rate)
    self._missions = put(state_lib.stack(missions), devices)
    self._shards = Shards(config, paths_NxHxWxC, devices)
    self._step = step_lib.make_train_step(
      spec,
      tuple(devices),
      cycles=self.cycles,
      resident=self._shards.resident,
      replicas=self._replicas,
    )

  def place(self, host: state_lib.CloneState, done: int) -> None:
    """Puts the clones on the devices, with the shards of their cycle."""
    self._tell('place', host, done)
    self.state = self._shard = None  # no device holds the new beside the old
    self._shard = self._shards.deal(host.school.enrolled_L, done)
    self.state = put(host, self._devices)

  def fetch(self, *names: str) -> list[Any]:
    """Of `state`, `master`, `seen` and `specialists`: host arrays (M, ...)."""
    self._tell('fetch', *names)
    there = {
      'state': self.state,
      'master': self.state.master,
      'seen': self.seen,
      'specialists': self.specialists,
    }
    return self._fetch([there[name] for name in names])

  def _fetch(self, tree: Any) -> Any:
    return fetch(tree, self._replicas, self._team)

  def _tell(self, order: str, *what: Any) -> None:
    if self._team:
      self._team.tell(order, what)

  def trace(self) -> jax.stages.Lowered:
    """Traces the step; whoever compiles that hands it back by `use`."""
    return self._step.lower(self.state, self._missions, self._shard)

  def use(self, program: jax.stages.Compiled) -> None:
    """Takes the step as it was compiled."""
    self._step = program

  def dispatch(self) -> None:
    """Goes on by its cycles."""
    self._tell('dispatch')
    answering = self._team.answering if self._team else contextlib.nullcontext
    with answering(), jax.transfer_guard('disallow'):
      self.state, seen = self._step(self.state, self._missions, self._shard)
      if len(self._devices) > 1 and self._devices[0].platform == 'cpu':
        # XLA starts the 33rd program of a device when the first is done, in an
        # order in which several devices that share a CPU can wait for each
        # other.
        jax.block_until_ready(seen)
    self.specialists = seen.pop('specialist')
    self.seen = seen

  def deal_if_due(self, done: int) -> None:
    """Other shards, where they rotated or others are enrolled by now."""
    if self._shards.are_due(done, self.cycles):
      self._tell('deal_if_due', done)
      enrolled = self._fetch(self.state.school.enrolled_L)
      self._shard = None
      self._shard = self._shards.deal(enrolled, done)


class Shards:
  """Deals each clone what its device holds of the training set."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    paths_NxHxWxC: np.ndarray,
    devices: list[jax.Device],
  ):
    self._config = config
    # No rotation between two dispatches is left out.
    self._every = max(
      config.school.rotate_every, config.train.cycles_per_dispatch
    )
    self._paths = paths_NxHxWxC
    self._devices = devices
    self.resident = paths_NxHxWxC.nbytes <= config.school.resident_mb << 20
    self._reader = concurrent.futures.ThreadPoolExecutor(1)
    # What is dealt, to whom, and what will be in the next rotation.
    self._shard: lessons.Shard | None = None
    self._enrolled: np.ndarray | None = None
    self._next: dict[int, concurrent.futures.Future[list[lessons.Shard]]] = {}

  def deal(self, enrolled_MxL: np.ndarray, cycle: int) -> lessons.Shard:
    """The shards from `cycle` on, a function of it and who is enrolled then.

    Where the same are enrolled as before, only what rotates is put there, and
    it has been read while the devices were at work.
    """
    if self.resident and self._shard is not None:
      return self._shard  # which is the whole set
    rotation = cycle // self._every
    if not self._config.school.enabled:
      enrolled_MxL = enrolled_MxL[:, :0]  # all is drawn from everything
    if self._enrolled is None or (enrolled_MxL != self._enrolled).any():
      shards = lessons.make_shards(
        self._paths,
        enrolled_MxL,
        resident_mb=self._config.school.resident_mb,
        rotating_samples=self._config.school.rotating_samples,
        rotation=rotation,
        seed=self._config.seed,
      )
      self._shard = None
      if self.resident:
        self._shard = put_shared(shards[0], self._devices)
        return self._shard
      if self._enrolled is None:
        self._warn_of_size(shards)
      self._shard = put(state_lib.stack(shards), self._devices)
      self._enrolled = np.array(enrolled_MxL)
    else:
      ahead = self._next.get(rotation)
      read = ahead.result() if ahead else self._rotate(rotation)
      new = put(state_lib.stack(read), self._devices)
      samples = _replace(self._shard.samples_RxHxWxC, new.samples_RxHxWxC)
      self._shard = new._replace(samples_RxHxWxC=samples)
    following = self._reader.submit(self._rotate, rotation + 1)
    self._next = {rotation + 1: following}
    return self._shard

  def _warn_of_size(self, shards: list[lessons.Shard]) -> None:
    """Where the parts that a device holds are more than the whole."""
    count = min(len(shards), len(self._devices))
    held = sum(x.samples_RxHxWxC.nbytes for x in shards) // count
    if held > (whole := self._paths.nbytes):
      logging.warning(
        'The parts of the training set that a device holds, the classes of its '
        'clones among them, take %d MB, all of it takes %d: raise '
        '--config.school.resident_mb to that.',
        *(-(-held >> 20), -(-whole >> 20)),
      )

  def _rotate(self, rotation: int) -> list[lessons.Shard]:
    """Reads what that rotation changes."""
    return lessons.rotate(
      self._paths,
      self._enrolled,
      rotating_samples=self._config.school.rotating_samples,
      rotation=rotation,
      seed=self._config.seed,
    )

  def are_due(self, cycle: int, cycles: int) -> bool:
    """Whether the last `cycles` rotated the shards, or enrolled others.

    As they follow from the state, a run that is resumed between two rotations
    goes on with the shards that it had.
    """
    c = self._config.school
    if self.resident:
      return False
    before = cycle - cycles
    last = range(c.enrol_from, cycle, c.enrol_every)[-1:]
    enrols = c.enabled and c.enrol_from and any(e >= before for e in last)
    return bool(enrols or cycle // self._every != before // self._every)


@functools.partial(jax.jit, donate_argnums=0)
def _replace(old: jax.Array, new: jax.Array) -> jax.Array:
  """Its first rows (devices, clones, rows, ...) by others."""
  return old.at[:, :, : new.shape[2]].set(new)


def replicas(devices: Sequence[jax.Device], clones: int) -> int:
  """How many of the devices are a clone's."""
  return max(1, len(devices) // clones)


def choose_devices(
  count: int, clones: int, batch_size: int
) -> list[jax.Device]:
  """The first `count` devices; of 0, the most that fit.

  It is logged where 0 leaves some of them idle. Of several hosts each has as
  many, and those of one stand side by side.

  Raises:
    ValueError: `check_devices` says so.
  """
  there = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  chosen = check_devices(count, clones, batch_size)
  if not count and chosen < len(there):
    logging.info(
      '%d of %d devices train, the others idle: their number must divide the '
      '%d clones, or be a multiple of it whose factor divides '
      'train.batch_size = %d. --config.devices chooses fewer.',
      *(chosen, len(there), clones, batch_size),
    )
  each, share = (n // jax.process_count() for n in (len(there), chosen))
  return [d for i, d in enumerate(there) if i % each < share]


def check_devices(count: int, clones: int, batch_size: int) -> int:
  """How many devices train, where `count` are asked for, or 0.

  Raises:
    ValueError: JAX cannot have those that are here, or `count` do not fit.
  """
  try:
    there = jax.devices()
  # JAX asserts that the platform that was asked for is there.
  except (RuntimeError, AssertionError) as e:
    raise ValueError(
      f'JAX has no device: {str(e) or "none as JAX_PLATFORMS asks"}. End what '
      'else uses it; JAX_PLATFORMS=cpu trains on the CPU.'
    ) from e
  # Whoever asks for the CPU gets it.
  asked = (jax.config.jax_platforms or '').partition(',')[0]
  if there[0].platform == 'cpu' != asked:
    for accelerator in _ACCELERATORS:
      _check_seen(accelerator)
  each = collections.Counter(d.process_index for d in there)
  if len(set(each.values())) > 1:
    counts = ', '.join(str(each[i]) for i in sorted(each))
    raise ValueError(
      f'Each host must have as many devices as the others, got {counts}: on '
      'CPUs fix it with JAX_NUM_CPU_DEVICES.'
    )
  fit = [
    n
    for n in specialists.fitting_devices(clones, batch_size)
    if n <= len(there) and n % jax.process_count() == 0
  ]
  if not fit:
    raise ValueError(
      f'{clones} clones with batches of {batch_size} cannot be spread evenly '
      f'over {jax.process_count()} hosts: fix --hosts.'
    )
  if count not in (0, *fit):
    raise ValueError(
      f'devices must be one of {", ".join(map(str, fit))}, for {clones} clones '
      f'with batches of {batch_size} on at most {len(there)}, got devices = '
      f'{count}: fix --config.devices (0 chooses).'
    )
  return count or fit[-1]


class _Accelerator(NamedTuple):
  """How one is known to be here: what JAX needs for it, and its files."""

  name: str
  modules: tuple[str, ...]
  files: tuple[str, ...]
  hidden_by: str  # the variable that hides it, where it is empty or -1
  advice: str


_ACCELERATORS = (
  _Accelerator(
    'a TPU',
    ('libtpu',),
    ('/dev/accel[0-9]*', '/dev/vfio/[0-9]*'),
    'TPU_VISIBLE_DEVICES',
    'another program may have taken it: end that',
  ),
  _Accelerator(
    'an NVIDIA GPU',
    ('jax_cuda13_plugin', 'jax_cuda12_plugin'),
    ('/dev/nvidia[0-9]*', '/dev/dxg'),
    'CUDA_VISIBLE_DEVICES',
    'another program may have taken its memory: give each a share by '
    'XLA_PYTHON_CLIENT_MEM_FRACTION=.45',
  ),
)


def _check_seen(accelerator: _Accelerator) -> None:
  """JAX goes on with the CPU where it cannot have one, with a warning."""
  is_hidden = os.environ.get(accelerator.hidden_by) in ('', '-1')
  has_module = any(map(importlib.util.find_spec, accelerator.modules))
  if not is_hidden and has_module and any(map(glob.glob, accelerator.files)):
    raise ValueError(
      f'{accelerator.name} is here, but JAX sees the CPU alone: '
      f'{accelerator.advice}, or see what JAX warns of; JAX_PLATFORMS=cpu '
      'trains on the CPU.'
    )


def explain(error: RuntimeError) -> str | None:
  """In a line what to do about an error of XLA's; None where it is another's.

  Where a second program wants a GPU, the first has three quarters of it.
  """
  said = ' '.join(str(error).split())
  if not any(words in said for words in _FULL):
    return None
  return (
    f'The memory of a device is full ({said[:200]}): where another program '
    'uses it too, give each a share by XLA_PYTHON_CLIENT_MEM_FRACTION=.45; '
    'else lower --config.train.batch_size or --config.optics.chunk.'
  )
