"""The benchmark of the step prints its table."""

import re

from tests.benchmarks import command


def test_it_prints_what_a_cycle_costs_beside_a_plain_learner():
  result = command.run(
    *('step', '--variant=smoke', '--programs=control', '--devices=1'),
    *('--rounds=2', '--dispatches=1'),
  )
  assert result.returncode == 0, result.stderr
  rows = re.findall(
    r'(plain|control) +│ +[\d.]+ +│ +\d+ +│ +([\d.]+) \(', result.stdout
  )
  assert [name for name, _ in rows] == ['plain', 'control']
  assert float(rows[0][1]) == 1
