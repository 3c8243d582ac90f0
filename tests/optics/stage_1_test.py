"""Stage 1 on a handful of crops of real photographs."""

import errno
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from scipy import stats

from chimera.data import images
from chimera.optics import modules as optics
from chimera.optics import poincare, stage_1
from chimera.system import preemption
from chimera.tokenizer import export
from configs import chimera as chimera_config
from tests import tiny


def _config():
  c = chimera_config.get_config()
  c.data.image_size = 16
  c.data.train_count = 30
  c.data.held_out_count = 12
  c.optics.width = 8
  c.optics.steps = 5
  c.optics.batch_size = 4
  c.optics.chunk = 8
  return c


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('run'))
  stage_1.prepare(_config(), folder)
  return folder


def _modified(workdir):
  return {
    str(path): path.stat().st_mtime_ns
    for path in pathlib.Path(workdir).rglob('*.*')
  }


def test_every_crop_has_its_path_params(workdir):
  data = stage_1.prepare(_config(), workdir)
  assert data.paths_NxHxWxC.shape == (30, 4, 4, 3)
  assert data.paths_NxHxWxC.dtype == np.float32
  assert isinstance(data.paths_NxHxWxC, np.memmap)
  crops = images.read_crops(data.crops, image_size=16)
  model, variables = data.optics
  for i in (0, 7, 8, 29):  # alone, not in the chunk in which it was written
    alone = model.apply(
      variables, images.to_float(crops[i : i + 1]), method='encode'
    )
    np.testing.assert_allclose(data.paths_NxHxWxC[i], alone[0], atol=1e-4)


def test_mean_radius_ranks_the_crops_by_gradient_magnitude(workdir):
  data = stage_1.prepare(_config(), workdir)
  crops = images.read_crops(data.crops, image_size=16)
  gray = crops.astype(np.float64) @ [0.299, 0.587, 0.114]
  dy, dx = np.gradient(gray, axis=(1, 2))
  mean_radius = data.paths_NxHxWxC[..., 2].mean((1, 2))
  for g in (np.hypot(dx, dy).mean((1, 2)), data.gradients_N):
    assert stats.spearmanr(mean_radius, g).statistic > 0.9


def test_held_out_crops_come_from_other_photographs(workdir):
  data = stage_1.prepare(_config(), workdir)
  assert data.held_out_paths.shape == (12, 4, 4, 3)
  assert data.held_out_images.shape == (12, 16, 16, 3)
  model, variables = data.optics
  np.testing.assert_allclose(
    stage_1.encode_images(model, variables, data.held_out_images, 5),
    data.held_out_paths,
    atol=1e-4,
  )
  plan = images.plan_crops(
    'photos',
    held_out_source='',
    held_out_fraction=0.25,
    image_size=16,
    train_count=30,
    held_out_count=12,
    crop='random',
    max_scale=3.0,
    seed=_config().data.seed,
  )
  assert data.crops == plan.train


def test_a_run_takes_over_the_optics_that_it_starts_from(workdir, tmp_path):
  exported = tiny.save_tokenizer(tmp_path / 'tokenizer')
  trained = {
    workdir: stage_1.load_optics(workdir)[1],
    str(exported): export.load(exported).parts.variables,
  }
  for i, (folder, theirs) in enumerate(trained.items()):
    config = _config()
    config.init_from = folder
    config.optics.steps = 10**9
    home = tmp_path / str(i)
    data = stage_1.prepare(config, str(home))
    model, ours = data.optics
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    crops = images.read_crops(data.crops, image_size=16)
    np.testing.assert_allclose(
      stage_1.encode_images(model, theirs, crops, 8),
      data.paths_NxHxWxC,
      atol=1e-5,
    )
    meta = json.loads((home / 'optics' / 'optics.json').read_text())
    assert meta['settings']['init_from'] == folder
    assert 'train_loss' not in meta['figures']
    config.init_from = 'another'
    with pytest.raises(ValueError, match='was made with init_from'):
      stage_1.prepare(config, str(home))


def test_what_is_there_is_not_made_again(workdir):
  before = _modified(workdir)
  stage_1.prepare(_config(), workdir)
  assert _modified(workdir) == before
  assert not any(name.endswith('.tmp') for name in before)


def test_interrupted_before_the_end_only_the_rest_is_made(workdir):
  path = pathlib.Path(workdir, 'latents.npy')
  written = path.read_bytes()
  path.unlink()
  temporary = path.with_name('latents.npy.tmp')
  temporary.write_bytes(written[:1000])
  trained = pathlib.Path(workdir, 'optics', 'optics.safetensors')
  before = trained.stat().st_mtime_ns
  stage_1.prepare(_config(), workdir)
  assert trained.stat().st_mtime_ns == before
  assert path.read_bytes() == written
  assert not temporary.exists()


@pytest.mark.parametrize(
  'name', ['latents.npy', *(f'optics/{n}' for n in stage_1._FILES)]
)
def test_a_flipped_bit_is_refused_by_its_file(workdir, tmp_path, name):
  shutil.copytree(workdir, tmp_path / 'w')
  path = tmp_path / 'w' / name
  data = bytearray(path.read_bytes())
  data[-20] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match=pathlib.Path(name).name) as e:
    stage_1.prepare(_config(), str(tmp_path / 'w'))
  assert '\n' not in str(e.value)
  (tmp_path / 'w' / 'optics' / 'digests.json').unlink()
  with pytest.raises(ValueError, match='digests'):
    stage_1.prepare(_config(), str(tmp_path / 'w'))


def test_another_config_is_refused_by_the_key_that_differs(workdir):
  before = _modified(workdir)
  other = _config()
  other.optics.learning_rate = 1.0
  with pytest.raises(ValueError, match=r'optics\.learning_rate = 0\.00'):
    stage_1.prepare(other, workdir)
  assert _modified(workdir) == before
  larger_chunk = _config()
  larger_chunk.optics.chunk = 64
  stage_1.prepare(larger_chunk, workdir)


def test_latents_of_others_are_not_overwritten(tmp_path):
  path = tmp_path / 'latents.npy'
  path.write_bytes(b'precious')
  with pytest.raises(ValueError, match='another --workdir'):
    stage_1.prepare(_config(), str(tmp_path))
  assert path.read_bytes() == b'precious'


def test_broken_optics_are_refused_in_one_line(workdir, tmp_path):
  (tmp_path / 'optics').mkdir()
  with pytest.raises(ValueError, match='must hold trained optics'):
    stage_1.load_optics(str(tmp_path))
  meta = pathlib.Path(workdir, 'optics', 'optics.json').read_text()
  (tmp_path / 'optics' / 'optics.json').write_text(meta)
  (tmp_path / 'optics' / 'optics.safetensors').write_bytes(b'\0' * 64)
  with pytest.raises(ValueError, match='must hold trained optics'):
    stage_1.load_optics(str(tmp_path))


def test_loaded_optics_see_what_the_trained_ones_saw(workdir):
  model, variables = stage_1.load_optics(workdir)
  data = stage_1.prepare(_config(), workdir)
  pixels = stage_1.decode_paths(model, variables, data.held_out_paths, 5)
  meta = pathlib.Path(workdir, 'optics', 'optics.json').read_text()
  error = pixels - images.to_float(data.held_out_images)
  psnr = 10 * np.log10(4 / np.mean(error**2, axis=(1, 2, 3)))
  np.testing.assert_allclose(
    json.loads(meta)['figures']['psnr'], psnr.mean(), rtol=1e-4
  )


def test_training_lowers_the_error():
  rng = np.random.default_rng(0)
  colors = rng.integers(256, size=(64, 2, 2, 3), dtype=np.uint8)
  pictures = colors.repeat(4, 1).repeat(4, 2)
  model = optics.Optics(cell=4, width=8, radius='contrast', blocks=1)
  errors = []
  for steps in (1, 150):
    variables, _ = stage_1.train_optics(
      model,
      pictures,
      steps=steps,
      batch_size=8,
      learning_rate=1e-2,
      noise=0.0,
      seed=0,
    )
    paths = stage_1.encode_images(model, variables, pictures, 64)
    seen = stage_1.decode_paths(model, variables, paths, 64)
    errors.append(np.mean((seen - images.to_float(pictures)) ** 2))
  assert errors[1] < 0.4 * errors[0]


def test_optics_that_learned_in_noise_bear_the_errors_of_a_tokenizer():
  rng = np.random.default_rng(0)
  colors = rng.integers(256, size=(64, 2, 2, 3), dtype=np.uint8)
  pictures = colors.repeat(4, 1).repeat(4, 2)
  model = optics.Optics(cell=4, width=8, radius='contrast', blocks=1)
  harm = []
  for noise in (0.0, 0.2):
    variables, _ = stage_1.train_optics(
      model,
      pictures,
      steps=150,
      batch_size=8,
      learning_rate=1e-2,
      noise=noise,
      seed=0,
    )
    x = poincare.normalize(
      stage_1.encode_images(model, variables, pictures, 64)
    )
    wrong = poincare.denormalize(x + 0.2 * rng.normal(size=x.shape))
    seen, shown = (
      stage_1.decode_paths(model, variables, np.asarray(paths, np.float32), 64)
      for paths in (poincare.denormalize(x), wrong)
    )
    harm.append(np.mean((seen - shown) ** 2))
  assert harm[1] < 0.5 * harm[0]


def test_the_same_seed_trains_the_same_optics():
  rng = np.random.default_rng(0)
  pictures = rng.integers(256, size=(8, 8, 8, 3), dtype=np.uint8)
  model = optics.Optics(cell=4, width=8, radius='free', blocks=0)
  a, b, c = (
    stage_1.train_optics(
      model,
      pictures,
      steps=3,
      batch_size=2,
      learning_rate=1e-2,
      noise=0.1,
      seed=seed,
    )[0]
    for seed in (1, 1, 2)
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)
  kernels = [x['params']['look']['kernel'] for x in (a, c)]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-2


@pytest.mark.parametrize('key', ['steps', 'batch_size'])
def test_no_step_or_no_image_is_refused(key):
  keywords = {
    'steps': 1,
    'batch_size': 1,
    'learning_rate': 1e-3,
    'noise': 0.0,
    'seed': 0,
  }
  model = optics.Optics(cell=4, width=8, radius='free')
  pictures = np.zeros((1, 8, 8, 3), np.uint8)
  with pytest.raises(ValueError, match=rf'--config\.optics\.{key}'):
    stage_1.train_optics(model, pictures, **keywords | {key: 0})


def test_path_params_of_others_are_split_and_streamed(tmp_path):
  rng = np.random.default_rng(0)
  paths = rng.uniform(0, 0.7, (21, 4, 4, 3)).astype(np.float32)
  source = str(tmp_path / 'mine.npy')
  np.save(source, paths)
  config = _config()
  config.data.source = source
  data = stage_1.prepare(config, str(tmp_path / 'run'))
  assert data.optics is None
  assert data.gradients_N is None
  assert data.held_out_images is None
  assert len(data.held_out_paths) == 5  # a quarter of 21
  rows = [int(c.source.split('[')[1][:-1]) for c in data.crops]
  np.testing.assert_array_equal(data.paths_NxHxWxC, paths[rows])
  together = np.concatenate([data.paths_NxHxWxC, data.held_out_paths])
  np.testing.assert_array_equal(
    np.sort(together[:, 0, 0, 0]), np.sort(paths[:, 0, 0, 0])
  )


@pytest.mark.parametrize(
  'error', [OSError(errno.ENOSPC, 'No space left'), preemption.Stopped(15, '')]
)
@pytest.mark.parametrize('name', ['fsync', 'replace'])
def test_what_fails_gives_its_room_back(tmp_path, monkeypatch, error, name):
  source = str(tmp_path / 'mine.npy')
  np.save(source, np.full((21, 4, 4, 3), 0.5, np.float32))
  config = _config()
  config.data.source = source
  run = tmp_path / 'run'
  run.mkdir()
  temporary = run / 'latents.npy.tmp'
  temporary.write_bytes(b'of a process that was killed')
  split, act = stage_1.split_path_params, getattr(os, name)

  def look(config):
    assert not temporary.exists()
    return split(config)

  def fail(*args):
    if temporary.exists():
      raise error
    return act(*args)

  monkeypatch.setattr(stage_1, 'split_path_params', look)
  monkeypatch.setattr(os, name, fail)
  with pytest.raises(type(error)):
    stage_1.prepare(config, str(run))
  assert [p.name for p in run.iterdir()] == ['optics']
  monkeypatch.undo()
  assert stage_1.prepare(config, str(run)).paths_NxHxWxC.shape[0] == 16


@pytest.mark.parametrize('samples', [1, 12])
def test_latents_that_leave_no_ten_to_train_on_leave_no_trace(
  tmp_path, samples
):
  source = str(tmp_path / 'mine.npy')
  np.save(source, np.full((samples, 4, 4, 3), 0.5, np.float32))
  config = _config()
  config.data.source = source
  run = tmp_path / 'run'
  run.mkdir()
  with pytest.raises(ValueError, match='at least 10 samples to train on'):
    stage_1.prepare(config, str(run))
  assert list(run.iterdir()) == []


def test_latents_in_float64_are_rounded_and_the_log_says_so(tmp_path, caplog):
  source = str(tmp_path / 'mine.npy')
  np.save(source, np.full((40, 4, 4, 3), 1 / 3))
  config = _config()
  config.data.source = source
  with caplog.at_level('INFO', 'absl'):
    data = stage_1.prepare(config, str(tmp_path / 'run'))
  assert f'{source} holds float64, rounded to float32.' in caplog.messages
  np.testing.assert_array_equal(data.paths_NxHxWxC, np.float32(1 / 3))


def test_only_the_contrast_encoder_is_made_to_mean_complexity():
  rows = stage_1.compare_radius(
    'photos',
    '',
    seeds=1,
    steps=1,
    image_size=16,
    count=8,
    held_out_count=24,
    cell=4,
    width=4,
    batch_size=2,
    learning_rate=1e-3,
    noise=0.1,
  )
  free, contrast = sorted(rows, key=lambda row: row['radius'] == 'contrast')
  assert abs(free['correlation']) < 0.9
  assert contrast['correlation'] > 0.99
  assert np.isfinite([free['psnr'], contrast['psnr']]).all()
