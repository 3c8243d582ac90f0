"""The steps of a run on the disk: written, read back, committed, restored.

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
import os
import pathlib
import shutil
import sys
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from chimera.system import disk

_DIGESTS = 'digests.json'
_TEMPORARY = '.orbax-checkpoint-tmp'


class Plan(NamedTuple):
  """How long a run is to be, and what of it does not depend on that."""

  cycles: int
  stable: int  # as many first cycles are those of a run of any other length


class UnreadableError(OSError):
  """A step that was written is not there, or is not what was to be written."""


class Steps:
  """The steps in one folder, `{directory}/{step}/`; one writer at a time."""

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int,
    plan: Plan | None = None,
    most: int = sys.maxsize,
  ):
    """Opens, and does not yet make, the folder.

    A save leaves the `keep` newest committed steps there, beside the best and
    the newest of the plan's `stable` cycles. Steps that were saved by another
    plan, beyond the cycles that both have in common, are undone: they do not
    count, and the next one that is committed clears them away. Nor do those
    beyond `most` cycles: they are left of a run that was made shorter.
    """
    self._directory = pathlib.Path(os.path.abspath(directory))
    self._keep = keep
    self._plan = plan
    self._most = most
    self._broken: set[int] = set()  # committed, but found not whole
    # Of several hosts the first one alone writes: nobody is waited for.
    alone = ocp.options.MultiprocessingOptions(active_processes={0})
    self._orbax = ocp.Checkpointer(
      ocp.StandardCheckpointHandler(multiprocessing_options=alone),
      multiprocessing_options=alone,
    )
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._reading: concurrent.futures.Future | None = None

  def steps(self) -> list[int]:
    """The committed steps, rising; one that is read back is waited for."""
    self.has_failed()
    return self._in_force()

  def _in_force(self) -> list[int]:
    """The committed steps that count."""
    there = [s for s in self._committed() if s <= self._most]
    return [s for s in there if not self._is_undone(s)]

  def _is_undone(self, step: int) -> bool:
    try:
      body = disk.read_sealed(self._directory / str(step) / _DIGESTS)
      there = Plan(*body['plan'])
    # One that is not whole is found so when it is restored.
    except (OSError, ValueError, LookupError, TypeError):
      return False
    now = self._plan or there
    return there != now and step > min(there.stable, now.stable)

  def _committed(self) -> list[int]:
    return sorted(
      int(path.parent.name)
      for path in self._directory.glob(f'*/{_DIGESTS}')
      if path.parent.name.isdecimal()
    )

  def latest(self) -> int | None:
    """The newest committed step."""
    return max(self.steps(), default=None)

  def check(self) -> None:
    """Refuses where all steps are in the decay of a run of another length.

    Raises:
      ValueError: it would begin anew beside what there is.
    """
    if (undone := self._committed()) and not self.steps():
      raise ValueError(
        'A run of another train.cycles or train.decay goes on from a '
        'checkpoint of before both decays, got none but of cycles '
        f'{undone} in {self._directory}: give them as they were, or another '
        f'--workdir with --config.init_from={self._directory.parent}.'
      )

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
    if _verify(folder) and not self._is_undone(step):
      raise ValueError(
        f'A step is saved once, got step = {step}, which is in '
        f'{self._directory}: fix it with another --workdir.'
      )
    tree = jax.tree.map(np.asarray, tree)
    body = {
      'step': step,
      'extra': json.loads(json.dumps(extra)),
      'plan': self._plan,
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
      self.check()
      return None
    if broken:
      logging.warning(
        'Checkpoint(s) %s in %s are not whole (a checksum differs); going on '
        'from step %d.',
        *(', '.join(map(str, broken)), self._directory, step),
      )
    if undone := sorted(set(self._committed()) - set(self._in_force())):
      logging.info(
        'Cycles %d to %d do not count: they are of a run of another length.',
        *(step + 1, undone[-1]),
      )
    return step, tree, body['extra']

  def _prune(self, step: int, best: int | None) -> None:
    # Later steps were not whole, or this one would not be saved now; they are
    # left to be seen. Broken ones do not count: what would be left to go on
    # from?
    self._broken.discard(step)
    ours = self._in_force()
    undone = set(self._committed()) - set(ours)
    whole = [s for s in ours if s <= step and s not in self._broken]
    stable = [s for s in whole if self._plan and s <= self._plan.stable]
    kept = {*whole[-self._keep :], *stable[-1:], best}
    for path in self._directory.iterdir():
      name, died, _ = path.name.partition(_TEMPORARY)
      if name.isdecimal() and (
        died
        or int(name) in undone
        or (int(name) <= step and int(name) not in kept)
      ):
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
  advice, learned = 'give another --workdir', folder.parent.parent / 'tokenizer'
  if learned.exists():
    advice += (
      f', and --config.init_from={learned} to start from what it learned'
    )
  for name, _ in sorted(saved.items() ^ wanted.items()):
    raise ValueError(
      f'Checkpoint {folder} must be of this config and version, but {name} is '
      f'{saved.get(name, "absent")} there and {wanted.get(name, "absent")} '
      f'here: {advice}.'
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
