"""What is made of a run's last cycle, beside its figures and its report."""

import itertools
import os
import pathlib
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from chimera.clones import specialists as specialists_lib
from chimera.clones import state as state_lib
from chimera.clones import terms as terms_lib
from chimera.meld import average
from chimera.optics import stage_1
from chimera.run import finish
from chimera.school import curriculum, lessons
from chimera.system import disk
from chimera.tokenizer import export

_MANY = 0.01  # of all samples: a few in a thousand always are
_NAMED = 3  # files, in a warning


def are_there(
  config: ml_collections.ConfigDict, workdir: str, done: int
) -> bool:
  """Whether all that is made of the last cycle is there."""
  home = pathlib.Path(workdir)
  figures = _of(home / 'evaluation.json', 'protocol', done)
  tokenizer = _of(home / 'tokenizer' / export.META, 'came_from', done)
  if not figures or not tokenizer or not (home / 'report.html').exists():
    return False
  came_from, decay = tokenizer['came_from'], config.train.decay
  return (
    came_from.get('weights') == config.export.weights
    # As many cycles may have been learned with another decay, and have then
    # other figures.
    and figures['protocol'].get('decay', decay) == decay
    and came_from.get('evaluation', figures) == figures
  )


def _of(path: pathlib.Path, record: str, done: int) -> dict[str, Any] | None:
  """A file of JSON, if a record in it says that it is of the cycle `done`."""
  try:
    there = disk.read_json(path)
    return there if there[record]['cycles'] == done else None
  except (OSError, ValueError, LookupError, TypeError):
    return None


def summarize(
  config: ml_collections.ConfigDict,
  bins: dict[int, np.ndarray],
  seen: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
  """Each clone's row of the final table."""
  rows = []
  terms = terms_lib.of(config.model.quantizer)
  for i, name in enumerate(config.clone_names):
    lesson = config.specialists[name].bins
    if not config.school.enabled:
      lesson = tuple(range(curriculum.BINS))
    base = specialists_lib.base_weights(config, name)
    base_K = np.array([base[t] for t in terms])
    ratio_K = seen['lambda'][i] / np.where(base_K > 0, base_K, np.inf)
    k = int(np.argmax(ratio_K))
    rows.append(
      {
        'name': name,
        'bins': lesson,
        'samples': sum(len(bins[b]) for b in lesson),
        'g_loss': float(seen['loss/total'][i]),
        'critic_loss': float(seen['critic/loss'][i]),
        'dominant': terms[k],
        'dominance': float(ratio_K[k]),
        'learning_rate': float(seen['agent/lr'][i]),
      }
    )
  return rows


def outliers(host: state_lib.CloneState, data: stage_1.Prepared) -> np.ndarray:
  """Sample indices of the School's outliers, by rising excess.

  Warns, with their files, where they are many.
  """
  school = jax.tree.map(lambda x: x[0], host.school)  # all clones' is the same
  found = lessons.outliers(school)
  if len(found) > _MANY * len(school.error_N):
    sources = dict.fromkeys(data.crops[i].source for i in found[::-1])
    shown = ', '.join(itertools.islice(sources, _NAMED))
    logging.warning(
      'Of %d samples %d are far beyond the others, with an error above %.3g '
      'times the usual one: no lesson had them but by chance. Noise, broken '
      'files, or too few of their kind? %s%s',
      *(len(school.error_N), len(found), school.fence, shown),
      ', ...' if len(sources) > _NAMED else '',
    )
  return found


def exported(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  master: average.Master,
) -> Any:
  """Parameters of the master, or its average, as `config.export` says."""
  weights = {'master': master.params, 'ema': master.ema}[config.export.weights]
  return spec.generator_layout.tree(weights[0])


def finished(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  master: average.Master,
  data: stage_1.Prepared,
  workdir: str,
) -> stage_1.Prepared:
  """The data with the optics finished for what is exported."""
  params = exported(config, spec, master)
  return finish.finish(config, spec.tokenizer, params, data, workdir)


def save_tokenizer(
  config: ml_collections.ConfigDict,
  workdir: str,
  spec: state_lib.StepSpec,
  master: average.Master,
  data: stage_1.Prepared,
  done: int,
  out: str = '',
) -> None:
  """Exports what the run leaves, with the optics of the data.

  To `out`; '' is `tokenizer/` in the workdir, whose evaluation.json goes along
  if it is of this cycle and was drawn by these optics.
  """
  model, variables = data.optics or (None, None)
  params = exported(config, spec, master)
  parts = export.Parts(spec.tokenizer, params, model, variables)
  size = config.data.image_size
  came_from = {'weights': config.export.weights, 'cycles': done}
  figures = _of(pathlib.Path(workdir, 'evaluation.json'), 'protocol', done)
  drawn_by = figures and figures['protocol'].get('optics', data.drawn_by)
  if figures and drawn_by == data.drawn_by:
    came_from['evaluation'] = figures
  out = out or os.path.join(workdir, 'tokenizer')
  shape = (size, size, 3) if model else data.paths_NxHxWxC.shape[1:]
  export.save(out, parts, input_shape=shape, came_from=came_from)
  export.load(out)  # reads all of it back
  logging.info('The tokenizer is in %s.', out)
