"""The benchmark refuses what it does not know."""

from tests.benchmarks import command


def test_an_unknown_benchmark_exits_with_2():
  result = command.run('nothing')
  assert result.returncode == 2
  assert 'curriculum' in result.stderr
