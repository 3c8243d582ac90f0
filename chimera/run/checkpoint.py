"""Checkpoints by orbax, with the integrity that orbax leaves out.

Orbax commits a step atomically, but one flipped bit in it restores without a
word. So `digests.json`, renamed into place last, holds the SHA-256 of every
file and leaf: a step without it is not committed, one that disagrees with it
is not whole, and the newest whole one is restored.
https://orbax.readthedocs.io/en/latest/guides/checkpoint/orbax_checkpoint_101.html
"""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import logging as std_logging
import os
import pathlib
import shutil
from typing import Any

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from chimera.system import disk

_DIGESTS = 'digests.json'
_TEMPORARY = '.orbax-checkpoint-tmp'


def _leaves(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _kind(leaf: Any) -> str:
  return f'{np.dtype(leaf.dtype)}{list(leaf.shape)}'


def _digest_tree(tree: Any) -> dict[str, str]:
  return {
    name: hashlib.sha256(leaf.tobytes()).hexdigest()
    for name, leaf in _leaves(tree).items()
  }


def _digest_files(folder: pathlib.Path) -> dict[str, str]:
  digests = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and not path.name.startswith(_DIGESTS):
      with open(path, 'rb') as f:
        digest = hashlib.file_digest(f, 'sha256').hexdigest()
      digests[path.relative_to(folder).as_posix()] = digest
  return digests


def _seal(body: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _text(sealed: dict[str, Any]) -> str:
  return json.dumps(sealed, indent=1)


def _commit(folder: pathlib.Path, body: dict[str, Any]) -> None:
  body = json.loads(json.dumps(body))  # its keys as they will be read
  text = _text({'seal': _seal(body), 'body': body})
  disk.write(folder / _DIGESTS, text.encode())


def _verify(folder: pathlib.Path) -> dict[str, Any] | None:
  """What `_commit` wrote, if all of the step is as it was then."""
  try:
    written = (folder / _DIGESTS).read_text()
    sealed = json.loads(written)
    body = sealed['body']
    # 1E-05 would read like 1e-05.
    whole = sealed['seal'] == _seal(body) and written == _text(sealed)
    # A file manager's .DS_Store beside them harms nothing.
    whole &= body['files'].items() <= _digest_files(folder).items()
    return body if whole else None
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Orbax's tracebacks aside: what fails is raised too."""
  logger = logging.get_absl_logger()

  def is_ours(record: std_logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}' not in record.pathname

  logger.addFilter(is_ours)
  try:
    yield
  finally:
    logger.removeFilter(is_ours)


class Checkpoints:
  """The steps in one folder, `{directory}/{step}/`; one writer at a time."""

  def __init__(self, directory: str | os.PathLike, keep: int):
    """Opens, and does not yet make, the folder.

    Args:
      directory: of the checkpoints.
      keep: committed steps that a save leaves there, the newest ones, beside
        the best.

    Raises:
      ValueError: if `keep` is not at least 1.
    """
    if keep < 1:
      raise ValueError(
        f'keep must be at least 1, got keep = {keep}: mend --config.train.keep.'
      )
    # Orbax wants it absolute.
    self._directory = pathlib.Path(os.path.abspath(directory))
    self._keep = keep
    self._broken: set[int] = set()  # committed, but found not whole
    self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

  def steps(self) -> list[int]:
    """The committed steps, rising."""
    return sorted(
      int(path.parent.name)
      for path in self._directory.glob(f'*/{_DIGESTS}')
      if path.parent.name.isdecimal()
    )

  def latest(self) -> int | None:
    """The newest committed step."""
    return max(self.steps(), default=None)

  def save(
    self, step: int, tree: Any, extra: dict[str, Any], best: int | None = None
  ) -> None:
    """Writes and commits a step, then drops the oldest and what died midway.

    Args:
      step: from 0.
      tree: a pytree of numpy or jax arrays, none of them empty.
      extra: what JSON can hold, to be restored beside it.
      best: a step that is kept however old it is.

    Raises:
      ValueError: if the step is there already, and whole.
      OSError: it could not be written; the others are as they were.
    """
    folder = self._directory / str(step)
    if _verify(folder):
      raise ValueError(
        f'A step is saved once, got step = {step}, which is in '
        f'{self._directory}: mend with another --workdir.'
      )
    tree = jax.tree.map(np.asarray, tree)
    (folder / _DIGESTS).unlink(missing_ok=True)
    try:
      with _quiet():
        self._orbax.save(folder, args=ocp.args.StandardSave(tree), force=True)
      body = {
        'step': step,
        'extra': extra,
        'kinds': {name: _kind(leaf) for name, leaf in _leaves(tree).items()},
        'leaves': _digest_tree(tree),
        'files': _digest_files(folder),
      }
      _commit(folder, body)
    # TensorStore's complaint of a full disk is a ValueError.
    except (OSError, ValueError, RuntimeError) as e:
      self._clear(step)
      raise OSError(
        f'Checkpoint {folder} could not be written: '
        f'{" ".join(str(e).split())[:300]}'
      ) from e
    self._prune(step, best)

  def _clear(self, step: int) -> None:
    """Takes away what there is of a step that was not committed."""
    for path in self._directory.glob(f'{step}*'):
      if path.name.partition(_TEMPORARY)[0] == str(step):
        shutil.rmtree(path, ignore_errors=True)

  def restore(self, target: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Reads the newest whole step back, to numpy arrays on the host.

    Warns once of newer ones that are not whole.

    Args:
      target: a pytree of the same structure, of arrays or ShapeDtypeStructs.

    Returns:
      (step, tree, extra), or None where there is no committed step.

    Raises:
      ValueError: if no committed step is whole, or if the newest whole one
        has other leaves than `target`.
    """
    broken = []
    for step in reversed(self.steps()):
      folder = self._directory / str(step)
      tree = None
      if body := _verify(folder):
        self._check_kinds(folder, body['kinds'], target)
        abstract = jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), target
        )
        tree = self._orbax.restore(
          folder, args=ocp.args.StandardRestore(abstract)
        )
      if tree is None or _digest_tree(tree) != body['leaves']:
        broken.append(step)
        self._broken.add(step)
        continue
      if broken:
        logging.warning(
          'Checkpoint(s) %s in %s are not whole (a checksum differs); going '
          'on from step %d.',
          ', '.join(map(str, broken)),
          self._directory,
          step,
        )
      return step, tree, body['extra']
    if broken:
      raise ValueError(
        f'At least one checkpoint must be whole, got none of {broken} in '
        f'{self._directory}: mend by moving that folder away, which starts '
        'the training anew.'
      )
    return None

  def _check_kinds(
    self, folder: pathlib.Path, saved: dict[str, str], target: Any
  ) -> None:
    wanted = {name: _kind(leaf) for name, leaf in _leaves(target).items()}
    for name in sorted(saved.keys() | wanted.keys()):
      there, here = saved.get(name, 'absent'), wanted.get(name, 'absent')
      if there != here:
        raise ValueError(
          f'Checkpoint {folder} must be of this config, but {name} is {there} '
          f'there and {here} here: mend with another --workdir.'
        )

  def _prune(self, step: int, best: int | None) -> None:
    # Later steps were not whole, or this one would not be saved now; they are
    # left to be seen. Broken ones do not count: what would be left to go on
    # from?
    self._broken.discard(step)
    whole = [s for s in self.steps() if s <= step and s not in self._broken]
    kept = {*whole[-self._keep :], best}
    for path in self._directory.iterdir():
      name, died, _ = path.name.partition(_TEMPORARY)
      if not name.isdecimal():
        continue
      if died or (int(name) <= step and int(name) not in kept):
        try:
          (path / _DIGESTS).unlink(missing_ok=True)
          shutil.rmtree(path)
        except OSError as e:
          logging.warning('%s stays, which is not needed: %s', path, e)
