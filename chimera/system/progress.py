"""Long work on a terminal: a line of progress now and then, or a bar."""

from collections.abc import Callable, Iterator
import contextlib
import sys
import time

from absl import logging
import rich.console
import rich.progress


class Progress:
  """Logs how far a loop is, how fast, and when it will be done.

  The first stretch holds the compilation: it is shown, but the estimate of the
  time left comes from the stretches after it as soon as there is one. The loop
  goes from cycle `first` to `cycles`; `now` is seconds of a monotonic clock.
  """

  def __init__(self, cycles: int, first: int = 0, now: float | None = None):
    self._cycles = cycles
    self._at = first
    self._then = time.monotonic() if now is None else now
    self._warm: tuple[int, float] | None = None

  def begin(self, now: float | None = None) -> None:
    """The loop begins now: what came before is none of its time."""
    self._then = time.monotonic() if now is None else now

  def update(
    self, done: int, note: str = '', now: float | None = None
  ) -> float:
    """Logs one line; returns the cycles a second since the last one."""
    now = time.monotonic() if now is None else now
    rate = (done - self._at) / max(now - self._then, 1e-9)
    steady = rate
    if self._warm is None:
      self._warm = done, now
    else:
      steady = (done - self._warm[0]) / max(now - self._warm[1], 1e-9)
    self._at, self._then = done, now
    left = format_seconds((self._cycles - done) / max(steady, 1e-9))
    share, note = 100 * done // self._cycles, f', {note}' if note else ''
    logging.info(
      'Cycle %d of %d (%d %%), %.2f cycles/s, %s left%s',
      *(done, self._cycles, share, rate, left, note),
    )
    return rate


def format_seconds(seconds: float) -> str:
  """3725 as '1h02m', 125 as '2m05s', 7.4 as '7s'."""
  minutes, s = divmod(round(seconds), 60)
  h, m = divmod(minutes, 60)
  if h:
    return f'{h}h{m:02d}m'
  return f'{m}m{s:02d}s' if m else f'{s}s'


@contextlib.contextmanager
def bar(name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
  """A bar with the time left where a terminal watches, else lines in the log.

  Yields report(done, note, total), which is told what is done so far.
  """
  if sys.stderr.isatty():
    columns = (
      rich.progress.TextColumn('{task.description}'),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeRemainingColumn(),
      rich.progress.TextColumn('{task.fields[note]}'),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as shown:
      task = shown.add_task(name, total=total, note='')

      def show(done: int, note: str, total: int | None = total) -> None:
        shown.update(task, completed=done, note=note, total=total)

      yield show
    return
  start, logged = time.monotonic(), 0

  def log(done: int, note: str, total: int = total) -> None:
    nonlocal logged
    if 10 * done // total == logged:
      return
    logged = 10 * done // total
    left = (time.monotonic() - start) * (total - done) / done
    logging.info('%s: %d of %d, %.0f s left %s', name, done, total, left, note)

  yield log
