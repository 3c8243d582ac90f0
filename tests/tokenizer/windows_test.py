"""Windows over a picture: all of it, once, and as if there were none."""

import math

import numpy as np
import pytest

from chimera.tokenizer import windows


@pytest.mark.parametrize('period', [1, 2])
@pytest.mark.parametrize(
  ('window', 'reach'), [(8, 0), (9, 2), (12, 3), (64, 16)]
)
def test_spans_hold_each_place_once_with_all_that_it_sees(
  window, reach, period
):
  for length in range(1, 5 * window):
    spans = windows.spans(length, window=window, reach=reach, period=period)
    kept = [place for s in spans for place in range(s.first, s.last)]
    assert kept == list(range(length))
    for s in spans:
      assert 0 <= s.start < s.stop <= length
      assert s.stop - s.start <= window
      assert s.start % period == 0
      # The picture's own border is no window's.
      assert s.start == 0 or s.start <= s.first - reach
      assert s.stop == length or s.stop >= s.last + reach


def test_what_is_longer_than_a_window_has_windows_of_one_size():
  assert windows.spans(8, window=8, reach=2) == [(0, 8, 0, 8)]
  assert windows.spans(9, window=8, reach=2) == [(0, 8, 0, 3), (1, 9, 3, 9)]
  assert windows.spans(9, window=8, reach=2, period=2) == [
    *((0, 8, 0, 4), (2, 9, 4, 9)),
  ]
  for length in range(8, 40):
    spans = windows.spans(length, window=8, reach=2)
    assert {s.stop - s.start for s in spans} == {8}


def _blur(x, side, to_side, reach):
  """Of tokens (B, side h, side w, C) what is seen from each, in pixels.

  The mean over all tokens within reach, mirrored beyond the border, on a
  checkerboard of two tokens.
  """
  b, height, width, channels = x.shape
  h, w = height // side, width // side
  x = x.reshape(b, h, side, w, side, channels).mean((2, 4))
  x = x * (1 + np.indices((h, w)).sum(0)[..., None] % 2)
  padding = ((0, 0), (reach, reach), (reach, reach), (0, 0))
  x = np.pad(x, padding, mode='symmetric')
  places = range(2 * reach + 1)
  x = sum(x[:, i : i + h, j : j + w] for i in places for j in places)
  return x.repeat(to_side, 1).repeat(to_side, 2)


@pytest.mark.parametrize('size', [(9, 12), (12, 13), (13, 14), (31, 40)])
@pytest.mark.parametrize(('side', 'to_side'), [(2, 1), (1, 3)])
def test_in_windows_a_picture_comes_out_as_whole(size, side, to_side):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, size[0] * side, size[1] * side, 3))
  seen = []

  def f(part):
    seen.append(part.shape[1:3])
    return _blur(part, side, to_side, reach=2)

  how = {'side': side, 'to_side': to_side, 'window': 12, 'reach': 2}
  found = windows.apply(f, x, **how, period=2)
  whole = _blur(x, side, to_side, reach=2)
  np.testing.assert_allclose(found, whole, atol=1e-12)
  assert max(map(max, seen)) <= 12 * side
  assert len(seen) == math.prod(
    1 if n <= 12 else -(-(n - 4) // 8) for n in size
  )
  # It can fail: one token less is too few, and so is an odd place.
  if max(size) > 12:
    near = windows.apply(f, x, **{**how, 'reach': 1}, period=2)
    assert np.abs(near - whole).max() > 1e-3
  if size == (12, 13):
    odd = windows.apply(f, x, **how)
    assert np.abs(odd - whole).max() > 1e-3


def test_a_picture_is_mirrored_to_whole_tokens():
  picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
  padded = windows.pad(picture, 4)
  assert padded.shape == (8, 8, 3)
  np.testing.assert_array_equal(padded[:5, :6], picture)
  np.testing.assert_array_equal(padded[5:, :6], picture[:1:-1])
  np.testing.assert_array_equal(padded[:5, 6:], picture[:, :3:-1])
  assert windows.pad(picture[:4, :4], 4).shape == (4, 4, 3)
  speck = windows.pad(picture[:1, :1], 4)
  np.testing.assert_array_equal(speck, np.broadcast_to([0, 1, 2], (4, 4, 3)))
