"""The progress of long work, in the log."""

import pytest

from chimera.system import progress as progress_lib


def test_the_time_left_comes_from_the_stretches_after_the_compilation(said):
  progress = progress_lib.Progress(100, now=0.0)
  # 10 cycles in 50 s, compilation and all; then 10 cycles in 5 s.
  assert progress.update(10, now=50.0) == pytest.approx(0.2)
  assert progress.update(20, now=55.0) == pytest.approx(2.0)
  assert progress.update(40, now=75.0) == pytest.approx(1.0)
  assert said == [
    'Cycle 10 of 100 (10 %), 0.20 cycles/s, 7m30s left',
    'Cycle 20 of 100 (20 %), 2.00 cycles/s, 40s left',
    # 30 cycles in 25 s since it was warm: 60 cycles more take 50 s.
    'Cycle 40 of 100 (40 %), 1.00 cycles/s, 50s left',
  ]


def test_a_resumed_run_counts_only_what_it_did_itself(said):
  progress = progress_lib.Progress(100, first=90, now=0.0)
  assert progress.update(95, 'l1 0.1', now=5.0) == pytest.approx(1.0)
  assert said == ['Cycle 95 of 100 (95 %), 1.00 cycles/s, 5s left, l1 0.1']


def test_what_came_before_the_loop_is_none_of_its_time(said):
  progress = progress_lib.Progress(100, now=0.0)
  progress.begin(now=100.0)
  assert progress.update(10, now=150.0) == pytest.approx(0.2)
  assert said == ['Cycle 10 of 100 (10 %), 0.20 cycles/s, 7m30s left']


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0, '0s'), (7.4, '7s'), (59.6, '1m00s'), (125, '2m05s'), (3725, '1h02m')],
)
def test_seconds_read_as_people_say_them(seconds, text):
  assert progress_lib.format_seconds(seconds) == text
