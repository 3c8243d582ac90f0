"""The doctor: each fault is named, and a healthy run has none."""

import math
import re

import numpy as np
from PIL import Image, PngImagePlugin
import pytest

from chimera import doctor, latents, reference, train
from tests import tiny, written


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


def test_a_healthy_run_has_nothing(tmp_path):
  diagnosis = doctor.diagnose(written.write(tmp_path))
  assert diagnosis.findings == []
  text = doctor.describe(diagnosis)
  assert text.startswith('Nothing is wrong with')
  # Cycles above 750 are i = 15 to 19; the median of what falls is i = 17.
  assert f'{(0.3 + 0.4 * math.exp(-17 / 4)) / 0.7:.2f}' in text


FAULTS = {
  'few codes': (
    {'master': lambda i: {'codebook/perplexity': 12.0}},
    doctor.COLLAPSED,
    '12.0 codes of 1024',
  ),
  'ever fewer codes': (
    {'master': lambda i: {'codebook/perplexity': 600.0 if i < 12 else 150.0}},
    doctor.COLLAPSED,
    'after 600 at its best',
  ),
  'a flat loss': (
    {'clone': lambda i, name: {'loss/base': 0.7}},
    doctor.LOSS,
    '100% of what it was',
  ),
  'a rising loss': ({'clone': _rising}, doctor.LOSS, 'rose from 0.36 to 0.54'),
  'a rising loss at a high rate': (
    {'clone': _rising, 'train__learning_rate': 0.8},
    doctor.RATE,
    '--config.train.learning_rate=0.008',
  ),
  'no number': (
    {'clone': lambda i, name: {'loss/base': math.nan} if i > 17 else {}},
    doctor.LOSS,
    'not a number',
  ),
  'a clone left out': (
    {'master': lambda i: {'meld/dropped': float(i // 5)}},
    doctor.LOSS,
    'left out 3 time(s)',
  ),
  'a target out of reach': (
    # exp(5) = 148.4
    {'clone': _held_terms(1, 5.0, 0.0)},
    doctor.UNREACHABLE,
    'l1 of structural. The farthest is l1 of structural, 148 times above 0.045',
  ),
  # 0.3 * 1 + 0.2 = 0.5, the limit; 7 of 10 terms.
  'weights at the limit': (
    {'clone': _held_terms(7, 1.0, 0.2)},
    doctor.SATURATED,
    '7 of 40 loss weights',
  ),
  'a pinned trim': (
    {'clone': lambda i, name: {'agent/trim': 0.5}},
    doctor.AGENT,
    'perceptual keeps its least trim, 0.5',
  ),
  'a constant reward': (
    {'clone': lambda i, name: {'agent/reward': 0.0}},
    doctor.AGENT,
    'the reward of perceptual is always 0',
  ),
  'one action': (
    {'clone': lambda i, name: {'agent/action': 2}},
    doctor.AGENT,
    'perceptual always takes action 2',
  ),
  'a steep critic': (
    {'clone': lambda i, name: {'critic/penalty': 4.0}},
    doctor.CRITIC,
    'off by 2',
  ),
  'a critic beyond its reach': (
    # 100 / (sqrt(16 * 16 * 3) * 0.1) = 36.08
    {'clone': lambda i, name: {'critic/wasserstein': -100.0}},
    doctor.CRITIC,
    '36 times',
  ),
  'a loud critic': (
    {'clone': lambda i, name: {'loss/adv_share': 0.6}},
    doctor.CRITIC,
    '60% of a clone',
  ),
  'a gap': ({'held_out': (0.25, 0.2)}, doctor.OVERFIT, '2.00 times the L1'),
  'a gap that opens': (
    {'held_out': (0.1, 0.15)},
    doctor.OVERFIT,
    'rose from 0.1 to 0.15',
  ),
  'worse by the same config': (
    {'clone': lambda i, name: {'loss/base': 1.0 - 0.02 * i}},
    doctor.WORSE,
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
    {'master': lambda i: {'codebook/perplexity': 1.0 if i < 5 else 500.0}},
    {'held_out': (0.12, 0.12)},
  ],
)
def test_what_the_reference_may_do_is_no_fault(tmp_path, changes):
  changes = {'train__cycles': 1001, **changes}  # of another config
  assert _names(doctor.diagnose(written.write(tmp_path, **changes))) == []


def test_a_run_that_goes_on_has_a_note_and_no_finding(tmp_path):
  diagnosis = doctor.diagnose(written.write(tmp_path, done=600))
  assert diagnosis.findings == []
  assert 'cycle 600 of 1000' in diagnosis.notes[0]


def test_a_short_run_is_judged_by_what_must_never_be(tmp_path):
  def clone(i, name):
    return {'loss/base': 0.7, 'critic/penalty': 4.0}

  quiet = written.write(tmp_path / 'a', done=150, clone=clone)
  diagnosis = doctor.diagnose(quiet)
  assert diagnosis.findings == []
  assert any('too few for the curves' in note for note in diagnosis.notes)
  collapsed = written.write(
    tmp_path / 'b', done=150, master=lambda i: {'codebook/perplexity': 1.5}
  )
  assert _names(doctor.diagnose(collapsed)) == [doctor.COLLAPSED]


def test_another_config_is_named_and_compared_without_scales(tmp_path):
  diagnosis = doctor.diagnose(written.write(tmp_path, model__codes=512))
  assert any('model.codes = 512 (1024)' in note for note in diagnosis.notes)
  labels = [label for label, *_ in diagnosis.table]
  assert 'loss over the first one' in labels
  assert 'held-out L1' not in labels


def test_without_a_run_there_is_nothing_to_examine(tmp_path):
  with pytest.raises(ValueError, match=r'A run has its config\.json, got none'):
    doctor.diagnose(str(tmp_path))
  written.write(tmp_path, done=0)
  with pytest.raises(ValueError, match='the row of a log cycle, got none'):
    doctor.diagnose(str(tmp_path))


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
  assert _names(diagnosis) == [doctor.CONSTANT]
  assert '100% of the training crops' in diagnosis.findings[0].seen


def test_path_params_that_are_constant_are_named(tmp_path):
  diagnosis = _diagnose_data(
    tmp_path,
    gradients_N=np.full(1000, np.nan),
    paths_NxHxWxC=np.ones((1000, 16, 16, 3), np.float32),
  )
  assert _names(diagnosis) == [doctor.CONSTANT]


def test_equal_samples_are_named(tmp_path):
  paths = written.varied()['paths_NxHxWxC']
  # 900 different ones, the first 100 twice.
  paths[900:] = paths[:100]
  diagnosis = _diagnose_data(tmp_path, paths_NxHxWxC=paths)
  assert _names(diagnosis) == [doctor.COPIES]
  assert '10% of the training samples' in diagnosis.findings[0].seen


def test_one_photograph_in_many_files_is_named(tmp_path):
  rng = np.random.default_rng(0)
  folder = tmp_path / 'photographs'
  folder.mkdir()
  one, other = rng.integers(0, 256, (2, 64, 80, 3), dtype=np.uint8)
  for i in range(10):
    info = PngImagePlugin.PngInfo()
    info.add_text('Comment', f'{i}')
    picture = Image.fromarray(other if i == 9 else one)
    # Smooth, so that they stay themselves in 16 x 16.
    picture = picture.resize((8, 8)).resize((80, 64))
    picture.save(folder / f'{i}.png', pnginfo=info)
  sources = [str(folder / f'{i % 10}.png') for i in range(1000)]
  diagnosis = _diagnose_data(
    tmp_path / 'run',
    sources_N=sources,
    settings={'data__source': str(folder)},
  )
  # Nine files of one: eight copies of ten.
  assert _names(diagnosis) == [doctor.COPIES]
  assert '80% of the photographs' in diagnosis.findings[0].seen


def test_few_photographs_are_named(tmp_path):
  diagnosis = _diagnose_data(tmp_path, sources_N=['/a.png', '/b.png'] * 500)
  assert _names(diagnosis) == [doctor.FEW]
  assert 'from 2 photograph(s)' in diagnosis.findings[0].seen


def test_bins_that_do_not_differ_are_named(tmp_path):
  # The 10th and the 90th percentile are 0.8 of 0.01 apart, 2 % of 0.405.
  scores = np.linspace(0.4, 0.41, 1000)
  diagnosis = _diagnose_data(tmp_path, scores_N=scores)
  assert _names(diagnosis) == [doctor.BINS]
  assert '2.0% of its median' in diagnosis.findings[0].seen


def test_a_radius_without_meaning_is_named(tmp_path):
  gradients = written.varied()['gradients_N'][::-1]
  diagnosis = _diagnose_data(tmp_path, gradients_N=gradients)
  assert _names(diagnosis) == [doctor.RADIUS]
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
  assert _names(diagnosis) == [doctor.LESSONS]
  assert words in diagnosis.findings[0].seen


def test_causes_come_before_what_follows_from_them(tmp_path):
  diagnosis = _diagnose_data(
    tmp_path,
    gradients_N=np.zeros(1000),
    settings={'master': lambda i: {'codebook/perplexity': 1.0}},
  )
  assert _names(diagnosis) == [doctor.CONSTANT, doctor.COLLAPSED]
  text = doctor.describe(diagnosis)
  assert 'Mend the first one first' in ' '.join(text.split())
  assert text.index('1. Images') < text.index('2. Collapsed')


def test_a_trained_run_with_absurd_targets_is_told_so(tmp_path):
  config = tiny.get_config()
  config.train.cycles = 200
  config.train.log_every = config.train.cycles_per_dispatch = 20
  config.train.eval_every = config.train.checkpoint_every = 200
  config.eval.batch_size = config.data.held_out_count = 20
  for term in written.TERMS:
    config.pid.target[term] = (1e-6,) * 4
  _, paths = tiny.bins_and_paths()
  np.save(tmp_path / 'source.npy', paths)
  config.data.source = str(tmp_path / 'source.npy')
  workdir = tmp_path / 'run'
  workdir.mkdir()
  train.train(config, str(workdir), latents.prepare(config, str(workdir)))
  (workdir / 'config.json').write_text(config.to_json())
  assert doctor.UNREACHABLE in _names(doctor.diagnose(str(workdir)))


def test_the_reference_has_no_fault_by_its_own_figures():
  held = reference.load()
  late = {k: (band.low[-5:], band.high[-5:]) for k, band in held.bands.items()}
  assert late['perplexity'][0].min() > 0.3
  assert late['saturated'][1].max() < 0.5
  assert late['penalty'][1].max() < 0.1
  assert late['gap'][1].max() < 1.5
  assert late['fallen'][1].max() < 0.7
