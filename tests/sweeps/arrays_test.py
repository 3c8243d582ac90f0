"""Arrays of any kind at the door: right or refused, never garbage.

What is right is judged by the values that each array holds, as float64, and by
a program of its own on plain float32.
"""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from PIL import Image
import pytest

from chimera.optics import poincare
from chimera.tokenizer import export
from tests import sweep, tiny

SHAPE, GRID, V = (16, 16, 3), (2, 2), 16
TOP = 1 + 1 / 127.5
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (8, 2, *SHAPE))
TOKENS = RNG.integers(0, V, (8, 2, *GRID))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(t) for t in ('f2', 'f4', 'f8', 'g')] + [BFLOAT16]
INTEGERS = [np.dtype(f'{kind}{n}') for kind in 'iu' for n in (1, 2, 4, 8)]
OTHERS = [np.dtype(t) for t in ('?', 'c8', 'O', 'm8[s]', 'S3')]
# Near and over the borders.
SPIKES = (
  *(-1.0, 1.0, np.nextafter(1, 2), -1.0000001, 1.0005, 1.0078125, -1.0078),
  *(1.0079, -1.009, 1.1, -2.0, 127.5, 255.0, 65535.0, 1e30, -1e300, 1e-300),
  *(np.nan, np.inf, -np.inf, -0.0, 0.0, 0.5),
)
CODES = (-1, 0, V - 1, V, 10 * V, 127, 128, 255, 256, 2**15, 2**31, 2**32 + 3)
CODES += (-(2**31), -128, 2**40 + 3, 2**63 - 1)


class Foreign:
  def __init__(self, x):
    self.x = x

  def __array__(self, dtype=None, copy=None):
    return self.x


class OnDevice(Foreign):
  def __array__(self, dtype=None, copy=None):
    raise TypeError('not without a copy')

  def __dlpack__(self, **kwargs):
    return self.x.__dlpack__(**kwargs)

  def __dlpack_device__(self):
    return self.x.__dlpack_device__()


def _aside(x):
  """The same in memory that is not aligned, and cannot be written."""
  if x.dtype.hasobject:
    return x
  return np.ndarray(x.shape, x.dtype, b'x' + x.tobytes(), offset=1)


LAYOUTS = {
  'rows': np.ascontiguousarray,
  'columns': np.asfortranarray,
  'strided': lambda x: np.repeat(x, 3, axis=-1)[..., ::3],
  'backwards': lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1],
  'aside': _aside,
  'swapped': lambda x: np.ascontiguousarray(x.T).T,
  'foreign': lambda x: (
    x if x.dtype == BFLOAT16 else x.astype(x.dtype.newbyteorder('>'))
  ),
  'masked': lambda x: np.ma.masked_array(x, np.zeros(x.shape, bool)),
}
BRINGS = {
  'numpy': lambda x: x,
  'list': list,
  'tuple': lambda x: tuple(map(Foreign, x)),
  'numbers': lambda x: x.tolist(),
  'foreign': Foreign,
  'dlpack': OnDevice,
  'jax': jnp.asarray,
  'device': lambda x: jax.device_put(x, jax.devices()[1]),
  'listed jax': lambda x: list(map(jnp.asarray, x)),
  'jit': jnp.asarray,
  'pillow': lambda x: [Image.fromarray(image) for image in x],
}
SHAPES = {
  'right': lambda x: x,
  'single': lambda x: x[0],
  'nested': lambda x: x[None],
  'narrow': lambda x: x[:, :, :-1],
  'deep': lambda x: np.concatenate([x, x[..., :1]], -1),
  'channels first': lambda x: np.moveaxis(x, -1, 1),
  'flat': lambda x: x.reshape(len(x), -1),
}


def _cast(x, dtype):
  with np.errstate(all='ignore'):
    return x.astype(dtype)


@st.composite
def _images(draw):
  """An array's values as they are in its dtype, C and native."""
  x = IMAGES[draw(st.integers(0, 7))].copy()
  scale = draw(st.sampled_from(['whole', 'whole', 'half', 'bytes', 'gray']))
  x = {'whole': x, 'half': (x + 1) / 2, 'bytes': (x + 1) * 127.5, 'gray': 0 * x}
  x = x[scale]
  for value in draw(st.lists(st.sampled_from(SPIKES), max_size=2)):
    x.flat[draw(st.integers(0, x.size - 1))] = value
  dtype = draw(
    st.one_of(
      st.sampled_from(FLOATS),
      st.just(np.dtype('u1')),
      st.sampled_from(INTEGERS + OTHERS),
    )
  )
  if dtype.kind in 'iu' and scale != 'bytes':
    x = x * 100
  return _cast(np.nan_to_num(x) if dtype.kind in 'iumS?' else x, dtype)


@st.composite
def _tokens(draw):
  x = TOKENS[draw(st.integers(0, 7))].copy()
  for value in draw(st.lists(st.sampled_from(CODES), max_size=2)):
    x.flat[draw(st.integers(0, x.size - 1))] = value
  dtypes = st.one_of(
    st.sampled_from(INTEGERS), st.sampled_from(FLOATS + OTHERS)
  )
  return _cast(x, draw(dtypes))


HOW = {
  'shape': st.one_of(st.just('right'), st.sampled_from(list(SHAPES))),
  'layout': st.sampled_from(list(LAYOUTS)),
  'bring': st.sampled_from(list(BRINGS)),
}


def _brought(x, shape, layout, bring):
  """(what is given, the same as a plain array); rejects what cannot be."""
  x = SHAPES[shape](x)
  try:
    given = BRINGS[bring](LAYOUTS[layout](x))
  except (TypeError, ValueError, OverflowError):
    hypothesis.reject()  # JAX and Pillow have not all dtypes
  if bring == 'numbers':
    x = np.asarray(given)
  elif bring in ('jax', 'device', 'jit', 'listed jax'):
    # JAX itself takes 64 bits and foreign byte orders as it likes.
    x = np.asarray(given)
  return given, x


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweep') / 'tokenizer'
  return export.load(tiny.save_tokenizer(folder))
