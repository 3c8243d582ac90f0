"""The ledger: what is compared, and the arithmetic of the comparison."""

import json
import math

import jax
import pytest

from chimera import ledger, train
from chimera.optics import stage_1


def _line(method, seed, l1):
  return {
    'method': method,
    'seed': seed,
    'config': '0',
    'figures': {'ema/path_l1': l1, 'master/psnr': 20.0},
  }


def test_a_method_is_a_variant_its_changes_and_a_scale():
  control = ledger.create_config('control@2', 3, {'train.cycles': 70})
  plain = ledger.create_config('control', 3, {'train.cycles': 70})
  assert control.train.learning_rate == 2 * plain.train.learning_rate
  assert (control.seed, control.train.cycles) == (3, 70)
  assert not control.meld.enabled
  local = ledger.create_config('local', 0, {})
  assert local.meld.optimizer_state == 'local'
  for pillar in ('school', 'pid', 'q', 'meld'):
    config = ledger.create_config(f'no_{pillar}', 0, {})
    on = {p: config[p].enabled for p in ('school', 'pid', 'q', 'meld')}
    assert on == {p: p != pillar for p in on}


def test_an_unknown_method_names_the_known_ones():
  with pytest.raises(ValueError, match=r'control, default.*got defualt'):
    ledger.create_config('defualt', 0, {})


def test_a_run_of_another_config_has_another_digest():
  a, b, c = (
    ledger.digest(ledger.create_config(method, seed, {}))
    for method, seed in (('default', 0), ('default@2', 0), ('default', 1))
  )
  assert len({a, b, c}) == 3
  assert a == ledger.digest(ledger.create_config('default@1', 0, {}))


def test_the_paired_interval_is_student_s():
  # Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.30265.
  mean, half = ledger.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
  assert mean == pytest.approx(2.0)
  assert half == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_methods_alike_have_no_interval_and_one_pair_none_that_is_known():
  assert ledger.paired([1.0, 2.0], [1.0, 2.0]) == (0.0, 0.0)
  mean, half = ledger.paired([3.0], [1.0])
  assert (mean, math.isnan(half)) == (2.0, True)


def test_the_table_pairs_by_seed_and_shows_the_spread():
  lines = [
    _line('control', 0, 0.10),
    _line('default', 0, 0.09),
    _line('control', 1, 0.20),
    _line('default', 1, 0.17),
    _line('default', 2, 0.50),  # has no partner yet
  ]
  table = ledger.tabulate(lines, 'ema')
  assert list(table.columns[0].cells) == [
    'control (2)',
    'default (3)',
    '  less control',
  ]
  control, default, less = table.columns[1].cells
  assert control == '0.1500 ± 0.0707'
  assert default.startswith('0.2533 ± ')
  assert less.startswith('-0.0200 ± ')


def test_the_ledger_is_read_as_it_was_written(tmp_path):
  path = tmp_path / 'ledger.jsonl'
  assert ledger.read(path) == []
  lines = [_line('control', 0, 0.1), _line('default', 0, 0.2)]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert ledger.read(path) == lines


def test_what_one_run_compiled_is_gone_before_the_next(tmp_path, monkeypatch):
  traces = []

  @jax.jit
  def step(x):
    traces.append(x)
    return x + 1

  def run(config, workdir, data):
    return {'master/path_l1': float(step(1.0))}

  monkeypatch.setattr(stage_1, 'prepare', lambda *_: None)
  monkeypatch.setattr(train, 'train', run)
  lines = list(ledger.run(tmp_path, ['default'], [0, 1], {}))
  assert [line['figures'] for line in lines] == [{'master/path_l1': 2.0}] * 2
  assert len(traces) == 2
