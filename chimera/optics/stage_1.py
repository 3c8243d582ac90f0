"""Stage 1: from the config's data to the path_params of every sample.

The workdir's `optics/` holds what was learned and what was seen:

  optics.safetensors  parameters
  optics.json         architecture, the settings it was made by, its figures
  crops.csv           each training sample's crop and gradient magnitude
  held_out.npz        held-out path_params, and their crops as uint8
  sources.json        fingerprints of the files that all this was made of
  digests.json        SHA-256 of all but sources.json, and of latents.npy

and, until all is whole, planned.jsonl, crops.bin and crops.jsonl, from which
whoever was killed goes on.
Beside it `latents.npy`, float32 (N, H, W, 3), appears last and whole. Where
images could not be used, `skipped.csv` beside it says which and why.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import os
import pathlib
from typing import Any, BinaryIO, NamedTuple

from absl import logging
from flax import traverse_util
import jax
import ml_collections
import numpy as np
import safetensors.numpy

from chimera.clones import specialists
from chimera.data import arrays, cutting, fingerprints, images, skipped
from chimera.data import crops as crops_lib
from chimera.optics import modules as optics
from chimera.optics import training
from chimera.school import curriculum
from chimera.system import disk, progress

_POOL_MB = 256  # of the crops, uint8, that the optics learn from
_FILES = ('optics.json', 'optics.safetensors', 'crops.csv', 'held_out.npz')
_DIGESTS = 'digests.json'
_SOURCES = 'sources.json'
# Until the latents are whole: what is known of each image, and the crops.
_PLANNED = 'planned.jsonl'
_CROPS = 'crops.bin'
# Settings that there were not always, and what was in force before.
_LATER = {'data.permuted': 0.0, 'data.mirrored': 0.0}


class Prepared(NamedTuple):
  """What stage 2 stands on."""

  paths_NxHxWxC: np.ndarray  # of the training set, a read-only memory map
  crops: list[crops_lib.Crop]  # which crop each of them is
  # mean gradient magnitude of those crops; None without images
  gradients_N: np.ndarray | None
  held_out_paths: np.ndarray  # path_params
  # their crops, uint8 (n, S, S, 3); None without images
  held_out_images: np.ndarray | None
  optics: tuple[optics.Optics, Any] | None  # with its variables; likewise
  drawn_by: str = 'as of stage 1'  # how far these optics have learned
  # whose scores the held-out samples' bins are of; None: the training set's own
  judges_N: np.ndarray | None = None


def prepare(
  config: ml_collections.ConfigDict,
  workdir: str,
  inherit: Callable[[str], Any] | None = None,
) -> Prepared:
  """Makes latents.npy and what belongs to it, as far as it is missing.

  Args:
    config: the run's.
    workdir: of the run.
    inherit: reads the optics' variables from `config.init_from`, if not empty.

  Raises:
    ValueError: the data cannot be used, or the workdir was made by others.
  """
  home = pathlib.Path(workdir, 'optics')
  path = pathlib.Path(workdir, 'latents.npy')
  # A flipped bit in the settings is told from other settings.
  if path.exists() and (home / 'optics.json').exists():
    _verify(home)
  _check_settings(home, path, _settings(config))
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.writing(path) as f:
      if images.is_path_params(config.data.source):
        crops, held_out, parts = _let_in(config, home)
      else:
        crops, held_out, parts = _see(config, home, inherit)
      gradients = _write(f, (len(crops), *held_out['paths'].shape[1:]), parts)
      crops_lib.write_manifest(home / 'crops.csv', crops, gradients)
      with disk.writing(home / 'held_out.npz') as held:
        np.savez(held, **held_out)
      files = {f'optics/{name}': home / name for name in _FILES}
      files |= {'latents.npy': pathlib.Path(f.name)}  # as it is named yet
      f.flush()
      digests = {k: disk.digest(p) for k, p in files.items() if p.exists()}
      disk.write_sealed(home / _DIGESTS, digests)
  cutting.forget(home / _CROPS, home / _PLANNED)
  _tell_of_changes(home)
  crops, gradients_N = crops_lib.read_manifest(home / 'crops.csv')
  with np.load(home / 'held_out.npz', allow_pickle=False) as held_out:
    held_out = dict(held_out)
  has_images = 'images' in held_out
  return Prepared(
    arrays.read_latents(path),
    crops,
    gradients_N if has_images else None,
    held_out['paths'],
    held_out.get('images'),
    training.load_optics(workdir) if has_images else None,
  )


def split_path_params(
  config: ml_collections.ConfigDict,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(all path_params, train_N: those to train on, the held-out path_params).

  They were made elsewhere. What is held out is not trained on twice either.

  Raises:
    ValueError: they cannot be used.
  """
  source, chunk = config.data.source, config.optics.chunk
  paths = images.load_path_params(source, chunk=chunk)
  train_N, rng = np.arange(len(paths)), np.random.default_rng(config.data.seed)
  if held := config.data.held_out_source:
    if not images.is_path_params(held):
      raise ValueError(
        'held_out_source must hold path_params as source does, got '
        f'{held}: fix --config.data.held_out_source.'
      )
    others = images.load_path_params(held, 'held_out_source', chunk=chunk)
    if others.shape[1:] != paths.shape[1:]:
      raise ValueError(
        'held_out_source must have the grid of source, got '
        f'{others.shape[1:]} and {paths.shape[1:]}: fix '
        '--config.data.held_out_source.'
      )
    order = rng.permutation(len(others))[: config.data.held_out_count]
    held_out = others[np.sort(order)]
  else:
    order = rng.permutation(len(paths))
    count = images.count_held_out(
      len(paths),
      fraction=config.data.held_out_fraction,
      most=config.data.held_out_count,
    )
    held_out, train_N = paths[np.sort(order[:count])], np.sort(order[count:])
  train_N = arrays.absent(paths, train_N, held_out)
  _check_count(config, len(train_N))
  return paths, train_N, held_out


def pool_size(image_size: int) -> int:
  """How many crops the optics learn from at most."""
  return max(1, (_POOL_MB << 20) // (3 * image_size**2))


def check_crops(config: ml_collections.ConfigDict, samples: int) -> None:
  """Refuses too few crops to train on before anything learns from them.

  Raises:
    ValueError: too few for the School, or for a batch of some lesson.
  """
  fewer = samples < config.data.train_count
  ways = 'more images, or --config.data.crop=random' if fewer else 'more'
  _check_count(config, samples, ways)
  smallest = curriculum.smallest_lesson(samples, specialists.lessons(config))
  batch_size = config.train.batch_size
  # Otherwise the config alone was enough to refuse it.
  if fewer and batch_size > smallest:
    raise ValueError(
      'train.batch_size must be at most the samples of the smallest lesson, '
      f'{smallest} of {samples} whole crops, got train.batch_size = '
      f'{batch_size}: give --config.train.batch_size={smallest}, {ways}.'
    )


def _check_count(
  config: ml_collections.ConfigDict, samples: int, ways: str = 'more'
) -> None:
  """Refuses too few to train on; `ways` are those to get more."""
  if samples < curriculum.BINS:
    raise ValueError(
      f'The School needs at least {curriculum.BINS} samples to train on, got '
      f'{samples} of {config.data.source}: give {ways}, or others to hold out '
      'with --config.data.held_out_source.'
    )


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Every key that the latents depend on."""
  settings = {
    f'{block}.{key}': value
    for block in ('data', 'optics')
    for key, value in config[block].items()
    if (block, key) not in (('optics', 'chunk'), ('optics', 'finish'))
  }
  return {'seed': config.seed, 'init_from': config.init_from, **settings}


def _check_settings(
  home: pathlib.Path, path: pathlib.Path, settings: dict[str, Any]
) -> None:
  """Nothing that others made is taken for ours, or overwritten."""
  meta = home / 'optics.json'
  if not meta.exists():
    if path.exists():
      raise ValueError(
        f'{path} must come with {meta}, which is not there: give another '
        '--workdir, or name it as --config.data.source to train on it.'
      )
    return
  try:
    made_by = {**_LATER, **disk.read_json(meta)['settings']}
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(
      f'{meta} must be the JSON that prepare-latents wrote, got {e!r}: give '
      'another --workdir.'
    ) from e
  for key in sorted(settings.keys() | made_by.keys()):
    if settings.get(key) != made_by.get(key):
      raise ValueError(
        f'{home} was made with {key} = {made_by.get(key)!r}, got '
        f'{settings.get(key)!r}: give another --workdir, or --config.{key} as '
        'it was.'
      )


# What is written of a run: the training set's crops, what held_out.npz holds,
# and the training set's path_params with their crops' gradients, in parts.
_Parts = Iterator[tuple[np.ndarray, np.ndarray]]
_Made = tuple[list[crops_lib.Crop], dict[str, np.ndarray], _Parts]


def _see(
  config: ml_collections.ConfigDict,
  home: pathlib.Path,
  inherit: Callable[[str], Any] | None,
) -> _Made:
  """From photographs, by optics that learn from them where there are none."""
  size, chunk = config.data.image_size, config.optics.chunk
  is_learned = (home / 'optics.json').exists()
  with _refusing(home):
    with progress.bar('Photographs') as report:
      plan = crops_lib.plan_crops(
        **config.data,
        notes=home / _PLANNED,
        progress=lambda done, total: report(done, '', total),
      )
    if is_learned:
      _check_sources(home, plan.fingerprints)
    skipped.tell(plan.skipped, home.parent)
    check_crops(config, len(plan.train))
  held_out = cutting.read(plan.held_out, image_size=size)
  if not is_learned:
    fingerprints.write(home / _SOURCES, plan.fingerprints)
  with progress.bar('Crops', len(plan.train)) as report:
    kept = cutting.keep(
      plan.train,
      image_size=size,
      path=home / _CROPS,
      beside=12 * len(plan.train) * (size // config.optics.cell) ** 2,
      made_of={k: v['sha256'] for k, v in plan.fingerprints.items()},
      report=report,
    )
  if not is_learned:
    _learn(config, home, plan, kept, held_out, inherit)
  model, variables = training.load_optics(str(home.parent))

  def parts() -> _Parts:
    done = 0
    with progress.bar('path_params', len(plan.train)) as report:
      for part in kept.parts(chunk):
        paths = training.encode_images(model, variables, part, chunk)
        yield paths, training.gradients(part, chunk)
        done += len(part)
        report(done, '')

  paths = training.encode_images(model, variables, held_out, chunk)
  return plan.train, {'paths': paths, 'images': held_out}, parts()


@contextlib.contextmanager
def _refusing(home: pathlib.Path) -> Iterator[None]:
  """A folder for notes; what is refused at once leaves none of its own."""
  home.mkdir(parents=True, exist_ok=True)
  is_begun = (home / _PLANNED).exists()
  try:
    yield
  except ValueError:
    if not is_begun:
      (home / _PLANNED).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
      home.rmdir()
    raise


def _learn(
  config: ml_collections.ConfigDict,
  home: pathlib.Path,
  plan: crops_lib.Plan,
  kept: cutting.Kept | cutting.Uncut,
  held_out_NxSxSx3: np.ndarray,
  inherit: Callable[[str], Any] | None,
) -> None:
  """Trains the optics, or takes over those of `config.init_from`.

  optics.json, written last, says that they are whole.
  """
  size = config.data.image_size
  architecture = {k: config.optics[k] for k in ('cell', 'width', 'radius')}
  model = optics.Optics(**architecture)
  if config.init_from:
    variables, learned = inherit(config.init_from), {}
  else:
    spread = range(0, len(plan.train), -(-len(plan.train) // pool_size(size)))
    how = ('steps', 'batch_size', 'learning_rate', 'noise')
    variables, loss = training.train_optics(
      model,
      kept.read(spread),
      **{key: config.optics[key] for key in how},
      seed=config.seed,
    )
    learned = {'train_loss': loss}
  figures = training.examine(
    model, variables, held_out_NxSxSx3, config.optics.chunk
  )
  logging.info(
    'Optics: held-out PSNR %(psnr).2f dB, rank correlation of mean radius and '
    'gradient magnitude %(correlation).3f.',
    figures,
  )
  flat = jax.device_get(traverse_util.flatten_dict(variables, sep='/'))
  disk.write(home / 'optics.safetensors', safetensors.numpy.save(flat))
  meta = {
    'architecture': architecture,
    'figures': {**learned, **figures, 'copies': plan.copies},
    'settings': _settings(config),
  }
  disk.write_json(home / 'optics.json', meta)


def _let_in(config: ml_collections.ConfigDict, home: pathlib.Path) -> _Made:
  """From path_params that were made elsewhere."""
  source, chunk = config.data.source, config.optics.chunk
  files = [source, config.data.held_out_source]
  files = [os.path.abspath(file) for file in files if file]
  seen = fingerprints.look_again({}, {file: file for file in files})
  paths, train_N, held_out = split_path_params(config)
  home.mkdir(parents=True, exist_ok=True)
  fingerprints.write(home / _SOURCES, seen)
  disk.write_json(home / 'optics.json', {'settings': _settings(config)})
  side = paths.shape[1]
  crops = [crops_lib.Crop(f'{source}[{i}]', 0, 0, side) for i in train_N]
  parts = (train_N[i : i + chunk] for i in range(0, len(train_N), chunk))
  parts = ((paths[part], np.full(len(part), np.nan)) for part in parts)
  return crops, {'paths': held_out}, parts


def _write(f: BinaryIO, shape: tuple[int, ...], parts: _Parts) -> np.ndarray:
  """Writes path_params as .npy, a part at a time; the gradients of all."""
  header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(f, header)
  gradients = []
  for paths, part in parts:
    f.write(np.ascontiguousarray(paths, '<f4').data)
    gradients.append(part)
  return np.concatenate(gradients)


def _check_sources(
  home: pathlib.Path, now: dict[str, fingerprints.Fingerprint]
) -> None:
  """Refuses photographs that are not those of which the optics were made."""
  try:
    then = fingerprints.read(home / _SOURCES)
  except ValueError as e:
    raise ValueError(f'{home}: {e}: start anew in another --workdir.') from e
  changes = fingerprints.compare(then, now)
  if then and any(changes):
    raise ValueError(
      f'{home} was begun with other photographs ({changes}): put them back as '
      'they were, or start anew in another --workdir.'
    )


def changes_of(
  workdir: str | os.PathLike, sources: Iterable[str]
) -> fingerprints.Changes:
  """What of a run's sources is not what its latents were made of.

  Raises:
    ValueError: the record of them is not as it was written.
  """
  then = fingerprints.read(pathlib.Path(workdir, 'optics', _SOURCES))
  then = {source: then[source] for source in sources if source in then}
  now = fingerprints.look_again(then, {source: source for source in then})
  return fingerprints.compare(then, now)


def _tell_of_changes(home: pathlib.Path) -> None:
  """Warns where the sources are not what the latents were made of."""
  try:
    then = fingerprints.read(home / _SOURCES)
  except ValueError as e:
    logging.warning('Whether the sources have changed is not known: %s.', e)
    return
  now = fingerprints.look_again(then, {source: source for source in then})
  changes = fingerprints.compare(then, now)
  if any(changes):
    logging.warning(
      'The run goes on with the latents that it has, but what they were made '
      'of is not as it was (%s).',
      changes,
    )
  same = now.keys() - changes.changed
  # They need not be read another time.
  if any(now[name] != then[name] for name in same):
    with disk.spared(_SOURCES):
      known = then | {name: now[name] for name in same}
      fingerprints.write(home / _SOURCES, known)


def _verify(home: pathlib.Path) -> None:
  """Every file as it was written: training on a flipped bit is noticed late.

  Raises:
    ValueError: which files differ.
  """
  try:
    digests = disk.read_sealed(home / _DIGESTS)
  except (OSError, ValueError) as e:
    raise ValueError(
      f'{home / _DIGESTS} must hold the digests that this version writes, but '
      f'{disk.reason(e)}: make the latents anew in another --workdir.'
    ) from e
  if broken := disk.changed(home.parent, digests):
    raise ValueError(
      f'Stage 1 must be as it was written, but {", ".join(broken)} in '
      f'{home.parent} differs (a checksum): make the latents anew in another '
      '--workdir.'
    )
