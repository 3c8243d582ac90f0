"""The optics finished: the decoder learns to draw what a tokenizer makes.

It has learned to paint path_params with noise on them. A tokenizer's errors are
of another kind, and known once it is trained: from there the decoder learns on,
on what the tokenizer makes of the training set's path_params, and as much on
these themselves. The encoder is left alone, and with it every token. So do
others with the decoder of a finished autoencoder (stabilityai/sd-vae-ft-mse,
https://huggingface.co/stabilityai/sd-vae-ft-mse).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chimera.optics import modules as optics
from chimera.optics import training


def finish(
  model: optics.Optics,
  variables: Any,
  images_NxSxSx3: np.ndarray,
  paths_NxHxWxC: np.ndarray,
  made_NxHxWxC: np.ndarray,
  *,
  steps: int,
  batch_size: int,
  learning_rate: float,
  seed: int,
  report: Callable[[int, str], None],
) -> Any:
  """The variables with another decoder, host arrays.

  By Adam on the mean squared error in [-1, 1].

  Args:
    model: of the variables, which stay as they are.
    images_NxSxSx3: uint8, of the training set.
    paths_NxHxWxC: their path_params.
    made_NxHxWxC: what the tokenizer makes of these.
    steps: at least 1; a warm-up, then a cosine.
    batch_size: samples a step, of either kind.
    learning_rate: the greatest.
    seed: of the batches.
    report: called with the steps done and the loss.

  Raises:
    FloatingPointError: they did not stay finite.
  """

  def error(v, batch, _):
    images_BxSxSx3, paths_BxHxWxC = batch
    seen = model.apply(v, paths_BxHxWxC, method='decode')
    return jnp.mean((seen - optics.to_float(images_BxSxSx3)) ** 2)

  # The step gives them away.
  variables = jax.tree.map(jnp.array, variables)
  moments, step = training.create_step(
    error, variables, steps=steps, learning_rate=learning_rate
  )
  samples = (
    np.concatenate([images_NxSxSx3, images_NxSxSx3]),
    np.concatenate([made_NxHxWxC, paths_NxHxWxC]),
  )
  variables, _, loss = training.descend(
    step,
    variables,
    moments,
    samples,
    steps=steps,
    batch_size=batch_size,
    seed=seed,
    report=report,
  )
  variables = jax.device_get(variables)
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(variables)):
    raise FloatingPointError(f'the squared error is {float(loss)}')
  return variables
