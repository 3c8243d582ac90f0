"""The snapshot: what a run's history comes to."""

import numpy as np
import pytest

from chimera.agents import pid, q_learning
from chimera.monitor import history
from chimera.monitor import snapshot as snapshot_lib
from tests import seen


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
  assert snapshot_lib.steady_rate([*cold, *warm]) == pytest.approx(1.5)
  assert snapshot_lib.steady_rate([]) is None


def test_the_time_left_counts_down_after_an_evaluation():
  warm = [seen.row(c, perf__cycles_per_sec=2.0) for c in (50, 100)]
  judged = history.Row(100, warm[1].time, warm[1].clones, {'eval/psnr': 9.0})
  rows = [*warm, judged]
  assert snapshot_lib.steady_rate(rows) == pytest.approx(2)
  # 900 cycles to go, 2 a second.
  now = warm[1].time
  assert seen.snapshot(rows, now=now).left == pytest.approx(450)
  assert seen.snapshot(rows, now=now + 10).left == pytest.approx(440)


def test_a_compilation_takes_what_the_last_one_took():
  assert snapshot_lib.compile_seconds(seen.rows()) == 25.0
  assert snapshot_lib.compile_seconds([]) is None


def test_the_dominant_weight_stands_highest_over_its_own_base():
  row = seen.row(50)
  row.clones['structural'] |= {
    'lambda/l1': 3 * row.clones['structural']['lambda/l1'],
    'pid/error/l1': 2.0,
    'pid/integral/l1': 0.25,
    'pid/derivative/l1': -0.4,
  }
  student = seen.snapshot([row]).students[1]
  assert student.dominant == ('l1', pytest.approx(3))
  # 0.3 times 2; the integral; 0.5 times a quarter of -0.4.
  assert student.pid == pytest.approx((0.6, 0.25, -0.05))


def test_the_words_are_those_of_the_agents():
  assert snapshot_lib.TRENDS == q_learning.TRENDS
  assert snapshot_lib.EASE == pid.EASE
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


def test_frequent_evaluations_hide_nothing_of_the_training():
  rows = seen.rows()
  judged = history.Row(rows[-1].cycle, 0.0, {}, {'eval/psnr': 20.0})
  often = seen.snapshot([*rows, *[judged] * 40])
  before = seen.snapshot(rows)
  assert often.students == before.students
  assert often.master['codebook/used'] == before.master['codebook/used']


def test_a_lesson_or_an_emphasis_that_is_off_is_not_shown():
  school = {**seen.CONFIG['school'], 'enabled': False}
  loss = {**seen.CONFIG['loss'], 'emphasis': 0.0}
  for student in seen.snapshot(seen.rows(), school=school, loss=loss).students:
    assert (student.bins, student.mission) == ('0-9', ())


def test_an_agent_that_has_not_decided_says_so():
  row = seen.row(50)
  row.clones['perceptual']['agent/epsilon'] = np.float32(0.3).item()
  student = seen.snapshot([row]).students[0]
  assert (student.trend, student.action) == ('watching first', None)
  # Where the chance to explore never falls, it says nothing.
  q = {**seen.CONFIG['q'], 'epsilon': 0.3, 'epsilon_end': 0.3}
  assert seen.snapshot([row], q=q).students[0].trend != 'watching first'
  off = seen.snapshot([row], q={**seen.CONFIG['q'], 'enabled': False}).students[
    0
  ]
  assert (off.trend, off.epsilon) == ('off: the schedule', None)
  off = seen.snapshot(
    [row], pid={**seen.CONFIG['pid'], 'enabled': False}
  ).students[0]
  assert off.pid is None


def test_a_run_is_finished_when_its_last_cycle_is_evaluated():
  rows = seen.rows()
  assert seen.snapshot(rows, now=88.0).note == 'last heard of 12s ago'
  assert seen.snapshot([]).note == 'waiting for the first log cycle'
  rows.append(rows[-1]._replace(cycle=1000))
  assert seen.snapshot(rows, now=88.0).note == 'finished'


def test_a_long_history_is_thinned_and_says_the_same():
  rows = [seen.row(c, perf__cycles_per_sec=c) for c in range(1, 400)]
  rows.insert(5, seen.rows()[2])
  thinned = []
  for row in rows:
    history.add(thinned, row)
  assert len(thinned) == 129
  assert seen.snapshot(thinned) == seen.snapshot(rows)
  assert seen.snapshot(thinned).figures[0].best == 21.5


def test_a_term_that_the_quantizer_lacks_has_no_weight_to_show():
  model = seen.CONFIG['model'] | {'quantizer': 'fsq', 'levels': [4, 5]}
  fsq, vq = seen.snapshot(seen.rows(), model=model), seen.snapshot(seen.rows())
  assert (fsq.codes, vq.codes) == (20, 1024)
  for student, other in zip(fsq.students, vq.students, strict=True):
    terms = [weight.term for weight in student.weights]
    assert terms == [w.term for w in other.weights if w.term != 'vq']
    assert student.mission == tuple(t for t in other.mission if t != 'vq')


@pytest.mark.parametrize('tag', ['agent/state', 'agent/action'])
@pytest.mark.parametrize('value', [-1.0, 12.0, 1e9, float('inf')])
def test_a_state_that_no_agent_has_is_not_shown(tag, value):
  rows = seen.rows()
  for name, of in rows[-1].clones.items() or rows[1].clones.items():
    rows[1].clones[name] = {**of, tag: value}
  assert {s.trend for s in seen.snapshot(rows).students} == {'-'}
