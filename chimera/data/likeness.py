"""Near copies: the same photograph in another encoding or another size.

Each photograph has a look, its brightness on a grid of 16 x 16 cells. Two are
near copies where their looks, without mean and contrast, are less than `NEAR`
apart. A copy that is cut, turned or mirrored is another photograph.
"""

from collections.abc import Iterator, Sequence
import hashlib

import numpy as np
from PIL import Image

# Of two unit vectors. Of 516 photographs (BSDS500, and those that are bundled)
# the nearest two are 0.32 apart. Copies (half their size or 64 pixels, JPEG's
# quality 10 to 90, 64 colors) are nearer than 0.2, but for 0 to 5 in 516: fine
# textures, resized.
NEAR = 0.2
_SIDE = 16  # cells
_SAMPLED = 160  # pixels a side that are looked at: all of them take longer
_FLAT = 12  # of 255, from the darkest cell to the brightest: shows nothing
_COARSE = 4  # cells a side, by which neighbors are searched
_CHUNK = 2**14  # looks at a time
_ROWS = 512  # of them that are compared with the others at a time


def look(image: Image.Image) -> bytes:
  """Brightness of the 256 cells of an RGB image, row by row.

  Of one whose cells show nothing, the 32 bytes of a digest of its pixels.
  """
  some = image.resize((_SAMPLED, _SAMPLED), Image.Resampling.NEAREST)
  cells = some.convert('L').reduce(_SAMPLED // _SIDE).tobytes()
  if max(cells) - min(cells) >= _FLAT:
    return cells
  return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def group(looks: Sequence[bytes]) -> list[int]:
  """A number for each: that of its near copies, and of theirs, is the same.

  One that shows nothing is a copy where all pixels are the same: all such
  would look alike.
  """
  distinct = sorted(dict.fromkeys(looks), key=len, reverse=True)
  order = {x: i for i, x in enumerate(distinct)}
  shown = [x for x in distinct if len(x) == _SIDE**2]
  cells_NxF = np.frombuffer(b''.join(shown), np.uint8).reshape(-1, _SIDE**2)
  first_N = np.arange(len(order))  # another one of its group, or itself

  def find(i: int) -> int:
    while first_N[i] != i:
      first_N[i] = i = first_N[first_N[i]]
    return i

  for ids_n, is_near_mxn in _neighbors(cells_NxF):
    for is_near_n in is_near_mxn:
      near = ids_n[is_near_n]
      if np.ptp(first_N[near]):
        firsts = [find(i) for i in np.unique(first_N[near])]
        first_N[firsts] = first_N[near] = min(firsts)
  return [int(find(order[x])) for x in looks]


def is_near(looks: Sequence[bytes], others: Sequence[bytes]) -> list[bool]:
  """Whether each is a near copy of one of the others, or the same."""
  those = set(others)
  shown = sorted(x for x in {*looks, *others} if len(x) == _SIDE**2)
  cells_NxF = np.frombuffer(b''.join(shown), np.uint8).reshape(-1, _SIDE**2)
  is_other_N = np.array([x in those for x in shown], bool)
  found_N = is_other_N.copy()
  for ids_n, is_near_mxn in _neighbors(cells_NxF):
    ids_m = ids_n[: len(is_near_mxn)]
    found_N[ids_m] |= (is_near_mxn & is_other_N[ids_n]).any(1)
    found_N[ids_n] |= (is_near_mxn & is_other_N[ids_m, None]).any(0)
  found = those | {x for x, is_found in zip(shown, found_N) if is_found}
  return [x in found for x in looks]


def _neighbors(
  cells_NxF: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(ids_n of looks, which of them are near to each of m), piece by piece.

  Every two that are near are in a piece. Compared are only those whose larger
  cells are near, and of these only neighbors along the axis of most change.
  """
  if not len(cells_NxF):
    return
  parts = [cells_NxF[i : i + _CHUNK] for i in range(0, len(cells_NxF), _CHUNK)]
  coarse_NxD = np.concatenate([_coarse(_unit(part)) for part in parts])
  _, axes_DxD = np.linalg.eigh(coarse_NxD.T @ coarse_NxD)
  along_N = coarse_NxD @ axes_DxD[:, -1]
  ids_N = np.argsort(along_N, kind='stable')
  coarse_NxD, along_N = coarse_NxD[ids_N], along_N[ids_N]
  # Half the squared distance is a + b - xy, of half the squared lengths.
  half_N = np.square(coarse_NxD).sum(1) / 2
  for i in range(0, len(ids_N), _ROWS):
    rows = slice(i, i + _ROWS)
    last = np.searchsorted(along_N, along_N[rows][-1] + NEAR, 'right')
    apart = half_N[rows, None] + half_N[i:last]
    apart -= coarse_NxD[rows] @ coarse_NxD[i:last].T
    may_be = apart < NEAR**2 / 2
    may_be[:, : len(may_be)] &= ~np.eye(len(may_be), dtype=bool)
    ids_m = ids_N[rows][may_be.any(1)]
    ids_n = ids_N[i:last][may_be.any(0)]
    if len(ids_m):
      ids_n = np.concatenate([ids_m, ids_n])
      alike = _unit(cells_NxF[ids_m]) @ _unit(cells_NxF[ids_n]).T
      yield ids_n, alike > 1 - NEAR**2 / 2


def _unit(cells_NxF: np.ndarray) -> np.ndarray:
  """Without mean and contrast, float32."""
  x = cells_NxF.astype(np.float32)
  x -= x.mean(1, keepdims=True)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def _coarse(x_NxF: np.ndarray) -> np.ndarray:
  """Its projection on what is even over larger cells."""
  each = _SIDE // _COARSE
  cells = x_NxF.reshape(len(x_NxF), _COARSE, each, _COARSE, each)
  return cells.sum((2, 4)).reshape(len(x_NxF), -1) / each
