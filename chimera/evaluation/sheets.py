"""Contact sheets: pictures in named rows, and how to cut them out again.

A sheet is a PNG that holds its own geometry, so that another process can cut it
without knowing the run.
"""

import io
import json
import math
import os
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from chimera.system import disk

_TEXT = 15  # pixels, the height of a sheet's letters
_MARGIN = 8  # pixels between a row's name and its tiles
_KEY = 'chimera:sheet'  # of the geometry in the PNG


class Sheet(NamedTuple):
  """How a contact sheet is laid out: the only place that knows.

  Row r and column c begin at header + r (tile + gap) from the top and
  label + c (tile + gap) from the left. All but the last two are in pixels.
  """

  tile: int  # side of a picture
  gap: int  # between two pictures
  header: int  # above the pictures, for the bins
  label: int  # beside the pictures, for the names
  # Names, from the top: 'original', 'optics' where there are optics, then each
  # tokenizer, 'master' first, and the master's error.
  rows: tuple[str, ...]
  bins: tuple[int, ...]  # of each column, from easy to hard


def create(tile: int, rows: tuple[str, ...], bins: tuple[int, ...]) -> Sheet:
  """The sheet of these rows and columns, wide enough for its names."""
  font = ImageFont.load_default(size=_TEXT)
  return Sheet(
    tile=tile,
    gap=2,
    header=_TEXT + _MARGIN,
    label=math.ceil(max(map(font.getlength, rows))) + 2 * _MARGIN,
    rows=rows,
    bins=bins,
  )


def compose(tiles_RxCxTxTx3: np.ndarray, sheet: Sheet) -> np.ndarray:
  """Draws the sheet: uint8 (height, width, 3). `cut` is its inverse."""
  step = sheet.tile + sheet.gap
  flat = tiles_RxCxTxTx3.reshape(-1, *tiles_RxCxTxTx3.shape[2:])
  tiles = glue(flat, columns=len(sheet.bins), gap=sheet.gap)
  height, width, _ = tiles.shape
  size = sheet.label + width, sheet.header + height
  canvas = Image.new('RGB', size, 'white')
  canvas.paste(Image.fromarray(tiles), (sheet.label, sheet.header))
  pen = ImageDraw.Draw(canvas)
  font = ImageFont.load_default(size=_TEXT)
  for c, b in enumerate(sheet.bins):
    x = sheet.label + c * step + sheet.tile // 2
    pen.text((x, sheet.header // 2), f'bin {b}', 'black', font, anchor='mm')
  for r, name in enumerate(sheet.rows):
    y = sheet.header + r * step + sheet.tile // 2
    x = sheet.label - _MARGIN
    pen.text((x, y), name, 'black', font, anchor='rm')
  return np.array(canvas)


def cut(picture: np.ndarray, sheet: Sheet) -> np.ndarray:
  """tiles_RxCxTxTx3 of what `compose` drew."""
  step = sheet.tile + sheet.gap
  inner = picture[sheet.header :, sheet.label :]
  tiles_RxCxTxTx3 = np.pad(inner, ((0, sheet.gap), (0, sheet.gap), (0, 0)))
  shape = (len(sheet.rows), step, len(sheet.bins), step, 3)
  tiles_RxCxTxTx3 = tiles_RxCxTxTx3.reshape(shape).swapaxes(1, 2)
  return tiles_RxCxTxTx3[:, :, : sheet.tile, : sheet.tile]


def glue(
  tiles_NxHxWx3: np.ndarray, *, columns: int, gap: int = 0
) -> np.ndarray:
  """One picture of tiles, row by row: uint8, `gap` white pixels in between.

  Where they do not fill the last row, it is white.
  """
  n, height, width, _ = tiles_NxHxWx3.shape
  r, h, w = -(-n // columns), height + gap, width + gap
  canvas = np.full((r * columns, h, w, 3), 255, np.uint8)
  canvas[:n, :height, :width] = tiles_NxHxWx3
  picture = canvas.reshape(r, columns, h, w, 3).swapaxes(1, 2)
  picture = picture.reshape(r * h, columns * w, 3)
  return picture[: r * h - gap, : columns * w - gap]


def save(path: str | os.PathLike, picture: np.ndarray, sheet: Sheet) -> None:
  """A PNG that holds its geometry as JSON, in the text chunk of `_KEY`."""
  info = PngImagePlugin.PngInfo()
  info.add_text(_KEY, json.dumps(sheet._asdict()))
  png = io.BytesIO()
  Image.fromarray(picture).save(png, format='PNG', pnginfo=info)
  disk.write(path, png.getvalue())


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
    sheet = Sheet(**json.loads(text))
    return sheet._replace(rows=tuple(sheet.rows), bins=tuple(sheet.bins))
  except (TypeError, ValueError) as e:
    raise ValueError(f'{path} is no contact sheet: {e}.') from e


def tiles(path: str | os.PathLike) -> np.ndarray:
  """tiles_RxCxTxTx3, uint8, of a saved sheet; see `geometry` for its rows."""
  sheet = geometry(path)
  with Image.open(path) as picture:
    return cut(np.asarray(picture.convert('RGB')), sheet)


def previews(workdir: str | pathlib.Path) -> dict[int, pathlib.Path]:
  """The contact sheets by their cycle, from the first on; no other picture."""
  paths = pathlib.Path(workdir, 'previews').glob('*.png')
  return dict(sorted((int(p.stem), p) for p in paths if p.stem.isdecimal()))
