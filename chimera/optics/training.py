"""The optics learn to see: trained, kept, and applied a chunk at a time."""

from collections.abc import Callable
import functools
import math
import pathlib
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy

from chimera.clones import perceptual
from chimera.optics import modules as optics
from chimera.optics import poincare
from chimera.school import curriculum
from chimera.system import compiled, disk, progress

_LOG_EVERY = 50  # steps


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
  variables, moments, step = create(
    model,
    images_NxSxSx3[:1],
    steps=steps,
    learning_rate=learning_rate,
    noise=noise,
    seed=seed,
  )
  with progress.bar('Optics', steps) as report:
    variables, _, loss = descend(
      step,
      variables,
      moments,
      images_NxSxSx3,
      steps=steps,
      batch_size=batch_size,
      seed=seed,
      report=report,
    )
  # On one device, as they came.
  variables = jax.device_get(variables)
  if not np.isfinite(loss):
    raise ValueError(
      f'The optics must stay finite, got loss = {float(loss)}: lower '
      f'--config.optics.learning_rate = {learning_rate}, in another --workdir.'
    )
  return variables, float(loss)


def create(
  model: optics.Optics,
  image_1xSxSx3: np.ndarray,
  *,
  steps: int,
  learning_rate: float,
  noise: float,
  seed: int,
) -> tuple[Any, Any, Callable[..., tuple[Any, Any, jax.Array]]]:
  """Variables, the optimizer's state, and the compiled step; see above.

  The step takes both, uint8 images and its number from 1.
  """
  # Random numbers of 18 kernels, compiled in 1.4 s instead of 3.6.
  init = jax.jit(model.init, compiler_options=compiled.sooner())
  variables = init(jax.random.key(seed), optics.to_float(image_1xSxSx3))

  def error(v, images_BxSxSx3, count):
    noise_rng, color_rng = jax.random.split(
      jax.random.fold_in(jax.random.key(seed), count)
    )
    # One image of one color: photographs hold few colors, and little is flat.
    color = jax.random.uniform(color_rng, (3,), minval=-1, maxval=1)
    x = optics.to_float(images_BxSxSx3).at[0].set(color)
    paths = poincare.normalize(model.apply(v, x, method='encode'))
    paths += noise * jax.random.normal(noise_rng, paths.shape)
    paths = poincare.denormalize(paths)
    return jnp.mean((model.apply(v, paths, method='decode') - x) ** 2)

  moments, step = create_step(
    error, variables, steps=steps, learning_rate=learning_rate
  )
  return variables, moments, step


def create_step(
  error: Callable[[Any, Any, jax.Array], jax.Array],
  variables: Any,
  *,
  steps: int,
  learning_rate: float,
) -> tuple[Any, Callable[..., tuple[Any, Any, jax.Array]]]:
  """Adam's state and its compiled step, which gives its arguments away.

  `error` takes variables, a batch and the step's number from 1; the step takes
  the state behind the variables, and returns both and the error.
  """
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, max(1, steps // 20), max(2, steps)
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99)
  )

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(variables, moments, batch, count):
    loss, grads = jax.value_and_grad(error)(variables, batch, count)
    updates, moments = optimizer.update(grads, moments)
    return optax.apply_updates(variables, updates), moments, loss

  return optimizer.init(variables), step


def placements(batch_size: int) -> tuple[Any, Any]:
  """Shardings of variables and moments, and of a batch.

  Where a CPU is several devices they share a batch, if it can be shared; else
  the first device has all of it.
  """
  devices = jax.local_devices()
  is_cpu = devices[0].platform == 'cpu'
  count = math.gcd(batch_size, len(devices)) if is_cpu else 1
  mesh = jax.sharding.Mesh(np.array(devices[:count]), ('images',))
  whole, shared = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    for axes in ((), ('images',))
  )
  return whole, shared


def descend(
  step: Callable[..., tuple[Any, Any, jax.Array]],
  variables: Any,
  moments: Any,
  samples: Any,
  *,
  steps: int,
  batch_size: int,
  seed: int,
  report: Callable[[int, str], None],
) -> tuple[Any, Any, jax.Array]:
  """Steps, each on samples drawn anew; variables, moments and the loss.

  Samples are an array of N, or several such. All lie as `placements` has it.
  """
  whole, shared = placements(batch_size)
  variables, moments = jax.device_put((variables, moments), whole)
  rng = np.random.default_rng(seed)
  count = len(jax.tree.leaves(samples)[0])
  for done in range(1, steps + 1):
    drawn_B = rng.integers(count, size=batch_size)
    batch = jax.tree.map(lambda x_N, drawn_B=drawn_B: x_N[drawn_B], samples)
    batch = jax.device_put(batch, shared)
    variables, moments, loss = step(variables, moments, batch, done)
    if len(shared.device_set) > 1:
      jax.block_until_ready(loss)  # see `Engine.dispatch`
    if done % _LOG_EVERY == 0 or done == steps:
      report(done, f'loss {float(loss):.4f}')
  return variables, moments, loss


def in_chunks(f: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
  """f(..., x_N) as f(..., x_N, chunk); the last chunk is filled up for it."""

  @functools.wraps(f)
  def run(*args: Any) -> np.ndarray:
    *before, x_N, chunk = args
    chunk = min(chunk, len(x_N))
    parts = []
    for start in range(0, len(x_N), chunk):
      part = np.asarray(x_N[start : start + chunk])
      # Lest f compile again.
      padding = [(0, chunk - len(part))] + [(0, 0)] * (part.ndim - 1)
      parts.append(np.asarray(f(*before, np.pad(part, padding)))[: len(part)])
    return np.concatenate(parts)

  return run


@in_chunks
@functools.partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision('highest')  # as what is exported
def encode_images(
  model: optics.Optics, variables: Any, images_NxSxSx3: jax.Array
) -> jax.Array:
  """path_params float32 (N, H, W, 3) of uint8 images, a chunk at a time."""
  x = optics.to_float(images_NxSxSx3)
  return model.apply(variables, x, method='encode')


@in_chunks
@functools.partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision('highest')
def _judge(
  model: optics.Optics, variables: Any, images_NxSxSx3: jax.Array
) -> jax.Array:
  """PSNR (N,) of what becomes of uint8 images, a chunk at a time."""
  x = optics.to_float(images_NxSxSx3)
  paths = model.apply(variables, x, method='encode')
  return perceptual.psnr(model.apply(variables, paths, method='decode'), x)


@in_chunks
@jax.jit
@jax.default_matmul_precision('highest')
def gradients(images_NxSxSx3: jax.Array) -> jax.Array:
  """Mean gradient magnitude of each of uint8 images, a chunk at a time."""
  return optics.gradient_magnitude(optics.to_float(images_NxSxSx3))


def examine(
  model: optics.Optics, variables: Any, images_NxSxSx3: np.ndarray, chunk: int
) -> dict[str, float]:
  """PSNR, and the rank correlation of mean radius and gradient magnitude."""
  paths = encode_images(model, variables, images_NxSxSx3, chunk)
  psnr_N = _judge(model, variables, images_NxSxSx3, chunk)
  return {
    'psnr': float(np.mean(psnr_N)),
    'correlation': curriculum.radius_check(
      paths[..., 2].mean((1, 2)), gradients(images_NxSxSx3, chunk)
    ),
  }


def load_optics(workdir: str) -> tuple[optics.Optics, Any]:
  """The trained model and its variables.

  Raises:
    ValueError: there is none, or it is broken.
  """
  home = pathlib.Path(workdir, 'optics')
  try:
    architecture = disk.read_json(home / 'optics.json')['architecture']
    flat = safetensors.numpy.load((home / 'optics.safetensors').read_bytes())
    variables = traverse_util.unflatten_dict(flat, sep='/')
    model = optics.Optics(**architecture)
    _check_architecture(model, variables)
    return model, variables
  except (safetensors.SafetensorError, *disk.BROKEN) as e:
    raise ValueError(
      f'{home} must hold trained optics, got {e!r}: make them anew in another '
      '--workdir with `python -m chimera.main prepare-latents`.'
    ) from e


def _check_architecture(model: optics.Optics, variables: Any) -> None:
  """Refuses a model that the variables are not of; no type in it is trusted."""
  sizes = model.cell, model.width, model.blocks
  are_sizes = all(type(n) is int and 0 < n < 1 << 15 for n in sizes)
  if not are_sizes or model.blocks > 100:
    raise ValueError(f'cell, width and blocks are {sizes}')
  x = jax.ShapeDtypeStruct((1, model.cell, model.cell, 3), jnp.float32)
  wanted = jax.eval_shape(model.init, jax.random.key(0), x)
  shapes = [jax.tree.map(jnp.shape, tree) for tree in (wanted, variables)]
  if shapes[0] != shapes[1]:
    raise ValueError('optics.safetensors is of another architecture')
