"""Metrics and previews of a frozen tokenizer.

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
from PIL import Image

from chimera import images, models, optics, perceptual, poincare


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
) -> dict[str, float]:
  """Every figure of one tokenizer, by name."""
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
  of_bin = {
    b: float(np.mean(each['path_l1'][held_out.bins_N == b]))
    for b in range(10)
    if np.any(held_out.bins_N == b)
  }
  figures |= {f'path_l1_bin_{b}': v for b, v in of_bin.items()}
  figures['path_l1_worst_bin'] = max(of_bin.values())
  p = counts_V[counts_V > 0] / counts_V.sum()
  figures['perplexity'] = math.exp(-np.sum(p * np.log(p)))
  figures['codes_used'] = float(np.sum(counts_V > 0))
  return figures


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
) -> np.ndarray:
  """A sheet, uint8 (height, width, 3).

  Rows: the originals, the optics alone, then each tokenizer in turn. The
  columns go from easy to hard. Path_params without optics are drawn as colors.
  """
  order = np.argsort(held_out.bins_N, kind='stable')
  chosen = order[np.linspace(0, len(order) - 1, columns).round().astype(int)]
  paths = held_out.paths_NxHxWxC[chosen]
  x = poincare.normalize(paths)

  def draw(x_hat: jax.Array) -> np.ndarray:
    if eyes is None:
      return images.to_uint8(np.asarray(x_hat))
    paths = poincare.denormalize(x_hat)
    pixels = eyes.model.apply(eyes.params, paths, method='decode')
    return images.to_uint8(np.asarray(pixels))

  rows = [draw(x)]
  if eyes is not None:
    rows.insert(0, held_out.images_NxSxSx3[chosen])
  for params in params_by_row.values():
    rows.append(draw(tokenizer.apply({'params': params}, x)[0]))
  scale = max(1, 128 // rows[0].shape[1])
  sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
  return sheet.repeat(scale, axis=0).repeat(scale, axis=1)


def save_png(path: str, sheet: np.ndarray) -> None:
  Image.fromarray(sheet).save(path)
