"""What a run is judged by: held-out figures, and a sheet that shows them."""

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_collections
import numpy as np

from chimera.clones import state as state_lib
from chimera.evaluation import evaluate, features, sheets
from chimera.meld import average
from chimera.school import curriculum
from chimera.system import disk

if TYPE_CHECKING:
  from chimera.optics import stage_1


def look_at_held_out(
  config: ml_collections.ConfigDict,
  data: 'stage_1.Prepared',
) -> tuple[evaluate.HeldOut, np.ndarray]:
  """Places the held-out samples in bins; with the training set's scores_N."""
  scores_N, scores_M = (
    curriculum.score(paths, metric=config.school.metric)
    for paths in (data.paths_NxHxWxC, data.held_out_paths)
  )
  crops, e = data.held_out_images, config.eval
  judges_N = scores_N if data.judges_N is None else data.judges_N
  placed_M = curriculum.place(
    scores_M, curriculum.bin_samples(judges_N), judges_N
  )
  held_out = evaluate.HeldOut(data.held_out_paths, crops, placed_M)
  if not data.optics:
    return held_out, scores_N
  distances = evaluate.frechet_metrics(
    crops, e.inception, batch_size=e.batch_size
  )
  held_out = held_out._replace(frechet_metrics=distances)
  if e.features:
    distance = features.load_network(e.features, crops.shape[1])
    held_out = held_out._replace(distance=distance)
  return held_out, scores_N


class Exam(NamedTuple):
  """What an evaluation found."""

  figures: dict[str, dict[str, float]]  # by tokenizer: master, ema, specialists
  counts_V: np.ndarray  # uses of each code by the master
  tiles: np.ndarray  # of the contact sheet (rows, columns, T, T, 3), uint8
  sheet: sheets.Sheet  # how it is laid out


def examine(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  held_out: evaluate.HeldOut,
  optics: tuple[Any, Any] | None,
  master: average.Master,
  specialists: np.ndarray,
  *,
  with_ema: bool = True,
) -> Exam:
  """Figures of master, EMA and specialists, and the sheet that shows them.

  They are seen by the optics (the model and its variables), if there are any.
  The specialists are the clones' own generators (M, P) before the last meld;
  the master of each clone has a leading M too. Host arrays.
  """
  vectors = [('master', 0, master.params)]
  if with_ema:
    vectors.append(('ema', 0, master.ema))
  vectors += [(k, i, specialists) for i, k in enumerate(config.clone_names)]
  shown = evaluate.columns(held_out, config.eval.preview)
  how = {'batch_size': config.eval.batch_size, 'shown': shown}
  eyes, by_optics = None, None
  if optics:
    eyes = evaluate.Eyes(*optics)
    alone, by_optics = evaluate.judge_optics(held_out, eyes, **how)
    held_out = held_out._replace(optics_psnr=alone)
  found = {
    name: evaluate.evaluate(
      spec.tokenizer,
      spec.generator_layout.tree(params_MxP[i]),
      held_out,
      eyes,
      **how,
    )
    for name, i, params_MxP in vectors
  }
  made = {name: of.pictures for name, of in found.items() if name != 'ema'}
  tiles, sheet = evaluate.preview(made, held_out, shown, by_optics)
  figures = {name: of.figures for name, of in found.items()}
  return Exam(figures, found['master'].counts_V, tiles, sheet)


def flat(figures: dict[str, dict[str, float]]) -> dict[str, float]:
  """{'tokenizer/figure': value} of {tokenizer: {figure: value}}."""
  return {f'{g}/{k}': v for g, row in figures.items() for k, v in row.items()}


def save_figures(
  workdir: str, figures: dict[str, dict[str, float]], record: dict[str, Any]
) -> None:
  """evaluation.json: flat figures and the protocol they were taken by."""
  path = os.path.join(workdir, 'evaluation.json')
  disk.write_json(path, {**flat(figures), 'protocol': record})


def read_figures(
  workdir: str | os.PathLike,
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
  """{tokenizer: {figure: value}} and the protocol, of evaluation.json."""
  flattened = disk.read_json(os.path.join(workdir, 'evaluation.json'))
  record = flattened.pop('protocol')
  figures: dict[str, dict[str, float]] = {}
  for key, value in flattened.items():
    name, figure = key.split('/')
    figures.setdefault(name, {})[figure] = value
  return figures, record


def save_preview(workdir: str, exam: Exam, done: int) -> np.ndarray:
  """Draws the contact sheet into previews/ and returns it."""
  folder = os.path.join(workdir, 'previews')
  picture = sheets.compose(exam.tiles, exam.sheet)
  with disk.spared('The preview'):
    os.makedirs(folder, exist_ok=True)
    sheets.save(os.path.join(folder, f'{done:07d}.png'), picture, exam.sheet)
  return picture


def forget_previews(workdir: str, done: int) -> None:
  """Takes away those of later cycles, which are learned anew."""
  for cycle, path in sheets.previews(workdir).items():
    if cycle > done:
      with disk.spared('The previews'):
        path.unlink()


def reconstructions(
  config: ml_collections.ConfigDict, exam: Exam
) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
  """A picture each for the clones' runs and the master's, of one tag.

  The originals above, what became of them below; nothing of a clone that was
  not evaluated.
  """
  row_of = dict(zip(exam.sheet.rows, exam.tiles))

  def picture(name: str) -> dict[str, np.ndarray]:
    if name not in row_of:
      return {}
    tiles = np.concatenate([row_of['original'], row_of[name]])
    return {'reconstructions': sheets.glue(tiles, columns=len(tiles) // 2)}

  return [picture(name) for name in config.clone_names], picture('master')


def even_shares(counts_V: np.ndarray) -> np.ndarray:
  """Uses of each code over what they would be if all were used alike."""
  return counts_V / max(counts_V.mean(), 1e-12)
