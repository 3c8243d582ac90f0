"""`curriculum_bins_{basename}.pkl`: written whole, and never unpickled.

Design document, section 3.4. The bins follow from the scores, which must be
there to train on, so what lies on the disk is held against what would be
written, byte by byte: nothing in it is trusted, or run.
"""

import json
import os
import pathlib
import pickle
import stat

import numpy as np

from chimera.school import curriculum
from chimera.system import disk


def save_curriculum(
  path: str | os.PathLike,
  bins: dict[int, list[int]],
  *,
  digest: str,
  metric: str,
) -> None:
  """Writes the bins as a plain dict of lists of ints, and a .json beside it
  that ties them to the dataset's digest and the metric."""
  for file, data in _files(path, bins, digest, metric).items():
    disk.write(file, data)


def check_curriculum(
  path: str | os.PathLike,
  bins: dict[int, list[int]],
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
  try:
    for file, data in _files(path, bins, digest, metric).items():
      # Whoever opens a pipe waits for ever.
      if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f'{file.name} is not a file')
      with open(file, 'rb') as f:
        if f.read(len(data) + 1) != data:
          raise ValueError(
            f'{file.name} is of other latents or another metric, or is not as '
            'it was written'
          )
  except (OSError, ValueError) as e:
    raise ValueError(
      f'Curriculum {path} must be whole and of this dataset, but '
      f'{disk.reason(e)}: fix it with `python -m chimera.main '
      f'prepare-curriculum --workdir={path.parent}`.'
    ) from e


def _files(
  path: str | os.PathLike, bins: dict[int, list[int]], digest: str, metric: str
) -> dict[pathlib.Path, bytes]:
  """Both files; the pickle comes last: where it is, both are."""
  path = pathlib.Path(path)
  data = pickle.dumps(bins, protocol=4)
  tie = {
    'latents': digest,
    'curriculum': disk.digest(data),
    'metric': metric,
    'samples': sum(map(len, bins.values())),
  }
  return {
    path.with_suffix('.json'): json.dumps(tie, indent=2).encode(),
    path: data,
  }


def make_or_check(
  path: str | os.PathLike,
  latents_NxHxWxC: np.ndarray,
  *,
  metric: str,
  chunk: int,
  afresh: bool = False,
) -> tuple[dict[int, list[int]], np.ndarray]:
  """The curriculum of the training samples, and scores_N for the manifest.

  It is written to `path`, or is there; `afresh` writes it whatever is there.

  Raises:
    ValueError: see `bin_samples`, `check_curriculum`.
  """
  scores_N = curriculum.score(latents_NxHxWxC, metric=metric, chunk=chunk)
  bins = curriculum.bin_samples(scores_N)
  is_there = os.path.exists(path) and not afresh
  write_or_check = check_curriculum if is_there else save_curriculum
  write_or_check(
    path,
    bins,
    digest=curriculum.digest(latents_NxHxWxC, scores_N),
    metric=metric,
  )
  return bins, scores_N
