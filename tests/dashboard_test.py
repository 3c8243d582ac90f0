"""The dashboard: what it says, that it fits, and how it leaves the terminal."""

import io
import json
import math
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
import rich.cells
import rich.console

from chimera import agents, dashboard, history, sheets, state
from configs import chimera as chimera_config

ROOT = pathlib.Path(__file__).parent.parent
SIZES = ((160, 48), (120, 40), (80, 24))
CONFIG = json.loads(chimera_config.get_config().to_json())
TERMS = tuple(CONFIG['pid']['target'])


def _clone(**changes):
  """What history holds of a clone; every lambda at its base but ssim."""
  i = changes.pop('i', 0)
  values = {f'lambda/{t}': dashboard.base_of(CONFIG, t, i) for t in TERMS}
  values['lambda/ssim'] *= 2
  for part in ('error', 'integral', 'derivative'):
    values |= {f'pid/{part}/{t}': 0.0 for t in TERMS}
  return values | {
    'loss/total': 0.75,
    'critic/loss': -1.5,
    'agent/lr': 1.25e-3,
    'agent/trim': 1.25,
    'agent/epsilon': 0.2,
    'agent/reward': 1.5,
    'agent/state': 9.0,
    'agent/action': 3.0,
    'meld/drift': 0.625,
    **changes,
  }


def _row(cycle, time=0.0, **master):
  clones = {name: _clone(i=i) for i, name in enumerate(CONFIG['clone_names'])}
  return history.Row(
    cycle, time, clones, {k.replace('__', '/'): v for k, v in master.items()}
  )


def _rows():
  return [
    _row(50, 0.0, perf__cycles_per_sec=1.0, perf__compile_seconds=25.0),
    _row(
      100,
      25.0,
      perf__cycles_per_sec=2.0,
      perf__images_per_sec=64.0,
      codebook__used=467.0,
      codebook__perplexity=279.0,
      meld__dropped=0.0,
    ),
    history.Row(
      100, 26.0, {}, {'eval/psnr': 21.5, 'eval/ssim': 0.5, 'eval/pixel_l1': 0.1}
    ),
    history.Row(
      200, 76.0, {}, {'eval/psnr': 20.0, 'eval/ssim': 0.6, 'eval/pixel_l1': 0.2}
    ),
  ]


def _pictures():
  rng = np.random.default_rng(0)
  tile = dashboard.Tile(64, rng.bytes(64 * 64 * 3))
  names = (*CONFIG['clone_names'], 'master')
  return dashboard.Pictures(200, (tile,) * 6, {n: (tile,) * 6 for n in names})


def _snapshot(rows, pictures=None, now=76.0, **config):
  return dashboard.snapshot_of(rows, {**CONFIG, **config}, pictures, now)


def _lines(snapshot, width, height):
  """What a terminal of that size gets, without its styles."""
  console = rich.console.Console(
    width=width,
    height=height,
    record=True,
    file=io.StringIO(),
    force_terminal=True,
  )
  console.print(dashboard.render(snapshot, width, height), end='')
  return console.export_text().splitlines()


def _nan(rows):
  return [
    row._replace(
      clones={c: dict.fromkeys(v, math.nan) for c, v in row.clones.items()},
      master=dict.fromkeys(row.master, math.nan),
    )
    for row in rows
  ]


@pytest.mark.parametrize(
  ('width', 'height'), [*SIZES, (200, 60), (60, 14), (20, 3)]
)
@pytest.mark.parametrize(
  'rows',
  [
    [],
    _rows(),
    _nan(_rows()),
    [history.Row(50, 0.0, {'perceptual': {'loss/total': 1.0}}, {})],
  ],
  ids=['no rows', 'rows', 'nan', 'tags missing'],
)
@pytest.mark.parametrize('pictures', [None, _pictures()], ids=['blind', 'sees'])
def test_it_fits_the_terminal(rows, pictures, width, height):
  lines = _lines(_snapshot(rows, pictures), width, height)
  assert len(lines) == height
  assert {rich.cells.cell_len(line) for line in lines} == {width}


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_every_size_says_the_essential(width, height):
  text = '\n'.join(_lines(_snapshot(_rows(), _pictures()), width, height))
  for name in CONFIG['clone_names']:
    assert name in text
  for words, count in (
    ('0.750', 4),  # g-loss
    ('-1.50', 4),  # critic
    ('λ ssim', 4),
    ('x2.00', 4),
    ('lr 1.25e-03', 4),
    ('x1.05', 4),  # the fourth action
    ('reward +1.5', 4),
    ('explores 20 %', 4),
    ('improving', 4),
    ('20.00', 1),
    ('21.50', 1),
    ('467 of 1024', 1),
    ('279.0', 1),
    ('drift 0.62 0.62 0.62 0.62', 1),
    ('dropped 0', 1),
    ('2 cycles/s  64 images/s', 1),
    ('200 of 1000  20 %  6m40s left', 1),
    ('▀▀▀▀▀▀▀▀', 1),
  ):
    assert text.count(words) >= count, words
  if height >= 40:
    assert all(text.count(f' {term} ') >= 4 for term in TERMS)


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_no_word_or_number_is_cut_however_long(width, height):
  row = _row(
    1000,
    perf__cycles_per_sec=12345.678,
    perf__images_per_sec=395061.7,
    codebook__used=1024.0,
    codebook__perplexity=1023.9,
    meld__dropped=1234.0,
  )
  for clone, name in enumerate(CONFIG['clone_names']):
    base = dashboard.base_of(CONFIG, 'color_covariance', clone)
    row.clones[name] |= {
      'lambda/color_covariance': 3 * base,
      'pid/error/color_covariance': -5.0,
      'pid/integral/color_covariance': -1.1,
      'pid/derivative/color_covariance': 5.0,
      'loss/total': 12345.678,
      'critic/loss': -12345.678,
      'agent/reward': -10.96,
      'agent/state': 4.0,
      'meld/drift': -0.123,
    }
  lines = _lines(_snapshot([row], now=0.0), width, height)
  text = '\n'.join(line + ' ' for line in lines)
  for words, count in (
    ('1.2e+04', 4),
    ('-1.2e+04', 4),
    ('color_covariance ', 4),
    ('x3.00 ', 4),
    ('reward -11 ', 4),
    ('rapidly improving ', 4),
    ('-0.12 -0.12 -0.12 -0.12 ', 1),
    ('1024 of 1024 ', 1),
    ('perplexity', 1),
    ('1023.9 ', 1),
    ('dropped 1234 ', 1),
    ('cycles/s  3.95e+05 images/s ', 1),
  ):
    assert text.count(words) >= count, words


def test_a_sparkline_goes_from_the_least_to_the_greatest():
  assert dashboard.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == '▁▂▃▄▅▆▇█'
  assert dashboard.sparkline([9, 0, 8, 4], 3) == '▁█▅'
  assert dashboard.sparkline([3, 3], 5) == '▁▁'
  assert dashboard.sparkline([1, math.nan, math.inf, 2], 5) == '▁!!█'
  assert dashboard.sparkline([-1, 0, 1, 5], 4, reach=1) == '▁▅██'
  assert dashboard.sparkline([], 5) == ''
  assert dashboard.sparkline([1], 0) == ''


def test_a_cell_is_two_pixels_the_upper_one_in_front():
  red, green, blue, white = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3
  image = np.array([[red, green], [blue, white]], np.uint8)
  ((left, right),) = dashboard.half_blocks(image)
  assert (left.text, right.text) == ('▀', '▀')
  console = rich.console.Console(
    file=io.StringIO(), force_terminal=True, color_system='truecolor'
  )
  console.print(dashboard.Screen([[left, right]]), end='')
  assert console.file.getvalue() == (
    '\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[0m'
    '\x1b[38;2;0;255;0;48;2;255;255;255m▀\x1b[0m\n'
  )


def test_the_best_is_the_best_so_far_and_not_the_last():
  psnr, ssim, l1 = _snapshot(_rows()).figures
  assert (psnr.values, psnr.best, psnr.best_cycle) == ((21.5, 20.0), 21.5, 100)
  assert (ssim.values[-1], ssim.best, ssim.best_cycle) == (0.6, 0.6, 200)
  assert (l1.values[-1], l1.best, l1.best_cycle) == (0.2, 0.1, 100)


def test_without_pixels_the_figures_are_of_path_params():
  row = history.Row(9, 0.0, {}, {'eval/path_psnr': 9.0, 'eval/path_l1': 0.5})
  snapshot = _snapshot([row])
  assert snapshot.kind == 'path_params'
  assert [f.best for f in snapshot.figures] == [9.0, None, 0.5]


def test_the_time_left_counts_down_and_leaves_the_compilation_out():
  # 50 cycles in 50 s, of which 25 compiled: 2 cycles/s, 950 cycles to go.
  cold = _rows()[:1]
  assert _snapshot(cold, now=0.0).left == pytest.approx(475)
  assert _snapshot(cold, now=10.0).left == pytest.approx(465)
  # The next row is due after 25 s; while it is not there, nothing is won.
  assert _snapshot(cold, now=1e6).left == pytest.approx(450)
  # 1 and 3 cycles/s over equal stretches are 1.5.
  warm = [_row(50, perf__cycles_per_sec=r) for r in (1.0, 3.0)]
  assert dashboard.steady_rate([*cold, *warm]) == pytest.approx(1.5)
  assert dashboard.steady_rate([]) is None


def test_the_dominant_weight_stands_highest_over_its_own_base():
  row = _row(50)
  row.clones['structural'] |= {
    'lambda/l1': 3 * dashboard.base_of(CONFIG, 'l1', 1),
    'pid/error/l1': 2.0,
    'pid/integral/l1': 0.25,
    'pid/derivative/l1': -0.4,
  }
  student = _snapshot([row]).students[1]
  top = student.weights[student.dominant]
  assert (top.term, top.ratio) == ('l1', pytest.approx(3))
  # 0.3 times 2; the integral; 0.5 times a quarter of -0.4.
  assert student.pid == pytest.approx((0.6, 0.25, -0.05))


def test_a_base_is_what_the_step_takes_for_one():
  config = chimera_config.get_config()
  bins = {b: [b] for b in range(10)}
  for i, mission in enumerate(state.create_missions(config, bins)):
    bases = [dashboard.base_of(CONFIG, t, i) for t in TERMS]
    assert sorted(mission.pid.base_K) == pytest.approx(sorted(bases))


def test_the_words_are_those_of_the_agents():
  assert dashboard.TRENDS == agents.TRENDS
  assert dashboard.EASE == agents.EASE
  student = _snapshot(_rows()).students[0]
  # State 9: the second trend, with the trim high.
  assert (student.trend, student.zone) == ('improving', 'high')
  assert student.action == 1.05


def test_an_agent_that_has_not_decided_says_so():
  row = _row(50)
  row.clones['perceptual']['agent/epsilon'] = np.float32(0.3).item()
  student = _snapshot([row]).students[0]
  assert (student.trend, student.action) == ('watching first', None)
  off = _snapshot([row], q={**CONFIG['q'], 'enabled': False}).students[0]
  assert (off.trend, off.epsilon) == ('off: the schedule', None)
  off = _snapshot([row], pid={**CONFIG['pid'], 'enabled': False}).students[0]
  assert off.pid is None


def test_a_run_is_finished_when_its_last_cycle_is_judged():
  rows = _rows()
  assert _snapshot(rows, now=88.0).note == 'last heard of 12s ago'
  assert _snapshot([]).note == 'waiting for the first log cycle'
  rows.append(rows[-1]._replace(cycle=1000))
  assert _snapshot(rows, now=88.0).note == 'finished'


def _workdir(path, rows):
  (path / 'config.json').write_text(json.dumps(CONFIG))
  log = history.History(str(path))
  for row in rows:
    log.append(row.cycle, row.clones, row.master)
  return str(path)


def _save_sheet(path, cycle, *, more=()):
  """Each tile of one color: its row, its column."""
  names = ('original', 'optics', 'master', *CONFIG['clone_names'], *more)
  tiles = np.zeros((len(names), 6, 16, 16, 3), np.uint8)
  tiles[..., 0] = np.arange(len(names))[:, None, None, None]
  tiles[..., 1] = np.arange(6)[:, None, None]
  (path / 'previews').mkdir(exist_ok=True)
  sheet = sheets.create(16, names, tuple(range(6)))
  sheets.save(
    path / 'previews' / f'{cycle:07d}.png', sheets.compose(tiles, sheet), sheet
  )


def test_the_pictures_are_cut_from_the_newest_sheet(tmp_path):
  look = dashboard.Look(_workdir(tmp_path, _rows()), CONFIG)
  assert look(0.0).pictures is None
  _save_sheet(tmp_path, 50)
  # Rows below those that are known are none of ours.
  _save_sheet(tmp_path, 100, more=('error x4',))
  pictures = look(0.0).pictures
  assert pictures.cycle == 100
  assert list(pictures.by_name) == [*CONFIG['clone_names'], 'master']
  first = {name: tiles[0].rgb[0] for name, tiles in pictures.by_name.items()}
  assert list(first.values()) == [3, 4, 5, 6, 2]
  assert [tile.rgb[1] for tile in pictures.originals] == list(range(6))
  # One that is being written leaves the last one up.
  (tmp_path / 'previews' / '0000150.png').write_bytes(b'\x89PNG\r\n')
  assert look(0.0).pictures is pictures


def test_each_tokenizer_has_its_turn():
  pictures = _pictures()
  shown = {
    name
    for turn in range(5)
    for name in pictures.by_name
    for line in _lines(
      _snapshot(_rows(), pictures)._replace(turn=turn), 160, 48
    )[26:]
    if f' {name} ' in line
  }
  assert shown == set(pictures.by_name)


def test_another_process_sees_what_a_run_writes(tmp_path):
  workdir = _workdir(tmp_path, _rows()[:1])
  look = dashboard.Look(workdir, CONFIG)
  assert look(0.0).cycle == 50
  _workdir(tmp_path, _rows())
  assert look(0.0).cycle == 200


def test_what_a_run_is_doing_stands_above_with_its_time():
  look = dashboard.Look('nowhere', CONFIG, [])
  look.say('compiling', ' (52s last time)', since=100.0)
  assert look(112.0).note == 'compiling, 12s (52s last time)'
  assert dashboard.compile_seconds(_rows()) == 25.0
  assert dashboard.compile_seconds([]) is None


def test_rows_that_a_run_appends_are_seen(tmp_path):
  log = history.History(str(tmp_path))
  look = dashboard.Look(str(tmp_path), CONFIG, log.rows)
  assert look(0.0).cycle == 0
  log.append(50, {}, {})
  assert look(0.0).cycle == 50


def test_a_long_history_is_thinned_and_says_the_same():
  rows = [_row(c, perf__cycles_per_sec=c) for c in range(1, 400)]
  rows.insert(5, _rows()[2])
  thinned = dashboard.thin(rows)
  assert len(thinned) < 200
  assert _snapshot(thinned) == _snapshot(rows)
  assert _snapshot(thinned).figures[0].best == 21.5


def test_in_print_there_is_not_one_escape_byte(tmp_path):
  text = dashboard.plain(_snapshot(_rows(), _pictures()))
  assert '\x1b' not in text
  assert '▀' not in text
  assert all(text.count(f' {term} ') >= 4 for term in TERMS)


def test_without_a_terminal_live_does_nothing(tmp_path):
  program = f"""
import sys
from chimera import dashboard
with dashboard.Live(lambda now: 1 / 0, {str(tmp_path / 'train.log')!r}) as live:
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
from chimera import dashboard
logging.use_absl_handler()
home = sys.argv[1]
with open(os.path.join(home, 'config.json')) as f:
  look = dashboard.Look('a run', json.load(f), [])
def live(look=look):
  return dashboard.Live(look, os.path.join(home, 'train.log'))
def wait():
  sys.stdin.readline()
"""
UP, DOWN = '\x1b[?1049h', '\x1b[?1049l'


class _Terminal:
  """A program on a terminal of 80x24, once it draws."""

  def __init__(self, body, home):
    (home / 'config.json').write_text(json.dumps(CONFIG))
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
      assert self.read(10.0), f'no {text!r} after {self.text!r}'

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
  terminal = _Terminal('with live():\n  wait()\n  1 / 0', tmp_path)
  terminal.go_on()
  assert terminal.end() == (1, True)
  assert 'ZeroDivisionError' in _is_restored(terminal.text)


def test_the_terminal_is_restored_after_an_interrupt(tmp_path):
  terminal = _Terminal('with live():\n  wait()', tmp_path)
  terminal.process.send_signal(signal.SIGINT)
  assert terminal.end() == (-signal.SIGINT, True)
  assert 'KeyboardInterrupt' in _is_restored(terminal.text)


def test_what_others_write_goes_to_the_log_and_not_through_the_picture(
  tmp_path,
):
  body = """
with live():
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
  for words in ('raw words', 'a warning', 'printed'):
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
with live(fail) as l:
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
  terminal = _Terminal('with live():\n  wait()', tmp_path)
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
  body = "with live():\n  sys.stderr.write('a run goes on')"
  terminal = _Terminal(body, tmp_path)
  assert terminal.end() == (0, True)
  assert terminal.text.count('Mission control is off') == 1
  assert 'a run goes on' in terminal.text
  assert '\x1b' not in terminal.text
