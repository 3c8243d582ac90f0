"""What comes in is meant, or refused in one line."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from PIL import Image
import pytest

from chimera.tokenizer import door

SHAPE = (8, 8, 3)
SIDE = 4
RNG = np.random.default_rng(0)
FLOATS = RNG.uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
PICTURES = RNG.integers(0, 256, (2, *SHAPE), np.uint8)
LOW = np.array([-np.pi, -np.pi / 4, 0], np.float32)
HIGH = np.array([np.pi, np.pi / 4, np.pi / 2], np.float32)
TOKENS = RNG.integers(0, 16, (2, 2, 2)).astype(np.int32)


@pytest.fixture(autouse=True)
def _warned_of_nothing():
  door._warn_of_half_a_range.cache_clear()


class Foreign:
  """As torch's tensors: no NumPy array, but it can become one."""

  def __init__(self, x):
    self.x = x

  def __array__(self, dtype=None, copy=None):
    return self.x


class OnDevice:
  """As CuPy's arrays: it will not become NumPy's, but dlpack's."""

  def __init__(self, x):
    self.x = x

  def __array__(self, dtype=None, copy=None):
    raise TypeError('Implicit conversion to a NumPy array is not allowed.')

  def __dlpack__(self, **kwargs):
    return self.x.__dlpack__(**kwargs)

  def __dlpack_device__(self):
    return self.x.__dlpack_device__()


class OnAccelerator(OnDevice):
  """NumPy cannot reach it, JAX can."""

  def __dlpack__(self, **kwargs):
    if 'copy' in kwargs:  # as NumPy asks
      raise BufferError('not on this device')
    return self.x.__dlpack__(**kwargs)


class Subclass(np.ndarray):
  pass


def _memmap(x, tmp_path):
  np.save(tmp_path / 'x.npy', x)
  return np.load(tmp_path / 'x.npy', mmap_mode='r')


def _read_only(x):
  x = x.copy()
  x.flags.writeable = False
  return x


BRINGS = {
  'big endian': lambda x: x.astype(x.dtype.newbyteorder('>')),
  'columns first': np.asfortranarray,
  'strided': lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
  'backwards': lambda x: x[:, ::-1, ::-1].copy()[:, ::-1, ::-1],
  'unaligned': lambda x: np.frombuffer(
    b'x' + x.tobytes(), x.dtype, offset=1
  ).reshape(x.shape),
  'read-only': _read_only,
  'subclass': lambda x: x.view(Subclass),
  'unmasked': np.ma.masked_array,
  'jax': jnp.asarray,
  'foreign': Foreign,
  'on a device': OnDevice,
  'on an accelerator': OnAccelerator,
  'list': list,
  'tuple of foreign': lambda x: tuple(map(Foreign, x)),
  'numbers': lambda x: x.tolist(),
  'list, one of JAX, native': lambda x: [x[0], *jnp.asarray(x[1:])],
  'list, one of JAX': lambda x: (
    [x[0].astype(x.dtype.newbyteorder('>'))] + list(jnp.asarray(x[1:]))
  ),
}


@pytest.mark.parametrize('how', BRINGS)
def test_floats_come_in_as_float32_whatever_brings_them(how):
  x = door.images(BRINGS[how](FLOATS), SIDE)
  assert x.dtype == np.dtype('=f4')
  np.testing.assert_array_equal(x, FLOATS)


@pytest.mark.parametrize('how', [how for how in BRINGS if how != 'numbers'])
def test_bytes_come_in_as_they_are_whatever_brings_them(how):
  x = door.images(BRINGS[how](PICTURES), SIDE)
  assert x.dtype == np.uint8
  np.testing.assert_array_equal(x, PICTURES)


@pytest.mark.parametrize('how', BRINGS)
def test_tokens_come_in_whatever_brings_them(how):
  x = door.tokens(BRINGS[how](TOKENS), 16)
  assert jnp.issubdtype(x.dtype, jnp.integer)
  np.testing.assert_array_equal(x, TOKENS)


def test_a_memory_map_and_pillow_come_in(tmp_path):
  x = door.images(_memmap(FLOATS.astype('>f8'), tmp_path), SIDE)
  np.testing.assert_array_equal(x, FLOATS)
  seen = door.images([Image.fromarray(x) for x in PICTURES], SIDE)
  np.testing.assert_array_equal(seen, PICTURES)
  seen = door.images((Image.fromarray(PICTURES[0]), PICTURES[1]), SIDE)
  np.testing.assert_array_equal(seen, PICTURES)


@pytest.mark.parametrize(
  'dtype', ['>f8', 'f2', '>f2', np.longdouble, ml_dtypes.bfloat16]
)
def test_any_precision_is_rounded_to_float32_once(dtype):
  given = FLOATS.astype(np.float64).astype(dtype)
  x = door.images(given, SIDE)
  assert x.dtype == np.dtype('=f4')
  np.testing.assert_array_equal(x, given.astype(np.float32))


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize('how', [np.asarray, Foreign, OnDevice, OnAccelerator])
@pytest.mark.parametrize('offset', [0, 4])
def test_what_came_in_is_nobody_elses(dtype, how, offset):
  buffer = np.zeros(1 << 16, dtype)
  offset += -buffer.ctypes.data % 64 // buffer.itemsize  # JAX shares aligned
  theirs = buffer[offset:][: FLOATS.size].reshape(FLOATS.shape)
  theirs[:] = FLOATS > 0
  ours = door.images(how(theirs), SIDE)
  theirs[:] = 0
  np.testing.assert_array_equal(ours, FLOATS > 0)


def _with(x, value):
  x = np.array(x)
  x.flat[5] = value
  return x


@pytest.mark.parametrize('bring', [np.asarray, jnp.asarray, list])
@pytest.mark.parametrize(
  ('given', 'found'),
  [
    ((FLOATS + 1) * 127.5, r'got 0\.\d+ to 25\d\.\d+ as float32: give uint8'),
    (_with(FLOATS, np.nan), 'got NaN as float32: scale or clip'),
    (_with(FLOATS, np.inf), r'got -0\.\d+ to inf'),
    (_with(FLOATS, -np.inf), r'got -inf to 0\.\d+'),
    (FLOATS * 1.1, r'got -1\.\d+ to 1\.\d+'),
    (_with(FLOATS, 1 + 1 / 100), r'to 1\.01 '),
    (np.full_like(FLOATS, 1e30), r'got 1e\+30 to 1e\+30'),
    (FLOATS.astype(np.float16) * 300, 'as float16'),
  ],
)
def test_floats_that_are_no_image_are_refused(bring, given, found):
  with pytest.raises(ValueError, match=found) as e:
    door.images(bring(given), SIDE)
  assert '\n' not in str(e.value)


def test_a_float64_is_judged_before_it_is_rounded():
  with pytest.raises(ValueError, match=r'to 1e\+300 as float64'):
    door.images(_with(FLOATS.astype(np.float64), 1e300), SIDE)


def test_rounding_beyond_the_ends_comes_in():
  one = np.array(1, ml_dtypes.bfloat16)
  after = (one.view(np.uint16) + np.uint16(1)).view(ml_dtypes.bfloat16)
  assert after == 1 + 2**-7
  for value in (np.nextafter(np.float32(1), np.float32(2)), after):
    for x in (FLOATS, jnp.asarray(FLOATS)):
      seen = door.images(_with(x, np.float32(-value)), SIDE)
      assert np.asarray(seen).min() == -np.float32(value)


@pytest.mark.parametrize(
  ('given', 'found'),
  [
    (
      FLOATS[:, :7],
      r'\(B, H, W, 3\), H and W multiples of 4, got \(2, 7, 8, 3',
    ),
    (FLOATS[0, :, :6], r'got \(8, 6, 3\): .*or have `reconstruct` pad them'),
    (FLOATS[0].transpose(2, 0, 1), r'give x.transpose\(1, 2, 0\)'),
    (FLOATS[None], r'got \(1, 2, 8, 8, 3\)'),
    (FLOATS[:, :0], r'got \(2, 0, 8, 3\)'),
    (FLOATS.transpose(0, 3, 1, 2), r'give x.transpose\(0, 2, 3, 1\)'),
    (np.ones((1, 1)), r'got \(1, 1\)'),
    ([], r'got \(0,\)'),
    (PICTURES.astype(np.int64), r'dtype = int64: give .*uint8'),
    (PICTURES.astype(np.int8), 'dtype = int8'),
    (PICTURES > 5, 'dtype = bool'),
    (FLOATS.astype(np.complex64), 'dtype = complex64'),
    (PICTURES.tolist(), 'dtype = int64'),
    (FLOATS.astype(object), 'an array or a list of them, got ndarray'),
    (None, 'got NoneType'),
    ('cat.jpg', 'got str'),
    ([Image.new('RGB', (8, 8)), Image.new('RGB', (8, 4))], r'\(4, 8, 3\) and'),
    ([PICTURES[0], FLOATS[0]], r'float32 \(8, 8, 3\) and uint8'),
    ([[1.0, 2.0], [3.0]], r'got list \(.*inhomogeneous'),
    (Image.new('YCbCr', (8, 8)), r"got YCbCr: give image.convert\('RGB'\)"),
    ([Image.new('HSV', (8, 8))], 'got HSV'),
    ([Image.new('L', (8, 8))], 'got L'),
    ([Image.new('RGBA', (8, 8))], 'read_image'),
    (np.ma.masked_greater(FLOATS, 0), 'must not be masked'),
    ([np.ma.masked_greater(x, 0) for x in FLOATS], 'must not be masked'),
    (FLOATS.astype('f4,f4'), 'dtype = '),
    (FLOATS.astype('m8[s]'), 'got ndarray'),
  ],
)
def test_what_is_no_batch_of_images_is_refused(given, found):
  with pytest.raises(ValueError, match=found) as e:
    door.images(given, SIDE)
  assert '\n' not in str(e.value)


def test_a_tensor_that_is_no_array_says_why():
  class Learned(OnDevice):
    def __dlpack__(self, **kwargs):
      raise BufferError("Can't export tensors\nthat require gradient.")

  with pytest.raises(ValueError, match="Can't export tensors that require"):
    door.images(Learned(FLOATS), SIDE)


def test_half_of_the_range_is_warned_of_once(warnings):
  for x in (FLOATS, np.zeros_like(FLOATS), PICTURES, np.ones_like(FLOATS)):
    door.images(x, SIDE)
  assert not warnings
  for x in ((FLOATS + 1) / 2, jnp.abs(FLOATS), list(np.abs(FLOATS))):
    door.images(x, SIDE)
  (line,) = warnings
  assert 'all in [0, 1]' in line
  assert '2 * images - 1' in line


def test_bytes_are_not_waited_for(monkeypatch):
  def look(*args):
    raise AssertionError

  monkeypatch.setattr(door, '_bounds', look)
  for bring in (np.asarray, jnp.asarray, list):
    door.images(bring(PICTURES), SIDE)


def _paths(dtype=np.float32):
  x = RNG.uniform(LOW, HIGH, (2, *SHAPE)).astype(np.float32)
  x[0, 0, 0], x[1, 1, 1] = LOW, HIGH  # float32(pi) is a little above pi
  return x.astype(dtype)


@pytest.mark.parametrize('bring', [np.asarray, jnp.asarray, list])
def test_path_params_have_ranges_of_their_own(bring):
  for dtype in (np.float32, '>f8', 'f2', ml_dtypes.bfloat16):
    given = _paths(dtype)
    native = given if dtype == '>f8' and bring is jnp.asarray else bring(given)
    x = door.path_params(native, SIDE)
    np.testing.assert_array_equal(
      np.asarray(x, np.float32), given.astype(np.float32)
    )
  for channel, value, found in (
    (0, 3.2, r'delta in .* to 3\.2, '),
    (1, -0.9, r', -0\.9 to '),
    (2, -0.1, r', -0\.1 to '),
    (2, 1.6, r' to 1\.6\.'),
    (1, np.nan, ', NaN, '),
    (0, -np.inf, 'got -inf to'),
  ):
    x = _paths()
    x[1, 2, 3, channel] = value
    with pytest.raises(ValueError, match=found):
      door.path_params(bring(x), SIDE)
  with pytest.raises(ValueError, match='dtype = uint8'):
    door.path_params(bring(PICTURES), SIDE)
  with pytest.raises(ValueError, match=r'got \(8, 6, 3\): crop them') as e:
    door.path_params(bring(_paths())[0][:, :6], SIDE)
  assert '`reconstruct`' not in str(e.value)


@pytest.mark.parametrize('bring', [np.asarray, jnp.asarray, list])
@pytest.mark.parametrize('value', [-1, 16, 160])
def test_tokens_of_no_code_are_refused(bring, value):
  found = rf'in \[0, 16\), got {min(value, 0)} to {max(value, 15)}'
  tokens = np.array([[[0, 15], [15, value]]])
  with pytest.raises(ValueError, match=found):
    door.tokens(bring(tokens), 16)


@pytest.mark.parametrize(
  ('given', 'found'),
  [
    (np.array([[[0, 2**40 + 3]] * 2], np.uint64), 'got 0 to 1099511627779'),
    (np.array([[[0, 2**32 + 3]] * 2], '>i8'), 'got 0 to 4294967299'),
    (np.array([[[0, 2**63]] * 2], np.uint64), 'got 0 to 9223372036854775808'),
    (np.array([[[-128, 127]] * 2], np.int8), 'got -128 to 127'),
    (np.array([[[0, 200]] * 2], np.uint8), 'got 0 to 200'),
    ([[[0, 2**40 + 3]] * 2], 'got 0 to 1099511627779'),
    (OnAccelerator(np.array([[[0, 2**40 + 3]] * 2])), 'got 0 to 1099511627779'),
    (TOKENS > 3, 'dtype = bool'),
    (TOKENS.astype(np.float64), 'integers, got dtype = float64'),
    (TOKENS.astype('m8[s]'), 'got ndarray'),
    ([[[0, 2**64]] * 2], 'got list'),
    (TOKENS[0, 0], r'\(H, W\) or \(B, H, W\), got \(2,\): give a grid'),
    (TOKENS[None], r'got \(1, 2, 2, 2\): give a grid'),
  ],
)
def test_bounds_of_tokens_hold_before_any_cast(given, found):
  with pytest.raises(ValueError, match=found):
    door.tokens(given, 16)


def test_dtypes_that_cannot_hold_all_codes_need_not():
  for dtype in (np.int8, np.uint8, np.int16, ml_dtypes.int4):
    for bring in (np.asarray, jnp.asarray):
      x = bring(np.full((1, 2, 2), 7).astype(dtype))
      seen = door.tokens(x, 40_000)
      np.testing.assert_array_equal(np.asarray(seen, np.int64), 7)
      assert np.asarray(door.is_token(x, 40_000)).tolist() == [True]


def test_with_64_bits_bounds_hold_too():
  with jax.enable_x64():
    x = jnp.asarray([[[0, 2**40 + 3]] * 2])
    assert x.dtype == np.int64
    wide = jnp.asarray(FLOATS, np.float64)
    with pytest.raises(ValueError, match='got 0 to 1099511627779'):
      door.tokens(x, 16)
    assert door.is_token(x, 16).tolist() == [False]
    marks = jax.jit(lambda x: door.is_token(door.tokens(x, 16), 16))
    assert marks(x % 2**32 + 2**32).tolist() == [False]
    big = wide.at[0, 0, 0, 0].set(1e300)
    with pytest.raises(ValueError, match=r'to 1e\+300'):
      door.images(big, SIDE)
  # Nor are arrays cut that were made where there were 64.
  for bring in (lambda x: x, list):
    with pytest.raises(ValueError, match='got 0 to 1099511627779'):
      door.tokens(bring(x), 16)
    with pytest.raises(ValueError, match=r'to 1e\+300'):
      door.images(bring(big), SIDE)
  seen = door.images(wide, SIDE)
  assert seen.dtype == np.float32
  np.testing.assert_array_equal(seen, FLOATS)


def test_a_single_nan_in_many_is_seen():
  for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
    for bring in (np.asarray, jnp.asarray):
      x = _with(np.zeros((12, 16, 16, 3), dtype), np.nan)
      with pytest.raises(ValueError, match='got NaN'):
        door.images(bring(x), 4)
      with pytest.raises(ValueError, match='got 0 to 0, 0 to 0, NaN'):
        door.path_params(bring(x), 4)
      assert not door.is_within(jnp.asarray(x))[0]


def test_a_single_image_and_any_size_come_in():
  for given in (FLOATS[0], FLOATS[:, :4], FLOATS[:, :, 4:], FLOATS[0, :4]):
    for bring in (np.asarray, jnp.asarray):
      np.testing.assert_array_equal(door.images(bring(given), SIDE), given)
  picture = Image.fromarray(PICTURES[0, :4])
  np.testing.assert_array_equal(door.images(picture, SIDE), PICTURES[0, :4])
  paths = _paths()[0, 4:]
  np.testing.assert_array_equal(door.path_params(paths, 2), paths)
  for given in (TOKENS[0], TOKENS[:, :1], TOKENS[0, :, :1]):
    np.testing.assert_array_equal(door.tokens(given, 16), given)


def test_an_empty_batch_comes_in():
  assert door.images(FLOATS[:0], SIDE).shape == (0, *SHAPE)
  assert door.images(jnp.asarray(FLOATS[:0]), SIDE).shape == (0, *SHAPE)
  assert door.tokens(TOKENS[:0], 16).shape == (0, 2, 2)


def test_in_jit_they_are_marked_each_image_for_itself():
  x = jnp.stack([FLOATS[0], _with(FLOATS[1], np.nan), _with(FLOATS[0], 1.1)])
  assert jax.jit(door.is_within)(x).tolist() == [True, False, False]
  x = jnp.array([[[0, 15]], [[-1, 3]], [[16, 3]]])
  assert jax.jit(door.is_token, static_argnums=1)(x, 16).tolist() == [
    *(True, False, False)
  ]


def test_what_is_constant_in_jit_is_looked_at():
  @jax.jit
  def traced(z):
    with pytest.raises(ValueError, match='NaN'):
      door.images(constant, SIDE)
    assert door.images(z, SIDE) is z
    return z

  constant = jnp.asarray(_with(FLOATS, np.nan))
  traced(constant)
