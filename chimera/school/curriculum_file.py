"""`curriculum_bins_{basename}.pkl`: written whole, and never unpickled.

Design document, section 3.4. The bins follow from the scores, which must be
there to train on, so what lies on the disk is held against what would be
written, byte by byte: nothing in it is trusted, or run.

The file is a pickle of plain lists of ints, of which 10^8 in memory would be
4 GB: its opcodes are made from arrays, a run at a time.
https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from collections.abc import Iterable, Iterator
import concurrent.futures
import hashlib
import itertools
import json
import os
import pathlib
import stat

import numpy as np
from numpy.typing import ArrayLike

from chimera.school import curriculum
from chimera.system import disk

_FRAME = 2**16  # bytes from which a frame of a pickle ends
_BATCH = 1000  # objects that a pickle appends at a time
_RUN = 32 * _BATCH  # ints encoded at a time
# A word of 8 bytes for ints of 1, 2 and 4 bytes: a batch's mark, the opcode,
# room for the int, what appends the batch. And which of them are written.
_WORDS = np.frombuffer(b'(K\0\0\0\0e\0(M\0\0\0\0e\0(J\0\0\0\0e\0', '<u8')
_WRITTEN = np.frombuffer(
  b'\0\1\1\0\0\0\0\0\0\1\1\1\0\0\0\0\0\1\1\1\1\1\0\0', '<u8'
)
_SIZES = np.array([2, 3, 5])


def save_curriculum(
  path: str | os.PathLike,
  bins: dict[int, np.ndarray],
  *,
  digest: str,
  metric: str,
) -> None:
  """Writes the bins as a plain dict of lists of ints, and a .json beside it
  that ties them to the dataset's digest and the metric."""
  path = pathlib.Path(path)
  written = hashlib.sha256()
  # The pickle appears last: where it is, both are.
  with disk.writing(path) as f:
    for data in _pickled(bins):
      f.write(data)
      written.update(data)
    tie = _tie(bins, digest, metric, written.hexdigest())
    disk.write(path.with_suffix('.json'), tie)


def check_curriculum(
  path: str | os.PathLike,
  bins: dict[int, np.ndarray],
  *,
  digest: str,
  metric: str,
) -> None:
  """Sees that `save_curriculum` wrote there what it would write now.

  No more is read than it would write.

  Raises:
    ValueError: the files are missing, or others; one line that ends with the
      command that makes them anew.
  """
  path = pathlib.Path(path)
  written = hashlib.sha256()

  def pickled() -> Iterator[bytes]:
    for data in _pickled(bins):
      written.update(data)
      yield data

  try:
    _compare(path, pickled())
    tie = _tie(bins, digest, metric, written.hexdigest())
    _compare(path.with_suffix('.json'), [tie])
  except (OSError, ValueError) as e:
    raise ValueError(
      f'Curriculum {path} must be whole and of this dataset, but '
      f'{disk.reason(e)}: fix it with `python -m chimera.main '
      'prepare-curriculum` and the same flags.'
    ) from e


def _compare(file: pathlib.Path, parts: Iterable[bytes]) -> None:
  """Raises where a file is not of these parts."""
  # Whoever opens a pipe waits for ever.
  if not stat.S_ISREG(file.stat().st_mode):
    raise ValueError(f'{file.name} is not a file')
  with open(file, 'rb') as f:
    # An empty part at the end is held against what may follow.
    if any(f.read(max(len(x), 1)) != x for x in itertools.chain(parts, [b''])):
      raise ValueError(
        f'{file.name} is of other latents or another metric, or is not as it '
        'was written'
      )


def _tie(
  bins: dict[int, np.ndarray], digest: str, metric: str, pickled: str
) -> bytes:
  """The .json, of the digests of the latents and of the pickle."""
  tie = {
    'latents': digest,
    'curriculum': pickled,
    'metric': metric,
    'samples': sum(map(len, bins.values())),
  }
  return json.dumps(tie, indent=2).encode()


def _pickled(bins: dict[int, np.ndarray]) -> Iterator[bytes]:
  """`pickle.dumps(bins, protocol=4)`, bit for bit, were they lists; in parts.

  A frame ends before the first object behind its first 64 KiB.
  """
  yield b'\x80\x04'
  held, at = b'', 0
  for data, begins in _opcodes(bins):
    begins = np.add(begins, len(held))
    held, at = held + data, 0
    while (i := np.searchsorted(begins, at + _FRAME)) < len(begins):
      end = int(begins[i])
      yield b'\x95' + (end - at).to_bytes(8, 'little') + held[at:end]
      at = end
    held = held[at:]
  yield b'\x95' + len(held).to_bytes(8, 'little') + held


def _opcodes(bins: dict[int, np.ndarray]) -> Iterator[tuple[bytes, ArrayLike]]:
  """Runs of opcodes, and where in each of them objects begin."""
  yield b'}\x94(', [0]
  for k, ids in bins.items():
    yield bytes([ord('K'), k]) + b']\x94', [0, 2]
    if len(ids) == 1:
      # It is appended alone.
      data, begins = _ints(ids)
      yield data[1:-1] + b'a', begins - 1
      continue
    for start in range(0, len(ids), _RUN):
      yield _ints(ids[start : start + _RUN])
  yield b'u.', []


def _ints(ids: np.ndarray) -> tuple[bytes, np.ndarray]:
  """Ints in [0, 2^31), in batches, and where each of them begins."""
  kinds = (ids >= 2**8).astype(np.uint8) + (ids >= 2**16)
  words = _WORDS[kinds] | ids.astype('<u8') << 16
  written = _WRITTEN[kinds].view(bool).reshape(-1, 8)
  written[::_BATCH, 0] = True
  written[_BATCH - 1 :: _BATCH, 6] = written[-1, 6] = True
  sizes = _SIZES[kinds]
  begins = np.cumsum(sizes + written[:, 0] + written[:, 6])
  begins -= sizes + written[:, 6]
  return words.view(np.uint8)[written.ravel()].tobytes(), begins


def make_or_check(
  path: str | os.PathLike,
  latents_NxHxWxC: np.ndarray,
  *,
  metric: str,
  afresh: bool = False,
) -> tuple[dict[int, np.ndarray], np.ndarray]:
  """The curriculum of the training samples, and scores_N for the manifest.

  It is written to `path`, or is there; `afresh` writes it whatever is there.

  Raises:
    ValueError: see `bin_samples`, `check_curriculum`.
  """
  scores_N = curriculum.score(latents_NxHxWxC, metric=metric)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    digest = pool.submit(curriculum.digest, latents_NxHxWxC, scores_N)
    bins = curriculum.bin_samples(scores_N)
  is_there = os.path.exists(path) and not afresh
  write_or_check = check_curriculum if is_there else save_curriculum
  write_or_check(path, bins, digest=digest.result(), metric=metric)
  return bins, scores_N
