"""Hosts meet before JAX joins them: who is let in, and what is said if not."""

import concurrent.futures
import socket

import pytest

from chimera.system import hosts

PAPERS = {'code': 'abc', 'config': '123'}


def _free_port():
  with socket.create_server(('localhost', 0)) as s:
    return s.getsockname()[1]


@pytest.fixture
def address(monkeypatch):
  monkeypatch.setattr(hosts, '_PATIENCE', 2.0)
  return f'localhost:{_free_port()}'


def _meet(address, count, papers):
  """What each host of {number: papers} is told; '' where it may go on."""

  def one(number):
    try:
      hosts.meet(hosts.Place(address, count, number), papers[number])
    except ValueError as e:
      return str(e)
    return ''

  with concurrent.futures.ThreadPoolExecutor(len(papers)) as pool:
    return dict(zip(papers, pool.map(one, papers), strict=True))


def test_hosts_with_the_same_papers_meet_whoever_comes_first(address):
  for order in ((0, 1, 2), (2, 1, 0)):
    said = _meet(address, 3, {i: PAPERS for i in order})
    assert said == {0: '', 1: '', 2: ''}


def test_another_code_or_config_is_told_to_all(address):
  said = _meet(address, 3, {0: PAPERS, 1: PAPERS, 2: PAPERS | {'code': 'abd'}})
  line = 'All hosts need the same code: host 0 has abc, host 2 has abd.'
  assert said[0] == said[2] == line
  # Whoever came later than that finds nobody.
  assert said[1] in (line, '') or 'did not answer' in said[1]
  assert said[1]


def test_who_does_not_come_is_named_to_those_who_did(address):
  said = _meet(address, 4, {0: PAPERS, 2: PAPERS})
  line = f'Of 4 hosts, 1, 3 did not come to {address} within 2 s'
  assert said[0].startswith(line)
  assert said[2] == said[0]


def test_without_the_first_host_the_others_say_so(address):
  said = _meet(address, 2, {1: PAPERS})
  assert said[1].startswith(f'The first host did not answer at {address}')
  assert '--coordinator' in said[1]


def test_two_hosts_of_one_number_are_told(address):
  place = hosts.Place(address, 3, 1)

  def one(number):
    with pytest.raises(ValueError, match='Two hosts are number 1 of 3'):
      hosts.meet(place._replace(number=number), PAPERS)

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    list(pool.map(one, (0, 1, 1)))


def test_a_stranger_at_the_door_is_not_counted(address):
  host, port = address.split(':')

  def stranger():
    for said in (b'GET / HTTP/1.1\n', b'[1, 2]\n', b'{"number": 1}\n', b''):
      while True:
        try:
          with socket.create_connection((host, int(port))) as s:
            s.sendall(said)
          break
        except ConnectionRefusedError:
          continue
    return _meet(address, 2, {1: PAPERS})

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    later = pool.submit(stranger)
    assert _meet(address, 2, {0: PAPERS}) == {0: ''}
    assert later.result() == {1: ''}


def test_a_port_that_is_taken_is_one_line(address):
  port = int(address.partition(':')[2])
  with socket.create_server(('', port)):
    said = _meet(address, 2, {0: PAPERS})
  assert 'cannot listen at' in said[0]
  assert '--coordinator' in said[0]


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
