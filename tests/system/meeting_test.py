"""Hosts meet before JAX joins them: who is let in, and what is said if not."""

import concurrent.futures
import json
import socket
import time

import pytest

from chimera.system import hosts, meeting

PAPERS = {'code': 'abc', 'config': '123'}


def _free_port():
  with socket.create_server(('localhost', 0)) as s:
    return s.getsockname()[1]


@pytest.fixture
def address(monkeypatch):
  monkeypatch.setattr(meeting, '_PATIENCE', 2.0)
  return f'localhost:{_free_port()}'


def _meet(address, count, papers):
  """What each host of {number: papers} is told; '' where it may go on."""

  def one(number):
    try:
      meeting.meet(hosts.Place(address, count, number), papers[number])
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


def test_hosts_meet_by_ipv6_too(address):
  try:
    socket.create_server(('::1', 0), family=socket.AF_INET6).close()
  except OSError:
    return  # there is none here
  port = address.partition(':')[2]
  assert _meet(f'[::1]:{port}', 2, {i: PAPERS for i in range(2)}) == {
    0: '',
    1: '',
  }


def test_who_waits_in_vain_is_told_from_who_is_refused(address):
  places = [hosts.Place(address, 2, number) for number in (0, 1)]
  for place in places:  # one after the other
    with pytest.raises(meeting.AbsentError):
      meeting.meet(place, PAPERS)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    papers = PAPERS, PAPERS | {'code': 'abd'}
    met = [pool.submit(meeting.meet, *x) for x in zip(places, papers)]
  for error in (one.exception() for one in met):
    assert isinstance(error, ValueError)
    assert not isinstance(error, meeting.AbsentError)


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
      meeting.meet(place._replace(number=number), PAPERS)

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    list(pool.map(one, (0, 1, 1)))


def test_who_left_and_comes_again_is_no_second_one(address):
  host, port = address.split(':')

  def leave():
    papers = json.dumps({'number': 1, 'papers': PAPERS}).encode() + b'\n'
    while True:
      try:
        with socket.create_connection((host, int(port))) as s:
          s.sendall(papers)
        return
      except ConnectionRefusedError:
        continue

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(_meet, address, 3, {0: PAPERS})
    leave()
    last = pool.submit(_meet, address, 3, {2: PAPERS})
    time.sleep(0.3)  # each was there once, but not all at one time
    assert _meet(address, 3, {1: PAPERS}) == {1: ''}
    assert first.result() == {0: ''}
    assert last.result() == {2: ''}


def test_a_stranger_at_the_door_is_not_counted(address):
  host, port = address.split(':')

  def stranger():
    for said in (
      b'GET / HTTP/1.1\n',
      b'[1, 2]\n',
      b'{"number": 1}\n',
      b'{"number": [], "papers": {}}\n',
      b'{"number": 1, "papers": 2}\n',
      b'[' * 50_000 + b'\n',
      b'',
    ):
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


def test_a_stranger_who_says_nothing_is_not_waited_for(address, monkeypatch):
  monkeypatch.setattr(meeting, '_PATIENCE', 20.0)
  monkeypatch.setattr(meeting, '_MANNERS', 0.2)
  host, port = address.split(':')
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(_meet, address, 2, {0: PAPERS})
    while True:
      try:
        silent = socket.create_connection((host, int(port)))
        break
      except ConnectionRefusedError:
        continue
    with silent:
      assert _meet(address, 2, {1: PAPERS}) == {1: ''}
    assert first.result() == {0: ''}


def test_a_port_that_is_taken_is_one_line(address):
  port = int(address.partition(':')[2])
  with socket.create_server(('', port)):
    said = _meet(address, 2, {0: PAPERS})
  assert 'cannot listen at' in said[0]
  assert '--coordinator' in said[0]
