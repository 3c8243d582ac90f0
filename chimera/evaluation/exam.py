"""What a run is judged by: held-out figures, their protocol, a sheet."""

import json
import operator
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import ml_collections
import numpy as np

from chimera.clones import state as state_lib
from chimera.evaluation import evaluate, sheets
from chimera.school import curriculum
from chimera.system import disk, provenance

if TYPE_CHECKING:
  from chimera.optics import stage_1


def look_at_held_out(
  config: ml_collections.ConfigDict,
  data: 'stage_1.Prepared',
  bins: dict[int, list[int]],
) -> tuple[evaluate.HeldOut, evaluate.Eyes | None, np.ndarray]:
  """Places the held-out samples in the bins of the training scores_N."""
  scores_N, scores_M = (
    curriculum.score(
      paths, metric=config.school.metric, chunk=config.optics.chunk
    )
    for paths in (data.paths_NxHxWxC, data.held_out_paths)
  )
  held_out = evaluate.HeldOut(
    data.held_out_paths,
    data.held_out_images,
    curriculum.place(scores_M, bins, scores_N),
  )
  if data.optics:
    held_out = held_out._replace(
      yardsticks=evaluate.yardsticks(
        data.held_out_images,
        config.eval.inception,
        batch_size=config.eval.batch_size,
      )
    )
  eyes = evaluate.Eyes(*data.optics) if data.optics else None
  return held_out, eyes, scores_N


class Exam(NamedTuple):
  """What an evaluation found.

  Attributes:
    figures: {tokenizer: {figure: value}}, of master, ema and specialists.
    counts_V: uses of each code by the master.
    tiles: the contact sheet's pictures (rows, columns, T, T, 3), uint8.
    sheet: how it is laid out.
  """

  figures: dict[str, dict[str, float]]
  counts_V: np.ndarray
  tiles: np.ndarray
  sheet: sheets.Sheet


def examine(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  held_out: evaluate.HeldOut,
  eyes: evaluate.Eyes | None,
  master: state_lib.Master,
  specialists: Any,
) -> Exam:
  """Figures of master, EMA and specialists, and the sheet that shows them.

  Args:
    config: the run's.
    spec: of the step.
    held_out: samples.
    eyes: the optics.
    master: of all clones, host arrays with a leading M.
    specialists: the clones' own generators before the last meld, likewise.
  """
  tokenizers = {
    'master': jax.tree.map(lambda x: x[0], master.params),
    'ema': jax.tree.map(lambda x: x[0], master.ema),
  }
  for i, name in enumerate(config.clone_names):
    tokenizers[name] = jax.tree.map(operator.itemgetter(i), specialists)
  found = {
    name: evaluate.evaluate(
      spec.tokenizer,
      params,
      held_out,
      eyes,
      batch_size=config.eval.batch_size,
    )
    for name, params in tokenizers.items()
  }
  del tokenizers['ema']
  tiles, sheet = evaluate.preview(
    spec.tokenizer, tokenizers, held_out, eyes, columns=config.eval.preview
  )
  figures = {name: row for name, (row, _) in found.items()}
  return Exam(figures, found['master'][1], tiles, sheet)


def protocol(
  config: ml_collections.ConfigDict, held_out: evaluate.HeldOut, done: int
) -> dict[str, Any]:
  """What figures were taken by."""
  by = 'sample' if held_out.images_NxSxSx3 is None else 'photograph'
  record = {
    'split': f'held out by {by}',
    'source': config.data.held_out_source or config.data.source,
    'count': len(held_out.paths_NxHxWxC),
    'color_range': '[-1, 1]',
  }
  if config.data.held_out_source:
    record['split'] = 'a source of its own'
  if held_out.images_NxSxSx3 is not None:
    record |= {
      'crop': config.data.image_size,
      'crop_scale': f'1 to {config.data.max_scale:g}, at random',
      'resize_filter': 'Lanczos (Pillow)',
      'rounding': '8 bits, photograph and reconstruction, before pixel figures',
    }
  if config.eval.inception:
    record['inception'] = provenance.file_digest(config.eval.inception)
    record['inception_resize_filter'] = 'bicubic, to 299'
  return record | {
    'cycles': done,
    'images_seen': done * config.train.batch_size * len(config.clone_names),
    'seed': config.seed,
    'config': provenance.digest(json.loads(config.to_json())),
    'commit': provenance.commit(),
  }


def flat(figures: dict[str, dict[str, float]]) -> dict[str, float]:
  """{'tokenizer/figure': value} of {tokenizer: {figure: value}}."""
  return {f'{g}/{k}': v for g, row in figures.items() for k, v in row.items()}


def save_figures(
  workdir: str,
  figures: dict[str, dict[str, float]],
  record: dict[str, Any],
) -> None:
  """evaluation.json: flat figures and the protocol they were taken by."""
  path = os.path.join(workdir, 'evaluation.json')
  disk.write_json(path, {**flat(figures), 'protocol': record})


def save_preview(workdir: str, exam: Exam, done: int) -> np.ndarray:
  """Draws the contact sheet into previews/ and returns it."""
  folder = os.path.join(workdir, 'previews')
  picture = sheets.compose(exam.tiles, exam.sheet)
  with disk.spared('The preview'):
    os.makedirs(folder, exist_ok=True)
    sheets.save(os.path.join(folder, f'{done:07d}.png'), picture, exam.sheet)
  return picture


def reconstructions(
  config: ml_collections.ConfigDict, exam: Exam
) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
  """A picture each for the clones' runs and the master's, of one tag.

  The originals above, what became of them below; nothing of a clone that was
  not evaluated.
  """
  row_of = {name: tiles for name, tiles in zip(exam.sheet.rows, exam.tiles)}
  pictures = [
    {
      'reconstructions': np.concatenate(
        [np.concatenate(row_of[row], axis=1) for row in ('original', name)]
      )
    }
    if name in row_of
    else {}
    for name in (*config.clone_names, 'master')
  ]
  return pictures[:-1], pictures[-1]


def even_shares(counts_V: np.ndarray) -> np.ndarray:
  """Uses of each code over what they would be if all were used alike."""
  return counts_V / max(counts_V.mean(), 1e-12)
