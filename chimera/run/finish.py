"""The optics finished for the tokenizer that a run leaves."""

import functools
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from chimera.clones import models
from chimera.data import cutting
from chimera.optics import finishing, poincare, stage_1, training
from chimera.system import disk

_CROPS_TO_A_FLAT = 16


def finish(
  config: ml_collections.ConfigDict,
  tokenizer: models.Tokenizer,
  params: Any,
  data: stage_1.Prepared,
  workdir: str,
) -> stage_1.Prepared:
  """The data with finished optics; as they are where they cannot be.

  It costs `optics.finish` steps of the decoder on crops of the training set, as
  many as they see at most, which are cut anew, and on some images of one color,
  as in stage 1. Where photographs are gone or others now, or the device has no
  room, that is a warning.

  Args:
    config: the run's.
    tokenizer: the module.
    params: its parameters.
    data: of stage 1.
    workdir: where that was.
  """
  steps, batch_size = config.optics.finish, config.optics.batch_size
  if not (steps and data.optics):
    return data
  size, samples = config.data.image_size, len(data.crops)
  # Each is there twice.
  most = min(steps * batch_size, -(-stage_1.pool_size(size) // 2))
  chosen_n = np.arange(0, samples, -(-samples // most))
  crops = [data.crops[i] for i in chosen_n]
  try:
    changes = stage_1.changes_of(workdir, {crop.source for crop in crops})
    if any(changes):
      raise ValueError(f'photographs are not what they were ({changes})')
    images_nxSxSx3 = cutting.read(crops, image_size=size)
  except disk.BROKEN as e:
    return _unfinished(data, e)
  model, variables = data.optics
  chunk = config.optics.chunk
  flat_mxSxSx3 = _flat(-(-len(crops) // _CROPS_TO_A_FLAT), size, config.seed)
  try:
    flat_mxHxWxC = training.encode_images(model, variables, flat_mxSxSx3, chunk)
    paths_kxHxWxC = np.concatenate([data.paths_NxHxWxC[chosen_n], flat_mxHxWxC])
    made_kxHxWxC = _remake(tokenizer, params, paths_kxHxWxC, chunk)
    variables = finishing.finish(
      model,
      variables,
      np.concatenate([images_nxSxSx3, flat_mxSxSx3]),
      paths_kxHxWxC,
      made_kxHxWxC,
      steps=steps,
      batch_size=batch_size,
      learning_rate=config.optics.learning_rate,
      seed=config.seed,
      report=functools.partial(_tell, steps),
    )
  except (FloatingPointError, jax.errors.JaxRuntimeError) as e:
    return _unfinished(data, e)
  how = f'finished, {steps} steps, for the {config.export.weights}'
  return data._replace(optics=(model, variables), drawn_by=how)


def _flat(count: int, size: int, seed: int) -> np.ndarray:
  """uint8 (count, size, size, 3), each of one color, from gray to pure."""
  rng = np.random.default_rng(seed)
  color_mx3 = rng.uniform(0, 255, (count, 3))
  gray_mx1 = color_mx3.mean(1, keepdims=True)
  color_mx3 = gray_mx1 + rng.random((count, 1)) * (color_mx3 - gray_mx1)
  flat_mx1x1x3 = np.rint(color_mx3).astype(np.uint8)[:, None, None]
  return np.tile(flat_mx1x1x3, (1, size, size, 1))


def _tell(steps: int, done: int, note: str) -> None:
  logging.info('Finishing the optics: step %d of %d, %s.', done, steps, note)


def _unfinished(data: stage_1.Prepared, why: Exception) -> stage_1.Prepared:
  logging.warning(
    'The optics are not finished (%s): they stay those of stage 1.',
    disk.reason(why),
  )
  return data


@training.in_chunks
@functools.partial(jax.jit, static_argnums=0)
def _remake(
  tokenizer: models.Tokenizer, params: Any, paths_NxHxWxC: jax.Array
) -> jax.Array:
  """What becomes of path_params, a chunk at a time."""
  x_hat, _, _ = tokenizer.apply(
    {'params': params}, poincare.normalize(paths_NxHxWxC)
  )
  return poincare.denormalize(x_hat)
