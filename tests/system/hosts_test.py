"""Which hosts there are, what the first one tells, and how they end."""

import contextlib
import re

import numpy as np
import pytest

from chimera.system import hosts, preemption


def test_a_place_is_what_the_flags_say(monkeypatch):
  for name in ('SLURM_NTASKS', 'SLURM_STEP_ID', 'OMPI_COMM_WORLD_SIZE'):
    monkeypatch.delenv(name, raising=False)
  assert hosts.find('', 0, -1) is None
  assert hosts.find('a:1', 1, 0) is None
  assert hosts.find('a:1', 2, 1) == ('a:1', 2, 1)
  assert hosts.find('[::1]:80', 4, 3) == ('[::1]:80', 4, 3)


@pytest.mark.parametrize(
  ('flags', 'wrong'),
  [
    (('a:1', 2, -1), 'go together'),
    (('a:1', 0, 0), 'go together'),
    (('', 2, 0), 'go together'),
    (('a:1', -2, 0), '--hosts must be at least 1, got -2'),
    (('a:1', 2, 2), '--host must be 0 to 1 of --hosts=2, got 2'),
    (('a', 2, 0), "--coordinator must be the address .* got 'a'"),
    (('a:b', 2, 0), "got 'a:b'"),
    (('a:70000', 2, 0), "got 'a:70000'"),
  ],
)
def test_flags_that_do_not_fit_are_refused(flags, wrong):
  with pytest.raises(ValueError, match=wrong):
    hosts.find(*flags)


def test_slurm_and_open_mpi_say_who_is_there(monkeypatch):
  monkeypatch.setenv('SLURM_JOB_ID', '70001')
  monkeypatch.setenv('SLURM_NTASKS', '4')
  monkeypatch.setenv('SLURM_PROCID', '2')
  monkeypatch.setenv('SLURM_LOCALID', '0')
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '4')
  monkeypatch.setenv('SLURM_STEP_NODELIST', 'node[3-6]')
  monkeypatch.delenv('SLURM_STEP_ID', raising=False)
  assert hosts.find('', 0, -1) is None  # the batch script itself
  monkeypatch.setenv('SLURM_STEP_ID', '0')
  place = hosts.find('', 0, -1)
  assert (place.count, place.number) == (4, 2)
  assert place.coordinator.startswith('node3:')
  # The shell of an interactive job, which is one task.
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '1')
  assert hosts.find('', 0, -1) is None


def test_what_jax_says_past_all_streams_is_noise():
  noise = [
    '[Gloo] Rank 1 is connected to 1 peer ranks. Expected number of connected',
    'F1128 08:33:48.122627    1377 client.h:80] Terminating process because',
    'E1128 08:32:19.926637     996 coordination_service_agent.cc:289] Polled',
    '*** Check failure stack trace: ***',
    '    @     0x7f9950a40634  absl::lts_20260107::log_internal::LogMessage',
  ]
  words = ['Error: no such file', '08:41:12 Cycle 50 of 1000', 'Figure 12: x']
  assert all(hosts._NOISE.match(line) for line in noise)
  assert not any(hosts._NOISE.match(line) for line in words)


class _Wire(hosts.Team):
  """A team of two whose collectives are lists; only one of them is played."""

  def __init__(self, number, said=()):
    self.number, self.count = number, 2
    self.signum, self._is_telling = None, False
    self.said = list(said)

  def _all(self, x):
    if self.is_first:
      self.said.append(x)
      return np.stack([x, x])
    return np.stack([self.said.pop(0), x])

  def _share(self, part):
    if self.is_first:
      self.said.append(part)
      return part
    assert len(self.said[0]) == len(part)
    return self.said.pop(0)


def test_what_the_first_host_tells_the_others_hear(monkeypatch):
  monkeypatch.setattr(hosts, '_PART', 16)
  what = {'x': np.arange(30.0), 'names': ('a', 'b')}
  first = _Wire(0)
  first.tell('place', what)
  other = _Wire(1, first.said)
  order, heard = other.hear(None)
  assert order == 'place'
  np.testing.assert_array_equal(heard['x'], what['x'])
  assert heard['names'] == what['names']
  assert other.said == []
  # Nobody else tells.
  other.tell('end')
  assert other.said == []


@pytest.mark.parametrize('size', [0, 7, 2**31 - 1, 2**31, 3 * 2**32 + 5])
def test_what_is_told_can_be_of_any_size(size):
  first = _Wire(0)
  assert first._exchange(size, 0) == size
  assert _Wire(1, first.said)._exchange(0, 0) == size


def test_who_was_told_to_end_is_known_to_all():
  first = _Wire(0)
  first.tell('dispatch', ())
  other = _Wire(1, first.said)
  other.hear(15)
  assert other.signum == 15


def test_rows_are_gathered_whatever_they_hold(monkeypatch):
  monkeypatch.setattr(hosts, '_PART', 8)
  tree = {
    'float': np.arange(6, dtype=np.float32).reshape(2, 3),
    'bool': np.array([[True], [False]]),
    'int': np.arange(2, dtype=np.int32),
  }
  gathered = _Wire(0).gather(tree)
  for name, x in tree.items():
    assert gathered[name].dtype == x.dtype
    np.testing.assert_array_equal(gathered[name], np.concatenate([x, x]))


@pytest.mark.parametrize('samples', [1, 7])
def test_an_array_is_shared_a_part_at_a_time(monkeypatch, samples):
  monkeypatch.setattr(hosts, '_PART', 60)
  rows = np.arange(samples * 6, dtype=np.float32).reshape(samples, 2, 3)
  first = _Wire(0)
  assert first.share_rows(rows) is rows
  np.testing.assert_array_equal(_Wire(1, first.said).share_rows(None), rows)


@pytest.mark.parametrize(
  ('error', 'told'),
  [
    (None, ('', 0)),
    (preemption.Stopped(15, 'Stopped at 4.'), ('Stopped at 4.', 143)),
    (KeyboardInterrupt(), ('Interrupted: the same command goes on .*', 130)),
    (ValueError('no\nphotographs'), ('Error on .* host: no photographs', 2)),
  ],
)
def test_how_the_first_host_ends_the_others_are_told(error, told):
  first = _Wire(0)
  with contextlib.suppress(BaseException), first:
    if error:
      raise error
  order, (line, code) = _Wire(1, first.said).hear(None)
  assert (order, code) == ('end', told[1])
  assert re.fullmatch(told[0], line)


def test_in_the_middle_of_an_order_it_says_no_more():
  first = _Wire(0)
  with contextlib.suppress(ValueError), first:
    first._is_telling = True
    raise ValueError
  assert first.said == []


def test_a_host_that_is_gone_is_told_from_other_errors():
  said = 'UNKNOWN: Gloo AllGather failed: Connection closed by peer'
  with pytest.raises(hosts.GoneError, match='Another host is gone'):
    _answered(ValueError(said))
  with pytest.raises(ValueError, match='shapes'):
    _answered(ValueError('shapes do not fit'))


def _answered(error):
  with _Wire(0).answering():
    raise error
