"""Figures and contact sheets of a frozen tokenizer.

All figures are means over held-out samples of the natural distribution, but
for those of one bin. Path figures compare path_params scaled to [-1, 1]; pixel
figures compare the photograph with optics(tokenizer(optics(photograph))), both
in [-1, 1], so that optics_psnr is their upper bound.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chimera import images, models, optics, perceptual, poincare, sheets

# By which the sheet's error maps are brightened: 1 / 4 of full range is white.
ERROR_GAIN = 4


class HeldOut(NamedTuple):
  """Samples no training sample comes near.

  Attributes:
    paths_NxHxWxC: path_params.
    images_NxSxSx3: the crops, uint8; None where the data are path_params.
    bins_N: the bin of the curriculum that each would fall in, 0 to 9.
  """

  paths_NxHxWxC: np.ndarray
  images_NxSxSx3: np.ndarray | None
  bins_N: np.ndarray


class Eyes(NamedTuple):
  """What turns path_params back into pixels: the frozen optics."""

  model: optics.Optics
  params: Any


def evaluate(
  tokenizer: models.Tokenizer,
  params: Any,
  held_out: HeldOut,
  eyes: Eyes | None,
  *,
  batch_size: int,
) -> tuple[dict[str, float], np.ndarray]:
  """Every figure of one tokenizer, by name, and counts_V of its codes."""
  rows, counts_V = [], np.zeros(tokenizer.codes)
  for start in range(0, len(held_out.paths_NxHxWxC), batch_size):
    part = slice(start, start + batch_size)
    pixels = None
    if eyes is not None:
      pixels = images.to_float(held_out.images_NxSxSx3[part])
    row, counts = _measure(
      tokenizer,
      eyes.model if eyes else None,
      params,
      eyes.params if eyes else None,
      held_out.paths_NxHxWxC[part],
      pixels,
    )
    rows.append(jax.device_get(row))
    counts_V += np.asarray(counts)
  each = {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}
  figures = {k: float(np.mean(v)) for k, v in each.items()}
  there = [b for b in range(10) if np.any(held_out.bins_N == b)]
  for name in {'path_l1', 'psnr'} & set(each):
    figures |= {
      f'{name}_bin_{b}': float(np.mean(each[name][held_out.bins_N == b]))
      for b in there
    }
  figures['path_l1_worst_bin'] = max(figures[f'path_l1_bin_{b}'] for b in there)
  p = counts_V[counts_V > 0] / counts_V.sum()
  figures['perplexity'] = math.exp(-np.sum(p * np.log(p)))
  figures['codes_used'] = float(np.sum(counts_V > 0))
  return figures, counts_V


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(tokenizer, eye_model, params, eye_params, paths, pixels):
  x = poincare.normalize(paths)
  x_hat, _, tokens = tokenizer.apply({'params': params}, x)
  row = {
    'path_l1': jnp.mean(jnp.abs(x - x_hat), axis=(1, 2, 3)),
    'path_psnr': perceptual.psnr(x, x_hat),
    'path_ssim': 1 - perceptual.ssim(x, x_hat),
    'path_edge': perceptual.edge(x, x_hat),
  }
  if eye_model is not None:
    seen = eye_model.apply(eye_params, paths, method='decode')
    y = eye_model.apply(
      eye_params, poincare.denormalize(x_hat), method='decode'
    )
    row |= {
      'pixel_l1': jnp.mean(jnp.abs(pixels - y), axis=(1, 2, 3)),
      'psnr': perceptual.psnr(pixels, y),
      'ssim': 1 - perceptual.ssim(pixels, y),
      'edge': perceptual.edge(pixels, y),
      'optics_psnr': perceptual.psnr(pixels, seen),
    }
  return row, jnp.bincount(tokens.ravel(), length=tokenizer.codes)


def preview(
  tokenizer: models.Tokenizer,
  params_by_row: dict[str, Any],
  held_out: HeldOut,
  eyes: Eyes | None,
  *,
  columns: int,
) -> tuple[np.ndarray, sheets.Sheet]:
  """What a contact sheet shows.

  Args:
    tokenizer: the module.
    params_by_row: of each tokenizer, the master first.
    held_out: samples; path_params without optics are drawn as colors.
    eyes: the optics.
    columns: how many samples, from easy to hard.

  Returns:
    tiles_RxCxTxTx3, uint8, and their sheet.
  """
  order = np.argsort(held_out.bins_N, kind='stable')
  chosen = order[np.linspace(0, len(order) - 1, columns).round().astype(int)]
  paths = held_out.paths_NxHxWxC[chosen]
  x = poincare.normalize(paths)
  rows = {'original': draw(x, eyes)}
  if eyes is not None:
    rows = {
      'original': held_out.images_NxSxSx3[chosen],
      'optics': rows['original'],
    }
  for name, params in params_by_row.items():
    rows[name] = draw(tokenizer.apply({'params': params}, x)[0], eyes)
  master = next(iter(params_by_row))
  rows[f'error x{ERROR_GAIN}'] = error_map(rows['original'], rows[master])
  tiles = np.stack(list(rows.values()))
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
