"""The dashboard's pictures: two pixels a cell of the terminal."""

from collections.abc import Sequence
import functools

import numpy as np
from PIL import Image
import rich.color
from rich.segment import Segment
import rich.style

from chimera.monitor import snapshot as snapshot_lib

_FAINT = rich.style.Style.parse('bright_black')


def draw(
  pictures: snapshot_lib.Pictures, turn: int, width: int, height: int
) -> list[list[Segment]]:
  """Originals and what one tokenizer makes of them, as large as they go.

  Each tokenizer has its `turn`, which counts up. The two stand beside or below
  each other in `height` lines of `width` cells, whichever shows more: a larger
  picture is worth more than another one. No lines where not one picture fits.
  """
  names = list(pictures.by_name)
  name = names[turn % len(names)]
  best = None
  for is_beside in (False, True):
    room = (width - 2) // 2 if is_beside else width
    tallest = 2 * (height - 1) if is_beside else (height - 2) // 2 * 2
    for side in range(8, tallest + 1, 2):
      count = min(len(pictures.originals), (room + 1) // (side + 1))
      worth = count > 1, count * side**3
      if count > 0 and (best is None or worth > best[0]):
        best = worth, is_beside, side, count
  if best is None:
    return []
  _, is_beside, side, count = best
  spread = np.linspace(0, len(pictures.originals) - 1, count).round()
  first, second = (
    [[Segment(label, _FAINT)], *_strip([tiles[int(i)] for i in spread], side)]
    for label, tiles in (
      (f'originals, cycle {pictures.cycle}', pictures.originals),
      (name, pictures.by_name[name]),
    )
  )
  if not is_beside:
    return [*first, *second]
  wide = count * (side + 1) + 1
  return [
    [*Segment.adjust_line_length(a, wide), *b] for a, b in zip(first, second)
  ]


def _strip(
  tiles: Sequence[snapshot_lib.Tile], side: int
) -> list[list[Segment]]:
  """Pictures in a row, `side` pixels each."""
  rows = zip(*(_shrink(tile, side) for tile in tiles))
  return [
    [segment for cells in row for segment in (*cells, Segment(' '))][:-1]
    for row in rows
  ]


# All rows of a sheet of twelve pictures; each is drawn at every turn.
@functools.lru_cache(maxsize=128)
def _shrink(tile: snapshot_lib.Tile, side: int) -> list[list[Segment]]:
  image = Image.frombytes('RGB', (tile.side, tile.side), tile.rgb)
  return half_blocks(
    np.asarray(image.resize((side, side), Image.Resampling.BOX))
  )


def half_blocks(image: np.ndarray) -> list[list[Segment]]:
  """A picture, uint8 (even height, width, 3): two pixels a cell."""
  return [
    [
      Segment('▀', _paint(*map(int, (*above, *below))))
      for above, below in zip(image[y], image[y + 1])
    ]
    for y in range(0, len(image), 2)
  ]


def _paint(*rgb: int) -> rich.style.Style:
  """Style of the upper pixel on the lower one."""
  return rich.style.Style.from_color(
    rich.color.Color.from_rgb(*rgb[:3]), rich.color.Color.from_rgb(*rgb[3:])
  )
