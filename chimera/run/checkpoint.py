"""Checkpoints: what a run saves, is bound to, and goes on from.

Orbax commits a step atomically, but one flipped bit in it restores without a
word. So `digests.json`, sealed and renamed into place last, holds the SHA-256
of every file and leaf: a step without it is not committed, one that disagrees
with it is not whole, and the newest whole one is restored. It is written once
the step was read back, on a thread, and found to be what it is in memory.
https://orbax.readthedocs.io/en/latest/guides/checkpoint/orbax_checkpoint_101.html
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import json
import logging as std_logging
import math
import os
import pathlib
import shutil
import sys
import time
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from chimera.clones import state as state_lib
from chimera.run import config_json, preflight
from chimera.system import disk, preemption, provenance

_DIGESTS = 'digests.json'
_TEMPORARY = '.orbax-checkpoint-tmp'


class Checkpointer:
  """The checkpoints of a run, and in `extra` what they hold beside the state:

  `config` and `curriculum`, digests of what the run is bound to; `best`, cycle
  and held-out path_l1 of the best evaluation so far; `is_evaluated`, False
  where that of this cycle is still to come; `rows` of the last table, once the
  last cycle is done.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str,
    bins: dict[int, np.ndarray],
  ):
    self._config = config
    self._workdir = workdir
    self._steps = open_steps(config, workdir)
    self._bound = {
      'config': provenance.digest(preflight.binding(config_json.keys(config))),
      'curriculum': provenance.digest(
        {str(k): ids.tolist() for k, ids in bins.items()}
      ),
    }
    self.begin()

  def begin(self) -> None:
    """As a run that has no checkpoint."""
    self.extra: dict[str, Any] = {
      **self._bound,
      'best': {'cycle': None, 'score': None},
      'is_evaluated': True,
      'rows': [],
    }

  def restore(
    self, born: state_lib.CloneState
  ) -> tuple[int, state_lib.CloneState, Any] | None:
    """(cycles done, state, specialists) of the newest whole one, if any."""
    restored = self._steps.restore(saved(born))
    if restored is None:
      return None
    done, tree, extra = restored
    for name, digest in self._bound.items():
      if extra.get(name) != digest:
        raise ValueError(
          f'The checkpoints in {self._workdir} must be of this {name}, and are '
          'of another (a digest differs): give a new --workdir.'
        )
    self.extra = extra
    return done, tree['state'], tree['specialists']

  def evaluated(self, done: int, figures: dict[str, dict[str, float]]) -> None:
    """An evaluation; the best is that of the master's least path_l1."""
    score, best = figures['master']['path_l1'], self.extra['best']['score']
    if score < (math.inf if best is None else best):  # NaN never is
      self.extra['best'] = {'cycle': done, 'score': score}
    self.extra['is_evaluated'] = True

  def is_due(self, done: int) -> bool:
    """Whether a checkpoint is to be made of this cycle."""
    c = self._config
    is_best = c.train.keep_best and self.extra['best']['cycle'] == done
    is_over = done == c.train.cycles
    return is_best or is_over or done % c.train.checkpoint_every == 0

  def save(
    self,
    done: int,
    state: state_lib.CloneState,
    specialists: Any,
    watch: preemption.Watch,
  ) -> None:
    """Saves all that goes on; what cannot be written is tried again later.

    It is read back while the training goes on. Where it cannot be, the next one
    is waited for, and if that cannot be either, or if there is no next one, it
    is an OSError, or Stopped if that is by a signal.
    """
    is_second = self._steps.has_failed()
    there = self._steps.latest() or 0
    is_over = done == self._config.train.cycles
    lost = f'Cycles {there + 1} to {done} are not saved'
    if state.health.sick.any() and not is_over:
      watch.stop(f'{lost}, their clones are sick.')
      logging.warning('%s: their clones are sick.', lost)
      return
    best = self.extra['best']['cycle'] if self._config.train.keep_best else None
    is_last = is_over or watch.signum is not None
    args = done, saved(state, specialists), self.extra, best
    try:
      try:
        self._steps.save(*args, wait=is_second or is_last)
      except UnreadableError as e:
        if is_second:
          raise
        logging.warning('%s It is tried again.', e)
        self._steps.save(*args)
      if watch.signum is not None:
        self._steps.settle()  # what is said to be saved is
    except OSError as e:
      watch.stop(f'{lost}: {e}')
      if is_over or isinstance(e, UnreadableError):
        raise OSError(
          f'{lost}: {e} Make room, or give a --workdir on another disk: the '
          f'same command goes on from cycle {there}.'
        ) from e
      logging.warning('%s: %s The next one is tried.', lost, e)


def restore(
  config: ml_collections.ConfigDict,
  workdir: str,
  born: state_lib.CloneState,
  bins: dict[int, np.ndarray],
) -> tuple[int, state_lib.CloneState, Any]:
  """`Checkpointer.restore`; that there is none is a ValueError too."""
  restored = Checkpointer(config, workdir, bins).restore(born)
  if restored is None:
    raise ValueError(
      f'There must be a trained tokenizer, got none in {workdir}: run '
      '`python -m chimera.main train` with the same flags first.'
    )
  return restored


def saved(
  state: state_lib.CloneState, specialists: Any = None
) -> dict[str, Any]:
  """A checkpoint's tree.

  From the specialists, the clones as they were before the last meld, nothing
  goes on, but they are evaluated; None where but shapes count.
  """
  if specialists is None:
    specialists = state.generator.params
  return {'state': state, 'specialists': specialists}


def open_steps(config: ml_collections.ConfigDict, workdir: str) -> 'Steps':
  """The steps of a run."""
  return Steps(os.path.join(workdir, 'checkpoints'), keep=config.train.keep)


class UnreadableError(OSError):
  """A step that was written is not there, or is not what was to be written."""


class Steps:
  """The steps in one folder, `{directory}/{step}/`; one writer at a time."""

  def __init__(self, directory: str | os.PathLike, keep: int):
    """Opens, and does not yet make, the folder.

    A save leaves the `keep` newest committed steps there, beside the best.
    """
    self._directory = pathlib.Path(os.path.abspath(directory))
    self._keep = keep
    self._broken: set[int] = set()  # committed, but found not whole
    self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._reading: concurrent.futures.Future | None = None

  def steps(self) -> list[int]:
    """The committed steps, rising; one that is read back is waited for."""
    self.has_failed()
    return self._committed()

  def _committed(self) -> list[int]:
    return sorted(
      int(path.parent.name)
      for path in self._directory.glob(f'*/{_DIGESTS}')
      if path.parent.name.isdecimal()
    )

  def latest(self) -> int | None:
    """The newest committed step."""
    return max(self.steps(), default=None)

  def settle(self) -> None:
    """Waits for the last save; an OSError where it came to nothing."""
    if self._reading is not None:
      self._reading.result()

  def has_failed(self) -> bool:
    """Whether the last save, which is waited for, could not be read back."""
    if self._reading is None:
      return False
    return isinstance(self._reading.exception(), UnreadableError)

  def save(
    self,
    step: int,
    tree: Any,
    extra: dict[str, Any],
    best: int | None = None,
    *,
    wait: bool = True,
  ) -> None:
    """Writes a step, reads it back, commits it, then drops the oldest ones.

    No array of the tree is empty. `extra`, which JSON can hold, is restored
    beside it; the step `best` is kept however old it is. After an OSError the
    others are as they were, and nothing of this one is left.

    Args:
      wait: False leaves all but the writing to a thread. What goes wrong there
        is a warning, and `has_failed`.

    Raises:
      UnreadableError: it was written, but cannot be read back.
      OSError: it cannot be written.
    """
    self.has_failed()
    folder = self._directory / str(step)
    if _verify(folder):
      raise ValueError(
        f'A step is saved once, got step = {step}, which is in '
        f'{self._directory}: fix it with another --workdir.'
      )
    tree = jax.tree.map(np.asarray, tree)
    body = {
      'step': step,
      'extra': json.loads(json.dumps(extra)),
      'kinds': _by_name(_kind, tree),
      'leaves': _by_name(_digest, tree),
    }
    (folder / _DIGESTS).unlink(missing_ok=True)
    with self._made_or_cleared(step, OSError, 'could not be written'):
      self._directory.mkdir(parents=True, exist_ok=True)
      args = ocp.args.StandardSave(tree)
      with disk.plain(self._directory) as home:
        self._orbax.save(home / str(step), args=args, force=True)
    self._reading = self._thread.submit(
      self._commit, folder, _shapes(tree), body, best
    )
    if wait:
      self._reading.result()
    else:
      self._reading.add_done_callback(_warn)

  def _commit(
    self, folder: pathlib.Path, shapes: Any, body: dict[str, Any], best: Any
  ) -> None:
    """Reads a step back, and has it count if it is what was in memory."""
    step = body['step']
    with self._made_or_cleared(step, UnreadableError, 'cannot be read back'):
      paths = [path for path in sorted(folder.rglob('*')) if path.is_file()]
      disk.forget(paths)
      files = {str(p.relative_to(folder)): disk.digest(p) for p in paths}
      there = _by_name(_digest, self._read(step, shapes))
      if lost := [k for k, v in body['leaves'].items() if there[k] != v]:
        raise ValueError(
          f'{len(lost)} of {len(there)} arrays, {lost[0]} first, are not as '
          'they were written'
        )
    with self._made_or_cleared(step, OSError, 'could not be written'):
      disk.write_sealed(folder / _DIGESTS, {**body, 'files': files})
    with self._made_or_cleared(step, UnreadableError, 'cannot be read back'):
      disk.read_sealed(folder / _DIGESTS)
    self._prune(step, best)

  def _read(self, step: int, shapes: Any) -> Any:
    args = ocp.args.StandardRestore(shapes)
    with disk.plain(self._directory) as home:
      return self._orbax.restore(home / str(step), args=args)

  @contextlib.contextmanager
  def _made_or_cleared(
    self, step: int, kind: type[OSError], what: str
  ) -> Iterator[None]:
    """What fails in the block takes the step away, and is a `kind`."""
    with _quiet():
      try:
        yield
      # TensorStore's complaint of a full disk is a ValueError.
      except disk.BROKEN as e:
        self._clear(step)
        # TensorStore ends with the places in its source.
        reason = disk.reason(e).partition(' [source loc')[0].rstrip('.')
        if len(reason) > 300:
          reason = f'{reason[:100]} ... {reason[-195:]}'
        name = self._directory / str(step)
        raise kind(f'Checkpoint {name} {what}: {reason}.') from e

  def _clear(self, step: int) -> None:
    """Takes away what there is of a step, which orbax may still be writing."""
    for wait in (0.0, 0.1, 0.5):
      time.sleep(wait)
      for path in self._directory.glob(f'{step}*'):
        if path.name.partition(_TEMPORARY)[0] == str(step):
          shutil.rmtree(path, ignore_errors=True)

  def restore(self, target: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Reads the newest whole step back, to numpy arrays on the host.

    Warns once of newer ones that are not whole. `target` is a pytree of the
    same structure, of arrays or ShapeDtypeStructs.

    Returns:
      (step, tree, extra), or None where there is no committed step.
    """
    target = _shapes(target)
    broken = []
    for step in reversed(self.steps()):
      folder = self._directory / str(step)
      if body := _verify(folder):
        _check_kinds(folder, body['kinds'], _by_name(_kind, target))
        tree = self._read(step, target)
        if _by_name(_digest, tree) == body['leaves']:
          break
      broken.append(step)
      self._broken.add(step)
    else:
      if broken:
        raise ValueError(
          'At least one checkpoint must be whole, and of this version of '
          f'Chimera, got none of {broken} in {self._directory}: fix it by '
          'moving that folder away, which starts the training anew.'
        )
      return None
    if broken:
      logging.warning(
        'Checkpoint(s) %s in %s are not whole (a checksum differs); going on '
        'from step %d.',
        *(', '.join(map(str, broken)), self._directory, step),
      )
    return step, tree, body['extra']

  def _prune(self, step: int, best: int | None) -> None:
    # Later steps were not whole, or this one would not be saved now; they are
    # left to be seen. Broken ones do not count: what would be left to go on
    # from?
    self._broken.discard(step)
    whole = [
      s for s in self._committed() if s <= step and s not in self._broken
    ]
    kept = {*whole[-self._keep :], best}
    for path in self._directory.iterdir():
      name, died, _ = path.name.partition(_TEMPORARY)
      is_step = name.isdecimal()
      if is_step and (died or (int(name) <= step and int(name) not in kept)):
        try:
          (path / _DIGESTS).unlink(missing_ok=True)
          shutil.rmtree(path)
        except OSError as e:
          logging.warning('%s stays, which is not needed: %s', path, e)


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _warn(reading: concurrent.futures.Future) -> None:
  if error := reading.exception():
    logging.warning('%s Training goes on; the next one is tried.', error)


def _by_name(f: Callable[[Any], str], tree: Any) -> dict[str, str]:
  """What f says of each leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): f(leaf) for path, leaf in leaves}


def _kind(leaf: Any) -> str:
  return f'{np.dtype(leaf.dtype)}{list(leaf.shape)}'


def _digest(leaf: np.ndarray) -> str:
  return disk.digest(leaf.tobytes())


def _verify(folder: pathlib.Path) -> dict[str, Any] | None:
  """What `digests.json` says of a step, if all of it is as it was then."""
  try:
    body = disk.read_sealed(folder / _DIGESTS)
    # A file manager's .DS_Store beside them harms nothing.
    return None if disk.changed(folder, body['files']) else body
  except (OSError, ValueError):
    return None


def _check_kinds(
  folder: pathlib.Path, saved: dict[str, str], wanted: dict[str, str]
) -> None:
  for name, _ in sorted(saved.items() ^ wanted.items()):
    raise ValueError(
      f'Checkpoint {folder} must be of this config and version, but {name} is '
      f'{saved.get(name, "absent")} there and {wanted.get(name, "absent")} '
      'here: fix it with another --workdir.'
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without the tracebacks of libraries: what fails is raised too."""
  logger, hook = logging.get_absl_logger(), sys.unraisablehook

  def is_ours(record: std_logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}' not in record.pathname

  def show(unraisable: Any) -> None:
    # Of TensorStore's threads, for what Orbax no longer waits for.
    if str(unraisable.exc_value) != 'Event loop is closed':
      hook(unraisable)

  logger.addFilter(is_ours)
  sys.unraisablehook = show
  try:
    yield
  finally:
    sys.unraisablehook = hook
    logger.removeFilter(is_ours)
