"""The dashboard on a terminal, live: of this process's run or of another's.

`Live` draws on a thread of its own, from what the run has noted of itself in
its history and its previews; it never ends the run.
"""

import atexit
from collections.abc import Callable, Mapping
import contextlib
import io
import os
import sys
import threading
import time
from typing import Any

from absl import logging
import rich.console
import rich.control
from rich.segment import Segments

from chimera.evaluation import sheets
from chimera.monitor import dashboard, history
from chimera.monitor import snapshot as snapshot_lib
from chimera.run import config_json
from chimera.system import disk, preemption, progress, streams

_TICK = 0.5  # seconds between two looks at the terminal's size
_EVERY = 2  # of them, between two drawings
_USUAL = (80, 24)  # columns and lines


class Look:
  """A run as it stands: called with the time, the snapshot.

  `config` is as config.json holds it; `rows` are of the history, growing and
  thinned, and None reads them as the file grows.
  """

  def __init__(
    self,
    workdir: str,
    config: Mapping[str, Any],
    rows: list[history.Row] | None = None,
  ):
    self._workdir = workdir
    self._config = config
    self._rows = [] if rows is None else rows
    self._reads = rows is None
    self._stamp: tuple[float, int] | None = None
    self._doing = '', 0.0, ''
    self._sheet: tuple[str, float] | None = None
    self._pictures: snapshot_lib.Pictures | None = None

  def say(self, doing: str, more: str = '', since: float | None = None) -> None:
    """What the run is doing from now on, or `since`; `more` ends the line."""
    self._doing = doing, time.time() if since is None else since, more

  def __call__(self, now: float) -> snapshot_lib.Snapshot:
    if self._reads:
      self._poll()
    doing, since, more = self._doing
    spent = progress.format_seconds(max(0.0, now - since))
    return snapshot_lib.snapshot_of(
      list(self._rows),  # the run appends to it meanwhile
      self._config,
      self._newest_pictures(),
      now,
      title=self._workdir,
      note=f'{doing}, {spent}{more}' if doing else '',
    )

  def _poll(self) -> None:
    status = os.stat(os.path.join(self._workdir, history.NAME))
    stamp = status.st_mtime, status.st_size
    if stamp != self._stamp:
      # It may have been made longer; or shorter, and what it left behind is no
      # part of it.
      with contextlib.suppress(OSError, ValueError):
        self._config = config_json.tree(config_json.read(self._workdir))
      cycles = self._config['train']['cycles']
      self._rows, self._stamp = history.newest(self._workdir, cycles), stamp

  def _newest_pictures(self) -> snapshot_lib.Pictures | None:
    cycles = self._config['train']['cycles']
    there = sheets.previews(self._workdir)
    seen = [cycle for cycle in there if cycle <= cycles]
    if not seen:
      return None
    newest = str(there[max(seen)])
    # A sheet that is being written is whole at the next look.
    with contextlib.suppress(*disk.BROKEN):
      stamp = newest, os.stat(newest).st_mtime
      if stamp != self._sheet:
        self._pictures = read_sheet(newest, self._config)
        self._sheet = stamp
    return self._pictures


def read_sheet(
  path: str, config: Mapping[str, Any]
) -> snapshot_lib.Pictures | None:
  """A contact sheet of `evaluate.preview`; None where a tokenizer is missing.

  Raises:
    OSError, SyntaxError: it is not whole.
    ValueError: its name is no cycle, or it holds no geometry.
  """
  cycle = int(os.path.splitext(os.path.basename(path))[0])
  rows = sheets.geometry(path).rows
  names = [*config['clone_names'], 'master']
  if not {*names, 'original'} <= set(rows):
    return None
  row_of = {
    name: tuple(snapshot_lib.Tile(len(tile), tile.tobytes()) for tile in tiles)
    for name, tiles in zip(rows, sheets.tiles(path))
  }
  of_names = {name: row_of[name] for name in names}
  return snapshot_lib.Pictures(cycle, row_of['original'], of_names)


class Live:
  """Draws on the terminal, on a thread of its own, until its block ends.

  While it is up, what is written to stdout and stderr, by XLA too, goes to the
  log. It gives the terminal back however the block ends; where it fails itself,
  it goes, with one warning. Without a terminal, or not `wanted`, it does
  nothing.

  Args:
    look: the snapshot of a time; called on the thread.
    log: path of the file that takes what is written meanwhile; None leaves
      stdout and stderr as they are.
  """

  def __init__(
    self,
    look: Callable[[float], snapshot_lib.Snapshot],
    log: str | None = None,
    *,
    wanted: bool = True,
  ):
    self._look = look
    self._log = log
    self._wanted = wanted
    self._stop = threading.Event()
    self._lock = threading.Lock()
    self._terminal: io.TextIOWrapper | None = None
    self._console: rich.console.Console | None = None
    self._thread: threading.Thread | None = None
    self._saved: dict[int, int] = {}
    self._drawn: list[dashboard.Line] = []
    self._last_act = contextlib.ExitStack()

  @property
  def up(self) -> bool:
    return self._terminal is not None

  def __enter__(self) -> 'Live':
    if not (self._wanted and has_terminal()):
      return self
    try:
      log = None if self._log is None else open(self._log, 'ab')
    except OSError as e:
      logging.warning('Mission control is off: %s', e)
      return self
    atexit.register(self._restore)
    self._last_act.enter_context(preemption.last_act(self._restore))
    sys.stdout.flush()
    sys.stderr.flush()
    fd = os.dup(1)
    self._terminal = os.fdopen(fd, 'w', encoding='utf-8', errors='replace')
    self._console = rich.console.Console(
      file=self._terminal,
      force_terminal=True,
      legacy_windows=False,
      # tmux takes every color, and itself makes do with what its terminal has.
      color_system='truecolor' if 'TMUX' in os.environ else 'auto',
    )
    if log is not None:
      with log:
        for fd in streams.descriptors():
          self._saved[fd] = os.dup(fd)
          os.dup2(log.fileno(), fd)
    self._console.set_alt_screen(True)
    self._console.show_cursor(False)
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._stop.set()
    if self._thread is not None:
      self._thread.join(timeout=2.0)
    self._restore()
    self._last_act.close()
    atexit.unregister(self._restore)

  def _run(self) -> None:
    with contextlib.ExitStack() as stack:
      stack.push(self._give_up)
      size, ticks = None, 0
      while not self._stop.is_set():
        now_size = tuple(os.get_terminal_size(self._terminal.fileno()))
        if not all(now_size):  # nobody told the terminal how large it is
          now_size = _USUAL
        if now_size != size or ticks % _EVERY == 0:
          self._draw(*now_size)
        size, ticks = now_size, ticks + 1
        self._stop.wait(_TICK)

  def _draw(self, width: int, height: int) -> None:
    """Writes the lines that are not on the screen yet."""
    if self._console.size != (width, height):
      self._console.size = rich.console.ConsoleDimensions(width, height)
      self._console.clear()
      self._drawn = []
    snapshot = self._look(time.time())
    if self._console.no_color:
      snapshot = snapshot._replace(pictures=None)
    lines = dashboard.render(snapshot, width, height).lines
    changed = [
      segment
      for y, line in enumerate(lines)
      if self._drawn[y : y + 1] != [line]
      for segment in (rich.control.Control.move_to(0, y).segment, *line)
    ]
    self._console.print(Segments(changed), end='', crop=False)
    self._drawn = lines

  def _give_up(self, kind: Any, error: BaseException | None, _: Any) -> bool:
    """Whatever it is, training goes on without the picture."""
    if error is not None:
      self._restore()
      logging.warning('Mission control is off: %r', error)
    return True

  def _restore(self) -> None:
    """The terminal as it was; once."""
    with self._lock:
      if self._terminal is None:
        return
      # It may have been closed under us.
      with contextlib.suppress(OSError):
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)
        self._terminal.flush()
      sys.stdout.flush()
      sys.stderr.flush()
      for fd, saved in self._saved.items():
        os.dup2(saved, fd)
        os.close(saved)
      self._saved = {}
      terminal, self._terminal = self._terminal, None
      with contextlib.suppress(OSError):
        terminal.close()


def has_terminal() -> bool:
  """Whether people watch: both streams on a terminal that can draw."""
  return (
    os.isatty(1)
    and os.isatty(2)
    and os.environ.get('TERM', 'dumb') not in ('dumb', 'unknown')
  )


def watch(workdir: str) -> None:
  """Shows a run of another process, until Ctrl-C; in print without a terminal.

  Raises:
    ValueError: there is no run in the workdir, or its config is broken.
  """
  for name, what in (
    (config_json.NAME, 'fix --workdir'),
    (history.NAME, 'it has not begun to train yet'),
  ):
    if not os.path.isfile(os.path.join(workdir, name)):
      raise ValueError(
        f'A run that can be watched has its {name}, got none in {workdir}: '
        f'{what}.'
      )
  look = Look(workdir, config_json.tree(config_json.read(workdir)))
  with contextlib.suppress(KeyboardInterrupt), Live(look) as live:
    if not live.up:
      encoding = sys.stdout.encoding or 'utf-8'
      text = dashboard.plain(look(time.time())).encode(encoding, 'replace')
      sys.stdout.write(text.decode(encoding))
    while live.up:
      time.sleep(_TICK)
