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

import numpy as np

# Of a member of an .npz: floats that mean something never shrink like this.
_MOST_SHRUNK = 100
_MOST_OPCODES = 10_000  # of a pickle: an array takes some thirty
_KEEPS = frozenset(('PUT', 'BINPUT', 'LONG_BINPUT'))
_ASKS = frozenset(('PERSID', 'BINPERSID', 'EXT1', 'EXT2', 'EXT4'))


def read(path: str) -> np.ndarray:
  """Reads the array of an `.npy`, `.npz` or `.pkl`.

  Args:
    path: an `.npy` (memory-mapped); an `.npz` of one array, or one of
      'latents'; a `.pkl` of {'latents': array}, of a plain array and little
      else. By its suffix.

  Raises:
    one of `disk.BROKEN`: it is not what its name claims.
  """
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise ValueError('it is not a file')
  readers = {'.npy': _read_npy, '.npz': _read_npz, '.pkl': _read_pickle}
  return readers[pathlib.Path(path).suffix.lower()](path)


def _check_header(f: BinaryIO, size: int) -> None:
  """Holds an .npy's header against the bytes that there are."""
  version = np.lib.format.read_magic(f)
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if version not in readers:
    raise ValueError(f'it is of the unknown format {version}')
  shape, _, dtype = readers[version](f)
  if dtype.hasobject:
    raise ValueError(f'an array of {dtype} is not plain')
  if min(shape, default=0) < 0:
    raise ValueError(f'its header has the shape {shape}')
  promised, there = math.prod(shape) * dtype.itemsize, size - f.tell()
  if promised != there:
    raise ValueError(
      f'its header promises {promised} bytes, and {there} follow it'
    )


def _read_npy(path: str) -> np.ndarray:
  with open(path, 'rb') as f:
    _check_header(f, os.fstat(f.fileno()).st_size)
  return np.load(path, mmap_mode='r', allow_pickle=False)


def _read_npz(path: str) -> np.ndarray:
  with zipfile.ZipFile(path) as file:
    names = file.namelist()
    wanted = 'latents.npy' if 'latents.npy' in names else names[0]
    if len(names) != 1 and wanted != 'latents.npy':
      raise ValueError(f"needs one array or 'latents', got {names[:8]}")
    member = file.getinfo(wanted)
    if member.file_size > _MOST_SHRUNK * max(member.compress_size, 1):
      raise ValueError(
        f'{wanted} would grow from {member.compress_size} to '
        f'{member.file_size} bytes'
      )
    with file.open(member) as f:
      _check_header(f, member.file_size)
    # From its beginning; the checksum at its end is compared.
    with file.open(member) as f:
      array = np.lib.format.read_array(f, allow_pickle=False)
      if f.read(1):
        raise ValueError(f'{wanted} is longer than its header says')
      return array


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
  return latents.array


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

  def __init__(self, *_: Any):
    self.array = np.empty(0)

  def __setstate__(self, state: tuple) -> None:
    _, shape, dtype, fortran, data = state
    self._fill(data, dtype, shape, 'F' if fortran else 'C')

  def _fill(
    self, data: bytes, dtype: _PickledDtype, shape: tuple, order: str
  ) -> '_PickledArray':
    flat = np.frombuffer(data, dtype.dtype)
    self.array = flat.reshape(shape, order=order)
    return self


def _frombuffer(
  data: bytes, dtype: _PickledDtype, shape: tuple, order: str
) -> _PickledArray:
  return _PickledArray()._fill(data, dtype, shape, order)


def _encode(text: str, encoding: str) -> bytes:
  """Stands for _codecs.encode, by which protocols 0 to 2 write bytes."""
  if encoding != 'latin1':
    raise pickle.UnpicklingError(f'the encoding {encoding!r} is not plain')
  return text.encode('latin1')


class _ArrayUnpickler(pickle.Unpickler):
  """Knows a plain numpy array by stand-ins, and no other global."""

  def find_class(self, module: str, name: str) -> Any:
    stand_ins = {
      'numpy.ndarray': _PickledArray,
      'numpy.dtype': _PickledDtype,
      'numpy.core.multiarray._reconstruct': _PickledArray,
      'numpy._core.multiarray._reconstruct': _PickledArray,
      'numpy.core.numeric._frombuffer': _frombuffer,
      'numpy._core.numeric._frombuffer': _frombuffer,
      '_codecs.encode': _encode,
    }
    stand_in = stand_ins.get(f'{module}.{name}')
    if stand_in is None:
      raise pickle.UnpicklingError(f'it names {module}.{name}')
    return stand_in
