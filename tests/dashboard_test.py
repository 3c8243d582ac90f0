"""The dashboard: what it says, and that it fits."""

import io
import math
import pathlib

import numpy as np
import pytest
import rich.cells
import rich.console

from chimera import agents, dashboard, history, state
from configs import chimera as chimera_config
from tests import seen

ROOT = pathlib.Path(__file__).parent.parent
SIZES = ((160, 48), (120, 40), (80, 24))


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
    seen.rows(),
    _nan(seen.rows()),
    [history.Row(50, 0.0, {'perceptual': {'loss/total': 1.0}}, {})],
  ],
  ids=['no rows', 'rows', 'nan', 'tags missing'],
)
@pytest.mark.parametrize(
  'pictures', [None, seen.pictures()], ids=['blind', 'sees']
)
def test_it_fits_the_terminal(rows, pictures, width, height):
  lines = seen.lines(seen.snapshot(rows, pictures), width, height)
  assert len(lines) == height
  assert {rich.cells.cell_len(line) for line in lines} == {width}


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_every_size_says_the_essential(width, height):
  text = '\n'.join(
    seen.lines(seen.snapshot(seen.rows(), seen.pictures()), width, height)
  )
  for name in seen.CONFIG['clone_names']:
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
    assert all(text.count(f' {term} ') >= 4 for term in seen.TERMS)


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_no_word_or_number_is_cut_however_long(width, height):
  row = seen.row(
    1000,
    perf__cycles_per_sec=12345.678,
    perf__images_per_sec=395061.7,
    codebook__used=1024.0,
    codebook__perplexity=1023.9,
    meld__dropped=1234.0,
  )
  for clone, name in enumerate(seen.CONFIG['clone_names']):
    base = dashboard.base_of(seen.CONFIG, 'color_covariance', clone)
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
  lines = seen.lines(seen.snapshot([row], now=0.0), width, height)
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
  psnr, ssim, l1 = seen.snapshot(seen.rows()).figures
  assert (psnr.values, psnr.best, psnr.best_cycle) == ((21.5, 20.0), 21.5, 100)
  assert (ssim.values[-1], ssim.best, ssim.best_cycle) == (0.6, 0.6, 200)
  assert (l1.values[-1], l1.best, l1.best_cycle) == (0.2, 0.1, 100)


def test_without_pixels_the_figures_are_of_path_params():
  row = history.Row(9, 0.0, {}, {'eval/path_psnr': 9.0, 'eval/path_l1': 0.5})
  snapshot = seen.snapshot([row])
  assert snapshot.kind == 'path_params'
  assert [f.best for f in snapshot.figures] == [9.0, None, 0.5]


def test_the_time_left_counts_down_and_leaves_the_compilation_out():
  # 50 cycles in 50 s, of which 25 compiled: 2 cycles/s, 950 cycles to go.
  cold = seen.rows()[:1]
  assert seen.snapshot(cold, now=0.0).left == pytest.approx(475)
  assert seen.snapshot(cold, now=10.0).left == pytest.approx(465)
  # The next row is due after 25 s; while it is not there, nothing is won.
  assert seen.snapshot(cold, now=1e6).left == pytest.approx(450)
  # 1 and 3 cycles/s over equal stretches are 1.5.
  warm = [seen.row(50, perf__cycles_per_sec=r) for r in (1.0, 3.0)]
  assert dashboard.steady_rate([*cold, *warm]) == pytest.approx(1.5)
  assert dashboard.steady_rate([]) is None


def test_the_dominant_weight_stands_highest_over_its_own_base():
  row = seen.row(50)
  row.clones['structural'] |= {
    'lambda/l1': 3 * dashboard.base_of(seen.CONFIG, 'l1', 1),
    'pid/error/l1': 2.0,
    'pid/integral/l1': 0.25,
    'pid/derivative/l1': -0.4,
  }
  student = seen.snapshot([row]).students[1]
  top = student.weights[student.dominant]
  assert (top.term, top.ratio) == ('l1', pytest.approx(3))
  # 0.3 times 2; the integral; 0.5 times a quarter of -0.4.
  assert student.pid == pytest.approx((0.6, 0.25, -0.05))


def test_a_base_is_what_the_step_takes_for_one():
  config = chimera_config.get_config()
  bins = {b: [b] for b in range(10)}
  for i, mission in enumerate(state.create_missions(config, bins)):
    bases = [dashboard.base_of(seen.CONFIG, t, i) for t in seen.TERMS]
    assert sorted(mission.pid.base_K) == pytest.approx(sorted(bases))


def test_the_words_are_those_of_the_agents():
  assert dashboard.TRENDS == agents.TRENDS
  assert dashboard.EASE == agents.EASE
  student = seen.snapshot(seen.rows()).students[0]
  # State 9: the second trend, with the trim high.
  assert (student.trend, student.zone) == ('improving', 'high')
  assert student.action == 1.05


def test_an_evaluation_of_the_clones_hides_nothing_of_their_training():
  rows = seen.rows()
  before = seen.snapshot(rows).students
  names = seen.CONFIG['clone_names']
  judged = history.Row(
    rows[-1].cycle, 0.0, {name: {'eval/psnr': 20.0} for name in names}, {}
  )
  assert seen.snapshot([*rows, judged]).students == before


def test_an_agent_that_has_not_decided_says_so():
  row = seen.row(50)
  row.clones['perceptual']['agent/epsilon'] = np.float32(0.3).item()
  student = seen.snapshot([row]).students[0]
  assert (student.trend, student.action) == ('watching first', None)
  off = seen.snapshot([row], q={**seen.CONFIG['q'], 'enabled': False}).students[
    0
  ]
  assert (off.trend, off.epsilon) == ('off: the schedule', None)
  off = seen.snapshot(
    [row], pid={**seen.CONFIG['pid'], 'enabled': False}
  ).students[0]
  assert off.pid is None


def test_a_run_is_finished_when_its_last_cycle_is_judged():
  rows = seen.rows()
  assert seen.snapshot(rows, now=88.0).note == 'last heard of 12s ago'
  assert seen.snapshot([]).note == 'waiting for the first log cycle'
  rows.append(rows[-1]._replace(cycle=1000))
  assert seen.snapshot(rows, now=88.0).note == 'finished'


def test_a_long_history_is_thinned_and_says_the_same():
  rows = [seen.row(c, perf__cycles_per_sec=c) for c in range(1, 400)]
  rows.insert(5, seen.rows()[2])
  thinned = history.thin(rows)
  assert len(thinned) == 257
  assert seen.snapshot(thinned) == seen.snapshot(rows)
  assert seen.snapshot(thinned).figures[0].best == 21.5
