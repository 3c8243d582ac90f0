"""The benchmark of the dashboard says its figure."""

import argparse
import contextlib
import os
import re

from chimera.benchmarks import dashboard
from chimera.run import default_config
from tests import tiny


def test_it_says_the_speed_with_the_dashboard_over_that_without(
  monkeypatch, capsys
):
  monkeypatch.setattr(default_config, 'get_config', tiny.get_config)
  monkeypatch.setenv('TERM', 'xterm-256color')
  dashboard.dashboard(argparse.Namespace(variant='', dispatches=10, rounds=1))
  assert re.search(r'over without: median \d+\.\d+', capsys.readouterr().out)


def test_an_error_on_a_terminal_of_its_own_is_told_on_the_old_one(capfd):
  with contextlib.suppress(KeyboardInterrupt), dashboard.terminal(160, 48):
    raise KeyboardInterrupt
  os.write(2, b'told')
  assert capfd.readouterr().err == 'told'
