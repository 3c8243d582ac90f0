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
    if bring == 'dlpack':
      np.from_dlpack(given)
  except (TypeError, ValueError, OverflowError, BufferError):
    hypothesis.reject()  # JAX, Pillow and dlpack have not all dtypes
  if bring == 'numbers':
    x = np.asarray(given)
  elif bring == 'pillow':
    x = np.stack([np.asarray(image) for image in given])
  elif bring in ('jax', 'device', 'jit', 'listed jax'):
    # Before it is given, JAX cuts 64 bits to 32.
    x = np.asarray(given)
  return given, x


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweep') / 'tokenizer'
  return export.load(tiny.save_tokenizer(folder))


@functools.cache
def _plain():
  """encode and decode of parts and x, by nothing of `export`."""
  parts = tiny.parts()

  def encode(params, variables, x):
    paths = parts.optics.apply(variables, x, method='encode')
    x = jax.lax.optimization_barrier(poincare.normalize(paths))
    return parts.tokenizer.apply({'params': params}, x, method='tokenize')

  def decode(params, variables, tokens):
    x = parts.tokenizer.apply({'params': params}, tokens, method='detokenize')
    paths = poincare.denormalize(x)
    return parts.optics.apply(variables, paths, method='decode')

  return [
    functools.partial(jax.jit(f), parts.params, parts.variables)
    for f in (encode, decode)
  ]


def _is_float(x):
  return x.dtype.kind == 'f' or x.dtype == BFLOAT16


@sweep.of(ci=100, long=2000)
@hypothesis.given(x=_images(), **HOW)
def test_images_are_right_or_refused(loaded, x, shape, layout, bring):
  given, x = _brought(x, shape, layout, bring)
  is_taken = _is_float(x) or x.dtype == np.uint8
  is_one = is_taken and x.shape == SHAPE
  # A single image is the batch of it alone.
  x = x[None] if is_one else x
  is_batch = is_taken and x.shape[1:] == SHAPE and x.ndim == 4
  values = x.astype(np.float64) if is_batch else np.zeros(2)
  if x.dtype == np.uint8:
    values = values / 127.5 - 1
  is_good_2 = (np.abs(values) <= TOP).reshape(len(values), -1).all(1)
  if not is_batch or (bring != 'jit' and not is_good_2.all()):
    _assert_refused(loaded.encode, given, bring)
    return
  hypothesis.event('taken')
  encode = _in_jit(loaded)[0] if bring == 'jit' else loaded.encode
  tokens = np.asarray(encode(given))
  tokens = tokens[None] if is_one else tokens
  plain = np.where(is_good_2[:, None, None, None], values, 0)
  expected = np.array(_plain()[0](plain.astype(np.float32)))
  expected[~is_good_2] = -1
  np.testing.assert_array_equal(tokens, expected)


@sweep.of(ci=100, long=2000)
@hypothesis.given(x=_tokens(), **HOW)
def test_tokens_are_right_or_refused(loaded, x, shape, layout, bring):
  if shape == 'deep':
    shape = 'flat'
  given, x = _brought(x, shape, layout, bring)
  is_taken = x.dtype.kind in 'iu'
  is_one = is_taken and x.ndim == 2
  x = x[None] if is_one else x
  is_batch = is_taken and x.ndim == 3
  is_good_2 = ((x >= 0) & (x < V)).reshape(len(x), -1).all(1) if is_batch else 0
  if not is_batch or (bring != 'jit' and not is_good_2.all()):
    _assert_refused(loaded.decode, given, bring)
    return
  hypothesis.event('taken')
  decode = _in_jit(loaded)[1] if bring == 'jit' else loaded.decode
  pixels = np.asarray(decode(given))
  pixels = pixels[None] if is_one else pixels
  plain = np.where(is_good_2[:, None, None], x, 0).astype(np.int32)
  expected = np.array(_plain()[1](plain))
  expected[~is_good_2] = np.nan
  np.testing.assert_allclose(pixels, expected, atol=1e-5)


def _assert_refused(f, given, bring):
  """In one line."""
  with pytest.raises(ValueError) as e:  # noqa: PT011
    (jax.jit(f) if bring == 'jit' else f)(given)
  assert '\n' not in str(e.value)


@functools.cache
def _in_jit(loaded):
  return jax.jit(loaded.encode), jax.jit(loaded.decode)
