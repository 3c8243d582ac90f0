"""Contact sheets: pictures in named rows, and how to cut them out again.

A sheet is a PNG that holds its own geometry, so that another process can cut it
without knowing the run.
"""

from collections.abc import Sequence
import io
import json
import math
import os
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


def create(tile: int, rows: tuple[str, ...], bins: tuple[int, ...]) -> Sheet:
  """The sheet of these rows and columns, wide enough for its names.

  Args:
    tile: pixels, side of a picture.
    rows: names.
    bins: of the columns.
  """
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
