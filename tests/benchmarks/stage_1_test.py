"""The benchmark of stage 1 says its figures."""

import re

from tests.benchmarks import command


def test_the_stage_1_benchmark_says_each_part_beside_the_bare_one():
  flags = '--variant=smoke', '--photographs=4', '--steps=2', '--rounds=1'
  result = command.run('stage_1', *flags)
  assert result.returncode == 0, result.stderr
  said = ' '.join(result.stdout.split())
  for part in ('planning', 'cropping', 'training', 'encoding'):
    assert re.search(rf'{part}[^:]*: \d+ images/s', said), part
  assert len(re.findall(r'ratio \d+\.\d+ \(', said)) == 6
