"""Signals: what is finished first, what is left, and when it ends at once."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from chimera.system import preemption

ROOT = pathlib.Path(__file__).parents[2]


def _send(signum):
  os.kill(os.getpid(), signum)


def test_nothing_comes_to_a_watch_that_nobody_entered():
  watch = preemption.Watch()
  with watch.deferred(), watch.interruptible():
    pass
  assert watch.signum is None


def test_a_signal_raises_where_there_is_nothing_to_lose():
  with preemption.Watch(), pytest.raises(preemption.Stopped) as e:
    _send(signal.SIGTERM)
  assert e.value.signum == signal.SIGTERM
  with preemption.Watch(), pytest.raises(KeyboardInterrupt):
    _send(signal.SIGINT)


def _defer(done):
  with preemption.Watch() as watch:
    with watch.deferred():
      _send(signal.SIGTERM)
      done.append(watch.signum)
    done.append('not reached')


def test_a_signal_that_is_deferred_is_noted_and_the_work_goes_on():
  done = []
  with pytest.raises(preemption.Stopped):
    _defer(done)
  assert done == [signal.SIGTERM]


def _leave(done):
  with preemption.Watch() as watch, watch.deferred():
    with watch.interruptible():
      done.append('begun')
      _send(signal.SIGTERM)
      done.append('not reached')
    done.append('after')


def test_a_signal_leaves_what_can_be_done_again():
  done = []
  with pytest.raises(preemption.Stopped):
    _leave(done)
  assert done == ['begun', 'after']


def test_the_former_handlers_come_back():
  before = [signal.getsignal(signum) for signum in preemption.SIGNALS]
  with preemption.Watch():
    assert signal.getsignal(signal.SIGTERM) is not before[0]
  assert [signal.getsignal(s) for s in preemption.SIGNALS] == before
  assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_was_ignored_stays_so():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with preemption.Watch():
      _send(signal.SIGHUP)
  finally:
    signal.signal(signal.SIGHUP, before)


def _program(body):
  """(exit code, stdout) of a program that watches."""
  head = """
import os, signal, sys
from chimera.system import preemption
def send(signum):
  os.kill(os.getpid(), signum)
def act():
  os.write(1, b'the last act')
def wait():
  # Never back in Python, as in a compilation; another thread has the signals.
  import ctypes
  signal.pthread_sigmask(signal.SIG_BLOCK, preemption.SIGNALS)
  ctypes.CDLL(None).pause()
preemption._PATIENCE = 0.1
with preemption.Watch() as watch, preemption.last_act(act):
"""
  done = subprocess.run(
    [sys.executable, '-c', head + body], capture_output=True, cwd=ROOT
  )
  return done.returncode, done.stdout


def test_a_second_signal_ends_it_at_once_after_the_last_act():
  body = """
  with watch.deferred():
    send(signal.SIGTERM)
    send(signal.SIGINT)
    wait()
"""
  assert _program(body) == (130, b'the last act')


def test_the_same_signal_ends_it_at_once_where_it_is_no_echo():
  body = """
  preemption._ECHO = 0.0
  with watch.deferred():
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    wait()
"""
  assert _program(body) == (143, b'the last act')


@pytest.mark.parametrize(
  ('signum', 'echo'),
  [(signal.SIGTERM, 1e9), (signal.SIGINT, 1e9), (signal.SIGHUP, 0.0)],
)
def test_an_echo_is_no_second_signal_and_a_hang_up_never_is(signum, echo):
  body = f"""
  preemption._ECHO = {echo}
  try:
    with watch.deferred():
      send({signum:d})
      send({signum:d})
      import time; time.sleep(0.5)
      sys.stdout.write('saved')
  except preemption.Stopped as e:
    sys.exit(128 + e.signum)
"""
  assert _program(body) == (128 + signum, b'saved')


def test_an_echo_does_not_break_into_the_unwinding():
  body = """
  preemption._PATIENCE, preemption._ECHO = 1e6, 1e9
  try:
    send(signal.SIGTERM)
  except preemption.Stopped as e:
    send(signal.SIGTERM)
    sys.stdout.write('unwound')
    sys.exit(128 + e.signum)
"""
  assert _program(body) == (143, b'unwound')


def test_who_does_not_answer_is_ended_where_nothing_can_be_lost():
  body = """
  import threading
  threading.Timer(0.2, send, [signal.SIGTERM]).start()
  wait()
"""
  assert _program(body) == (143, b'the last act')
