"""SIGTERM, SIGINT and SIGHUP: what is in hand is finished and saved first.

A handler in Python runs when the main thread is back in Python, which a
compilation may keep it from for minutes. So a thread of its own reads the
signals from `signal.set_wakeup_fd`, and ends the process where nothing can be
lost and the main thread does not answer, or where somebody asks twice.
https://docs.python.org/3/library/signal.html#execution-of-python-signal-handlers
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import select
import signal
import socket
import threading
import time
from typing import Any, NoReturn

from absl import logging

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PATIENCE = 3.0  # seconds that the main thread has to answer
_ECHO = 1.0  # seconds within which the same signal comes but once
_STOPPED = 'Stopped: the same command goes on from here.'

# Called before a process ends without unwinding: a terminal is given back.
_last_acts: list[Callable[[], None]] = []


class Stopped(BaseException):
  """The signal `signum` ends the program; like KeyboardInterrupt no error."""

  def __init__(self, signum: int, message: str):
    super().__init__(message)
    self.signum = signum


@contextlib.contextmanager
def last_act(act: Callable[[], None]) -> Iterator[None]:
  """Has `act` called, at most once, if the process ends within the block."""
  _last_acts.append(act)
  try:
    yield
  finally:
    _last_acts.remove(act)


class Watch:
  """Takes the signals while its block lasts; before it, none ever comes.

  A signal raises: SIGINT KeyboardInterrupt, the others Stopped. Within
  `deferred` the first one is but noted in `signum`, and within `interruptible`
  inside of it the block is left. A second signal ends the process at once, with
  exit code 128 + signum; the same one within a second is the first one's echo,
  by a wrapper that passes on what the whole process group has had. A signal
  that was ignored before stays so (nohup).
  """

  def __init__(self):
    self.signum: int | None = None
    self._has_come = self._is_deferred = self._is_interruptible = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> 'Watch':
    if threading.current_thread() is not threading.main_thread():
      return self
    self._ours, self._theirs = socket.socketpair()
    self._theirs.setblocking(False)
    self._fd_before = signal.set_wakeup_fd(
      self._theirs.fileno(), warn_on_full_buffer=False
    )
    for signum in SIGNALS:
      if signal.getsignal(signum) is not signal.SIG_IGN:
        self._before[signum] = signal.signal(signum, self._handle)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    if not self._before:
      return
    for signum, handler in self._before.items():
      signal.signal(signum, handler)
    self._before = {}
    signal.set_wakeup_fd(self._fd_before)
    self._theirs.close()
    self._thread.join()
    self._ours.close()

  @contextlib.contextmanager
  def deferred(self) -> Iterator[None]:
    """Within, the first signal is noted in `signum` and waits its turn.

    At the end one that nobody has looked at raises Stopped.
    """
    self._is_deferred = True
    try:
      yield
    finally:
      self._is_deferred = False
    self.stop(_STOPPED)

  def stop(self, line: str) -> None:
    """Ends the program by Stopped, saying so, where a signal was noted."""
    if self.signum is not None:
      raise Stopped(self.signum, line)

  def heed(self, signum: int | None) -> None:
    """Notes a signal that another host had."""
    self.signum = self.signum or signum

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """What can be done again: the first signal leaves the block, and is noted.

    The block's last statement says whether it was left.
    """
    with contextlib.suppress(_Left):
      try:
        self._is_interruptible = True
        yield
      finally:
        self._is_interruptible = False

  def _handle(self, signum: int, _: Any) -> None:
    """In the main thread, once it is back in Python."""
    # The others are the listener's: they must not break into the unwinding.
    if self._has_come:
      return
    self._has_come = True
    if not self._is_deferred:
      if signum == signal.SIGINT:
        raise KeyboardInterrupt
      raise Stopped(signum, _STOPPED)
    self.signum = signum
    logging.info(
      '%s: finishing the dispatch, then saving; a second one ends it at once.',
      signal.Signals(signum).name,
    )
    if self._is_interruptible:
      raise _Left

  def _listen(self) -> None:
    first, since, patience = None, 0.0, None
    while True:
      if not select.select([self._ours], [], [], patience)[0]:
        if self.signum is None and not self._is_deferred:
          _end(first)
        patience = None
        continue
      if not (received := self._ours.recv(64)):
        return
      for signum in received:
        if signum not in self._before:
          continue
        if first is None:
          first, since, patience = signum, time.monotonic(), _PATIENCE
        elif signum == first and time.monotonic() - since < _ECHO:
          continue
        # A shell passes on to its children the hang-up that they have had.
        elif signum != signal.SIGHUP:
          _end(signum)


class _Left(BaseException):
  """Out of what is interruptible."""


def _end(signum: int) -> NoReturn:
  """Without unwinding: the main thread may be anywhere."""
  acts = threading.Thread(
    target=lambda: [act() for act in list(_last_acts)], daemon=True
  )
  acts.start()
  acts.join(1.0)
  line = 'Ended at once: the same command goes on from the last checkpoint.\n'
  with contextlib.suppress(OSError):
    os.write(2, line.encode())
  os._exit(128 + signum)
