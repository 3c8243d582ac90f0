"""Figures and contact sheets of a frozen tokenizer.

Pixel figures compare the photograph with optics(tokenizer(optics(photograph))),
both rounded to 8 bits as a file would hold them. README.md says the rest.
"""

from collections.abc import Iterator, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chimera.clones import models, perceptual
from chimera.data import images
from chimera.evaluation import frechet, metrics, sheets
from chimera.optics import modules as optics
from chimera.optics import poincare
from chimera.school import curriculum

# By which the sheet's error maps are brightened: 1 / 4 of full range is white.
ERROR_GAIN = 4


class HeldOut(NamedTuple):
  """Samples no training sample comes near."""

  paths_NxHxWxC: np.ndarray  # path_params
  images_NxSxSx3: np.ndarray | None  # uint8; None if the data are path_params
  bins_N: np.ndarray  # of the curriculum, that each would fall in, 0 to 9
  frechet_metrics: Sequence[frechet.FrechetMetric] = ()  # to the crops


class Eyes(NamedTuple):
  """What turns path_params back into pixels: the frozen optics."""

  model: optics.Optics
  params: Any


def frechet_metrics(
  images_NxSxSx3: np.ndarray, inception: str, *, batch_size: int
) -> tuple[frechet.FrechetMetric, ...]:
  """rfd-random of the crops and, where a file of Inception is named, rfid.

  Raises:
    ValueError: the file holds no such network.
    OSError: it cannot be read.
  """
  networks = {frechet.RANDOM: frechet.random_features}
  if inception:
    networks[frechet.INCEPTION] = frechet.load_network(inception)
  return tuple(
    frechet.FrechetMetric(
      name,
      features,
      (
        images.to_float(images_NxSxSx3[part])
        for part in _batches(len(images_NxSxSx3), batch_size)
      ),
    )
    for name, features in networks.items()
  )


def evaluate(
  tokenizer: models.Tokenizer,
  params: Any,
  held_out: HeldOut,
  eyes: Eyes | None,
  *,
  batch_size: int,
) -> tuple[dict[str, float], np.ndarray]:
  """Every figure of one tokenizer, by name, and counts_V of its codes."""
  eye_model, eye_params = eyes or (None, None)
  rows, counts_V = [], np.zeros(tokenizer.codes)
  moments = dict.fromkeys(held_out.frechet_metrics)
  for part in _batches(len(held_out.paths_NxHxWxC), batch_size):
    pixels = eyes and images.to_float(held_out.images_NxSxSx3[part])
    paths = held_out.paths_NxHxWxC[part]
    row, counts, seen = _measure(
      tokenizer, eye_model, params, eye_params, paths, pixels
    )
    rows.append(jax.device_get(row))
    counts_V += np.asarray(counts)
    for metric, so_far in moments.items():
      moments[metric] = metric.add(so_far, seen)
  each = {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}
  figures = {k: float(np.mean(v)) for k, v in each.items()}
  for metric, seen in moments.items():
    figures[metric.name] = metric.distance(seen)
  for metric in metrics.FIGURES:
    if metric.by_bin is not None and metric.name in each:
      of_bins = {
        metric.bin(b).name: float(np.mean(each[metric.name][here_N]))
        for b in range(curriculum.BINS)
        if np.any(here_N := held_out.bins_N == b)
      }
      figures |= of_bins
      figures[metric.worst_bin().name] = metric.worst_of(of_bins.values())
  p = counts_V[counts_V > 0] / counts_V.sum()
  figures['perplexity'] = math.exp(-np.sum(p * np.log(p)))
  figures['codes_used'] = float(np.sum(counts_V > 0))
  return figures, counts_V


def _batches(count: int, batch_size: int) -> Iterator[slice]:
  for start in range(0, count, batch_size):
    yield slice(start, start + batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(tokenizer, eye_model, params, eye_params, paths, pixels):
  """Figures of each sample, counts of the codes, and the pictures."""
  x = poincare.normalize(paths)
  x_hat, _, tokens = tokenizer.apply({'params': params}, x)
  row = _compare(x, x_hat, of_paths=True)
  y = None
  if eye_model is not None:
    decode = functools.partial(eye_model.apply, eye_params, method='decode')
    y = _to_8_bits(decode(poincare.denormalize(x_hat)))
    row |= _compare(pixels, y, of_paths=False)
    row['optics_psnr'] = perceptual.psnr(pixels, _to_8_bits(decode(paths)))
  return row, jnp.bincount(tokens.ravel(), length=tokenizer.codes), y


def _compare(
  a: jax.Array, b: jax.Array, *, of_paths: bool
) -> dict[str, jax.Array]:
  """By name, (B,), what the table says of path_params, or of pixels."""
  return {
    metric.name: getattr(perceptual, metric.by)(a, b)
    for metric in metrics.FIGURES
    if metric.by and metric.is_of_paths == of_paths
  }


def _to_8_bits(x_BxHxWxC: jax.Array) -> jax.Array:
  """As if by way of uint8, in [-1, 1]; what is not finite stays so."""
  return jnp.round(jnp.clip(x_BxHxWxC + 1, 0, 2) * 127.5) / 127.5 - 1


def preview(
  tokenizer: models.Tokenizer,
  params_by_row: dict[str, Any],
  held_out: HeldOut,
  eyes: Eyes | None,
  *,
  columns: int,
) -> tuple[np.ndarray, sheets.Sheet]:
  """What a contact sheet shows: tiles_RxCxTxTx3, uint8, and how they lie.

  A row of each of `params_by_row`, the master first; a column of each sample,
  from easy to hard. path_params without optics are drawn as colors.
  """
  order = np.argsort(held_out.bins_N, kind='stable')
  chosen = order[np.linspace(0, len(order) - 1, columns).round().astype(int)]
  paths = held_out.paths_NxHxWxC[chosen]
  x = poincare.normalize(paths)
  rows = {'original': (seen := draw(x, eyes))}
  if eyes is not None:
    rows = {'original': held_out.images_NxSxSx3[chosen], 'optics': seen}
  for name, params in params_by_row.items():
    rows[name] = draw(tokenizer.apply({'params': params}, x)[0], eyes)
  master = next(iter(params_by_row))
  rows[f'error x{ERROR_GAIN}'] = error_map(rows['original'], rows[master])
  tiles = np.stack(list(rows.values()))
  # A sheet's are square; path_params of others need not be.
  height, width = tiles.shape[2:4]
  more = [(0, max(height, width) - n) for n in (height, width)]
  white = [(0, 0), (0, 0), *more, (0, 0)]
  tiles = np.pad(tiles, white, constant_values=255)
  scale = max(1, 128 // tiles.shape[2])
  tiles = tiles.repeat(scale, axis=2).repeat(scale, axis=3)
  return tiles, sheets.create(
    tiles.shape[2], tuple(rows), tuple(held_out.bins_N[chosen].tolist())
  )


def draw(x_BxHxWxC: jax.Array, eyes: Eyes | None) -> np.ndarray:
  """Pixels, uint8, of normalized path_params; themselves without optics."""
  if eyes is None:
    return images.to_uint8(np.asarray(x_BxHxWxC))
  paths = poincare.denormalize(x_BxHxWxC)
  pixels = eyes.model.apply(eyes.params, paths, method='decode')
  return images.to_uint8(np.asarray(pixels))


def error_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Gray |a - b| of uint8 pictures (..., 3): the channels' mean, brightened."""
  error = np.abs(a.astype(np.float32) - b).mean(-1, keepdims=True)
  bright = np.minimum(np.rint(error * ERROR_GAIN), 255).astype(np.uint8)
  return np.broadcast_to(bright, a.shape)
