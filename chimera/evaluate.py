"""Figures and contact sheets of a frozen tokenizer.

All figures are means over held-out samples of the natural distribution, but
for those of one bin. Path figures compare path_params scaled to [-1, 1]; pixel
figures compare the photograph with optics(tokenizer(optics(photograph))), both
in [-1, 1], so that optics_psnr is their upper bound.
"""

from collections.abc import Sequence
import functools
import json
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from chimera import images, models, optics, perceptual, poincare

# By which the sheet's error maps are brightened: 1 / 4 of full range is white.
ERROR_GAIN = 4
_TEXT = 15  # pixels, the height of a sheet's letters
_MARGIN = 8  # pixels between a row's name and its tiles
_KEY = 'chimera:sheet'  # of the geometry in the PNG


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


class Sheet(NamedTuple):
  """How a contact sheet is laid out: the only place that knows.

  Row r and column c begin at header + r (tile + gap) from the top and
  label + c (tile + gap) from the left.

  Attributes:
    tile: pixels, side of a picture.
    gap: pixels between two pictures.
    header: pixels above the pictures, for the bins.
    label: pixels beside the pictures, for the names.
    rows: names, from the top: 'original', 'optics' where there are optics,
      then each tokenizer, 'master' first, and the master's error.
    bins: of each column, from easy to hard.
  """

  tile: int
  gap: int
  header: int
  label: int
  rows: tuple[str, ...]
  bins: tuple[int, ...]


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
) -> tuple[np.ndarray, Sheet]:
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
  font = ImageFont.load_default(size=_TEXT)
  sheet = Sheet(
    tile=tiles.shape[2],
    gap=2,
    header=_TEXT + _MARGIN,
    label=math.ceil(max(map(font.getlength, rows))) + 2 * _MARGIN,
    rows=tuple(rows),
    bins=tuple(held_out.bins_N[chosen].tolist()),
  )
  return tiles, sheet


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


def compose(tiles_RxCxTxTx3: np.ndarray, sheet: Sheet) -> np.ndarray:
  """Draws the sheet: uint8 (height, width, 3). `cut` is its inverse."""
  step = sheet.tile + sheet.gap
  height = sheet.header + step * len(sheet.rows) - sheet.gap
  width = sheet.label + step * len(sheet.bins) - sheet.gap
  canvas = Image.new('RGB', (width, height), 'white')
  pen = ImageDraw.Draw(canvas)
  font = ImageFont.load_default(size=_TEXT)
  for c, b in enumerate(sheet.bins):
    x = sheet.label + c * step + sheet.tile // 2
    pen.text((x, sheet.header // 2), f'bin {b}', 'black', font, anchor='mm')
  for r, name in enumerate(sheet.rows):
    y = sheet.header + r * step + sheet.tile // 2
    x = sheet.label - _MARGIN
    pen.text((x, y), name, 'black', font, anchor='rm')
  picture = np.array(canvas)
  for r, c, top, left in _places(sheet):
    picture[top : top + sheet.tile, left : left + sheet.tile] = tiles_RxCxTxTx3[
      r, c
    ]
  return picture


def cut(picture: np.ndarray, sheet: Sheet) -> np.ndarray:
  """tiles_RxCxTxTx3 of what `compose` drew."""
  side = sheet.tile
  shape = (len(sheet.rows), len(sheet.bins), side, side, 3)
  tiles = np.empty(shape, np.uint8)
  for r, c, top, left in _places(sheet):
    tiles[r, c] = picture[top : top + side, left : left + side]
  return tiles


def _places(sheet: Sheet) -> Sequence[tuple[int, int, int, int]]:
  """Row, column, top and left of every tile."""
  step = sheet.tile + sheet.gap
  return [
    (r, c, sheet.header + r * step, sheet.label + c * step)
    for r in range(len(sheet.rows))
    for c in range(len(sheet.bins))
  ]


def save_sheet(
  path: str | os.PathLike, picture: np.ndarray, sheet: Sheet
) -> None:
  """A PNG that holds its geometry as JSON, in the text chunk of `_KEY`."""
  info = PngImagePlugin.PngInfo()
  info.add_text(_KEY, json.dumps(sheet._asdict()))
  temporary = f'{path}.tmp'
  Image.fromarray(picture).save(temporary, format='PNG', pnginfo=info)
  os.replace(temporary, path)


def geometry(path: str | os.PathLike) -> Sheet:
  """How a saved sheet is laid out.

  Raises:
    ValueError: it holds no geometry.
    OSError: it is no picture.
  """
  with Image.open(path) as picture:
    picture.load()
    text = picture.info.get(_KEY)
  try:
    fields = json.loads(text)
    return Sheet(
      **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    )
  except (TypeError, ValueError, AttributeError) as e:
    raise ValueError(f'{path} is no contact sheet: {e}.') from e


def tiles(path: str | os.PathLike) -> np.ndarray:
  """tiles_RxCxTxTx3, uint8, of a saved sheet; see `geometry` for its rows."""
  sheet = geometry(path)
  with Image.open(path) as picture:
    return cut(np.asarray(picture.convert('RGB')), sheet)
