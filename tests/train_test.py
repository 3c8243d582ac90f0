"""The loop: files of the contract, resumption, held-out samples kept apart."""

import errno
import json
import os
import pathlib
import pickle
import shutil

import chex
import jax
import numpy as np
import pytest

from chimera import train
from chimera.evaluation import evaluate, sheets
from chimera.monitor import history, report, summary
from chimera.optics import poincare, stage_1
from chimera.run import audition, checkpoint, engine
from chimera.run import steps as steps_lib
from chimera.system import lock, provenance
from chimera.tokenizer import export
from tests import tiny


@pytest.fixture(scope='module')
def config():
  c = tiny.get_config()
  c.basename = 'tiny'
  c.train.cycles = 6
  c.train.schedule = 'wsd'
  c.train.warmup = 2
  c.train.decay = 0.4  # two cycles, of four as well
  c.train.cycles_per_dispatch = 2
  c.train.log_every = 2
  c.train.eval_every = 6
  c.train.checkpoint_every = 4
  c.eval.batch_size = 20
  c.data.held_out_fraction = 0.25
  c.data.held_out_count = 20
  return c


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  """(workdir, config, data, figures) of a run on path_params."""
  home = tmp_path_factory.mktemp('run')
  _, paths = tiny.bins_and_paths()
  np.save(home / 'source.npy', paths)
  config.data.source = str(home / 'source.npy')
  workdir = str(home / 'workdir')
  os.makedirs(workdir)
  data = stage_1.prepare(config, workdir)
  figures = train.train(config, workdir, data)
  return workdir, config, data, figures


@pytest.fixture(autouse=True)
def _no_more_artefacts(finished, monkeypatch):
  """What takes their time was seen to work in the first run."""
  monkeypatch.setattr(export, '_lower', tiny.no_artefacts)


def test_the_exported_tokenizer_is_the_master(finished):
  workdir, config, data, figures = finished
  loaded = export.load(os.path.join(workdir, 'tokenizer'))
  bins = train.prepare_curriculum(config, workdir, data)
  spec, host = train.newborn(config, data, bins)
  done, host, _ = checkpoint.restore(config, workdir, host, bins)
  master = spec.generator_layout.tree(host.master.params[0])
  x = poincare.normalize(data.held_out_paths)
  tokens = jax.jit(
    lambda p: spec.tokenizer.apply({'params': p}, x, method='tokenize')
  )(master)
  np.testing.assert_array_equal(loaded.encode(data.held_out_paths), tokens)
  came_from = loaded.meta['came_from']
  assert came_from['cycles'] == done == 6
  assert (
    came_from['evaluation']['master/path_l1'] == (figures['master/path_l1'])
  )


def auditioned(finished, monkeypatch, rate):
  """(config, data) of four cycles, whose audition finds that rate.

  Its best learner's weights are 2 w + 1, where those at birth are w.
  """
  _, config, data, _ = finished
  config = config.copy_and_resolve_references()
  config.train.audition = True
  config.train.cycles = 4
  found = audition.Audition([1e-3, 2e-3], [2.0, 1.0], rate)
  monkeypatch.setattr(audition, 'hold', lambda *args: (found, 2 * args[2] + 1))
  return config, data


def test_a_run_starts_as_its_audition_ends_and_keeps_the_rate_it_found(
  finished, tmp_path, monkeypatch, said, warnings
):
  # At a rate at which nothing is learned since.
  config, data = auditioned(finished, monkeypatch, 1e-20)
  train.train(config, str(tmp_path), data)
  assert 'Warm-up: 20 cycles, as of an audition (train.warmup: 2).' in said
  assert (
    'A warm-up of 20 of 4 cycles leaves 0 to the decay: raise '
    '--config.train.cycles, or lower --config.train.warmup where no audition '
    'set it.'
  ) in warnings
  bins = train.prepare_curriculum(config, str(tmp_path), data)
  spec, born = train.newborn(config, data, bins)
  _, host, _ = checkpoint.restore(config, str(tmp_path), born, bins)
  expected = spec.generator_layout.tree(2 * born.master.params[0] + 1)
  for of in (host.master.params, host.generator.params, host.master.ema):
    start = spec.generator_layout.tree(of[3])
    # Codes are made as long as 1 in each cycle.
    for name in set(start) - {'codebook'}:
      chex.assert_trees_all_close(start[name], expected[name], rtol=1e-5)
  record = json.loads((tmp_path / 'evaluation.json').read_text())['protocol']
  assert record['images_seen'] == (4 + 100) * 4 * 4

  # Its checkpoint knows the rate, whatever becomes of the file.
  (tmp_path / audition.NAME).unlink()
  monkeypatch.delattr(audition, 'hold')
  config.train.cycles = 6
  train.train(config, str(tmp_path), data)
  rows = [
    r for r in history.read(str(tmp_path)) if 'agent/lr' in r.of('perceptual')
  ]
  assert [row.cycle for row in rows] == [2, 4, 6]
  for name in config.clone_names:
    rates = [
      row.of(name)['agent/lr'] / row.of(name)['agent/trim'] for row in rows
    ]
    # It rises within the 20 cycles of an audition, not the 2 of the config.
    np.testing.assert_allclose(rates, [1e-21, 2e-21, 3e-21], rtol=1e-5)


def test_a_folder_that_another_process_writes_is_not_exported_to(
  finished, tmp_path
):
  workdir, config, data, _ = finished
  with lock.hold(tmp_path), pytest.raises(ValueError, match='another --out'):
    train.export_workdir(config, workdir, data, str(tmp_path))
  assert list(tmp_path.iterdir()) == []


def test_export_takes_the_average_where_told(finished, tmp_path):
  workdir, config, data, _ = finished
  config = config.copy_and_resolve_references()
  config.export.weights = 'ema'
  train.export_workdir(config, workdir, data, str(tmp_path / 'out'))
  loaded = export.load(tmp_path / 'out')
  bins = train.prepare_curriculum(config, workdir, data)
  spec, host = train.newborn(config, data, bins)
  _, host, _ = checkpoint.restore(config, workdir, host, bins)
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded.parts.params,
    spec.generator_layout.tree(host.master.ema[0]),
  )


def test_a_run_leaves_the_files_of_the_contract(finished):
  workdir, *_ = finished
  found = set(os.listdir(workdir))
  assert found >= {
    'optics',
    'latents.npy',
    'manifest.csv',
    'curriculum_bins_tiny.pkl',
    'checkpoints',
    'previews',
    'evaluation.json',
    'report.html',
    'tokenizer',
    'perceptual',
  }
  assert os.listdir(os.path.join(workdir, 'previews')) == ['0000006.png']
  assert any(name.startswith('events.out.tfevents') for name in found)


def test_every_training_sample_is_in_one_bin_and_no_held_out_one(finished):
  workdir, _, data, _ = finished
  with open(os.path.join(workdir, 'curriculum_bins_tiny.pkl'), 'rb') as f:
    bins = pickle.load(f)
  everyone = sorted(i for ids in bins.values() for i in ids)
  assert everyone == list(range(len(data.paths_NxHxWxC)))
  training = {x.tobytes() for x in np.asarray(data.paths_NxHxWxC)}
  assert len(data.held_out_paths)
  assert not any(x.tobytes() in training for x in data.held_out_paths)


def test_the_figures_on_disk_are_those_returned(finished):
  workdir, _, _, figures = finished
  with open(os.path.join(workdir, 'evaluation.json')) as f:
    written = json.load(f)
  protocol = written.pop('protocol')
  assert written == figures
  assert protocol['cycles'] == 6
  assert protocol['images_seen'] == 6 * 4 * 4
  # 100 of 120 are learned from; none has pixels.
  assert protocol['split'] == 'held out by sample'
  assert protocol['count'] == 20
  assert not {'crop', 'resize_filter', 'rounding'} & set(protocol)
  assert protocol['commit'] == provenance.commit()
  assert {k.split('/')[0] for k in figures} == {
    'master',
    'ema',
    'perceptual',
    'structural',
    'adversarial',
    'latent_purity',
  }


def test_evaluate_finds_what_training_saw_of_every_tokenizer(finished):
  workdir, config, data, figures = finished
  again = train.evaluate_workdir(config, workdir, data)
  assert again == figures
  names = config.clone_names
  assert len({again[f'{name}/path_l1'] for name in names}) == len(names)


def test_the_sheet_on_disk_names_its_rows_and_can_be_cut(finished):
  workdir, config, *_ = finished
  path = os.path.join(workdir, 'previews', '0000006.png')
  sheet = sheets.geometry(path)
  assert sheet.rows == ('original', 'master', *config.clone_names, 'error x4')
  tiles = sheets.tiles(path)
  assert tiles.shape == (7, config.eval.preview, sheet.tile, sheet.tile, 3)
  np.testing.assert_array_equal(
    tiles[-1], evaluate.error_map(tiles[0], tiles[1])
  )


def test_a_failing_report_is_one_warning(finished, warnings, monkeypatch):
  workdir, config, *_ = finished

  def write(*_, **__):
    raise OSError('No space left on device')

  monkeypatch.setattr(report, 'write', write)
  page = pathlib.Path(workdir, 'report.html')
  before = page.read_bytes()
  train.save_report(config, workdir, None, [])
  [line] = warnings
  assert 'No space left on device' in line
  assert not page.exists()  # it may be of an earlier cycle
  page.write_bytes(before)


def test_an_evaluation_is_remembered_of_clones_and_master(finished):
  workdir, config, _, figures = finished
  row = history.read(workdir)[-1]
  assert row.cycle == 6
  for name in config.clone_names:
    assert row.clones[name]['eval/path_l1'] == figures[f'{name}/path_l1']
  assert row.master['eval/path_l1'] == figures['master/path_l1']


def test_a_finished_run_has_nothing_to_do(finished):
  workdir, config, data, _ = finished
  assert train.train(config, workdir, data) == {}


def test_what_is_made_of_the_last_cycle_is_made_up_for(finished, tmp_path):
  workdir, config, data, figures = finished
  shutil.copytree(workdir, tmp_path / 'w')
  for name in ('report.html', 'evaluation.json'):
    os.unlink(tmp_path / 'w' / name)
  found = train.train(config, str(tmp_path / 'w'), data)
  assert found['master/path_l1'] == figures['master/path_l1']
  assert (tmp_path / 'w' / 'report.html').exists()
  assert train.train(config, str(tmp_path / 'w'), data) == {}


def test_the_last_checkpoint_holds_the_best_and_the_table(finished):
  workdir, config, data, figures = finished
  bins = train.prepare_curriculum(config, workdir, data)
  _, target = train.newborn(config, data, bins)
  kept = checkpoint.Checkpointer(config, workdir, bins)
  kept.restore(target)
  extra = kept.extra
  assert extra['best'] == {'cycle': 6, 'score': figures['master/path_l1']}
  assert extra['is_evaluated']
  assert [row['name'] for row in extra['rows']] == list(config.clone_names)


def test_a_signal_in_the_last_evaluation_is_made_up_for_once(
  finished, tmp_path, monkeypatch
):
  workdir, config, data, _ = finished
  shutil.copytree(workdir, tmp_path / 'w')
  for name in ('report.html', 'evaluation.json', 'tokenizer'):
    path = tmp_path / 'w' / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  restore = checkpoint.Checkpointer.restore

  def not_judged(self, born):
    restored = restore(self, born)
    self.extra['is_evaluated'] = False
    return restored

  monkeypatch.setattr(checkpoint.Checkpointer, 'restore', not_judged)
  assert train.train(config, str(tmp_path / 'w'), data)
  assert train.train(config, str(tmp_path / 'w'), data) == {}


def test_a_tokenizer_that_finds_no_room_is_an_error_and_made_up_for(
  finished, tmp_path, monkeypatch
):
  workdir, config, data, _ = finished
  shutil.copytree(workdir, tmp_path / 'w')
  shutil.rmtree(tmp_path / 'w' / 'tokenizer')

  def full(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device', 'weights')

  with monkeypatch.context() as patched:
    patched.setattr(export, 'save', full)
    with pytest.raises(OSError, match=r'not exported: .* No space left'):
      train.train(config, str(tmp_path / 'w'), data)
  assert (tmp_path / 'w' / 'report.html').exists()

  def show(_):
    assert (tmp_path / 'w' / 'tokenizer' / export.META).exists()
    raise BrokenPipeError(errno.EPIPE, 'Broken pipe')

  # The table is the last thing.
  with monkeypatch.context() as patched:
    patched.setattr(summary, 'show', show)
    with pytest.raises(BrokenPipeError):
      train.train(config, str(tmp_path / 'w'), data)
  assert train.train(config, str(tmp_path / 'w'), data) == {}


def test_a_run_that_is_made_shorter_is_one_of_that_length(finished, tmp_path):
  planned, config, data, figures = finished
  workdir = tmp_path / 'w'
  shutil.copytree(planned, workdir)
  shorter = config.copy_and_resolve_references()
  shorter.train.update(cycles=4, decay=0.0)
  assert train.train(shorter, str(workdir), data)
  page = (workdir / 'report.html').read_text()
  assert '<p>4 cycles, 64 images seen' in page
  assert 'Cycle 6' not in page
  assert all(f'>{name}<' in page for name in config.clone_names)
  assert train.train(shorter, str(workdir), data) == {}
  bins = train.prepare_curriculum(config, str(workdir), data)
  _, target = train.newborn(config, data, bins)
  done, *_ = checkpoint.restore(shorter, str(workdir), target, bins)
  assert done == 4  # which `evaluate` and `export` take too
  # Nothing is lost by it.
  assert train.train(config, str(workdir), data) == figures
  assert '<p>6 cycles, 96 images' in (workdir / 'report.html').read_text()


def test_a_resumed_run_ends_like_an_uninterrupted_one(finished, tmp_path):
  workdir, config, data, _ = finished
  bins = train.prepare_curriculum(config, str(tmp_path), data)
  _, target = train.newborn(config, data, bins)
  done, *whole = checkpoint.restore(config, workdir, target, bins)
  assert done == 6
  # The run that was cut off left its checkpoint of cycle 4 and no later one.
  earlier = checkpoint.open_steps(config, workdir)
  assert earlier.steps() == [4, 6]
  os.makedirs(tmp_path / 'checkpoints')
  os.rename(
    os.path.join(workdir, 'checkpoints', '4'), tmp_path / 'checkpoints' / '4'
  )
  train.train(config, str(tmp_path), data)
  done, *resumed = checkpoint.restore(config, str(tmp_path), target, bins)
  assert done == 6
  for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole)):
    np.testing.assert_array_equal(a, b)


def _interrupted(self):
  raise KeyboardInterrupt


def test_a_run_that_is_made_longer_is_one_that_was_planned_so(
  finished, tmp_path, monkeypatch
):
  """From before its decay, bit for bit, with other free keys."""
  planned, config, data, figures = finished
  shorter = config.copy_and_resolve_references()
  shorter.train.update(cycles=4, eval_every=4, keep=1)
  shorter.eval.preview = 3
  workdir = str(tmp_path)
  train.train(shorter, workdir, data)
  assert checkpoint.open_steps(shorter, workdir).steps() == [2, 4]
  assert os.listdir(tmp_path / 'previews') == ['0000004.png']
  # Who ends it before its first dispatch has lost nothing.
  before = history.read(workdir)
  with monkeypatch.context() as patched:
    patched.setattr(engine.Engine, 'dispatch', _interrupted)
    with pytest.raises(KeyboardInterrupt):
      train.train(config, workdir, data)
  assert history.read(workdir) == before
  assert os.listdir(tmp_path / 'previews') == ['0000004.png']
  assert train.train(config, workdir, data) == figures
  assert os.listdir(tmp_path / 'previews') == ['0000006.png']
  rows = history.read(workdir)
  assert [row.cycle for row in rows] == [2, 4, 6, 6]  # and an evaluation
  for ours, theirs in zip(rows, history.read(planned), strict=True):
    assert ours.clones == theirs.clones
  bins = train.prepare_curriculum(config, workdir, data)
  _, target = train.newborn(config, data, bins)
  ours, theirs = (
    checkpoint.restore(config, home, target, bins)
    for home in (workdir, planned)
  )
  assert ours[0] == 6
  for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(x, y)


def test_a_checkpoint_of_4_devices_goes_to_1_2_and_4_and_back(
  finished, tmp_path
):
  workdir, config, data, _ = finished
  bins = train.prepare_curriculum(config, workdir, data)
  _, target = train.newborn(config, data, bins)
  _, whole, _ = checkpoint.restore(config, workdir, target, bins)
  on_4 = engine.put(whole, engine.choose_devices(4, 4, 8))
  for count in (1, 2, 4):
    checkpoints = steps_lib.Steps(tmp_path / str(count), keep=2)
    checkpoints.save(1, engine.fetch(on_4), {})
    _, there, _ = checkpoints.restore(target)
    there = engine.put(there, engine.choose_devices(count, 4, 8))
    checkpoints.save(2, engine.fetch(there), {})
    _, back, _ = checkpoints.restore(target)
    on_4 = engine.put(back, engine.choose_devices(4, 4, 8))
    for a, b in zip(
      jax.tree.leaves(engine.fetch(on_4)), jax.tree.leaves(whole)
    ):
      assert a.dtype == b.dtype
      assert np.asarray(a).tobytes() == b.tobytes()
