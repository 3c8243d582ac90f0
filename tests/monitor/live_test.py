"""The live dashboard: what it follows, and how it leaves the terminal."""

import json
import os
import pathlib
import pty
import select
import signal
import subprocess
import sys
import termios

import numpy as np
import pytest

from chimera.evaluation import sheets
from chimera.monitor import dashboard, history, live
from tests import seen

ROOT = pathlib.Path(__file__).parents[2]
SIZES = ((160, 48), (120, 40), (80, 24))


def _workdir(path, rows):
  (path / 'config.json').write_text(json.dumps(seen.CONFIG))
  log = history.History(str(path))
  for row in rows:
    log.append(row.cycle, row.clones, row.master)
  return str(path)


def _save_sheet(path, cycle, *, more=()):
  """Each tile of one color: its row, its column."""
  names = ('original', 'optics', 'master', *seen.CONFIG['clone_names'], *more)
  tiles = np.zeros((len(names), 6, 16, 16, 3), np.uint8)
  tiles[..., 0] = np.arange(len(names))[:, None, None, None]
  tiles[..., 1] = np.arange(6)[:, None, None]
  (path / 'previews').mkdir(exist_ok=True)
  sheet = sheets.create(16, names, tuple(range(6)))
  sheets.save(
    path / 'previews' / f'{cycle:07d}.png', sheets.compose(tiles, sheet), sheet
  )


def test_the_pictures_are_cut_from_the_newest_sheet(tmp_path):
  look = live.Look(_workdir(tmp_path, seen.rows()), seen.CONFIG)
  assert look(0.0).pictures is None
  _save_sheet(tmp_path, 50)
  # Rows below those that are known are none of ours.
  _save_sheet(tmp_path, 100, more=('error x4',))
  pictures = look(0.0).pictures
  assert pictures.cycle == 100
  assert list(pictures.by_name) == [*seen.CONFIG['clone_names'], 'master']
  first = {name: tiles[0].rgb[0] for name, tiles in pictures.by_name.items()}
  assert list(first.values()) == [3, 4, 5, 6, 2]
  assert [tile.rgb[1] for tile in pictures.originals] == list(range(6))
  # What is not ours is passed over.
  (tmp_path / 'previews' / 'best.png').touch()
  assert look(0.0).pictures is pictures
  # One that is being written leaves the last one up.
  (tmp_path / 'previews' / '0000150.png').write_bytes(b'\x89PNG\r\n')
  assert look(0.0).pictures is pictures


@pytest.mark.parametrize('name', ['[1]', 'a*', '**', 'ф?\\'])
def test_pictures_are_found_in_a_folder_of_any_name(tmp_path, name):
  home = tmp_path / name
  home.mkdir()
  look = live.Look(_workdir(home, seen.rows()), seen.CONFIG)
  _save_sheet(home, 50)
  assert look(0.0).pictures.cycle == 50


def test_another_process_sees_what_a_run_writes(tmp_path):
  workdir = _workdir(tmp_path, seen.rows()[:1])
  look = live.Look(workdir, seen.CONFIG)
  assert look(0.0).cycle == 50
  _workdir(tmp_path, seen.rows())
  assert look(0.0).cycle == 200


def test_a_run_is_as_long_as_its_config_says_now(tmp_path):
  workdir = _workdir(tmp_path, seen.rows())
  look = live.Look(workdir, seen.CONFIG)
  for cycles, cycle in ((100, 100), (1000, 200)):
    train = {**seen.CONFIG['train'], 'cycles': cycles}
    (tmp_path / 'config.json').write_text(
      json.dumps({**seen.CONFIG, 'train': train})
    )
    os.utime(tmp_path / history.NAME, (cycles, cycles))
    snapshot = look(0.0)
    assert (snapshot.cycle, snapshot.cycles) == (cycle, cycles)


def test_what_a_run_is_doing_stands_above_with_its_time():
  look = live.Look('nowhere', seen.CONFIG, [])
  look.say('compiling', ' (52s last time)', since=100.0)
  assert look(112.0).note == 'compiling, 12s (52s last time)'


def test_rows_that_a_run_appends_are_seen(tmp_path):
  log = history.History(str(tmp_path))
  look = live.Look(str(tmp_path), seen.CONFIG, log.rows)
  assert look(0.0).cycle == 0
  log.append(50, {}, {})
  assert look(0.0).cycle == 50


def test_in_print_there_is_not_one_escape_byte(tmp_path):
  text = dashboard.plain(seen.snapshot(seen.rows(), seen.pictures()))
  assert '\x1b' not in text
  assert '▀' not in text
  assert all(text.count(f' {term} ') >= 4 for term in seen.TERMS)


def test_without_a_terminal_live_does_nothing(tmp_path):
  program = f"""
import sys
from chimera.monitor import live
with live.Live(lambda now: 1 / 0, {str(tmp_path / 'train.log')!r}) as live:
  sys.stderr.write(f'plain {{live.up}}')
"""
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, cwd=ROOT, check=True
  )
  assert (done.stdout, done.stderr) == (b'', b'plain False')
  assert not (tmp_path / 'train.log').exists()


_PROGRAM = """
import json, os, sys
from absl import logging
from chimera.monitor import live
logging.use_absl_handler()
logging.set_verbosity(logging.INFO)
home = sys.argv[1]
with open(os.path.join(home, 'config.json')) as f:
  look = live.Look('a run', json.load(f), [])
def show(look=look):
  return live.Live(look, os.path.join(home, 'train.log'))
def say_inside():
  open(os.path.join(home, 'inside'), 'w').close()
def wait():
  sys.stdin.readline()
"""
UP, DOWN = '\x1b[?1049h', '\x1b[?1049l'


class _Terminal:
  """A program on a terminal of 80x24, once it draws."""

  def __init__(self, body, home):
    (home / 'config.json').write_text(json.dumps(seen.CONFIG))
    self._ours, self._theirs = pty.openpty()
    self.resize(80, 24)
    self._before = termios.tcgetattr(self._theirs)
    self.process = subprocess.Popen(
      [sys.executable, '-c', _PROGRAM + body, str(home)],
      stdin=self._theirs,
      stdout=self._theirs,
      stderr=self._theirs,
      cwd=ROOT,
      env={**os.environ, 'TERM': 'xterm-256color'},
    )
    self.text = ''
    self.wait_for('a run')

  def resize(self, width, height):
    termios.tcsetwinsize(self._theirs, (height, width))

  def wait_for(self, text):
    while text not in self.text:
      assert self.read(30.0), f'no {text!r} after {self.text!r}'

  def read(self, seconds):
    """Takes what is there; whether there was anything in that time."""
    ready, _, _ = select.select([self._ours], [], [], seconds)
    if ready:
      self.text += os.read(self._ours, 1 << 16).decode(errors='replace')
    return bool(ready)

  def go_on(self):
    os.write(self._ours, b'\n')

  def end(self):
    """The return code, and whether the terminal's modes are as they were."""
    while self.process.poll() is None:
      # A terminal that is not read stops who writes to it.
      self.read(0.1)
    code = self.process.returncode
    same = termios.tcgetattr(self._theirs) == self._before
    os.write(self._theirs, b'END')
    self.wait_for('END')
    os.close(self._ours)
    os.close(self._theirs)
    return code, same


def _is_restored(text):
  """It left the other screen for good, and the cursor is back."""
  assert text.count(UP) == text.count(DOWN) == 1
  assert text.index(UP) < text.index(DOWN)
  assert text.rindex('\x1b[?25h') > text.rindex('\x1b[?25l')
  return text[text.index(DOWN) :]


def test_the_terminal_is_restored_after_an_exception(tmp_path):
  terminal = _Terminal('with show():\n  wait()\n  1 / 0', tmp_path)
  terminal.go_on()
  assert terminal.end() == (1, True)
  assert 'ZeroDivisionError' in _is_restored(terminal.text)


def test_the_terminal_is_restored_after_an_interrupt(tmp_path):
  terminal = _Terminal('with show():\n  say_inside()\n  wait()', tmp_path)
  # It draws before the block is entered, where its owner is not yet in it.
  while not (tmp_path / 'inside').exists():
    terminal.read(0.1)
  terminal.process.send_signal(signal.SIGINT)
  assert terminal.end() == (-signal.SIGINT, True)
  assert 'KeyboardInterrupt' in _is_restored(terminal.text)


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('deferred', ['', ', watch.deferred()'])
def test_the_terminal_is_restored_after_other_signals(
  tmp_path, signum, deferred
):
  # Two of them, where the first one waits its turn, end it without unwinding.
  body = f"""
import time
from chimera.system import preemption
with preemption.Watch() as watch, show(){deferred}:
  say_inside()
  while True: time.sleep(0.1)
"""
  terminal = _Terminal(body, tmp_path)
  while not (tmp_path / 'inside').exists():
    terminal.read(0.1)
  terminal.process.send_signal(signum)
  code = 1
  if deferred:
    log = tmp_path / 'train.log'
    while 'finishing the dispatch' not in log.read_text():
      terminal.read(0.1)
    terminal.process.send_signal(signal.SIGINT)
    code = 128 + signal.SIGINT
  assert terminal.end() == (code, True)
  _is_restored(terminal.text)


@pytest.mark.parametrize('within', ['', 'streams.spoken(), '])
def test_what_others_write_goes_to_the_log_and_not_through_the_picture(
  tmp_path, within
):
  body = f"""
from chimera.system import streams
with {within}show():
  sys.stderr.write('said')
  os.write(2, b'raw words')
  logging.warning('a warning')
  sys.stdout.write('printed')
  wait()
sys.stderr.write('afterwards')
"""
  terminal = _Terminal(body, tmp_path)
  terminal.go_on()
  assert terminal.end() == (0, True)
  log = (tmp_path / 'train.log').read_text()
  for words in ('said', 'raw words', 'a warning', 'printed'):
    assert words in log
    assert words not in terminal.text
  assert 'afterwards' in _is_restored(terminal.text)
  assert 'afterwards' not in log


def test_a_picture_that_fails_goes_with_one_warning_and_the_run_goes_on(
  tmp_path,
):
  body = """
def fail(now):
  if fail.broken: raise RuntimeError('no picture')
  return look(now)
fail.broken = False
with show(fail) as l:
  wait()
  fail.broken = True
  l._thread.join()
  sys.stderr.write(f'the run goes on, {l.up}')
"""
  terminal = _Terminal(body, tmp_path)
  terminal.go_on()
  assert terminal.end() == (0, True)
  after = _is_restored(terminal.text)
  assert after.count('no picture') == 1
  assert 'Mission control is off' in after
  assert 'the run goes on, False' in after


def test_it_follows_the_size_of_the_terminal(tmp_path):
  terminal = _Terminal('with show():\n  wait()', tmp_path)
  assert '─' * 80 in terminal.text
  assert '─' * 81 not in terminal.text
  terminal.resize(160, 48)
  terminal.wait_for('─' * 160)
  terminal.go_on()
  assert terminal.end() == (0, True)
  _is_restored(terminal.text)


def test_a_log_that_cannot_be_written_costs_the_picture_and_not_the_run(
  tmp_path,
):
  (tmp_path / 'train.log').mkdir()
  body = "with show():\n  sys.stderr.write('a run goes on')"
  terminal = _Terminal(body, tmp_path)
  assert terminal.end() == (0, True)
  assert terminal.text.count('Mission control is off') == 1
  assert 'a run goes on' in terminal.text
  assert '\x1b' not in terminal.text
