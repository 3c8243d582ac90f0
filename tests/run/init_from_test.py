"""Fine-tuning: what a new run takes over, and what it does not."""

import os
import shutil

import jax
import numpy as np
import pytest

from chimera import train
from chimera.clones import state as state_lib
from chimera.optics import stage_1
from chimera.run import checkpoint, init_from
from chimera.run import rollbacks as rollbacks_lib
from chimera.tokenizer import export
from tests import tiny


def _config(source):
  c = tiny.get_config()
  c.data.source = str(source)
  c.data.held_out_count = 20
  c.train.cycles = 2
  c.train.log_every = 2
  c.train.eval_every = 2
  c.train.checkpoint_every = 2
  c.eval.batch_size = 20
  return c


@pytest.fixture(scope='module')
def elder(tmp_path_factory):
  """(workdir, config, figures) of a run on path_params."""
  home = tmp_path_factory.mktemp('elder')
  _, paths = tiny.bins_and_paths()
  np.save(home / 'source.npy', paths)
  np.save(home / 'fewer.npy', paths[:60])
  config = _config(home / 'source.npy')
  workdir = str(home / 'workdir')
  os.makedirs(workdir)
  # What preflight.claim_workdir writes.
  with open(os.path.join(workdir, 'config.json'), 'w') as f:
    f.write(config.to_json())
  data = stage_1.prepare(config, workdir)
  return workdir, config, train.train(config, workdir, data)


def _newborn(config, workdir):
  os.makedirs(workdir, exist_ok=True)
  data = stage_1.prepare(config, str(workdir))
  bins = train.prepare_curriculum(config, str(workdir), data)
  return data, *train.newborn(config, data, bins)


def _assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_array_equal(x, y)


def test_every_clone_of_an_exported_tokenizer_starts_as_it(elder, tmp_path):
  folder = os.path.join(elder[0], 'tokenizer')
  config = _config(elder[1].data.source)
  _, spec, newborn = _newborn(config, tmp_path)
  layout = spec.generator_layout
  clones = init_from.from_tokenizer(newborn, layout, folder)
  params = export.load(folder).parts.params
  for i in range(4):
    for params_MxP in (
      clones.generator.params,
      clones.master.params,
      clones.master.ema,
    ):
      _assert_equal(layout.tree(params_MxP[i]), params)
  _assert_equal(clones.generator.opt_state, newborn.generator.opt_state)
  for name in ('critic', 'pid', 'q', 'school', 'step'):
    _assert_equal(getattr(clones, name), getattr(newborn, name))


def test_another_architecture_of_an_export_is_refused(elder, tmp_path):
  config = _config(elder[1].data.source)
  config.model.codes = 32
  _, spec, newborn = _newborn(config, tmp_path)
  folder = os.path.join(elder[0], 'tokenizer')
  with pytest.raises(ValueError, match=r'codebook.*\(32, 4\), got \(16, 4\)'):
    init_from.from_tokenizer(newborn, spec.generator_layout, folder)


def test_from_a_workdir_critics_and_agents_go_on_bit_for_bit(elder, tmp_path):
  workdir, its_config, _ = elder
  data, _, target = _newborn(its_config, workdir)
  bins = train.prepare_curriculum(its_config, workdir, data)
  _, trained, _ = checkpoint.restore(its_config, workdir, target, bins)
  config = _config(os.path.join(os.path.dirname(workdir), 'fewer.npy'))
  config.init_from = workdir
  config.seed = 5
  data, _, newborn = _newborn(config, tmp_path)
  clones = init_from.inherit(config, newborn)
  for name in ('generator', 'critic', 'master', 'pid', 'q', 'own_loss'):
    _assert_equal(getattr(clones, name), getattr(trained, name))
  assert (np.abs(np.asarray(clones.pid.error_K)) > 0).any()
  for name in ('school', 'rng', 'step', 'dropped'):
    _assert_equal(getattr(clones, name), getattr(newborn, name))
  # Without a PID what it had added to the weights is gone.
  config.pid.enabled = False
  _assert_equal(init_from.inherit(config, newborn).pid, newborn.pid)
  config.pid.enabled = True
  assert clones.step.tolist() == [0] * 4
  samples = clones.school.varentropy_N.shape[1]
  assert samples < trained.school.varentropy_N.shape[1]
  # And where the run goes back further than its first checkpoint.
  workdir = str(tmp_path)
  bins = train.prepare_curriculum(config, workdir, data)
  kept = checkpoint.Checkpointer(config, workdir, bins)
  rollbacks = rollbacks_lib.Rollbacks(workdir, 2)
  rollbacks.add('diverged')
  done, again, _ = train.set_out(config, kept, rollbacks, newborn)
  assert done == 0
  _assert_equal(again.master, trained.master)
  assert (np.asarray(again.rng) != np.asarray(newborn.rng)).any()


def test_a_workdir_without_its_latents_is_refused(elder, tmp_path):
  config = _config(elder[1].data.source)
  _, _, newborn = _newborn(config, tmp_path / 'new')
  (tmp_path / 'config.json').write_text(config.to_json())
  latents = tmp_path / 'latents.npy'
  with pytest.raises(
    ValueError, match=r'must be a whole workdir.*latents\.npy'
  ):
    init_from.school_of(newborn, str(tmp_path))
  shutil.copy(os.path.join(elder[0], 'latents.npy'), latents)
  init_from.school_of(newborn, str(tmp_path))
  latents.write_bytes(latents.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r'latents\.npy must hold path_params'):
    init_from.school_of(newborn, str(tmp_path))
  (tmp_path / 'config.json').write_text('{"clone_names": []}')
  with pytest.raises(ValueError, match=r'config\.json is not as it was'):
    init_from.school_of(newborn, str(tmp_path))


def test_without_critic_or_learning_the_tokenizer_stays_what_it_was(
  elder, tmp_path
):
  workdir, its_config, before = elder
  config = _config(its_config.data.source)
  shutil.copytree(os.path.join(workdir, 'tokenizer'), tmp_path / 'elder')
  config.init_from = str(tmp_path / 'elder')
  config.loss.adv = 0.0
  config.train.learning_rate = 1e-12
  data = stage_1.prepare(config, str(tmp_path))
  after = train.train(config, str(tmp_path), data)
  for name in ('path_l1', 'path_psnr', 'path_ssim', 'path_edge'):
    np.testing.assert_allclose(
      after[f'master/{name}'], before[f'master/{name}'], rtol=1e-4
    )
  # From here on it goes by its own checkpoints.
  shutil.rmtree(tmp_path / 'elder')
  bins = train.prepare_curriculum(config, str(tmp_path), data)
  _, target = train.newborn(config, data, bins)
  done, clones, _ = checkpoint.restore(config, str(tmp_path), target, bins)
  assert done == 2
  assert isinstance(clones, state_lib.CloneState)
  assert train.train(config, str(tmp_path), data) == {}
