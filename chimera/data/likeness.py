"""Near copies: the same photograph in another encoding or another size.

Each photograph has a look, its brightness on a grid of 16 x 16 cells. Two are
near copies where their looks, without mean and contrast, are less than `NEAR`
apart. A copy that is cut, turned or mirrored is another photograph.
"""

from collections.abc import Sequence
import itertools

import numpy as np
from PIL import Image

# Of two unit vectors. Of 516 photographs (BSDS500, and those that are bundled)
# the nearest two are 0.32 apart. Copies (half their size or 64 pixels, JPEG's
# quality 10 to 90, 64 colors) are nearer than 0.2, but for 0 to 3 in 516: fine
# textures, resized.
NEAR = 0.2
_SIDE = 16  # cells
_SAMPLED = 192  # pixels a side that are looked at: all of them take longer
_FLAT = 12  # of 255, from the darkest cell to the brightest: shows nothing
_COARSE = 4  # cells a side, by which neighbors are searched
_NEAREST = 32  # of each look
_CHUNK = 2**14  # looks at a time


def look(image: Image.Image) -> bytes:
  """Brightness of the 256 cells of an RGB image, row by row."""
  some = image.resize((_SAMPLED, _SAMPLED), Image.Resampling.NEAREST)
  return some.convert('L').reduce(_SAMPLED // _SIDE).tobytes()


def group(looks: Sequence[bytes]) -> list[int]:
  """A number for each: that of its near copies, and of theirs, is the same.

  Of each look its 32 nearest are considered. One that shows nothing has no
  copies: all such would look alike.
  """
  from scipy import sparse, spatial  # half a second

  shown = dict.fromkeys(x for x in looks if max(x) - min(x) >= _FLAT)
  order = {x: i for i, x in enumerate(shown)}
  if not order:
    return list(range(len(looks)))
  cells_NxF = np.frombuffer(b''.join(order), np.uint8).reshape(len(order), -1)
  parts = [slice(i, i + _CHUNK) for i in range(0, len(order), _CHUNK)]
  # No farther apart than the looks themselves.
  coarse_NxF = np.concatenate(
    [_coarse(_unit(cells_NxF[part])) for part in parts]
  )
  tree = spatial.KDTree(coarse_NxF)
  pairs = []
  for part in parts:
    apart, near = tree.query(
      coarse_NxF[part], min(_NEAREST, len(order)), distance_upper_bound=NEAR
    )
    i, k = np.nonzero(np.isfinite(apart.reshape(len(near), -1)))
    j = near.reshape(len(near), -1)[i, k]
    i += part.start
    for some in (slice(n, n + _CHUNK) for n in range(0, len(i), _CHUNK)):
      a, b = _unit(cells_NxF[i[some]]), _unit(cells_NxF[j[some]])
      is_near = np.linalg.norm(a - b, axis=1) < NEAR
      pairs.append(np.stack([i[some][is_near], j[some][is_near]]))
  i, j = np.concatenate(pairs, axis=1)
  graph = sparse.coo_array((np.ones(len(i), bool), (i, j)), [len(order)] * 2)
  count, labels = sparse.csgraph.connected_components(graph, directed=False)
  others = itertools.count(count)
  return [int(labels[order[x]]) if x in order else next(others) for x in looks]


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
