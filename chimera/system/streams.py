"""What is printed: a stream that fails, or is not there, never ends work.

A pipe's reader goes away, a terminal closes, a name cannot be encoded, a disk
is full, `2>&-`: what is said is lost then, and only that.

What C libraries say of images, on descriptor 2 and past every stream of
Python's, is counted instead of drawn over bars and dashboards (`muffled`).
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import sys
import tempfile
import threading
from typing import Any, BinaryIO, TextIO

from absl import logging

# Errors that pass: later words may get through.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)


class _Spoken:
  """A text stream whose `write` and `flush` never fail, in place of another."""

  def __init__(self, stream: TextIO, name: str, before: TextIO | None):
    self._stream = stream
    self._before = before
    self._name = name
    self._has_warned = False

  def __getattr__(self, attribute: str) -> Any:
    return getattr(self._stream, attribute)

  # absl looks for others' handlers of stderr, lest all be said twice.
  def __eq__(self, other: Any) -> bool:
    return other is self or other == self._before

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
  stdout, stderr = before
  with _apart(stderr) as own:
    sys.stdout = _Spoken(stdout or _nowhere(), 'stdout', stdout)
    sys.stderr = _Spoken(own, 'stderr', stderr)
    try:
      with _muffle.up():
        yield
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      sys.stdout, sys.stderr = before


def descriptors() -> set[int]:
  """Those that any words of this process go through."""
  found = {1, 2}
  # What a test puts in its place has none.
  with contextlib.suppress(AttributeError, OSError, ValueError):
    found.add(sys.stderr.fileno())
  return found


@contextlib.contextmanager
def muffled() -> Iterator[None]:
  """Within it, what is written to descriptor 2 is counted and not shown.

  So it is where `spoken` is; Python's own words get through all the same. The
  first line is logged, and in the end how many more there were. Threads may be
  within it at once. What a process says that dies in it is lost: keep it short.
  """
  with _muffle:
    yield


class _Muffle:
  """Descriptor 2, in a file for as long as anybody is within."""

  def __init__(self):
    self._lock = threading.Lock()
    self._sink: BinaryIO | None = None
    self._saved = -1
    self._within = 0
    self._lines = 0

  @contextlib.contextmanager
  def up(self) -> Iterator[None]:
    """Without it, nothing is muffled."""
    if self._sink is not None:
      yield
      return
    self._lines = 0
    with _scratch() as self._sink:
      try:
        yield
      finally:
        self._sink = None
    if more := self._lines - 1 if self._lines else 0:
      logging.info('%d more line(s) of image libraries were not shown.', more)

  def __enter__(self) -> None:
    with self._lock:
      if self._sink is not None and not self._within:
        self._saved = os.dup(2)
        os.dup2(self._sink.fileno(), 2)
      self._within += 1

  def __exit__(self, *_: Any) -> None:
    with self._lock:
      self._within -= 1
      if self._within or self._saved < 0:
        return
      os.dup2(self._saved, 2)
      os.close(self._saved)
      self._saved = -1
      said = self._take()
      is_first = not self._lines
      self._lines += len(said)
    if said and is_first:
      first = said[0].decode(errors='backslashreplace').strip()
      logging.info(
        'An image library says "%s". More of that is counted, not shown.', first
      )

  def _take(self) -> list[bytes]:
    """The lines that were written, which are gone from the file then."""
    if self._sink is None:
      return []
    self._sink.seek(0)
    said = self._sink.read().splitlines()
    self._sink.seek(0)
    with contextlib.suppress(OSError):  # it may be /dev/null
      self._sink.truncate()
    return said


_muffle = _Muffle()


@contextlib.contextmanager
def _apart(stream: TextIO | None) -> Iterator[TextIO]:
  """stderr on a descriptor of its own: 2 is left to C and C++."""
  own = None
  # What a test puts in its place has none, or another.
  with contextlib.suppress(AttributeError, OSError, ValueError):
    if stream.fileno() == 2:
      own = os.fdopen(
        os.dup(2),
        'w',
        buffering=1,
        encoding=stream.encoding,
        errors='backslashreplace',
      )
  if own is None:
    yield stream or _nowhere()
    return
  handler = logging.get_absl_handler().python_handler
  handler.setStream(own)
  try:
    yield own
  finally:
    # It stays open: others' handlers may have it.
    handler.setStream(stream)


def _scratch() -> BinaryIO:
  try:
    return tempfile.TemporaryFile(buffering=0)
  except OSError:
    return open(os.devnull, 'r+b', buffering=0)


def _nowhere() -> TextIO:
  return open(os.devnull, 'w', encoding='utf-8')
