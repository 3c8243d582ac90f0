"""The benchmark of the step prints its table."""

import argparse
import re

import pytest

from chimera.benchmarks import step
from chimera.run import default_config
from tests import tiny


def test_what_collectives_give_a_device_is_counted_once():
  hlo = """
  %psum.1 = f32[10,3]{1,0} all-reduce(%x), replica_groups={{0,1}}
  %pair = (f32[4]{0}, s32[2,2]{1,0}) all-reduce(%a, %b), to_apply=%sum
  %scalar = f32[] all-reduce(%c), to_apply=%sum
  %start = (f32[2]{0}, f32[2]{0}) all-gather-start(%d), dimensions={0}
  %done = f32[2]{0} all-gather-done(%start)
  %codes = bf16[8]{0} all-gather(%e), dimensions={0}
  %not = f32[99]{0} add(%all-reduce.9, %y)
  """
  assert step.shared(hlo) == 4 * (30 + 4 + 4 + 1 + 2) + 2 * 8


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


def test_devices_that_are_not_there_are_refused(monkeypatch):
  monkeypatch.setattr(default_config, 'get_config', tiny.get_config)
  with pytest.raises(
    ValueError, match=r'--devices must be one of 1, .*got 3\.'
  ):
    step.step(argparse.Namespace(variant='', devices='3'))
