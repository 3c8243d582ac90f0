"""Where a run starts from: newborn, or what another run has learned.

The School and the schedules are always those of the new run. That the
architectures agree, `preflight.check_init_from` has seen.
"""

import os
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from chimera.clones import state as state_lib
from chimera.clones import vectors
from chimera.data import arrays
from chimera.optics import training
from chimera.run import checkpoint, config_json, steps
from chimera.school import curriculum
from chimera.school import lessons as lessons_lib
from chimera.system import disk
from chimera.tokenizer import export


def is_exported(folder: str) -> bool:
  """Whether a folder holds an exported tokenizer rather than a workdir."""
  return os.path.exists(os.path.join(folder, export.META))


def inherit(
  config: ml_collections.ConfigDict, newborn: state_lib.CloneState
) -> state_lib.CloneState:
  """Newborn clones with what `config.init_from` has learned."""
  folder = config.init_from
  if is_exported(folder):
    layout = state_lib.create_spec(config).generator_layout
    return from_tokenizer(newborn, layout, folder)
  # Of any length: it is the elder's.
  target = checkpoint.saved(school_of(newborn, folder))
  there = steps.Steps(
    os.path.join(folder, 'checkpoints'),
    config.train.keep,
    most=config_json.read(folder)['train.cycles'],
  )
  restored = there.restore(target)
  if restored is None:
    raise ValueError(
      f'There must be a trained tokenizer, got none in {folder}: fix '
      '--config.init_from.'
    )
  names = ('step', 'rng', 'school', 'dropped', 'health')
  if not config.pid.enabled:  # what it had added would stay
    names += ('pid',)
  mine = {name: getattr(newborn, name) for name in names}
  return restored[1]['state'].replace(**mine)


def load_optics(folder: str) -> Any:
  """The variables of the optics of an exported tokenizer or a workdir."""
  if is_exported(folder):
    return export.load(folder).parts.variables
  return training.load_optics(folder)[1]


def from_tokenizer(
  newborn: state_lib.CloneState, layout: vectors.Layout, folder: str
) -> state_lib.CloneState:
  """Newborn clones (M, ...) with the parameters of an exported tokenizer.

  Critics, agents and moments stay newborn.
  """
  params = export.load(folder).parts.params
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for (path, x), shape in zip(leaves, layout.shapes, strict=True):
    if np.shape(x) != shape:
      raise ValueError(
        f'{jax.tree_util.keystr(path)} must be {shape}, got {np.shape(x)} in '
        f'{folder}: fix --config.init_from.'
      )
  vector_P = layout.vector(jax.tree.map(np.asarray, params))
  return state_lib.begun(newborn, vector_P)


def school_of(
  newborn: state_lib.CloneState, folder: str
) -> state_lib.CloneState:
  """Newborn clones with a School as large as that of a workdir's checkpoints.

  That is what such a checkpoint can be restored over.
  """
  home = pathlib.Path(folder)
  try:
    elder = config_json.read(home)
    samples = len(arrays.read_latents(home / 'latents.npy'))
  except (OSError, ValueError) as e:
    raise ValueError(
      f'{folder} must be a whole workdir, but {disk.reason(e)}: fix '
      '--config.init_from.'
    ) from e
  lessons = [elder[f'specialists.{n}.bins'] for n in elder['clone_names']]
  # The sizes of the bins follow from the number of samples alone.
  bins = curriculum.bin_samples(np.arange(samples, dtype=np.float32))
  length = lessons_lib.lesson_length(bins, lessons)
  schools = [
    lessons_lib.create_state(bins, lesson, samples=samples, length=length)
    for lesson in lessons
  ]
  return newborn.replace(school=state_lib.stack(schools))
