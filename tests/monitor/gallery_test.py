"""The dashboard's pictures: whose they are, and their pixels."""

import io

import numpy as np
import rich.console
import rich.segment

from chimera.monitor import gallery
from tests import seen


def test_each_tokenizer_has_its_turn():
  pictures = seen.pictures()
  shown = {
    name
    for turn in range(5)
    for name in pictures.by_name
    for line in seen.lines(
      seen.snapshot(seen.rows(), pictures)._replace(turn=turn), 160, 48
    )[26:]
    if f' {name} ' in line
  }
  assert shown == set(pictures.by_name)


def test_a_cell_is_two_pixels_the_upper_one_in_front():
  red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3
  image = np.array([[red, green], [blue, white]], np.uint8)
  ((left, right),) = gallery.half_blocks(image)
  assert (left.text, right.text) == ('▀', '▀')
  console = rich.console.Console(
    file=io.StringIO(), force_terminal=True, color_system='truecolor'
  )
  console.print(rich.segment.SegmentLines([[left, right]], True), end='')
  assert console.file.getvalue() == (
    '\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[0m'
    '\x1b[38;2;0;255;0;48;2;255;255;255m▀\x1b[0m\n'
  )
