"""Arrays in from files that nobody vouches for: .npy, .npz and .pkl.

Nothing in them is executed. What a header promises is held against the size of
the file before memory is taken for it.
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import io
import math
import os
import pathlib
import pickle
import pickletools
import stat
from typing import Any, BinaryIO
import zipfile

from absl import logging
import numpy as np

from chimera.system import disk

# Of a member of an .npz: floats that mean something never shrink like this.
_MOST_SHRUNK = 100
_MOST_OPCODES = 10_000  # of a pickle: an array takes some thirty
_KEEPS = frozenset(('PUT', 'BINPUT', 'LONG_BINPUT'))
_ASKS = frozenset(('PERSID', 'BINPERSID', 'EXT1', 'EXT2', 'EXT4'))


def read(path: str | bytes | os.PathLike) -> np.ndarray:
  """The array of an .npy, an .npz or a .pkl, by its suffix.

  An .npy is memory-mapped. An .npz is of one array, or one of 'latents'; a .pkl
  of {'latents': array}, of a plain array and little else.

  Raises:
    one of `disk.BROKEN`: it is not what its name claims.
  """
  path = os.fsdecode(path)
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise ValueError('it is not a file')
  readers = {'.npy': _read_npy, '.npz': _read_npz, '.pkl': _read_pickle}
  return readers[pathlib.Path(path).suffix.lower()](path)


def read_shape(path: str) -> tuple[int, ...]:
  """The shape of what `read` would read, of all but a .pkl by its header alone.

  Raises:
    one of `disk.BROKEN`: it is not what its name claims.
  """
  if pathlib.Path(path).suffix.lower() != '.npz':
    return read(path).shape
  with zipfile.ZipFile(path) as file:
    member = _member(file)
    with file.open(member) as f:
      return _read_header(f, member.file_size)[0]


def absent(
  rows_NxHxWxC: np.ndarray, ids_n: np.ndarray, others_MxHxWxC: np.ndarray
) -> np.ndarray:
  """Those of ids_n whose row is none of the others, to the last bit."""
  others = {row.tobytes() for row in others_MxHxWxC}
  is_other = (rows_NxHxWxC[i].tobytes() in others for i in ids_n)
  is_other_n = np.fromiter(is_other, bool, len(ids_n))
  if count := int(is_other_n.sum()):
    logging.info(
      '%d of %d rows are held out too, and not trained on.', count, len(ids_n)
    )
  return ids_n[~is_other_n]


def read_latents(path: str | os.PathLike) -> np.ndarray:
  """latents.npy of a workdir: float32 (N, H, W, 3), a read-only memory map.

  Raises:
    ValueError: it is not; its name, and why.
  """
  try:
    latents = read(os.fspath(path))
    check_shape(latents.shape)
    if latents.dtype != np.float32:
      raise ValueError(f'they are float32, got {latents.dtype}')
    return latents
  except disk.BROKEN as e:
    raise ValueError(
      f'{path} must hold path_params as prepare-latents wrote them, but '
      f'{disk.reason(e)}: make them anew in another --workdir.'
    ) from e


def check_shape(shape: tuple[int, ...]) -> None:
  """ValueError where path_params cannot have it."""
  if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
    raise ValueError(f'their shape is (N, H, W, 3), got {shape}')


def _read_header(
  f: BinaryIO, size: int
) -> tuple[tuple[int, ...], str, np.dtype]:
  """(shape, order, dtype) of an .npy, held against the bytes that there are."""
  major, minor = np.lib.format.read_magic(f)
  read_rest = getattr(np.lib.format, f'read_array_header_{major}_{minor}', None)
  if read_rest is None:
    raise ValueError(f'it is of the unknown format {major}.{minor}')
  shape, fortran, dtype = read_rest(f)
  if dtype.hasobject:
    raise ValueError(f'an array of {dtype} is not plain')
  if min(shape, default=0) < 0:
    raise ValueError(f'its header has the shape {shape}')
  promised, there = math.prod(shape) * dtype.itemsize, size - f.tell()
  if promised != there:
    raise ValueError(
      f'its header promises {promised} bytes, and {there} follow it'
    )
  return shape, 'F' if fortran else 'C', dtype


def _read_npy(path: str) -> np.ndarray:
  with open(path, 'rb') as f:
    shape, order, dtype = _read_header(f, os.fstat(f.fileno()).st_size)
    return np.memmap(f, dtype, 'r', f.tell(), shape, order)


def _read_npz(path: str) -> np.ndarray:
  with zipfile.ZipFile(path) as file:
    member = _member(file)
    with file.open(member) as f:
      shape, order, dtype = _read_header(f, member.file_size)
      # To its end, where the checksum is compared.
      return np.frombuffer(f.read(), dtype).reshape(shape, order=order)


def _member(file: zipfile.ZipFile) -> zipfile.ZipInfo:
  """The one array of an .npz, or its 'latents'."""
  names = file.namelist()
  if len(names) != 1 and 'latents.npy' not in names:
    raise ValueError(f"needs one array or 'latents', got {names[:8]}")
  wanted = 'latents.npy' if 'latents.npy' in names else names[0]
  member = file.getinfo(wanted)
  if member.file_size > _MOST_SHRUNK * max(member.compress_size, 1):
    raise ValueError(
      f'{wanted} would grow from {member.compress_size} to '
      f'{member.file_size} bytes'
    )
  return member


def _read_pickle(path: str) -> np.ndarray:
  data = pathlib.Path(path).read_bytes()
  _scan(data)
  contents = _ArrayUnpickler(io.BytesIO(data)).load()
  if not isinstance(contents, dict) or 'latents' not in contents:
    raise ValueError("a pickle must hold {'latents': array}")
  latents = contents['latents']
  if not isinstance(latents, _PickledArray):
    raise ValueError(
      f"'latents' must be a numpy array, got {type(latents).__name__}"
    )
  data, dtype, shape, order = latents.made_of
  return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _scan(data: bytes) -> None:
  """Refuses opcodes that take much for few bytes, before any is run."""
  kept = 0
  for i, (opcode, argument, _) in enumerate(pickletools.genops(data)):
    if i == _MOST_OPCODES:
      raise ValueError('it holds more than an array and a few words')
    if opcode.name in _ASKS:
      raise ValueError(f'it holds the opcode {opcode.name}')
    if opcode.name in _KEEPS:
      kept += 1
      # Pickle counts them from 0 or 1.
      if argument > kept:
        raise ValueError(f'it keeps its object {kept} as the {argument}')


class _PickledDtype:
  """Stands for numpy.dtype in a pickle."""

  def __init__(self, name: str, *_: Any):
    self.dtype = np.dtype(str(name))
    if self.dtype.hasobject:
      raise pickle.UnpicklingError(f'an array of {self.dtype} is not plain')

  def __setstate__(self, state: tuple) -> None:
    if self.dtype.names is None and state[1] in ('<', '>'):
      self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray:
  """Stands for numpy.ndarray in a pickle, and for what rebuilds one."""

  def __init__(self, *made_of: Any):
    self.made_of = made_of  # (data, dtype, shape, order), or its state follows

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, fortran, data = state
    self.made_of = data, dtype, shape, 'F' if fortran else 'C'


def _encode(text: str, encoding: str) -> bytes:
  """Stands for _codecs.encode, by which protocols 0 to 2 write bytes."""
  if encoding != 'latin1':
    raise pickle.UnpicklingError(f'the encoding {encoding!r} is not plain')
  return text.encode('latin1')


_STAND_INS = {
  'numpy.ndarray': _PickledArray,
  'numpy.dtype': _PickledDtype,
  'numpy.core.multiarray._reconstruct': _PickledArray,
  'numpy.core.numeric._frombuffer': _PickledArray,
  '_codecs.encode': _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
  """Knows a plain numpy array by stand-ins, and no other global."""

  def find_class(self, module: str, name: str) -> Any:
    known = f'{module}.{name}'.replace('numpy._core.', 'numpy.core.')
    if known not in _STAND_INS:
      raise pickle.UnpicklingError(f'it names {module}.{name}')
    return _STAND_INS[known]
