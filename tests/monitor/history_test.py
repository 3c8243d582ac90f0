"""The history: rows survive a torn line, a resumed run and a NaN."""

import errno
import io
import math
import os

import pytest

from chimera.monitor import history


@pytest.fixture
def workdir(tmp_path):
  return str(tmp_path)


def _fill(workdir, cycles, first=0):
  log = history.History(workdir, first)
  for cycle in cycles:
    log.append(
      cycle, {'a': {'loss/l1': 1 / cycle}}, {'perf/cycles_per_sec': cycle}
    )
  return log


def test_rows_come_back_as_they_were_appended(workdir):
  log = _fill(workdir, [10, 20])
  assert history.read(workdir) == log.rows
  assert history.series(log.rows, 'loss/l1', 'a') == ([10, 20], [0.1, 0.05])
  assert history.series(log.rows, 'perf/cycles_per_sec') == ([10, 20], [10, 20])
  assert history.series(log.rows, 'loss/l1') == ([], [])


def test_a_torn_last_line_is_skipped(workdir):
  _fill(workdir, [10, 20])
  path = os.path.join(workdir, history.NAME)
  os.truncate(path, os.path.getsize(path) - 5)
  assert [row.cycle for row in history.read(workdir)] == [10]
  # And the next run writes whole lines after it.
  _fill(workdir, [20], first=10)
  assert [row.cycle for row in history.read(workdir)] == [10, 20]


def test_what_a_resumed_run_does_again_counts_once(workdir):
  _fill(workdir, [10, 20, 30])
  _fill(workdir, [15], first=10)
  assert [row.cycle for row in history.read(workdir)] == [10, 15]


def test_an_evaluation_that_is_repeated_counts_once(workdir):
  _fill(workdir, [10])
  for _ in range(3):
    history.History(workdir, 10).append(10, {}, {'eval/psnr': 20.0})
  rows = history.read(workdir)
  assert history.series(rows, 'eval/psnr') == ([10], [20.0])
  assert history.series(rows, 'perf/cycles_per_sec') == ([10], [10])


def test_rows_that_found_no_room_are_written_with_the_next_that_does(
  workdir, monkeypatch
):
  log = _fill(workdir, [10])

  def full(path, mode, **keywords):
    with open(path, mode, **keywords) as f:
      f.write(b'{"cycle": 2')
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(history, 'open', full, raising=False)
    for cycle in (20, 30):
      with pytest.raises(OSError, match='No space left'):
        log.append(cycle, {}, {})
  log.append(40, {}, {})
  log.append(50, {}, {})
  assert [row.cycle for row in history.read(workdir)] == [10, 20, 30, 40, 50]
  assert history.read(workdir) == log.rows


def test_a_run_that_goes_back_needs_no_room_for_it(workdir, monkeypatch):
  log = _fill(workdir, [10, 20, 30])
  with monkeypatch.context() as patched:
    patched.setattr(history, 'open', None, raising=False)
    log.rewind(10)
  assert [row.cycle for row in log.rows] == [10]
  log.append(15, {}, {})
  assert [row.cycle for row in history.read(workdir)] == [10, 15]


def test_a_long_run_holds_its_newest_rows_and_its_evaluations(workdir):
  log = history.History(workdir)
  for cycle in range(1, 1501):
    of_clone = {'a': {'loss/l1': 1 / cycle}}
    if cycle % 100:
      log.append(cycle, of_clone, {'perf/cycles_per_sec': 2.0})
    else:
      log.append(cycle, of_clone, {'eval/psnr': cycle, 'codebook/used': 3.0})
  assert len(log.rows) < 2 * 128 + 15
  cycles, values = history.series(log.rows, 'eval/psnr')
  assert (cycles, values) == (list(range(100, 1501, 100)), cycles)
  assert log.rows[0].clones == {}
  assert log.rows[0].master == {'eval/psnr': 100}
  assert [row.cycle for row in log.rows[-128:]] == list(range(1373, 1501))
  # All of them are on the disk, as they were.
  rows = history.read(workdir)
  assert [row.cycle for row in rows] == list(range(1, 1501))
  assert rows[99].clones == {'a': {'loss/l1': 0.01}}
  # And a run that goes on from there, or back, forgets none of them.
  log.rewind(1000)
  log.append(1001, {}, {})
  assert history.read(workdir)[:-1] == rows[:1000]
  assert [row.cycle for row in history.History(workdir, 700).rows] == [
    *range(100, 501, 100),
    *range(573, 701),
  ]
  # But with the first new row: who ends before it has lost nothing.
  assert history.read(workdir)[:-1] == rows[:1000]
  history.History(workdir, 700).append(701, {}, {})
  assert history.read(workdir)[:-1] == rows[:700]


def test_a_file_that_was_cut_or_deleted_is_gone_on_with(workdir):
  log = _fill(workdir, [10, 20])
  path = os.path.join(workdir, history.NAME)
  os.truncate(path, os.path.getsize(path) - 5)
  log.append(30, {}, {})
  assert [row.cycle for row in history.read(workdir)] == [10, 30]
  os.unlink(path)
  for cycle in (40, 50):
    log.append(cycle, {}, {})
  assert [row.cycle for row in history.read(workdir)] == [40, 50]


def test_a_row_that_was_whole_when_the_room_ended_is_there_once(
  workdir, monkeypatch
):
  log = _fill(workdir, [10])

  class Full(io.FileIO):
    def write(self, data):
      super().write(data)
      raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(history, 'open', Full, raising=False)
    with pytest.raises(OSError, match='No space left'):
      log.append(20, {}, {})
  log.rewind(20)
  log.append(30, {}, {})
  assert [row.cycle for row in history.read(workdir)] == [10, 20, 30]


def test_a_line_that_is_no_row_hides_no_other(workdir):
  _fill(workdir, [10])
  with open(os.path.join(workdir, history.NAME), 'ab') as f:
    f.write(b'\xff\xfe\n[1, 2, 3, 4]\n')
    f.write(b'{"cycle":"x","time":0,"clones":{},"master":{}}\n')
    f.write(b'{"cycle":11,"time":0,"clones":{"a":5},"master":{}}\n')
    f.write(b'{"cycle":11,"time":0,"clones":{},"master":{"x":"y"}}\n')
    f.write(b'{"a":' * 100000 + b'\n')
  assert [row.cycle for row in history.read(workdir)] == [10]
  _fill(workdir, [20], first=10)
  assert [row.cycle for row in history.read(workdir)] == [10, 20]


def test_a_nan_is_a_nan_and_no_history_is_no_row(workdir):
  assert history.read(workdir) == []
  history.History(workdir).append(1, {'a': {'x': math.nan}}, {})
  assert math.isnan(history.read(workdir)[0].clones['a']['x'])


def test_latest_is_the_last_of_every_tag(workdir):
  log = history.History(workdir)
  log.append(1, {'a': {'x': 1.0, 'y': 2.0}}, {'eval/psnr': 20.0})
  log.append(2, {'a': {'x': 3.0}}, {})
  assert history.latest(log.rows, 'a') == {'x': 3.0, 'y': 2.0}
  assert history.latest(log.rows) == {'eval/psnr': 20.0}


@pytest.mark.parametrize(
  'line',
  [
    '{"cycle": 20.0, "time": 0, "clones": {}, "master": {}}',
    '{"cycle": true, "time": 0, "clones": {}, "master": {}}',
    '{"cycle": -1, "time": 0, "clones": {}, "master": {}}',
    '{"cycle": 20, "time": NaN, "clones": {}, "master": {}}',
    '{"cycle": 20, "time": 1e400, "clones": {}, "master": {}}',
    '{"cycle": 20, "time": 0, "clones": {}, "master": {"a": 1%s}}'
    % ('0' * 400),
    '{"cycle": 20, "time": 0, "clones": {"a": {"b": "c"}}, "master": {}}',
    '{"cycle": 20, "time": 0, "clones": {"a": 7}, "master": {}}',
    '{"cycle": 20, "time": 0, "clones": [], "master": {}}',
    '{"cycle": 20, "time": 0, "clones": null, "master": {}}',
    '[' * 10**5,
    '[20]',
    '\x00\x00',
  ],
)
def test_a_row_whose_types_are_not_what_was_written_is_skipped(workdir, line):
  log = _fill(workdir, [10])
  with open(os.path.join(workdir, history.NAME), 'a') as f:
    f.write(f'{line}\n')
  assert history.read(workdir) == log.rows
