"""The benchmark refuses what it does not know."""

from tests.benchmarks import command


def test_an_unknown_benchmark_exits_with_2():
  result = command.run('nothing')
  assert result.returncode == 2
  assert 'curriculum' in result.stderr


def test_what_cannot_be_counted_exits_with_2():
  result = command.run('step', '--rounds=0')
  assert result.returncode == 2
  assert 'argument --rounds: must be 1 or more, got 0' in result.stderr
