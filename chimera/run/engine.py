"""The compiled step on its devices: what it works on there, and where."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from chimera import step as step_lib
from chimera.clones import specialists
from chimera.clones import state as state_lib
from chimera.school import lessons


def put(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Host arrays (M, ...) onto the devices as (devices, M / devices, ...)."""
  return _put(
    tree, devices, lambda x, n: x.reshape(n, len(x) // n, *x.shape[1:])
  )


def put_shared(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Host arrays onto every device, as (devices, ...)."""
  return _put(tree, devices, lambda x, n: np.broadcast_to(x, (n, *x.shape)))


def _put(tree: Any, devices: Sequence[jax.Device], lay: Callable) -> Any:
  """As the step returns it: else it would compile twice and donate nothing."""
  mesh = jax.sharding.Mesh(np.array(devices), ('devices',))
  spec = jax.sharding.PartitionSpec('devices')
  laid = jax.tree.map(lambda x: lay(np.asarray(x), len(devices)), tree)
  return jax.device_put(laid, jax.sharding.NamedSharding(mesh, spec))


def fetch(tree: Any) -> Any:
  """Device arrays (devices, M / devices, ...) as host arrays (M, ...)."""
  tree = jax.device_get(tree)
  return jax.tree.map(lambda x: np.reshape(x, (-1, *x.shape[2:])), tree)


class Engine:
  """The compiled step, `cycles` a dispatch, and the clones' `state` there."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    spec: state_lib.StepSpec,
    bins: dict[int, np.ndarray],
    paths_NxHxWxC: np.ndarray,
    devices: list[jax.Device],
  ):
    self.cycles = config.train.cycles_per_dispatch
    self._devices = devices
    missions = specialists.create_missions(config, bins)
    self._missions = put(state_lib.stack(missions), devices)
    self._shards = Shards(config, paths_NxHxWxC, devices)
    self._step = step_lib.make_train_step(
      spec, devices, cycles=self.cycles, resident=self._shards.resident
    )

  def place(self, host: state_lib.CloneState, done: int) -> None:
    """Puts the clones on the devices, with the shards of their cycle."""
    self._shard = self._shards.deal(host.school.enrolled_L, done)
    self.state = put(host, self._devices)

  def trace(self) -> jax.stages.Lowered:
    """Traces the step; whoever compiles that hands it back by `use`."""
    return self._step.lower(self.state, self._missions, self._shard)

  def use(self, program: jax.stages.Compiled) -> None:
    """Takes the step as it was compiled."""
    self._step = program

  def dispatch(self) -> tuple[dict[str, jax.Array], Any]:
    """Goes on by its cycles: metrics, and the specialists before the meld."""
    with jax.transfer_guard('disallow'):
      self.state, metrics = self._step(self.state, self._missions, self._shard)
    return metrics, metrics.pop('specialist')

  def deal_if_due(self, done: int) -> None:
    """Other shards, where they rotated or others are enrolled by now."""
    if self._shards.are_due(done, self.cycles):
      enrolled = fetch(self.state.school.enrolled_L)
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
    self._paths = paths_NxHxWxC
    self._devices = devices
    self.resident = paths_NxHxWxC.nbytes <= config.school.resident_mb << 20

  def deal(self, enrolled_MxL: np.ndarray, cycle: int) -> lessons.Shard:
    """The shards from `cycle` on, a function of it and who is enrolled then."""
    shards = lessons.make_shards(
      self._paths,
      enrolled_MxL,
      resident_mb=self._config.school.resident_mb,
      rotating_samples=self._config.school.rotating_samples,
      rotation=cycle // self._config.school.rotate_every,
      seed=self._config.seed,
    )
    if self.resident:
      return put_shared(shards[0], self._devices)
    return put(state_lib.stack(shards), self._devices)

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
    return bool(enrols or cycle // c.rotate_every != before // c.rotate_every)


def choose_devices(count: int, clones: int) -> list[jax.Device]:
  """The first `count` devices; of 0, the most that divide the clones."""
  there = jax.local_devices()
  fit = [n for n in range(1, len(there) + 1) if clones % n == 0]
  if count not in (0, *fit):
    raise ValueError(
      f'devices must be one of {", ".join(map(str, fit))}, for {clones} clones '
      f'on at most {len(there)}, got devices = {count}: fix --config.devices '
      '(0 chooses).'
    )
  return there[: count or fit[-1]]
