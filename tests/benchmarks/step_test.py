"""The benchmark of the step prints its table."""

import argparse
import re

from chimera.benchmarks import step
from chimera.run import default_config
from tests import tiny


def test_it_prints_what_a_cycle_costs_beside_a_plain_learner(
  monkeypatch, capsys
):
  monkeypatch.setattr(default_config, 'get_config', tiny.get_config)
  step.step(
    argparse.Namespace(
      variant='',
      programs='control',
      devices='1',
      cycles_per_dispatch=1,
      dispatches=1,
      rounds=2,
    )
  )
  cost = r'(plain|control) +│ +[\d.]+ +│ +\d+ +│ +([\d.]+) \('
  rows = re.findall(cost, capsys.readouterr().out)
  assert [name for name, _ in rows] == ['plain', 'control']
  assert float(rows[0][1]) == 1
