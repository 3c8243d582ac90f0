"""The benchmark of the dashboard says its figure."""

import re

from tests.benchmarks import command


def test_it_says_the_speed_with_the_dashboard_over_that_without():
  result = command.run(
    'dashboard', '--variant=smoke', '--dispatches=10', '--rounds=1'
  )
  assert result.returncode == 0, result.stderr
  assert re.search(r'over without: median \d+\.\d+', result.stdout)
