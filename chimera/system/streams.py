"""What is printed: a stream that fails, or is not there, never ends work.

A pipe's reader goes away, a terminal closes, a name cannot be encoded, a disk
is full, `2>&-`: what is said is lost then, and only that.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import sys
from typing import Any, TextIO

from absl import logging

# Errors that pass: later words may get through.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)


class _Spoken:
  """A text stream whose `write` and `flush` never fail."""

  def __init__(self, stream: TextIO, name: str):
    self._stream = stream
    self._name = name
    self._has_warned = False

  def __getattr__(self, attribute: str) -> Any:
    return getattr(self._stream, attribute)

  # absl looks for others' handlers of stderr, lest all be said twice.
  def __eq__(self, other: Any) -> bool:
    return other is self or other == self._stream

  __hash__ = object.__hash__

  def write(self, text: str) -> int:
    try:
      self._stream.write(text)
    except (OSError, ValueError) as e:
      self._lose(e)
    return len(text)

  def flush(self) -> None:
    try:
      self._stream.flush()
    except (OSError, ValueError) as e:
      self._lose(e)

  def _lose(self, error: OSError | ValueError) -> None:
    if getattr(error, 'errno', None) not in _PASSING:
      # What is left in the stream's buffer is tried again when it closes.
      with contextlib.suppress(OSError, ValueError), _nowhere() as nowhere:
        os.dup2(nowhere.fileno(), self._stream.fileno())
      self._stream = _nowhere()
    if not self._has_warned:
      self._has_warned = True
      logging.warning('%s is lost, the work goes on: %s', self._name, error)


@contextlib.contextmanager
def spoken() -> Iterator[None]:
  """Within it, printing to stdout and stderr does not fail."""
  # The next file that is opened would be taken for the stream that is closed,
  # and C++ prints into it.
  for fd in (0, 1, 2):
    try:
      os.fstat(fd)
    except OSError:
      os.open(os.devnull, os.O_RDWR)
  before = sys.stdout, sys.stderr
  for stream in filter(None, before):
    # A file name need not be UTF-8, nor a terminal.
    with contextlib.suppress(AttributeError, OSError, ValueError):
      stream.reconfigure(errors='backslashreplace')
  sys.stdout, sys.stderr = (
    _Spoken(stream or _nowhere(), name)
    for stream, name in zip(before, ('stdout', 'stderr'))
  )
  try:
    yield
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = before


def _nowhere() -> TextIO:
  return open(os.devnull, 'w', encoding='utf-8')
