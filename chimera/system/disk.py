"""Files that are written whole or not at all: the one place that replaces them.

A process may be killed, and a disk be full, at any byte: what is read back
later is the old file or the new one.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import csv
import hashlib
import io
import json
import lzma
import os
import pathlib
import pickle
import re
import struct
import tarfile
import tempfile
import tokenize
from typing import Any, BinaryIO
import zipfile
import zlib

from absl import logging

# What reading bytes raises that are not what their name claims: Pillow, NumPy,
# pickle, zipfile and tarfile each let nearly all of these through.
BROKEN = (
  *(OSError, EOFError, MemoryError, ValueError, TypeError, AttributeError),
  *(LookupError, ArithmeticError, AssertionError, SyntaxError),
  RuntimeError,  # an encrypted zip, an unknown compression, deep recursion
  *(lzma.LZMAError, zlib.error, zipfile.BadZipFile, tarfile.TarError),
  *(pickle.UnpicklingError, struct.error, tokenize.TokenError),
)

# Of a file of JSON: a config has 10 kB, a digest of a million files 100 MB.
_MOST_JSON = 1 << 28


# What no library takes for a pattern, a scheme or an escape.
_PLAIN = re.compile(r'[\w/.+=@,-]*', re.ASCII)


@contextlib.contextmanager
def plain(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A folder by a name that every library takes as it stands.

  Orbax takes its name for a pattern (`run [1]`), TensorFlow and TensorStore
  want UTF-8. Where a character of the absolute path is none of the plain ones,
  it is a link to the folder, as long as the block lasts.
  """
  path = os.path.abspath(folder)
  if _PLAIN.fullmatch(path):
    yield pathlib.Path(path)
    return
  places = (tempfile.gettempdir(), '/tmp', '/var/tmp')
  place = next(filter(_PLAIN.fullmatch, places))
  with tempfile.TemporaryDirectory(prefix='chimera-', dir=place) as home:
    link = pathlib.Path(home, 'folder')
    link.symlink_to(path)
    yield link


def reason(error: BaseException) -> str:
  """What an error says, in one line without its full stop."""
  return ' '.join(str(error).split()).rstrip('.') or type(error).__name__


def digest(source: bytes | str | os.PathLike) -> str:
  """SHA-256 of bytes, or of a file's."""
  if isinstance(source, bytes):
    return hashlib.sha256(source).hexdigest()
  with open(source, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def forget(paths: Iterable[pathlib.Path]) -> None:
  """Has the kernel read files that are on the disk from there, if it can."""
  if hasattr(os, 'posix_fadvise'):
    for path in paths:
      with open(path, 'rb') as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def changed(home: pathlib.Path, digests: dict[str, str]) -> list[str]:
  """The files of a folder that are not as they were digested, by name."""
  return [
    name
    for name, then in digests.items()
    if not (home / name).is_file() or digest(home / name) != then
  ]


def check_folder(path: str | os.PathLike, what: str) -> None:
  """ValueError where `what` is at a path that can be no folder."""
  path = pathlib.Path(path)
  for part in (path, *path.parents):
    if os.path.lexists(part):
      if not part.is_dir():
        raise ValueError(
          f'{what} must be a folder, got {path}: {part} is none.'
        )
      return


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A file to be filled, in place of what is there once it is on the disk.

  Its folder exists; `{path}.tmp` is used meanwhile, and is gone again whatever
  ends the block. An OSError has the file's name, and what was there still is.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'{path.name}.tmp')
  try:
    with open(temporary, 'wb') as f:
      yield f
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except OSError as e:
    # The kernel's own words, 'No space left on device', name no file.
    e.filename = e.filename or str(path)
    raise
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def write(path: str | os.PathLike, data: bytes) -> None:
  """`writing`, of what is in memory."""
  with writing(path) as f:
    f.write(data)


def write_all(files: Mapping[pathlib.Path, bytes]) -> None:
  """`writing`, of several: all are on the disk before the first is replaced.

  They are in the order of the mapping.
  """
  with contextlib.ExitStack() as stack:
    # The last to be opened is the first to be replaced.
    for path, data in reversed(files.items()):
      f = stack.enter_context(writing(path))
      f.write(data)
      f.flush()
      os.fsync(f.fileno())


def write_csv(path: str | os.PathLike, rows: Iterable[Iterable[Any]]) -> None:
  """`writing`, of rows, for `csv.reader`; file names need not be UTF-8."""
  text = io.StringIO(newline='')
  plain, quoted = (
    csv.writer(text, lineterminator='\n', quoting=how)
    for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
  )
  for row in map(tuple, rows):
    # It ends a row for the reader, and older writers do not quote it.
    has_return = any('\r' in str(value) for value in row)
    (quoted if has_return else plain).writerow(row)
  write(path, text.getvalue().encode(errors='surrogateescape'))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """`writing`, of a value, for people to read, as UTF-8."""
  write(path, _as_json(value))


def _as_json(value: Any) -> bytes:
  return json.dumps(value, indent=1).encode()


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """An object of JSON, of a file that nobody vouches for.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it holds no such thing; its name, and why.
  """
  path = pathlib.Path(path)
  try:
    # Whoever opens a pipe waits for ever.
    if path.exists() and not path.is_file():
      raise ValueError('it is not a file')
    with open(path, 'rb') as f:
      data = f.read(_MOST_JSON + 1)
    if len(data) > _MOST_JSON:
      raise ValueError(f'it has more than {_MOST_JSON} bytes')
    value = json.loads(data)
    if not isinstance(value, dict):
      raise ValueError(f'it holds a {type(value).__name__}')
    return value
  except FileNotFoundError:
    raise
  except (OSError, ValueError, RecursionError) as e:
    raise ValueError(f'{path} is not readable as JSON: {reason(e)}') from e


def write_sealed(path: str | os.PathLike, value: dict[str, Any]) -> None:
  """`write_json`, of a dictionary with its SHA-256 as one more, `seal`."""
  write(path, sealed(value))


def sealed(value: dict[str, Any]) -> bytes:
  """What `write_sealed` writes."""
  value = json.loads(json.dumps(value))  # its keys as they will be read
  return _as_json({**value, 'seal': seal(value)})


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
  """What `write_sealed` was given; a ValueError if it is not as it was then."""
  path = pathlib.Path(path)
  try:
    value = json.loads(path.read_bytes())
    then = value.pop('seal')
  except KeyError as e:
    raise ValueError(f'{path.name} has no seal') from e
  except (ValueError, AttributeError, TypeError, RecursionError) as e:
    raise ValueError(f'{path.name} holds no sealed JSON') from e
  if then != seal(value):
    raise ValueError(f'{path.name} is not as it was written')
  return value


def seal(value: dict[str, Any]) -> str:
  """SHA-256 of a dictionary as JSON holds it, its keys sorted."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def spared(name: str) -> Iterator[None]:
  """Where it cannot be written, the run goes on, with a warning."""
  try:
    yield
  except OSError as e:
    logging.warning('%s could not be written, the run goes on: %s', name, e)
