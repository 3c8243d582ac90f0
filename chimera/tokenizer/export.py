"""The tokenizer to take home: one folder, which needs no trainer.

  tokenizer.safetensors  parameters of the tokenizer and of its optics
  tokenizer.json         architecture, color range, digests, what it came from
  encode.stablehlo       images -> tokens, weights and all
  decode.stablehlo       tokens -> images

  tokenizer = chimera.load('runs/chimera/tokenizer')
  tokens = tokenizer.encode(images)  # (B, H, W, 3) -> (B, h, w) int32
  images = tokenizer.decode(tokens)  # -> (B, H, W, 3) float32 in [-1, 1]
  picture = tokenizer.reconstruct(picture)  # uint8 of any size, and back

H and W are any multiples of a token's side. The artefacts need jax and
flatbuffers alone, and run on CPU, CUDA and TPU, for any batch and any such size
(https://docs.jax.dev/en/latest/export/export.html):

  f = jax.export.deserialize(open('encode.stablehlo', 'rb').read())
  tokens = f.call(images)

They take native float32 in [-1, 1] (or path_params) and int32, and nothing else
passes a door on its way to them.

Loaded export and artefacts run the same two functions, `encode` and `decode`
below. An image that is not finite or out of range has tokens of -1 there, and
tokens outside [0, V) have pixels of NaN; `Tokenizer` refuses both where their
values are known, outside of `jit`. Neither TensorFlow nor the trainer is
imported.
"""

from collections.abc import Callable
import functools
import os
import pathlib
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.export  # the namespace is not there by itself
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from chimera.clones import models
from chimera.optics import modules as optics
from chimera.optics import poincare
from chimera.system import disk
from chimera.tokenizer import door, windows

FORMAT = 1
_WINDOW = 64  # tokens, the longest side of what is worked on at a time
_PROGRAMS = 64  # sizes of images that a function is kept compiled for
WEIGHTS = 'tokenizer.safetensors'
META = 'tokenizer.json'
ARTEFACTS = ('encode.stablehlo', 'decode.stablehlo')
PLATFORMS = ('cpu', 'cuda', 'tpu')
COLOR_RANGE = 'RGB, float32 in [-1, 1] or uint8 in [0, 255]'


class Parts(NamedTuple):
  """A frozen tokenizer and what it sees with."""

  tokenizer: models.Tokenizer  # the module
  params: Any  # its parameters
  optics: optics.Optics | None  # the module; None where it sees path_params
  variables: Any  # its variables, likewise


def look(parts: Parts, x_BxHxWxC: jax.Array) -> jax.Array:
  """What the optics alone make of images: (B, H, W, 3) in [-1, 1]."""
  return parts.optics.apply(parts.variables, _to_float(x_BxHxWxC))


def see(parts: Parts, x_BxHxWxC: jax.Array) -> jax.Array:
  """Normalized path_params of images, or of path_params."""
  x_BxHxWxC = _to_float(x_BxHxWxC)
  if parts.optics is not None:
    x_BxHxWxC = parts.optics.apply(parts.variables, x_BxHxWxC, method='encode')
  return poincare.normalize(x_BxHxWxC)


def encode(
  parts: Parts, x_BxHxWxC: jax.Array, mean_BxPxPxC: jax.Array | None = None
) -> jax.Array:
  """tokens_Bxhxw, int32, of RGB images, uint8 or float in [-1, 1].

  Without optics, of path_params. Tokens of an image that is not finite or out
  of range are -1. Parts of larger images need the mean of those: by
  `models.mean_of`, of what `see` makes of them.
  """
  seen_BxHxWxC = see(parts, x_BxHxWxC)
  given_BxHxWxC = _to_float(x_BxHxWxC) if parts.optics else seen_BxHxWxC
  # Fused across this line, rounding and with it a token in a million differed.
  seen_BxHxWxC = jax.lax.optimization_barrier(seen_BxHxWxC)
  tokens_Bxhxw = parts.tokenizer.apply(
    {'params': parts.params}, seen_BxHxWxC, mean_BxPxPxC, method='tokenize'
  )
  # Nor may what is asked of the images change how their tokens are computed.
  tokens_Bxhxw, given_BxHxWxC = jax.lax.optimization_barrier(
    (tokens_Bxhxw, given_BxHxWxC)
  )
  is_within_B = door.is_within(given_BxHxWxC)
  return jnp.where(is_within_B[:, None, None], tokens_Bxhxw, -1)


def decode(parts: Parts, tokens_Bxhxw: jax.Array) -> jax.Array:
  """Images (B, H, W, 3), float32 in [-1, 1]; without optics, path_params.

  NaN where one of an image's tokens is none of the codebook.
  """
  x_BxHxWxC = parts.tokenizer.apply(
    {'params': parts.params},
    tokens_Bxhxw.astype(jnp.int32),
    method='detokenize',
  )
  x_BxHxWxC = poincare.denormalize(x_BxHxWxC)
  if parts.optics is not None:
    x_BxHxWxC = parts.optics.apply(parts.variables, x_BxHxWxC, method='decode')
  # As in `encode`.
  x_BxHxWxC, tokens_Bxhxw = jax.lax.optimization_barrier(
    (x_BxHxWxC, tokens_Bxhxw)
  )
  is_token_B = door.is_token(tokens_Bxhxw, parts.tokenizer.codes)
  return jnp.where(is_token_B[:, None, None, None], x_BxHxWxC, jnp.nan)


def _to_float(x_BxHxWxC: jax.Array) -> jax.Array:
  is_uint8 = x_BxHxWxC.dtype == jnp.uint8
  return (optics.to_float if is_uint8 else jnp.float32)(x_BxHxWxC)


def reach(parts: Parts) -> tuple[int | None, int | None]:
  """How many tokens away `encode` and `decode` see; None is the whole image."""
  own = parts.tokenizer.reach or (None, None)
  eyes = parts.optics.reach if parts.optics else (0, 0)
  return tuple(
    None if None in cells else -(-sum(cells) // parts.tokenizer.downsample)
    for cells in zip(own, eyes)
  )


class Tokenizer:
  """A loaded tokenizer: images to tokens and back, of any size, in batches."""

  def __init__(self, parts: Parts, meta: dict[str, Any]):
    self.parts = parts
    self.meta = meta  # what tokenizer.json says
    self.image_size = meta['image_size']  # S, pixels, what it was trained for
    self.grid = tuple(meta['grid'])  # (h, w) of an image's tokens
    self.side = _side(parts)  # of a token, pixels; of path_params, cells
    self.codes = parts.tokenizer.codes  # V; tokens are in [0, V)
    self.code_dim = parts.tokenizer.quantizer.dim  # D, width of a code
    # SHA-256 of the codebook, or of what stands for it: tokens of one digest
    # are of one language.
    self.codebook_digest = meta['codebook_digest']
    self._reach = reach(parts)
    self._encode, self._decode, self._look, self._see = _compiled(
      parts.tokenizer, parts.optics
    )
    self._arrays = jax.tree.map(jnp.asarray, (parts.params, parts.variables))

  def __reduce__(self) -> tuple[Any, ...]:
    """A copy, here or in another process, has the arrays and compiles anew."""
    return Tokenizer, (Parts(*jax.device_get(self.parts)), self.meta)

  def encode(self, images_BxHxWx3: Any) -> jax.Array:
    """tokens_Bxhxw, int32 in [0, codes), h = H / side; of one image (h, w).

    Of RGB, uint8 or finite floats in [-1, 1], (B, H, W, 3) or (H, W, 3), of
    sides that `side` divides: an array (NumPy of any byte order and layout,
    JAX, what has `__array__` or `__dlpack__`), or a list of images (such
    arrays, or Pillow's of mode RGB). A tokenizer of path_params takes
    path_params, floats in their own ranges.

    What is large is worked on in windows, which changes no token but where two
    codes are equally near (with border = 'mean' in two rounds: the first one
    sees the whole's mean). Not so with norm = 'group' or radius = 'contrast',
    of which each token depends on the whole image.

    Floats in a JAX array are waited for, to be looked at. In `jit` and `vmap`
    that cannot be: tokens of an image that is not finite or out of range are
    -1 there, and there are no windows.

    Raises:
      ValueError: another shape, dtype, range or mode.
    """
    enter = door.images if self.parts.optics else door.path_params
    x = enter(images_BxHxWx3, self.side)
    reach, known = self._reach[0], ()
    is_framed = self.parts.tokenizer.border == 'mean'
    if is_framed and self._is_large(x, 4, self.side, reach):
      cells = self.parts.tokenizer.downsample
      seen = self._run(self._see, x, 4, self.side, cells, reach)
      known = (models.mean_of(seen.reshape(-1, *seen.shape[-3:]), cells),)
    return self._run(self._encode, x, 4, self.side, 1, reach, *known)

  def decode(self, tokens_Bxhxw: Any) -> jax.Array:
    """Images (B, H, W, 3), float32 in [-1, 1], of any integers in [0, codes).

    Takes what `encode` takes, (B, h, w) or (h, w) of any h and w. In `jit` and
    `vmap` images of tokens outside [0, codes) are NaN.

    Raises:
      ValueError: another shape or dtype, or no token of this codebook.
    """
    x = door.tokens(tokens_Bxhxw, self.codes)
    return self._run(self._decode, x, 3, 1, self.side, self._reach[1])

  def look(self, images_BxHxWx3: Any) -> jax.Array:
    """What the optics alone make of what `encode` takes, before any token."""
    self._check_eyes()
    x = door.images(images_BxHxWx3, self.side)
    # The tokenizer between them sees farther than nothing.
    reach = None if None in self._reach else sum(self._reach)
    return self._run(self._look, x, 4, self.side, self.side, reach)

  def reconstruct(self, image_HxWx3: Any) -> np.ndarray:
    """What comes back of one image of any size: uint8 (H, W, 3).

    It is an array or Pillow's, of what `encode` takes, and is mirrored beyond
    its right and lower edge, up to whole tokens.

    Raises:
      ValueError: what is no such image.
    """
    self._check_eyes()
    image = np.asarray(door.to_array(image_HxWx3, 'images'))
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
      raise ValueError(
        f'reconstruct takes one image (H, W, 3), got {image.shape}: give one '
        'of its RGB pixels.'
      )
    height, width, _ = image.shape
    padded = windows.pad(image, self.side)
    back = np.asarray(self.decode(self.encode(padded)))[:height, :width]
    return np.clip(np.rint((back + 1) * 127.5), 0, 255).astype(np.uint8)

  def _check_eyes(self) -> None:
    if self.parts.optics is None:
      raise ValueError(
        'This tokenizer is of path_params and sees no images: use encode and '
        'decode.'
      )

  def _is_large(self, x: Any, rank: int, side: int, reach: int | None) -> bool:
    """Whether it is worked on in windows."""
    height, width = (x.shape if x.ndim == rank else (1, *x.shape))[1:3]
    return (
      not isinstance(x, jax.core.Tracer)
      and reach is not None
      and max(height, width) > _window(reach) * side
    )

  def _run(
    self,
    f: Callable[..., jax.Array],
    x: Any,
    rank: int,
    side: int,
    to_side: int,
    reach: int | None,
    *known: jax.Array,
  ) -> jax.Array:
    """f of a batch x of that rank, or of one; in windows where it is large.

    And of what is known of the whole.
    """
    batch = x if x.ndim == rank else x[None]

    def of(part: Any) -> jax.Array:
      return f(*self._arrays, part, *known)

    if self._is_large(x, rank, side, reach):
      sides = {'side': side, 'to_side': to_side}
      # Two cells are what the optics' carrier repeats in.
      period = 2 if self.parts.tokenizer.downsample == 1 else 1
      how = {'window': _window(reach), 'reach': reach, 'period': period}
      y = jnp.asarray(windows.apply(of, batch, **sides, **how))
    else:
      y = of(batch)
    return y if x.ndim == rank else y[0]


def _window(reach: int) -> int:
  return max(_WINDOW, 4 * reach)


class _Program:
  """A function of (params, variables, x, *known), compiled for each shape of x.

  A folder may hold images of hundreds of sizes, and each program takes some 130
  of the 65530 memory maps that Linux gives a process. XLA dies without them.
  """

  def __init__(self, f: Callable[..., jax.Array]):
    def exactly(*args: Any) -> jax.Array:
      # The same tokens where products would be rounded: on a TPU, or by TF32.
      with jax.default_matmul_precision('highest'):
        return f(*args)

    self._f = jax.jit(exactly)
    self._seen = set()

  def __call__(
    self, params: Any, variables: Any, x: Any, *known: jax.Array
  ) -> jax.Array:
    if not isinstance(x, jax.core.Tracer):
      if len(self._seen) >= _PROGRAMS and x.shape not in self._seen:
        self._f.clear_cache()
        self._seen.clear()
      self._seen.add(x.shape)
    return self._f(params, variables, x, *known)


@functools.cache
def _compiled(
  tokenizer: models.Tokenizer, model: optics.Optics | None
) -> tuple[_Program, ...]:
  """`encode`, `decode`, `look`, `see`."""
  return tuple(
    _Program(
      lambda params, variables, *x, f=f: f(
        Parts(tokenizer, params, model, variables), *x
      )
    )
    for f in (encode, decode, look, see)
  )


def save(
  folder: str | os.PathLike,
  parts: Parts,
  *,
  input_shape: tuple[int, int, int],
  came_from: dict[str, Any],
) -> None:
  """Writes the folder; tokenizer.json last, with the digests of the others.

  Where there is no room for all, what was there still is.

  Args:
    folder: made where it is missing.
    parts: the tokenizer, host arrays.
    input_shape: (S, S, 3) of the images, or (H, W, 3) of the path_params.
    came_from: what JSON can hold: protocol, figures.
  """
  home = pathlib.Path(folder)
  home.mkdir(parents=True, exist_ok=True)
  quantizer, params = parts.tokenizer.quantizer, jax.device_get(parts.params)
  arrays = {'tokenizer': params}
  if parts.optics is not None:
    arrays['optics'] = jax.device_get(parts.variables)
  flat = jax.tree.map(
    np.ascontiguousarray, traverse_util.flatten_dict(arrays, sep='/')
  )
  files = {WEIGHTS: safetensors.numpy.save(flat)}
  files |= dict(zip(ARTEFACTS, _lower(parts)))
  meta = {
    'format': FORMAT,
    'sees': 'images' if parts.optics else 'path_params',
    'input_shape': list(input_shape),
    'image_size': input_shape[0],
    'grid': [n // _side(parts) for n in input_shape[:2]],
    'color_range': COLOR_RANGE,
    'tokenizer': {
      **_fields(parts.tokenizer),
      **_fields(quantizer),
      'quantizer': quantizer.kind,
    },
    'optics': _fields(parts.optics) if parts.optics else None,
    'codebook_digest': disk.digest(quantizer.language(params)),
    'platforms': list(PLATFORMS),
    'came_from': came_from,
    'files': {name: disk.digest(data) for name, data in files.items()},
  }
  files |= {META: disk.sealed(meta)}
  disk.write_all({home / name: data for name, data in files.items()})


def load(folder: str | os.PathLike) -> Tokenizer:
  """Opens what `save` wrote, and checks that it is whole.

  Raises:
    ValueError: no tokenizer there, or a file that is not as it was written.
  """
  home = pathlib.Path(folder)
  try:
    meta = disk.read_sealed(home / META)
    if meta['format'] != FORMAT:
      raise ValueError(f'format {meta["format"]}, and this reads {FORMAT}')
    if broken := disk.changed(home, meta['files']):
      raise ValueError(f'{", ".join(broken)} is not as it was written')
    flat = safetensors.numpy.load((home / WEIGHTS).read_bytes())
    tree = traverse_util.unflatten_dict(flat, sep='/')
    parts = Parts(
      models.create_tokenizer(**meta['tokenizer']),
      tree['tokenizer'],
      optics.Optics(**meta['optics']) if meta['optics'] else None,
      tree.get('optics'),
    )
  except FileNotFoundError as e:
    raise ValueError(
      f'No tokenizer in {home}: name one with --tokenizer, or make one with '
      '`python -m chimera.main export`.'
    ) from e
  except PermissionError as e:
    raise ValueError(f'{home} cannot be read: {disk.reason(e)}.') from e
  except (safetensors.SafetensorError, *disk.BROKEN) as e:
    raise ValueError(
      f'{home} is not a whole tokenizer ({disk.reason(e)}): make it anew with '
      '`python -m chimera.main export`.'
    ) from e
  return Tokenizer(parts, meta)


def _side(parts: Parts) -> int:
  """Pixels, or cells of path_params, a side of a token."""
  cell = parts.optics.cell if parts.optics else 1
  return cell * parts.tokenizer.downsample


def _lower(parts: Parts) -> list[bytes]:
  """Both functions as serialized StableHLO, for any batch and size."""
  arrays = (parts.params, parts.variables)

  def lower(f: Callable[..., jax.Array], x: jax.ShapeDtypeStruct) -> bytes:
    def run(x):
      # As if they were arguments: folded constants round otherwise.
      params, variables = jax.lax.optimization_barrier(arrays)
      with jax.default_matmul_precision('highest'):
        return f(Parts(parts.tokenizer, params, parts.optics, variables), x)

    exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(x)
    return bytes(exported.serialize())

  side = _side(parts)
  b, h, w = jax.export.symbolic_shape('b, h, w')
  images = jax.ShapeDtypeStruct((b, side * h, side * w, 3), jnp.float32)
  tokens = jax.ShapeDtypeStruct((b, h, w), jnp.int32)
  return [lower(encode, images), lower(decode, tokens)]


def _fields(module: Any) -> dict[str, Any]:
  """A flax module's own settings."""
  return {
    name: getattr(module, name)
    for name in module.__dataclass_fields__
    if name not in ('parent', 'name', 'dtype')  # which is of the training
  }
