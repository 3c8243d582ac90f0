"""Several hosts meet, before JAX joins them: all there, of one code and config.

The first one listens at the coordinator's address. Each other one says who it
is; all that came are told what is wrong, or that they may go on.
"""

from collections.abc import Mapping
import contextlib
import json
import socket
import time
from typing import Any

from absl import logging

from chimera.system import hosts

# Seconds in which all hosts must have come: those that one has left notice that
# within a minute, and start again.
_PATIENCE = 120.0
_MANNERS = 5.0  # seconds in which who came must say who it is
ABSENT_CODE = 75  # EX_TEMPFAIL: launch/until_done.sh goes on waiting


class AbsentError(ValueError):
  """Another host did not come in time."""


def meet(place: hosts.Place, papers: Mapping[str, str]) -> None:
  """Returns on all hosts once all are there and their papers are the same.

  Raises:
    AbsentError: on all that came, where one did not.
    ValueError: likewise, where one has other papers.
  """
  logging.info(
    'Waiting at %s for %d hosts, %.0f s at most.',
    *(place.coordinator, place.count, _PATIENCE),
  )
  deadline = time.monotonic() + _PATIENCE
  mine = {'number': place.number, 'papers': dict(papers)}
  if place.number:
    verdict = _present(place, mine, deadline)
  else:
    verdict = _judge(place, mine, deadline)
  if verdict['wrong']:
    kind = AbsentError if verdict['absent'] else ValueError
    raise kind(verdict['wrong'])


def _verdict(wrong: str, *, absent: bool = False) -> dict[str, Any]:
  return {'wrong': wrong, 'absent': absent}


def _judge(
  place: hosts.Place, mine: dict[str, Any], deadline: float
) -> dict[str, Any]:
  """What is 'wrong', which all that came are told; '' where nothing is."""
  port = int(place.coordinator.rpartition(':')[2])
  there = {0: mine['papers']}
  with contextlib.ExitStack() as opened:
    try:
      door = opened.enter_context(
        socket.create_server(('', port), **_both_families())
      )
    except OSError as e:
      return _verdict(
        f'The first host cannot listen at {place.coordinator} ({e.strerror}): '
        'give another port by --coordinator.'
      )
    wrong, absent, guests, second = '', False, {}, None
    while not wrong:
      # Who left and comes again is no second one.
      for number in [n for n, guest in guests.items() if _has_left(guest)]:
        del there[number], guests[number]
      if len(there) == place.count:
        break
      door.settimeout(max(0.01, deadline - time.monotonic()))
      try:
        guest, _ = door.accept()
      except TimeoutError:
        absent, missing = True, sorted({*range(place.count)} - {*there})
        wrong = (
          f'Of {place.count} hosts, {", ".join(map(str, missing))} did not '
          f'come to {place.coordinator} within {_PATIENCE:.0f} s: start the '
          'same command on each, with its own --host.'
        )
        break
      opened.enter_context(guest)
      guest.settimeout(_MANNERS)
      try:
        its = json.loads(guest.makefile('rb').readline())
        number, papers = its['number'], its['papers']
        if type(number) is not int or not isinstance(papers, dict):
          continue
      except (OSError, ValueError, LookupError, TypeError, RecursionError):
        continue  # somebody else's knock
      if number in there or number not in range(place.count):
        second = guest
        wrong = (
          f'Two hosts are number {number} of {place.count}: each needs its own '
          '--host, from 0.'
        )
      else:
        there[number], guests[number] = papers, guest
        wrong = _differences(there[0], papers, number)
    verdict = _verdict(wrong, absent=absent)
    for guest in filter(None, [*guests.values(), second]):
      with contextlib.suppress(OSError):
        guest.sendall(json.dumps(verdict).encode() + b'\n')
  return verdict


def _both_families() -> dict[str, Any]:
  """How a server hears IPv6 and IPv4, where there is IPv6."""
  if not socket.has_dualstack_ipv6():
    return {}
  return {'family': socket.AF_INET6, 'dualstack_ipv6': True}


def _has_left(guest: socket.socket) -> bool:
  patience = guest.gettimeout()
  guest.setblocking(False)
  try:
    return not guest.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True
  finally:
    guest.settimeout(patience)


def _differences(
  first: Mapping[str, str], papers: Mapping[str, str], number: int
) -> str:
  for name in dict.fromkeys([*first, *papers]):
    if first.get(name) != papers.get(name):
      return (
        f'All hosts need the same {name}: host 0 has {first.get(name)}, host '
        f'{number} has {papers.get(name)}.'
      )
  return ''


def _present(
  place: hosts.Place, mine: dict[str, Any], deadline: float
) -> dict[str, Any]:
  """What the first host says."""
  host, _, port = place.coordinator.rpartition(':')
  why = ''
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection((host.strip('[]'), int(port)), left) as s:
        s.sendall(json.dumps(mine).encode() + b'\n')
        # The others may take as long as this one.
        s.settimeout(left + 1)
        said = s.makefile('rb').readline()
        verdict = json.loads(said)
        return _verdict(verdict['wrong'], absent=verdict['absent'])
    except (OSError, ValueError, LookupError, TypeError) as e:
      why = getattr(e, 'strerror', None) or str(e)
      time.sleep(0.2)
  return _verdict(
    f'The first host did not answer at {place.coordinator} within '
    f'{_PATIENCE:.0f} s ({why}): start the same command there with --host=0, '
    'or fix --coordinator.',
    absent=True,
  )
