"""The one door through which arrays come in: right, or refused in one line.

Whatever brings them, images leave it as uint8 or float32 and tokens as int32,
native and their own: NumPy of any byte order, layout and precision, JAX, lists
of images, Pillow's among them, and what has `__array__` or `__dlpack__`.

  images       uint8, or floats in [-1, 1]
  path_params  floats: delta in [-pi, pi], chi in [-pi/4, pi/4], radius in
               [0, pi/2]
  tokens       integers in [0, codes)

Floats may lie outside by `SLACK` of half their range. In `jit`, `vmap` and the
like nobody can look at values: `is_within` and `is_token` mark there what would
have been refused here.
"""

import functools
import math
import sys
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from chimera.optics import poincare
from chimera.system import disk

# A level of uint8 in [-1, 1]: rounding, as bfloat16's next number after 1.
SLACK = 1 / 127.5
_Array = np.ndarray | jax.Array
# What foreign objects say where they cannot become an array.
_NO_ARRAY = (TypeError, ValueError, RuntimeError, BufferError, OSError)
# Of (delta, chi, radius), radians; half of each range, and its middle.
_HALF_C = np.array(
  [poincare.DELTA_MAX, poincare.CHI_MAX, poincare.RADIUS_MAX / 2]
)
_MIDDLE_C = np.array([0, 0, poincare.RADIUS_MAX / 2])


def images(x: Any, side: int) -> _Array:
  """Images (H, W, 3) or (B, H, W, 3), RGB: uint8, or floats in [-1, 1].

  H and W are multiples of a token's side.

  Values of a JAX array are looked at on its device, which waits for them; those
  of uint8 need no look.

  Raises:
    ValueError: another shape, dtype or range, with what was found.
  """
  x = to_array(x, 'images')
  _check_shape(x, 'images', side, (3,))
  if x.dtype == np.uint8:
    return _to_own(x, np.uint8)
  if not _is_float(x.dtype):
    raise ValueError(
      f'images must be uint8 or float in [-1, 1], got dtype = {x.dtype}: give '
      'images.astype(np.uint8) if they are 0 to 255.'
    )
  if not _is_hidden(x):
    least, most = map(float, _bounds(x, None))
    if not (least >= -1 - SLACK and most <= 1 + SLACK):
      is_8_bit = least >= 0 and most <= 255
      hint = (
        'give uint8, or x / 127.5 - 1' if is_8_bit else 'scale or clip them'
      )
      raise ValueError(
        'images must be uint8, or finite floats in [-1, 1], got '
        f'{_range(least, most)} as {x.dtype}: {hint}.'
      )
    if 0 <= least < most:
      _warn_of_half_a_range()
  return _to_own(x, np.float32)


def path_params(x: Any, side: int) -> _Array:
  """path_params (H, W, 3) or (B, H, W, 3), floats in radians.

  H and W are multiples of a token's side.

  Raises:
    ValueError: another shape, dtype or range, with what was found.
  """
  x = to_array(x, 'path_params')
  _check_shape(x, 'path_params', side, (3,))
  if not _is_float(x.dtype):
    raise ValueError(f'path_params must be floats, got dtype = {x.dtype}.')
  if not _is_hidden(x):
    axes = tuple(range(x.ndim - 1))
    bounds_2xC = np.stack(_bounds(x, axes)).astype(np.float64)
    if not np.all(np.abs(bounds_2xC - _MIDDLE_C) <= (1 + SLACK) * _HALF_C):
      raise ValueError(
        'path_params must be finite, delta in [-pi, pi], chi in [-pi/4, pi/4], '
        f'radius in [0, pi/2], got {", ".join(map(_range, *bounds_2xC))}.'
      )
  return _to_own(x, np.float32)


def tokens(x: Any, codes: int) -> _Array:
  """Tokens (h, w) or (B, h, w), any integers in [0, codes).

  Values of a JAX array are looked at on its device, which waits for them.

  Raises:
    ValueError: another shape, dtype or range, with what was found.
  """
  x = to_array(x, 'tokens')
  _check_shape(x, 'tokens', 1)
  if not jnp.issubdtype(x.dtype, jnp.integer):
    raise ValueError(f'tokens must be integers, got dtype = {x.dtype}.')
  if not _is_hidden(x):
    least, most = map(int, _bounds(x, None))
    if least < 0 or most >= codes:
      raise ValueError(
        f'tokens must be in [0, {codes}), got {least} to {most}: are they of '
        'another tokenizer?'
      )
  return _to_own(x, np.int32)


def is_within(x_BxHxWxC: jax.Array) -> jax.Array:
  """Which images, or normalized path_params, are finite and in range, (B,)."""
  return jnp.all(jnp.abs(x_BxHxWxC) <= 1 + SLACK, axis=(1, 2, 3))


def is_token(tokens_Bxhxw: jax.Array, codes: int) -> jax.Array:
  """Of which images all tokens, any integers, are in [0, codes), (B,)."""
  # Not all dtypes hold `codes`.
  most = min(codes - 1, int(jnp.iinfo(tokens_Bxhxw.dtype).max))
  is_known = (tokens_Bxhxw >= 0) & (tokens_Bxhxw <= most)
  return jnp.all(is_known, axis=(1, 2))


def to_array(x: Any, name: str) -> _Array:
  """x as NumPy's array or JAX's, without a copy where that can be.

  Raises:
    ValueError: it cannot become one, or not without a guess.
  """
  if isinstance(x, jax.Array):
    return x
  pillow = sys.modules.get('PIL.Image')  # who has an image has imported it
  is_picture = pillow is not None and isinstance(x, pillow.Image)
  if is_picture and name == 'images' and x.mode != 'RGB':
    raise ValueError(
      f'images of Pillow must be of mode RGB, got {x.mode}: give image.convert('
      "'RGB'), or read them by chimera.read_image."
    )
  if np.ma.is_masked(x):
    raise ValueError(f'{name} must not be masked: give {name}.filled(value).')
  if isinstance(x, list | tuple) and x and not _is_plain(x[0]):
    return _stack([to_array(part, name) for part in x], name)
  # NumPy's way first, which knows all strides; JAX knows devices.
  ways, said = (np.asarray, np.from_dlpack, _from_dlpack), ''
  for way in ways if hasattr(x, '__dlpack__') else ways[:1]:
    try:
      found = way(x)
      if found.dtype.kind not in 'OSUMm':
        return found
    except _NO_ARRAY as e:
      said = f' ({disk.reason(e)})'
  raise ValueError(
    f'{name} must be an array or a list of them, got {type(x).__name__}{said}.'
  )


def _from_dlpack(x: Any) -> jax.Array:
  """A copy, lest its owner change it: JAX's own copy=True (0.10.2) is none."""
  with jax.enable_x64():  # lest 64 bits are cut to 32
    return jnp.array(jnp.from_dlpack(x), copy=True).block_until_ready()


def _is_plain(part: Any) -> bool:
  """Whether a list of such parts is numbers, which NumPy understands."""
  return isinstance(part, list | tuple | int | float | complex)


def _stack(parts: list[_Array], name: str) -> _Array:
  """Arrays as one batch; what they are must not change on the way."""
  kinds = {f'{x.dtype.name} {x.shape}' for x in parts}
  if len(kinds) > 1:
    raise ValueError(
      f'{name} of a list must be of one shape and dtype, got '
      f'{" and ".join(sorted(kinds)[:2])}.'
    )
  if not any(isinstance(x, jax.Array) for x in parts):
    return np.stack(parts)
  # JAX takes no foreign byte order, and reads on in what is not copied.
  parts = [
    x if isinstance(x, jax.Array) else x.astype(jnp.dtype(x.dtype.name))
    for x in parts
  ]
  with jax.enable_x64():  # lest 64 bits are cut to 32
    return jnp.stack(parts)


def _check_shape(
  x: _Array, name: str, side: int, channels: tuple[int, ...] = ()
) -> None:
  """(H, W, *channels), or a batch of such; H and W are multiples of side."""
  rank, last = 2 + len(channels), x.shape[x.ndim - len(channels) :]
  hint = 'give a grid' if not channels else 'give three numbers a place'
  if x.ndim in (rank, rank + 1) and last == channels:
    height, width = x.shape[x.ndim - rank :][:2]
    if height > 0 and width > 0 and height % side == width % side == 0:
      return
    hint = 'crop them'
    if name == 'images':
      hint = 'crop or resize them, or have `reconstruct` pad them'
  elif x.ndim in (rank, rank + 1) and x.shape[-rank:][:1] == channels:
    axes = '(1, 2, 0)' if x.ndim == 3 else '(0, 2, 3, 1)'
    hint = f'channels come last, give x.transpose{axes}; torch says permute'
  form = ', '.join(['H', 'W', *map(str, channels)])
  of = f', H and W multiples of {side}' if side > 1 else ''
  raise ValueError(
    f'{name} must have shape ({form}) or (B, {form}){of}, got {x.shape}: '
    f'{hint}.'
  )


def _is_float(dtype: Any) -> bool:
  return jnp.issubdtype(dtype, jnp.floating)


def _is_hidden(x: _Array) -> bool:
  """Whether there are no values to look at."""
  return isinstance(x, jax.core.Tracer) or x.size == 0


def _bounds(
  x: _Array, axis: tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
  """The least and the most over some axes; NaN where there is one."""
  if isinstance(x, np.ndarray):
    with np.errstate(invalid='ignore'):  # said by whoever asks
      return x.min(axis), x.max(axis)
  # What is constant in a function that is being traced can be looked at, too.
  with jax.ensure_compile_time_eval(), jax.enable_x64():
    return tuple(np.asarray(_device_bounds(x, axis)))


@functools.partial(jax.jit, static_argnums=1)
def _device_bounds(x: jax.Array, axis: tuple[int, ...] | None) -> jax.Array:
  """Both in one array, which is fetched at once."""
  bounds = jnp.stack([jnp.min(x, axis), jnp.max(x, axis)])
  if not _is_float(x.dtype):
    return bounds
  # XLA's least and most of a large array on a CPU (0.10.2) pass over NaN.
  return jnp.where(jnp.any(jnp.isnan(x), axis), jnp.nan, bounds)


def _range(least: float, most: float) -> str:
  return 'NaN' if math.isnan(most) else f'{least:g} to {most:g}'


@functools.cache
def _warn_of_half_a_range() -> None:
  """Once a process: a dark room may be all in [0, 1]."""
  logging.warning(
    'Floats given to encode are all in [0, 1], and [-1, 1] is expected: 0 is '
    'gray. If 0 is black, give 2 * images - 1.'
  )


def _to_own(x: _Array, dtype: Any) -> _Array:
  """An array of that dtype which nobody else can change."""
  if isinstance(x, jax.core.Tracer):
    return x  # a cast might wrap what was not looked at
  if isinstance(x, jax.Array):
    return x.astype(dtype)
  return np.array(x, dtype, order='C')
