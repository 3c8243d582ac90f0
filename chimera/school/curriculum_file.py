"""`curriculum_bins_{basename}.pkl`: written whole, read without trust.

Design document, section 3.4.
"""

import hashlib
import io
import json
import os
import pathlib
import pickle
import pickletools
import stat
from typing import Any

import numpy as np

from chimera.school import curriculum
from chimera.system import disk

_BYTES_A_SAMPLE = 16  # that a curriculum file may have; pickle takes 5
_BYTES_MORE = 4096  # that it may have besides; and all that its .json may have
_WIDEST = 8  # bytes of the longest argument that an opcode below has
_NUMBERS = frozenset(('BININT', 'BININT1', 'BININT2'))
_OPCODES = frozenset(
  (
    'PROTO',
    'FRAME',
    'MARK',
    'STOP',
    'MEMOIZE',
    'BINPUT',
    'EMPTY_DICT',
    'EMPTY_LIST',
    'BININT',
    'BININT1',
    'BININT2',
    'APPEND',
    'APPENDS',
    'SETITEM',
    'SETITEMS',
  )
)


def save_curriculum(
  path: str | os.PathLike,
  bins: dict[int, list[int]],
  *,
  digest: str,
  metric: str,
) -> None:
  """Writes `curriculum_bins_{basename}.pkl` and the .json that ties it.

  The pickle comes last: where it is, both are.

  Args:
    path: of the pickle, a plain dict of lists of ints; the .json gets the
      same stem.
    bins: what `bin_samples` returned.
    digest: of the dataset they were cut from.
    metric: by which they were sorted.
  """
  path = pathlib.Path(path)
  data = pickle.dumps(bins, protocol=4)
  tie = _tie(data, digest, metric, sum(map(len, bins.values())))
  disk.write(path.with_suffix('.json'), tie)
  disk.write(path, data)


def _tie(data: bytes, digest: str, metric: str, samples: int) -> bytes:
  tie = {
    'latents': digest,
    'curriculum': hashlib.sha256(data).hexdigest(),
    'metric': metric,
    'samples': samples,
  }
  return json.dumps(tie, indent=2).encode()


class _NoGlobals(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    raise pickle.UnpicklingError(f'it asks for {module}.{name}')


class _Narrow(io.BytesIO):
  """Hands out no argument that our opcodes do not have."""

  def read(self, size: int | None = -1) -> bytes:
    if size is None or not 0 <= size <= _WIDEST:
      raise ValueError(f'it holds an opcode with {size} bytes')
    return super().read(size)

  def readline(self, size: int | None = -1) -> bytes:
    raise ValueError('it holds an opcode with a text')


def _scan(data: bytes, samples: int) -> None:
  """Looks a curriculum's pickle through before anything in it is run.

  Even without globals an opcode can ask for gigabytes (LONG_BINPUT), and one
  byte (EMPTY_LIST) for seventy: so the opcodes are known ones, and no more
  than `samples` need.

  Raises:
    ValueError: what should not be there.
  """
  numbers = lists = dicts = others = 0
  stream = _Narrow(data)
  for opcode, _, _ in pickletools.genops(stream):
    if opcode.name not in _OPCODES:
      raise ValueError(f'it holds the opcode {opcode.name}')
    numbers += opcode.name in _NUMBERS
    lists += opcode.name == 'EMPTY_LIST'
    dicts += opcode.name == 'EMPTY_DICT'
    others += opcode.name not in _NUMBERS
    if (
      numbers > samples + curriculum.BINS
      or lists > curriculum.BINS
      or dicts > 1
    ):
      raise ValueError(
        f'it holds more than {curriculum.BINS} lists of {samples} samples'
      )
    # Pickle takes two a thousand numbers, and five a list.
    if others > samples // 100 + 20 * curriculum.BINS:
      raise ValueError(f'it holds too many opcodes for {samples} samples')
  if stream.tell() != len(data):
    raise ValueError('something follows its end')


def _unpickle(data: bytes, samples: int) -> Any:
  """Reads a pickle of a dict of lists of small ints; executes nothing.

  Raises:
    ValueError: if it holds anything else, or is broken.
  """
  try:
    _scan(data, samples)
    return _NoGlobals(io.BytesIO(data)).load()
  except (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    OverflowError,
    TypeError,
  ) as e:
    raise ValueError(str(e)) from e


def _check_bins(bins: Any, samples: int) -> None:
  if type(bins) is not dict or list(map(type, bins)) != [int] * curriculum.BINS:
    raise ValueError(
      f'it is not a dict with the keys 0 to {curriculum.BINS - 1}'
    )
  if set(bins) != set(range(curriculum.BINS)):
    raise ValueError(
      f'it is not a dict with the keys 0 to {curriculum.BINS - 1}'
    )
  seen_N = np.zeros(samples, bool)
  for k, ids in bins.items():
    if type(ids) is not list or not set(map(type, ids)) <= {int}:
      raise ValueError(f'bin {k} is not a list of ints')
    if ids and not 0 <= min(ids) <= max(ids) < samples:
      raise ValueError(f'bin {k} names samples beyond 0 to {samples - 1}')
    seen_N[np.array(ids, np.int64)] = True
  if not seen_N.all() or sum(map(len, bins.values())) != samples:
    raise ValueError(f'it does not hold each of {samples} samples once')


def _read(path: pathlib.Path, most: int) -> bytes:
  """A file of at most so many bytes, of which no more are read."""
  if not stat.S_ISREG(path.stat().st_mode):
    raise ValueError(f'{path.name} is not a file')
  with open(path, 'rb') as f:
    data = f.read(most + 1)
  if len(data) > most:
    raise ValueError(f'{path.name} is larger than {most} bytes')
  return data


def _load(
  path: pathlib.Path, samples: int, digest: str
) -> dict[int, list[int]]:
  tied = _read(path.with_suffix('.json'), _BYTES_MORE)
  tie = json.loads(tied)
  data = _read(path, _BYTES_A_SAMPLE * samples + _BYTES_MORE)
  bins = _unpickle(data, samples)
  if type(tie) is not dict or tie.get('latents') != digest:
    raise ValueError('it was made from other latents or by another metric')
  if tie.get('curriculum') != hashlib.sha256(data).hexdigest():
    raise ValueError('it is not the file that its .json was written for')
  if tie.get('metric') not in curriculum.METRICS or tied != _tie(
    data, digest, tie['metric'], samples
  ):
    raise ValueError('its .json is not as it was written')
  del data
  _check_bins(bins, samples)
  return bins


def load_curriculum(
  path: str | os.PathLike, *, samples: int, digest: str
) -> dict[int, list[int]]:
  """Reads the bins that `save_curriculum` wrote, and trusts nothing.

  A file of more than 16 bytes a sample and 4096 is refused unread, one with
  opcodes other than those of ints, lists and a dict unrun; reading takes less
  than four times that size.

  Args:
    path: of the pickle.
    samples: N, how many the dataset has.
    digest: of the dataset as it is now.

  Raises:
    ValueError: if the file is missing, malformed, or of another dataset; one
      line that ends with the command that mends it.
  """
  path = pathlib.Path(path)
  try:
    return _load(path, samples, digest)
  except (OSError, RecursionError, ValueError) as e:
    reason = ' '.join(str(e).split())
    raise ValueError(
      f'Curriculum {path} must be whole and of this dataset, but {reason}: '
      'mend with `python -m chimera.main prepare-curriculum '
      f'--workdir={path.parent}`.'
    ) from e


def prepare_curriculum(
  path: str | os.PathLike,
  latents_NxHxWxC: np.ndarray,
  *,
  metric: str,
  chunk: int,
  afresh: bool = False,
) -> tuple[dict[int, list[int]], np.ndarray]:
  """Loads the curriculum at `path`, or makes it where there is none.

  Args:
    path: of `curriculum_bins_{basename}.pkl`.
    latents_NxHxWxC: path_params of the training samples, and no others.
    metric: see `score`.
    chunk: see `score`.
    afresh: makes it even if there is one: the command that mends.

  Returns:
    The bins, and scores_N for the manifest.

  Raises:
    ValueError: see `score`, `bin_samples`, `load_curriculum`.
  """
  scores_N = curriculum.score(latents_NxHxWxC, metric=metric, chunk=chunk)
  tie = curriculum.digest(latents_NxHxWxC, scores_N)
  if os.path.exists(path) and not afresh:
    return load_curriculum(path, samples=len(scores_N), digest=tie), scores_N
  bins = curriculum.bin_samples(scores_N)
  save_curriculum(path, bins, digest=tie, metric=metric)
  return bins, scores_N
