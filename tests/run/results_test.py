"""What is made of the last cycle: whether it is there, and the table's rows."""

import json

import numpy as np
import pytest

from chimera.clones import terms as terms_lib
from chimera.run import results
from tests import tiny


@pytest.fixture
def whole(tmp_path):
  """A workdir with all that is made of cycle 6."""
  (tmp_path / 'tokenizer').mkdir()
  for name, key in (
    ('evaluation.json', 'protocol'),
    ('tokenizer/tokenizer.json', 'came_from'),
  ):
    (tmp_path / name).write_text(json.dumps({key: {'cycles': 6}}))
  (tmp_path / 'report.html').touch()
  return tmp_path


def test_results_are_there_if_all_are_of_the_last_cycle(whole):
  assert results.are_there(str(whole), 6)
  assert not results.are_there(str(whole), 8)


@pytest.mark.parametrize(
  'name', ['evaluation.json', 'tokenizer/tokenizer.json', 'report.html']
)
def test_results_are_not_there_if_one_is_missing(whole, name):
  (whole / name).unlink()
  assert not results.are_there(str(whole), 6)


@pytest.mark.parametrize('text', ['{', '[]', '{}', '{"protocol": 6}'])
def test_results_are_not_there_if_the_figures_cannot_be_read(whole, text):
  (whole / 'evaluation.json').write_text(text)
  assert not results.are_there(str(whole), 6)


def test_a_row_names_the_term_that_a_clone_weighs_most_above_its_base():
  config = tiny.get_config()
  config.loss.emphasis = 0.0
  terms = terms_lib.of(config.model.quantizer)
  config.loss[terms[-1]] = 0.0
  base_K = np.array([config.loss[t] for t in terms])
  weights = np.tile(base_K, (4, 1))
  for i in range(4):
    weights[i, i] *= 2 + i
  # A term that weighs nothing by the config dominates nothing.
  weights[:, -1] = 9.0
  each = np.arange(4.0)
  seen = {'lambda': weights, 'loss/total': each, 'critic/loss': each + 10}
  seen['agent/lr'] = each / 8
  bins = {b: [0] * (b + 1) for b in range(10)}
  rows = results.summarize(config, bins, seen)
  for i, (name, row) in enumerate(zip(config.clone_names, rows)):
    lesson = config.specialists[name].bins
    assert row['name'] == name
    assert row['samples'] == sum(b + 1 for b in lesson)
    assert row['dominant'] == terms[i]
    assert row['dominance'] == pytest.approx(2 + i)
    assert (row['g_loss'], row['critic_loss']) == (i, 10 + i)
    assert row['learning_rate'] == i / 8


@pytest.mark.parametrize(
  'data', [b'[' * 10**5, b'\xff\xfe\xff', b'{"protocol": [[6]]}', b'']
)
def test_figures_that_are_broken_are_none_and_stop_nothing(whole, data):
  (whole / 'evaluation.json').write_bytes(data)
  assert not results.are_there(str(whole), 6)
  (whole / 'tokenizer' / 'tokenizer.json').write_bytes(data)
  assert not results.are_there(str(whole), 6)
