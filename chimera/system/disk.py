"""Files that are written whole or not at all: the one place that replaces them.

A process may be killed, and a disk be full, at any byte: what is read back
later is the old file or the new one.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any

from absl import logging


def write(path: str | os.PathLike, data: bytes) -> None:
  """Puts a file in place of what is there, once it is on the disk.

  Args:
    path: in a folder that exists; `{path}.tmp` is used meanwhile.
    data: all of it.

  Raises:
    OSError: it could not be written, with its name; what was there still is.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'{path.name}.tmp')
  try:
    with open(temporary, 'wb') as f:
      f.write(data)
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


def write_json(path: str | os.PathLike, value: Any) -> None:
  """The same of a value, for people to read, as UTF-8.

  Raises:
    OSError: see `write`.
  """
  write(path, json.dumps(value, indent=1).encode())


def write_sealed(path: str | os.PathLike, value: dict[str, Any]) -> None:
  """The same of a dictionary, with its SHA-256 as one more entry, `seal`.

  Raises:
    OSError: see `write`.
  """
  write_json(path, {**value, 'seal': _seal(value)})


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
  """What `write_sealed` was given.

  Raises:
    OSError: it could not be read.
    ValueError: it is not as it was written.
  """
  path = pathlib.Path(path)
  try:
    value = json.loads(path.read_bytes())
    seal = value.pop('seal')
  except KeyError as e:
    raise ValueError(f'{path.name} has no seal') from e
  except (ValueError, AttributeError, TypeError, RecursionError) as e:
    raise ValueError(f'{path.name} holds no sealed JSON') from e
  if seal != _seal(value):
    raise ValueError(f'{path.name} is not as it was written')
  return value


def _seal(value: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def spared(name: str) -> Iterator[None]:
  """Where it cannot be written, the run goes on, with a warning."""
  try:
    yield
  except OSError as e:
    logging.warning('%s could not be written, the run goes on: %s', name, e)
