"""What is made of the last cycle: whether it is there, and the table's rows."""

import json
import types

import numpy as np
import pytest

from chimera.clones import terms as terms_lib
from chimera.run import results
from chimera.school import lessons
from tests import tiny

CONFIG = tiny.get_config()


@pytest.fixture
def whole(tmp_path):
  """A workdir with all that is made of cycle 6."""
  (tmp_path / 'tokenizer').mkdir()
  for name, key in (
    ('evaluation.json', 'protocol'),
    ('tokenizer/tokenizer.json', 'came_from'),
  ):
    record = {'cycles': 6, 'weights': 'master'}
    (tmp_path / name).write_text(json.dumps({key: record}))
  (tmp_path / 'report.html').touch()
  return tmp_path


def test_results_are_there_if_all_are_of_the_last_cycle(whole):
  assert results.are_there(CONFIG, str(whole), 6)
  assert not results.are_there(CONFIG, str(whole), 8)


@pytest.mark.parametrize(
  'name', ['evaluation.json', 'tokenizer/tokenizer.json', 'report.html']
)
def test_results_are_not_there_if_one_is_missing(whole, name):
  (whole / name).unlink()
  assert not results.are_there(CONFIG, str(whole), 6)


def test_a_tokenizer_of_other_figures_or_weights_is_not_of_this_run(whole):
  figures = json.loads((whole / 'evaluation.json').read_text())
  path = whole / 'tokenizer' / 'tokenizer.json'
  for evaluation, weights, expected in (
    (figures, 'master', True),
    ({**figures, 'master/psnr': 9.0}, 'master', False),
    (figures, 'ema', False),
  ):
    record = {'cycles': 6, 'weights': weights, 'evaluation': evaluation}
    path.write_text(json.dumps({'came_from': record}))
    assert results.are_there(CONFIG, str(whole), 6) == expected


def test_figures_of_another_decay_are_not_of_this_run(whole):
  decay = CONFIG.train.decay
  for there, expected in ((decay, True), (decay + 0.1, False)):
    record = {'protocol': {'cycles': 6, 'decay': there}}
    (whole / 'evaluation.json').write_text(json.dumps(record))
    assert results.are_there(CONFIG, str(whole), 6) == expected


@pytest.mark.parametrize('text', ['{', '[]', '{}', '{"protocol": 6}'])
def test_results_are_not_there_if_the_figures_cannot_be_read(whole, text):
  (whole / 'evaluation.json').write_text(text)
  assert not results.are_there(CONFIG, str(whole), 6)


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
  assert not results.are_there(CONFIG, str(whole), 6)
  (whole / 'tokenizer' / 'tokenizer.json').write_bytes(data)
  assert not results.are_there(CONFIG, str(whole), 6)


def _schools(error, fence):
  """Host clones, of whose School alone is asked."""
  school = lessons.SchoolState(
    enrolled_L=None,
    enrolled_count=None,
    varentropy_N=None,
    error_N=np.array([error] * 2, np.float32),
    seen_N=np.array([[0 if e else -1 for e in error]] * 2),
    fence=np.full(2, fence, np.float32),
  )
  return types.SimpleNamespace(school=school)


def test_outliers_are_told_with_their_files_the_worst_first(caplog):
  names = 'noise.png', 'b.png', 'a.png', 'noise.png', 'c.png', 'd.png', 'e.png'
  crops = [types.SimpleNamespace(source=name) for name in names]
  data = types.SimpleNamespace(crops=crops)
  error = [0.6, 0.4, 0.1, 0.5, 0.1, 0.45, 0.0]
  found = results.outliers(_schools(error, 0.3), data)
  np.testing.assert_array_equal(found, [1, 5, 3, 0])
  [said] = caplog.messages
  assert 'Of 7 samples 4 are' in said
  assert 'above 0.3 times the usual one' in said
  assert said.endswith('noise.png, d.png, b.png')
  assert not len(results.outliers(_schools(error, 0.7), data))
  assert not len(results.outliers(_schools(error, 0.0), data))
  # One in a hundred is not many.
  few = types.SimpleNamespace(crops=crops + crops[2:3] * 93)
  for error, said in ([*[0.1] * 99, 0.4], 1), ([*[0.1] * 98, 0.4, 0.5], 2):
    results.outliers(_schools(error, 0.3), few)
    assert len(caplog.messages) == said


def test_of_many_files_of_outliers_three_are_named(caplog):
  crops = [types.SimpleNamespace(source=name) for name in 'abcd']
  data = types.SimpleNamespace(crops=crops)
  results.outliers(_schools([0.5, 0.6, 0.7, 0.8], 0.3), data)
  assert caplog.messages[0].endswith('d, c, b, ...')
