"""The benchmark of the School says its figures."""

import re

from tests.benchmarks import command


def test_the_curriculum_benchmark_prints_its_speed_and_its_peak():
  result = command.run('curriculum', '--samples=2000', '--rounds=1')
  assert result.returncode == 0, result.stderr
  assert re.search(r'speed against the bare mean: \d', result.stdout)
  assert re.search(r'\d+ MB', result.stdout)
