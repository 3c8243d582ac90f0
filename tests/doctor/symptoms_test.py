"""What can be wrong with a run: each fault is named, and nothing else is."""

import json
import math
import pathlib
import re

import numpy as np
import pytest

from chimera.doctor import doctor, reference, symptoms
from chimera.monitor import history
from tests import written


def _names(diagnosis):
  return [finding.name for finding in diagnosis.findings]


def _rising(i, name):
  """Down to 0.33, up to 0.6; 0.36 on both sides of the least."""
  return {'loss/base': 0.9 - 0.06 * i if i < 10 else 0.3 + 0.03 * (i - 9)}


def _held_terms(count, error, integral):
  """The first `count` terms of one clone, with an error and a grudge."""

  def clone(i, name):
    if name != 'structural':
      return {}
    return {
      f'pid/{k}/{term}': v
      for term in written.TERMS[:count]
      for k, v in (('error', error), ('integral', integral))
    }

  return clone


FAULTS = {
  'few codes': (
    {'master': lambda i: {'codebook/perplexity': 12.0}},
    symptoms.COLLAPSED,
    '12.0 codes of 1024',
  ),
  'ever fewer codes': (
    {'master': lambda i: {'codebook/perplexity': 600.0 if i < 12 else 150.0}},
    symptoms.COLLAPSED,
    'after 600 at its best',
  ),
  'a flat loss': (
    {'clone': lambda i, name: {'loss/base': 0.7}},
    symptoms.LOSS,
    '100% of what it was',
  ),
  'a rising loss': (
    {'clone': _rising},
    symptoms.LOSS,
    'rose from 0.36 to 0.54',
  ),
  'a rising loss at a high rate': (
    {
      'clone': _rising,
      'train__learning_rate': 0.8,
      'train__audition': False,
    },
    symptoms.RATE,
    # What the three reference runs found.
    'the reference learns at 0.0024 to 0.0047. --config.train.learning_rate='
    '0.0047,',
  ),
  'a high rate that was found': (
    {'clone': lambda i, name: {**_rising(i, name), 'agent/lr': 0.8}},
    symptoms.RATE,
    '--config.train.audition=False --config.train.learning_rate=0.0047,',
  ),
  'no number': (
    {'clone': lambda i, name: {'loss/base': math.nan} if i > 17 else {}},
    symptoms.LOSS,
    'not a number',
  ),
  'no number on held-out images': (
    {'held_out': (0.1, math.nan)},
    symptoms.LOSS,
    'the last held-out L1 is not a number',
  ),
  'a clone left out': (
    {'master': lambda i: {'meld/dropped': float(i // 5)}},
    symptoms.LOSS,
    'a clone was sick and left out 3 time(s)',
  ),
  'a target out of reach': (
    # exp(5) = 148.4
    {'clone': _held_terms(1, 5.0, 0.0)},
    symptoms.UNREACHABLE,
    'l1 of structural, 148 times and more above what its target of 0.5 asks',
  ),
  # 0.3 * 1 + 0.2 = 0.5, the limit; 7 of 10 terms.
  'weights at the limit': (
    {'clone': _held_terms(7, 1.0, 0.2)},
    symptoms.SATURATED,
    '7 of 40 loss weights',
  ),
  'a pinned trim': (
    {'clone': lambda i, name: {'agent/trim': 0.5}},
    symptoms.AGENT,
    'all clones keep their least trim',
  ),
  'a constant reward': (
    {'clone': lambda i, name: {'agent/reward': 0.0}},
    symptoms.AGENT,
    'the reward of perceptual is always 0',
  ),
  'one action': (
    {'clone': lambda i, name: {'agent/action': 2}, 'q__caution': 0.0},
    symptoms.AGENT,
    'perceptual always takes action 2',
  ),
  'a steep critic': (
    {'clone': lambda i, name: {'critic/penalty': 4.0}},
    symptoms.CRITIC,
    'off by 2',
  ),
  'a critic beyond its reach': (
    # 100 / (sqrt(16 * 16 * 3) * 0.1) = 36.08
    {'clone': lambda i, name: {'critic/wasserstein': -100.0}},
    symptoms.CRITIC,
    '36 times',
  ),
  'a loud critic': (
    {'clone': lambda i, name: {'loss/adv_share': 0.6}},
    symptoms.CRITIC,
    '60% of a clone',
  ),
  'a gap': (
    {'held_out': (0.25, 0.2)},
    symptoms.OVERFIT,
    '2.00 times the training L1',
  ),
  'a gap that opens': (
    {'held_out': (0.1, 0.15)},
    symptoms.OVERFIT,
    'rose from 0.1 to 0.15',
  ),
  'worse by the same config': (
    {'clone': lambda i, name: {'loss/base': 1.0 - 0.02 * i}},
    symptoms.WORSE,
    'the loss is',
  ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_is_named_and_nothing_else(tmp_path, fault):
  changes, name, words = FAULTS[fault]
  diagnosis = doctor.diagnose(written.write(tmp_path, **changes))
  assert _names(diagnosis) == [name]
  finding = diagnosis.findings[0]
  seen = f'{finding.seen} {finding.turn}'
  assert words.lower() in seen.lower()
  assert re.search(r'--config\.|chimera\.ledger', finding.turn)
  text = doctor.describe(diagnosis)
  assert text.startswith('One thing is wrong')
  assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
  'changes',
  [
    {'clone': _held_terms(6, 1.0, 0.2)},
    {'clone': _held_terms(7, 1.0, 0.19)},
    {'clone': _held_terms(6, -5.0, 0.0)},
    {'clone': _held_terms(7, 5.0, 0.2), 'pid__enabled': False},
    # A weight of 0 may stand where it likes.
    {'clone': _held_terms(1, 5.0, 0.0), 'loss__l1': 0.0},
    {
      'clone': lambda i, name: {'agent/trim': 1.0, 'agent/reward': 0.0},
      'q__enabled': False,
    },
    {'clone': lambda i, name: {'agent/trim': 0.5 if i < 17 else 0.6}},
    {'clone': lambda i, name: {'agent/action': 2}},  # with caution
    # One of four.
    {'clone': lambda i, name: {'agent/trim': 0.5 + (name != 'structural')}},
    {'master': lambda i: {'codebook/perplexity': 1.0 if i < 5 else 500.0}},
    {'held_out': (0.12, 0.12)},
    # What goes on from what was learned begins low.
    {'clone': lambda i, name: {'loss/base': 0.3}, 'init_from': 'tokenizer'},
  ],
)
def test_what_the_reference_may_do_is_no_fault(tmp_path, changes):
  changes = {'train__cycles': 1001, **changes}  # of another config
  assert _names(doctor.diagnose(written.write(tmp_path, **changes))) == []


def _diagnose_data(home, **changes):
  settings = changes.pop('settings', {})
  workdir = written.write(home, **settings)
  written.write_data(home, **{**written.varied(), **changes})
  return doctor.diagnose(workdir)


def test_varied_data_have_nothing(tmp_path):
  diagnosis = _diagnose_data(tmp_path)
  assert diagnosis.findings == []
  assert ('photographs', '1000', '12') in diagnosis.table


def test_black_images_are_named_and_their_consequences_are_not(tmp_path):
  diagnosis = _diagnose_data(
    tmp_path,
    scores_N=np.full(1000, 0.157),
    gradients_N=np.full(1000, 1e-6),
    paths_NxHxWxC=np.zeros((1000, 16, 16, 3), np.float32),
  )
  assert _names(diagnosis) == [symptoms.CONSTANT]
  assert '100% of the training crops' in diagnosis.findings[0].seen


def test_path_params_that_are_constant_are_named(tmp_path):
  diagnosis = _diagnose_data(
    tmp_path,
    gradients_N=np.full(1000, np.nan),
    paths_NxHxWxC=np.ones((1000, 16, 16, 3), np.float32),
  )
  assert _names(diagnosis) == [symptoms.CONSTANT]


def test_equal_samples_are_named(tmp_path):
  data = written.varied()
  # 900 different ones, the first 100 twice.
  for values_N in data.values():
    values_N[900:] = values_N[:100]
  diagnosis = _diagnose_data(tmp_path, **data)
  assert _names(diagnosis) == [symptoms.COPIES]
  assert '10% of the training samples' in diagnosis.findings[0].seen


def test_one_photograph_in_many_files_is_named(tmp_path):
  diagnosis = _diagnose_data(tmp_path, copies=120)
  assert _names(diagnosis) == [symptoms.COPIES]
  assert '12% of the photographs' in diagnosis.findings[0].seen


def test_few_photographs_are_named(tmp_path):
  diagnosis = _diagnose_data(tmp_path, sources_N=['/a.png', '/b.png'] * 500)
  assert _names(diagnosis) == [symptoms.FEW]
  assert 'from 2 photograph(s)' in diagnosis.findings[0].seen


def test_bins_that_do_not_differ_are_named(tmp_path):
  # The 10th and the 90th percentile are 0.8 of 0.01 apart, 2 % of 0.405.
  scores = np.linspace(0.4, 0.41, 1000)
  diagnosis = _diagnose_data(tmp_path, scores_N=scores)
  assert _names(diagnosis) == [symptoms.BINS]
  assert '2.0% of its median' in diagnosis.findings[0].seen


def test_a_radius_without_meaning_is_named(tmp_path):
  gradients = written.varied()['gradients_N'][::-1]
  diagnosis = _diagnose_data(tmp_path, gradients_N=gradients)
  assert _names(diagnosis) == [symptoms.RADIUS]
  assert 'correlation of -1.00' in diagnosis.findings[0].seen
  off = {'settings': {'school__enabled': False}, 'gradients_N': gradients}
  assert _diagnose_data(tmp_path / 'off', **off).findings == []


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    # A bin of 1000 samples holds 100.
    ({'train__batch_size': 32}, '100 samples for batches of 32'),
    # 10 000 cycles of 8, half of them from the lesson: 400 times each.
    ({'train__cycles': 10_000, 'school__mix': 0.5}, 'drawn 400 times'),
  ],
)
def test_small_lessons_are_named(tmp_path, settings, words):
  diagnosis = _diagnose_data(tmp_path, settings=settings)
  assert _names(diagnosis) == [symptoms.LESSONS]
  assert words in diagnosis.findings[0].seen


def test_samples_that_nobody_learns_are_named(tmp_path):
  def master(outliers):
    return lambda i: {'school/outliers': outliers if i > 5 else 0.0}

  for found, names in ((10.0, []), (11.0, [symptoms.OUTLIERS])):
    home = tmp_path / str(found)
    workdir = written.write(home, master=master(found))
    written.write_data(home, **written.varied())
    diagnosis = doctor.diagnose(workdir)
    assert _names(diagnosis) == names
  assert '1.1% of the samples' in diagnosis.findings[0].seen


def test_the_reference_has_no_fault_by_its_own_figures(tmp_path):
  held = reference.load()
  late = {k: (band.low[-5:], band.high[-5:]) for k, band in held.bands.items()}
  assert late['perplexity'][0].min() > 0.3
  assert late['saturated'][1].max() < 0.5
  assert late['penalty'][1].max() < 0.1
  # Of few evaluations, and only the last is judged.
  assert late['gap'][1][-1] < 1.5
  assert late['fallen'][1].max() < 0.7
  for side in ('low', 'high'):

    def clone(i, name, side=side):
      return {'agent/trim': getattr(held.bands[f'trim_{name}'], side)[i]}

    workdir = written.write(tmp_path / side, clone=clone)
    assert doctor.diagnose(workdir).findings == []


def test_fsq_is_not_told_to_turn_what_it_has_not(tmp_path):
  run = written.write(
    tmp_path,
    master=lambda i: {'codebook/perplexity': 2.0},
    model__quantizer='fsq',
    model__levels=(4, 4),
    model__revive_after=0,
    loss__vq=50.0,
  )
  (found,) = doctor.diagnose(run).findings
  assert found.name == symptoms.COLLAPSED
  assert '2.0 codes of 16' in found.seen
  assert '--config.model.levels' in found.turn
  for word in ('revive_after', 'loss.vq', 'commitment', 'model.codes'):
    assert word not in found.turn


def test_only_where_a_rate_was_found_is_the_audition_to_be_left_out(tmp_path):
  rising = {'clone': lambda i, name: {'loss/base': 0.3 + 0.02 * i}}
  for name, settings, is_told in (
    ('new', {}, True),
    ('tuned', {'init_from': 'tokenizer'}, False),
  ):
    run = written.write(tmp_path / name, **rising, **settings)
    turns = [x.turn for x in doctor.diagnose(run).findings]
    assert ['audition=False' in turn for turn in turns] == [is_told]


def test_an_evaluation_that_is_no_number_hides_no_other(tmp_path):
  workdir = written.write(tmp_path, held_out=(0.08, 0.12))
  path = pathlib.Path(workdir, history.NAME)
  lines = path.read_text().splitlines(keepends=True)
  row = history.Row(250, 0.0, {}, {'eval/path_l1': math.nan, 'eval/psnr': 22.0})
  lines.insert(5, f'{json.dumps(row._asdict())}\n')
  path.write_text(''.join(lines))
  (found,) = doctor.diagnose(workdir).findings
  assert found.name == symptoms.OVERFIT
  assert 'rose from 0.08 to 0.12' in found.seen
