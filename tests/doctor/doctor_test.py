"""The doctor: what it says of a run as a whole, healthy, short or spoilt."""

import math

import jax
import numpy as np
import pytest

from chimera.clones import state as state_lib
from chimera.doctor import doctor, symptoms
from chimera.monitor import history, observers
from tests import tiny, written


def _names(diagnosis):
  return [finding.name for finding in diagnosis.findings]


def test_a_healthy_run_has_nothing(tmp_path):
  diagnosis = doctor.diagnose(written.write(tmp_path))
  assert diagnosis.findings == []
  text = doctor.describe(diagnosis)
  assert text.startswith('Nothing is wrong with')
  # Cycles above 750 are i = 15 to 19; the median of what falls is i = 17.
  assert f'{(0.3 + 0.4 * math.exp(-17 / 4)) / 0.7:.2f}' in text


def test_a_run_that_goes_on_has_a_note_and_no_finding(tmp_path):
  diagnosis = doctor.diagnose(written.write(tmp_path, done=600))
  assert diagnosis.findings == []
  assert 'cycle 600 of 1000' in diagnosis.notes[0]


def test_a_short_run_is_evaluated_by_what_must_never_be(tmp_path):
  def clone(i, name):
    return {'loss/base': 0.7, 'critic/penalty': 4.0}

  quiet = written.write(tmp_path / 'a', done=150, clone=clone)
  diagnosis = doctor.diagnose(quiet)
  assert diagnosis.findings == []
  assert any('too few for the curves' in note for note in diagnosis.notes)
  collapsed = written.write(
    tmp_path / 'b', done=150, master=lambda i: {'codebook/perplexity': 1.5}
  )
  assert _names(doctor.diagnose(collapsed)) == [symptoms.COLLAPSED]


def test_another_config_is_named_and_compared_without_scales(tmp_path):
  diagnosis = doctor.diagnose(written.write(tmp_path, model__codes=512))
  assert any('model.codes = 512 (1024)' in note for note in diagnosis.notes)
  labels = [label for label, *_ in diagnosis.table]
  assert 'loss over the first one' in labels
  assert 'held-out L1 path' not in labels


def test_without_a_run_there_is_nothing_to_examine(tmp_path):
  with pytest.raises(ValueError, match=r'A run has its config\.json, got none'):
    doctor.diagnose(str(tmp_path))
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match='has not begun to train yet'):
    doctor.diagnose(str(tmp_path))
  written.write(tmp_path, done=0)
  with pytest.raises(ValueError, match='the row of a log cycle, got none'):
    doctor.diagnose(str(tmp_path))


def test_causes_come_before_what_follows_from_them(tmp_path):
  workdir = written.write(
    tmp_path, master=lambda i: {'codebook/perplexity': 1.0}
  )
  written.write_data(
    tmp_path, **{**written.varied(), 'gradients_N': np.zeros(1000)}
  )
  diagnosis = doctor.diagnose(workdir)
  assert _names(diagnosis) == [symptoms.CONSTANT, symptoms.COLLAPSED]
  text = doctor.describe(diagnosis)
  assert 'Fix the first one first' in ' '.join(text.split())
  assert text.index('1. Images') < text.index('2. Collapsed')


def test_a_trained_run_with_absurd_targets_is_told_so(tmp_path):
  config = tiny.get_config()
  config.train.cycles = 200
  for term in written.TERMS:
    config.specialists.structural.pid.target[term] = 1e-6
  (tmp_path / 'config.json').write_text(config.to_json())
  spec = state_lib.create_spec(config)
  _, log = tiny.run(config, 200, jax.local_devices()[:1], spec)
  rows = history.History(str(tmp_path))
  for done in range(20, 201, 20):
    seen = log[done - 1]
    clones = {
      name: observers.clone_scalars(seen, i, spec.terms)
      for i, name in enumerate(config.clone_names)
    }
    rows.append(done, clones, observers.master_scalars(seen, 1.0, spec))
  named = _names(doctor.diagnose(str(tmp_path)))
  assert symptoms.UNREACHABLE in named
  assert symptoms.COLLAPSED not in named
