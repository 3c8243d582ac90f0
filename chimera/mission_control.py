"""Mission control: what people see of a run in a terminal.

The design document's section 7, in its plain form: a line of progress now and
then, and a table at the end.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import math
import sys
import time
from typing import Any

from absl import logging
import rich.box
import rich.console
import rich.progress
import rich.table

# The master's figures in the order in which the table shows them.
_MASTER = {
  'psnr': 'PSNR (dB)',
  'ssim': 'SSIM',
  'path_l1': 'L1 path',
  'pixel_l1': 'L1 pixels',
  'codes_used': 'codes used',
  'perplexity': 'perplexity',
}


class Progress:
  """Logs how far a loop is, how fast, and when it will be done.

  The first stretch holds the compilation: it is shown, but the estimate of the
  time left comes from the stretches after it as soon as there is one.

  Args:
    cycles: at which the loop ends.
    first: cycle at which it begins.
    now: seconds, of any monotonic clock.
  """

  def __init__(self, cycles: int, first: int = 0, now: float | None = None):
    self._cycles = cycles
    self._at = first
    self._then = time.monotonic() if now is None else now
    self._warm: tuple[int, float] | None = None

  def update(
    self, done: int, note: str = '', now: float | None = None
  ) -> float:
    """Logs one line.

    Args:
      done: cycles.
      note: appended to the line.
      now: seconds, of the same clock.

    Returns:
      Cycles a second since the last call.
    """
    now = time.monotonic() if now is None else now
    rate = (done - self._at) / max(now - self._then, 1e-9)
    steady = rate
    if self._warm is None:
      self._warm = done, now
    else:
      steady = (done - self._warm[0]) / max(now - self._warm[1], 1e-9)
    self._at, self._then = done, now
    left = format_seconds((self._cycles - done) / max(steady, 1e-9))
    logging.info(
      'Cycle %d of %d (%d %%), %.2f cycles/s, %s left%s',
      done,
      self._cycles,
      100 * done // self._cycles,
      rate,
      left,
      f', {note}' if note else '',
    )
    return rate


def format_seconds(seconds: float) -> str:
  """3725 as '1h02m', 125 as '2m05s', 7.4 as '7s'."""
  minutes, s = divmod(round(seconds), 60)
  h, m = divmod(minutes, 60)
  if h:
    return f'{h}h{m:02d}m'
  return f'{m}m{s:02d}s' if m else f'{s}s'


def summary(
  clones: Sequence[Mapping[str, Any]], master: Mapping[str, float]
) -> rich.console.Group:
  """The table at the end of a run.

  Args:
    clones: a row each, or none: name; bins, their numbers; samples, enrolled;
      g_loss; critic_loss; dominant, the loss term whose weight rose most;
      dominance, that weight over its base; learning_rate.
    master: held-out figures as `evaluate.evaluate` names them; those that are
      not there (pixels, where the data are path_params) are left out.
  """
  table = _table('The four clones')
  table.add_column('student', no_wrap=True)
  for header in (
    'bins',
    'samples',
    'g-loss',
    'critic\nloss',
    'dominant lambda',
    'learning\nrate',
  ):
    table.add_column(header, justify='right')
  for row in clones:
    table.add_row(
      row['name'],
      format_bins(row['bins']),
      f'{row["samples"]}',
      f'{row["g_loss"]:.4f}',
      f'{row["critic_loss"]:+.4f}',
      f'{row["dominant"]} x{row["dominance"]:.2f}',
      f'{row["learning_rate"]:.2e}',
    )
  figures = _table('The master, held out')
  shown = {k: v for k, v in _MASTER.items() if k in master}
  for header in shown.values():
    figures.add_column(header, justify='right')
  figures.add_row(*(_figure(master[k]) for k in shown))
  return rich.console.Group(*([table] if clones else []), figures)


def show(renderable: rich.console.RenderableType) -> None:
  """Prints to the terminal; 80 columns at least, so that logs keep tables."""
  console = rich.console.Console()
  if console.width < 80:
    console.width = 80
  console.print(renderable)


def _table(title: str) -> rich.table.Table:
  return rich.table.Table(
    title=title,
    title_justify='left',
    box=rich.box.SIMPLE_HEAD,
    pad_edge=False,
    collapse_padding=True,
  )


def format_bins(bins: Sequence[int]) -> str:
  """(0, 1, 2, 3) as '0-3'."""
  bins = sorted(bins)
  if len(bins) > 1 and bins == list(range(bins[0], bins[-1] + 1)):
    return f'{bins[0]}-{bins[-1]}'
  return ', '.join(map(str, bins))


def _figure(value: float) -> str:
  """Four significant digits; whole numbers plain."""
  if math.isfinite(value) and value == round(value):
    return f'{value:.0f}'
  return f'{value:.4g}'


@contextlib.contextmanager
def bar(name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
  """A bar with the time left where a terminal watches, else lines in the log.

  Yields:
    report(done, note, total): what is done so far.
  """
  if sys.stderr.isatty():
    columns: Sequence[rich.progress.ProgressColumn] = (
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
  start = time.monotonic()
  logged = 0

  def log(done: int, note: str, total: int = total) -> None:
    nonlocal logged
    if 10 * done // total == logged:
      return
    logged = 10 * done // total
    left = (time.monotonic() - start) * (total - done) / done
    logging.info('%s: %d of %d, %.0f s left %s', name, done, total, left, note)

  yield log
