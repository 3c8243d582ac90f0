"""Stage 1's loop: trains the optics, writes the path_params of every sample.

The workdir's `optics/` holds what was learned and what was seen:

  optics.safetensors  parameters
  optics.json         architecture, the settings it was made by, its figures
  crops.csv           each training sample's crop and gradient magnitude
  held_out.npz        held-out path_params, and their crops as uint8
  digests.json        SHA-256 of all of these and of latents.npy

and beside it `latents.npy`, float32 (N, H, W, 3), appears last and whole.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

from absl import logging
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import safetensors
import safetensors.numpy

from chimera.clones import perceptual
from chimera.data import images
from chimera.optics import modules as optics
from chimera.optics import poincare
from chimera.run import init_from
from chimera.school import curriculum
from chimera.system import disk
from chimera.system import progress as progress_lib
from chimera.tokenizer import export

_POOL_MB = 256  # of the crops, uint8, that the optics learn from
_LOG_EVERY = 50  # steps
_FILES = ('optics.json', 'optics.safetensors', 'crops.csv', 'held_out.npz')
_DIGESTS = 'digests.json'


class Prepared(NamedTuple):
  """What stage 2 stands on.

  Attributes:
    paths_NxHxWxC: path_params of the training set, a read-only memory map.
    crops: which crop each of them is.
    gradients_N: mean gradient magnitude of those crops; None without images.
    held_out_paths: path_params.
    held_out_images: their crops, uint8 (n, S, S, 3); None without images.
    optics: the model and its variables; None without images.
  """

  paths_NxHxWxC: np.ndarray
  crops: list[images.Crop]
  gradients_N: np.ndarray | None
  held_out_paths: np.ndarray
  held_out_images: np.ndarray | None
  optics: tuple[optics.Optics, Any] | None


def prepare(config: ml_collections.ConfigDict, workdir: str) -> Prepared:
  """Makes latents.npy and what belongs to it, as far as it is missing.

  Raises:
    ValueError: the data cannot be used, or the workdir was made by others.
  """
  home = pathlib.Path(workdir, 'optics')
  path = pathlib.Path(workdir, 'latents.npy')
  # A flipped bit in the settings is told from other settings.
  if path.exists() and (home / 'optics.json').exists():
    _verify(home, path)
  _check_settings(home, path, _settings(config))
  if not path.exists():
    make = _let_in if images.is_path_params(config.data.source) else _see
    with _unfinished(path) as temporary:
      make(config, home, temporary)
      _finish(home, temporary, path)
  crops, gradients_N = images.read_manifest(home / 'crops.csv')
  with np.load(home / 'held_out.npz', allow_pickle=False) as held_out:
    held_out = dict(held_out)
  has_images = 'images' in held_out
  return Prepared(
    np.load(path, mmap_mode='r', allow_pickle=False),
    crops,
    gradients_N if has_images else None,
    held_out['paths'],
    held_out.get('images'),
    load_optics(workdir) if has_images else None,
  )


def split_path_params(
  config: ml_collections.ConfigDict,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Opens and splits path_params that were made elsewhere.

  Returns:
    All of the source's path_params, train_N, the indices of those to train on,
    and the held-out path_params.

  Raises:
    ValueError: they cannot be used.
  """
  source, chunk = config.data.source, config.optics.chunk
  paths = images.load_path_params(source, chunk=chunk)
  train_N = np.arange(len(paths))
  if config.data.held_out_source:
    if not images.is_path_params(config.data.held_out_source):
      raise ValueError(
        'held_out_source must hold path_params as source does, got '
        f'{config.data.held_out_source}: mend --config.data.held_out_source.'
      )
    others = images.load_path_params(config.data.held_out_source, chunk=chunk)
    if others.shape[1:] != paths.shape[1:]:
      raise ValueError(
        'held_out_source must have the grid of source, got '
        f'{others.shape[1:]} and {paths.shape[1:]}: mend '
        '--config.data.held_out_source.'
      )
    held_out = others[: config.data.held_out_count]
  else:
    order = np.random.default_rng(config.data.seed).permutation(len(paths))
    count = round(config.data.held_out_fraction * len(paths))
    count = min(max(count, 1), config.data.held_out_count)
    held_out, train_N = paths[np.sort(order[:count])], np.sort(order[count:])
  if len(train_N) < curriculum.BINS:
    raise ValueError(
      f'The School needs at least {curriculum.BINS} samples to train on, got '
      f'{len(train_N)} of {source}: give more, or others to hold out with '
      '--config.data.held_out_source.'
    )
  return paths, train_N, held_out


def lay_out(
  config: ml_collections.ConfigDict,
  progress: Callable[[int, int], None] | None = None,
) -> images.Plan:
  """The crops of the config's photographs; see `images.plan_crops`."""
  return images.plan_crops(
    config.data.source,
    held_out_source=config.data.held_out_source,
    held_out_fraction=config.data.held_out_fraction,
    image_size=config.data.image_size,
    train_count=config.data.train_count,
    held_out_count=config.data.held_out_count,
    crop=config.data.crop,
    max_scale=config.data.max_scale,
    seed=config.data.seed,
    progress=progress,
  )


def load_optics(workdir: str) -> tuple[optics.Optics, Any]:
  """The trained model and its variables.

  Raises:
    ValueError: there is none, or it is broken.
  """
  home = pathlib.Path(workdir, 'optics')
  try:
    meta = json.loads((home / 'optics.json').read_text())
    flat = safetensors.numpy.load((home / 'optics.safetensors').read_bytes())
    return optics.Optics(**meta['architecture']), traverse_util.unflatten_dict(
      flat, sep='/'
    )
  except (OSError, ValueError, KeyError, TypeError) as e:
    problem = e
  except safetensors.SafetensorError as e:
    problem = e
  raise ValueError(
    f'{home} must hold trained optics, got {problem!r}: make them anew in '
    'another --workdir with `python -m chimera.main prepare-latents`.'
  ) from problem


def train_optics(
  model: optics.Optics,
  images_NxSxSx3: np.ndarray,
  *,
  steps: int,
  batch_size: int,
  learning_rate: float,
  noise: float,
  seed: int,
) -> tuple[Any, float]:
  """Learns to see: Adam on the mean squared error, warm-up, then a cosine.

  The decoder is shown noisy path_params, so that an error of the tokenizer's
  costs no more than it must: what matters much is spread over wide ranges.

  Args:
    model: to be trained.
    images_NxSxSx3: uint8; drawn from uniformly.
    steps: at least 1.
    batch_size: images a step.
    learning_rate: the greatest.
    noise: standard deviation on path_params scaled to [-1, 1].
    seed: of parameters, batches and noise.

  Returns:
    The model's variables and the last training loss.
  """
  for name, value in {'steps': steps, 'batch_size': batch_size}.items():
    if value < 1:
      raise ValueError(
        f'{name} must be at least 1, got {name} = {value}: mend '
        f'--config.optics.{name}.'
      )
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, max(1, steps // 20), max(2, steps)
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99)
  )
  rng = np.random.default_rng(seed)
  variables = jax.jit(model.init)(
    jax.random.key(seed), _to_float(images_NxSxSx3[:1])
  )
  moments = optimizer.init(variables)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(variables, moments, images_BxSxSx3, count):
    x = _to_float(images_BxSxSx3)
    noise_rng = jax.random.fold_in(jax.random.key(seed), count)

    def error(v):
      paths = poincare.normalize(model.apply(v, x, method='encode'))
      paths += noise * jax.random.normal(noise_rng, paths.shape)
      paths = poincare.denormalize(paths)
      return jnp.mean((model.apply(v, paths, method='decode') - x) ** 2)

    loss, grads = jax.value_and_grad(error)(variables)
    updates, moments = optimizer.update(grads, moments)
    return optax.apply_updates(variables, updates), moments, loss

  with progress_lib.bar('Optics', steps) as report:
    for done in range(1, steps + 1):
      batch = images_NxSxSx3[rng.integers(len(images_NxSxSx3), size=batch_size)]
      variables, moments, loss = step(variables, moments, batch, done)
      if done % _LOG_EVERY == 0 or done == steps:
        report(done, f'loss {float(loss):.4f}')
  if not np.isfinite(loss):
    raise ValueError(
      f'The optics must stay finite, got loss = {float(loss)}: lower '
      f'--config.optics.learning_rate = {learning_rate}.'
    )
  return variables, float(loss)


def encode_images(
  model: optics.Optics, variables: Any, images_NxSxSx3: np.ndarray, chunk: int
) -> np.ndarray:
  """path_params float32 (N, H, W, 3) of uint8 images, a chunk at a time."""
  return _in_chunks(
    functools.partial(_encode, model, variables), images_NxSxSx3, chunk
  )


def decode_paths(
  model: optics.Optics, variables: Any, paths_NxHxWxC: np.ndarray, chunk: int
) -> np.ndarray:
  """float32 images in [-1, 1] of path_params, a chunk at a time."""
  return _in_chunks(
    functools.partial(_decode, model, variables), paths_NxHxWxC, chunk
  )


def compare_radius(
  train: str,
  held_out: str,
  *,
  seeds: int,
  steps: int,
  image_size: int,
  count: int,
  held_out_count: int,
  cell: int,
  width: int,
  batch_size: int,
  learning_rate: float,
  noise: float,
) -> Iterator[dict[str, Any]]:
  """What a radius that means complexity costs, seed by seed.

  Trains the 'free' and the 'contrast' encoder by the same number of steps on
  the same crops.

  Args:
    train: a folder of photographs, or 'photos'.
    held_out: a folder of others; '' splits `train`.
    seeds: how many, from 0.
    steps: of either encoder.
    image_size: pixels.
    count: training crops.
    held_out_count: crops.
    cell: see `optics.Optics`.
    width: likewise.
    batch_size: see `train_optics`.
    learning_rate: likewise.
    noise: likewise.

  Yields:
    seed, radius, held-out psnr (dB), correlation, seconds.
  """
  plan = images.plan_crops(
    train,
    held_out_source=held_out,
    held_out_fraction=0.25,
    image_size=image_size,
    train_count=count,
    held_out_count=held_out_count,
    crop='random',
    max_scale=3.0,
    seed=0,
  )
  seen, unseen = (
    images.read_crops(crops, image_size=image_size)
    for crops in (plan.train, plan.held_out)
  )
  for seed in range(seeds):
    for radius in optics.RADII:
      start = time.perf_counter()
      model = optics.Optics(cell=cell, width=width, radius=radius)
      variables, _ = train_optics(
        model,
        seen,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        noise=noise,
        seed=seed,
      )
      seconds = time.perf_counter() - start
      figures = _examine(model, variables, unseen, chunk=64)
      yield {'seed': seed, 'radius': radius, **figures, 'seconds': seconds}


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Every key that the latents depend on."""
  settings = {
    f'{block}.{key}': value
    for block in ('data', 'optics')
    for key, value in config[block].items()
    if (block, key) != ('optics', 'chunk')
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
    made_by = dict(json.loads(meta.read_text())['settings'])
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


def _see(
  config: ml_collections.ConfigDict, home: pathlib.Path, path: pathlib.Path
) -> None:
  """From photographs to everything in `optics/` and the .npy."""
  size, chunk = config.data.image_size, config.optics.chunk
  with progress_lib.bar('Photographs') as report:
    plan = lay_out(config, lambda done, total: report(done, '', total))
  held_out = images.read_crops(plan.held_out, image_size=size)
  home.mkdir(parents=True, exist_ok=True)
  if not (home / 'optics.json').exists():
    _learn(config, home, plan, held_out)
  model, variables = load_optics(str(home.parent))
  gradients = []

  def encode_all() -> Iterator[np.ndarray]:
    with progress_lib.bar('path_params', len(plan.train)) as report:
      for start in range(0, len(plan.train), chunk):
        crops = plan.train[start : start + chunk]
        part = images.read_crops(crops, image_size=size)
        gradients.append(_in_chunks(_gradients, part, chunk))
        yield encode_images(model, variables, part, chunk)
        report(start + len(crops), '')

  _stream(path, len(plan.train), encode_all())
  images.write_manifest(
    home / 'crops.csv', plan.train, np.concatenate(gradients)
  )
  _save_held_out(
    home,
    paths=encode_images(model, variables, held_out, chunk),
    images=held_out,
  )


def _learn(
  config: ml_collections.ConfigDict,
  home: pathlib.Path,
  plan: images.Plan,
  held_out_NxSxSx3: np.ndarray,
) -> None:
  """Trains the optics, or takes over those of `config.init_from`.

  optics.json, written last, says that they are whole.
  """
  size = config.data.image_size
  architecture = {k: config.optics[k] for k in ('cell', 'width', 'radius')}
  model = optics.Optics(**architecture)
  if config.init_from:
    variables, learned = _inherit(config.init_from), {}
  else:
    most = max(1, (_POOL_MB << 20) // (3 * size**2))
    pool = plan.train[:: -(-len(plan.train) // most)]
    variables, loss = train_optics(
      model,
      images.read_crops(pool, image_size=size),
      steps=config.optics.steps,
      batch_size=config.optics.batch_size,
      learning_rate=config.optics.learning_rate,
      noise=config.optics.noise,
      seed=config.seed,
    )
    learned = {'train_loss': loss}
  figures = _examine(model, variables, held_out_NxSxSx3, config.optics.chunk)
  logging.info(
    'Optics: held-out PSNR %.2f dB, rank correlation of mean radius and '
    'gradient magnitude %.3f.',
    figures['psnr'],
    figures['correlation'],
  )
  flat = jax.device_get(traverse_util.flatten_dict(variables, sep='/'))
  disk.write(home / 'optics.safetensors', safetensors.numpy.save(flat))
  meta = {
    'architecture': architecture,
    'figures': {**learned, **figures},
    'settings': _settings(config),
  }
  disk.write_json(home / 'optics.json', meta)


def _inherit(folder: str) -> Any:
  """The variables of the optics of an exported tokenizer or a workdir."""
  if init_from.is_exported(folder):
    return export.load(folder).parts.variables
  return load_optics(folder)[1]


def _let_in(
  config: ml_collections.ConfigDict, home: pathlib.Path, path: pathlib.Path
) -> None:
  """From path_params that were made elsewhere to all of these."""
  source, chunk = config.data.source, config.optics.chunk
  paths, train, held_out = split_path_params(config)
  home.mkdir(parents=True, exist_ok=True)
  _save_held_out(home, paths=held_out)
  images.write_manifest(
    home / 'crops.csv',
    [images.Crop(f'{source}[{i}]', 0, 0, paths.shape[1]) for i in train],
    np.full(len(train), np.nan),
  )
  disk.write_json(home / 'optics.json', {'settings': _settings(config)})
  parts = (
    paths[train[start : start + chunk]] for start in range(0, len(train), chunk)
  )
  _stream(path, len(train), parts)


def _save_held_out(home: pathlib.Path, **arrays: np.ndarray) -> None:
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  disk.write(home / 'held_out.npz', buffer.getvalue())


@contextlib.contextmanager
def _unfinished(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Where a file is made: what dies there, now or before, takes no room."""
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.unlink(missing_ok=True)
  try:
    yield temporary
  finally:
    temporary.unlink(missing_ok=True)


def _stream(
  path: pathlib.Path, count: int, parts: Iterator[np.ndarray]
) -> None:
  """Writes `count` samples to a .npy, a part at a time."""
  with open(path, 'wb') as f:
    for i, part in enumerate(parts):
      if i == 0:
        header = {
          'descr': '<f4',
          'fortran_order': False,
          'shape': (count, *part.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(f, header)
      f.write(np.ascontiguousarray(part, '<f4').data)
    f.flush()
    os.fsync(f.fileno())


def _finish(
  home: pathlib.Path, temporary: pathlib.Path, path: pathlib.Path
) -> None:
  """latents.npy, whole, once there are digests of everything."""
  body = json.dumps(_digests(home, temporary, path.name), indent=1)
  seal = hashlib.sha256(body.encode()).hexdigest()
  disk.write(home / _DIGESTS, f'{seal}\n{body}'.encode())
  os.replace(temporary, path)


def _digests(
  home: pathlib.Path, path: pathlib.Path, name: str
) -> dict[str, str]:
  """SHA-256 of what stage 1 wrote, by file name; `path` goes by `name`."""
  files = {name: home / name for name in _FILES} | {name: path}
  digests = {}
  for name, file in files.items():
    if file.exists():
      with open(file, 'rb') as f:
        digests[name] = hashlib.file_digest(f, 'sha256').hexdigest()
  return digests


def _verify(home: pathlib.Path, path: pathlib.Path) -> None:
  """Every file as it was written: training on a flipped bit is noticed late.

  Raises:
    ValueError: which files differ.
  """
  try:
    seal, _, body = (home / _DIGESTS).read_text().partition('\n')
    there = json.loads(body)
    if seal != hashlib.sha256(body.encode()).hexdigest():
      raise ValueError('it is not as it was written')
  except (OSError, ValueError, RecursionError) as e:
    reason = ' '.join(str(e).split())
    raise ValueError(
      f'{home / _DIGESTS} must hold the digests of stage 1, but {reason}: '
      'make the latents anew in another --workdir.'
    ) from e
  here = _digests(home, path, path.name)
  if broken := [
    name
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]:
    raise ValueError(
      f'Stage 1 must be as it was written, but {", ".join(broken)} in '
      f'{path.parent} differs (a checksum): make the latents anew in another '
      '--workdir.'
    )


def _examine(
  model: optics.Optics, variables: Any, images_NxSxSx3: np.ndarray, chunk: int
) -> dict[str, float]:
  """PSNR, and the rank correlation of mean radius and gradient magnitude."""
  paths = encode_images(model, variables, images_NxSxSx3, chunk)
  seen = decode_paths(model, variables, paths, chunk)
  psnr = perceptual.psnr(jnp.asarray(seen), _to_float(images_NxSxSx3))
  return {
    'psnr': float(jnp.mean(psnr)),
    'correlation': curriculum.radius_check(
      paths[..., 2].mean((1, 2)), _in_chunks(_gradients, images_NxSxSx3, chunk)
    ),
  }


def _to_float(images_BxSxSx3: np.ndarray) -> jax.Array:
  """`images.to_float`, but on the device."""
  return jnp.asarray(images_BxSxSx3, jnp.float32) / 127.5 - 1.0


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, variables, images_BxSxSx3):
  return model.apply(variables, _to_float(images_BxSxSx3), method='encode')


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, variables, paths_BxHxWxC):
  return model.apply(variables, paths_BxHxWxC, method='decode')


@jax.jit
def _gradients(images_BxSxSx3):
  return optics.gradient_magnitude(_to_float(images_BxSxSx3))


def _in_chunks(
  f: Callable[[np.ndarray], jax.Array], x_N: np.ndarray, chunk: int
) -> np.ndarray:
  """f of each chunk; the last one is filled up, lest f compile again."""
  chunk = min(chunk, len(x_N))
  parts = []
  for start in range(0, len(x_N), chunk):
    part = np.asarray(x_N[start : start + chunk])
    padding = [(0, chunk - len(part))] + [(0, 0)] * (part.ndim - 1)
    parts.append(np.asarray(f(np.pad(part, padding)))[: len(part)])
  return np.concatenate(parts)
