"""Stage 1 on a handful of crops of real photographs."""

import collections
import csv
import errno
import functools
import json
import os
import pathlib
import re
import shutil

import jax
import numpy as np
from PIL import Image, ImageFile
import pytest
from scipy import stats

from chimera.data import crops as crops_lib
from chimera.data import cutting, images
from chimera.optics import stage_1, training
from chimera.run import init_from
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
  crops = cutting.read(data.crops, image_size=16)
  model, variables = data.optics
  encode = jax.jit(functools.partial(model.apply, method='encode'))
  for i in (0, 7, 8, 29):  # alone, not in the chunk in which it was written
    alone = encode(variables, images.to_float(crops[i : i + 1]))
    np.testing.assert_allclose(data.paths_NxHxWxC[i], alone[0], atol=1e-4)


def test_mean_radius_ranks_the_crops_by_gradient_magnitude(workdir):
  data = stage_1.prepare(_config(), workdir)
  crops = cutting.read(data.crops, image_size=16)
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
    training.encode_images(model, variables, data.held_out_images, 5),
    data.held_out_paths,
    atol=1e-4,
  )
  plan = crops_lib.plan_crops(
    'photos',
    held_out_source='',
    held_out_fraction=0.25,
    image_size=16,
    train_count=30,
    held_out_count=12,
    crop='random',
    max_scale=3.0,
    seed=_config().data.seed,
    permuted=0.8,
    mirrored=0.5,
  )
  assert data.crops == plan.train


class _EnoughError(Exception):
  """What is looked at is there."""


def test_every_file_that_was_skipped_is_listed_with_its_reason(
  tmp_path, warnings, monkeypatch
):
  folder, workdir = tmp_path / 'folder', tmp_path / 'run'
  folder.mkdir()
  for i in range(3):
    noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(noise).save(folder / f'{i}.png')
  shutil.copy(folder / '0.png', folder / 'cut, and long.png')
  os.truncate(folder / 'cut, and long.png', 700)
  (folder / 'empty.jpg').write_bytes(b'')
  config = _config()
  config.data.source = str(folder)

  def stop(*args, **kwargs):
    raise _EnoughError

  # Before anything is learned.
  monkeypatch.setattr(cutting, 'read', stop)
  with pytest.raises(_EnoughError):
    stage_1.prepare(config, str(workdir))
  (said,) = [line for line in warnings if 'Skipped' in line]
  assert said == (
    f'Skipped 2 image(s): {folder}/cut, and long.png: it ends too soon; '
    f'{folder}/empty.jpg: it is empty. See {workdir}/skipped.csv.'
  )
  with open(workdir / 'skipped.csv', newline='') as f:
    assert list(csv.reader(f)) == [
      ['source', 'reason'],
      [f'{folder}/cut, and long.png', 'it ends too soon'],
      [f'{folder}/empty.jpg', 'it is empty'],
    ]


def test_no_photograph_is_decoded_more_than_twice_whatever_is_killed(
  tmp_path, monkeypatch
):
  folder = tmp_path / 'folder'
  folder.mkdir()
  for i in range(5):
    noise = np.random.default_rng(i).integers(0, 256, (30, 20, 3), np.uint8)
    Image.fromarray(noise).save(folder / f'{i}.png')
  config = _config()
  config.data.source = str(folder)
  config.optics.chunk = 3  # which no photograph's crops are
  decoded = collections.Counter()
  load = ImageFile.ImageFile.load

  def count(image):
    if image.tile:  # there is something left to decode
      decoded[image.fp.name] += 1
    return load(image)

  monkeypatch.setattr(ImageFile.ImageFile, 'load', count)

  def kill(*args, **kwargs):
    raise _EnoughError

  # Killed before the crops are cut, and before all is encoded.
  for where, what in ((cutting, 'keep'), (training, 'gradients')):
    with monkeypatch.context() as patch:
      patch.setattr(where, what, kill)
      with pytest.raises(_EnoughError):
        stage_1.prepare(config, str(tmp_path / 'run'))
  stage_1.prepare(config, str(tmp_path / 'run'))
  # The one that is held out is cut at each beginning: such are few.
  assert sorted(decoded.values()) == [2, 2, 2, 2, 4]
  assert sorted(os.listdir(tmp_path / 'run' / 'optics')) == [
    *('crops.csv', 'digests.json', 'held_out.npz', 'optics.json'),
    *('optics.safetensors', 'sources.json'),
  ]


def test_a_run_takes_over_the_optics_that_it_starts_from(
  workdir, tmp_path, monkeypatch
):
  plan = crops_lib.plan_crops
  monkeypatch.setattr(
    crops_lib, 'plan_crops', lambda *a, **k: plan(*a, **k)._replace(copies=3)
  )
  exported = tiny.save_tokenizer(tmp_path / 'tokenizer')
  trained = {
    workdir: training.load_optics(workdir)[1],
    str(exported): export.load(exported).parts.variables,
  }
  for i, (folder, theirs) in enumerate(trained.items()):
    config = _config()
    config.init_from = folder
    config.optics.steps = 10**9
    home = tmp_path / str(i)
    data = stage_1.prepare(config, str(home), init_from.load_optics)
    model, ours = data.optics
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    crops = cutting.read(data.crops, image_size=16)
    np.testing.assert_allclose(
      training.encode_images(model, theirs, crops, 8),
      data.paths_NxHxWxC,
      atol=1e-5,
    )
    meta = json.loads((home / 'optics' / 'optics.json').read_text())
    assert meta['settings']['init_from'] == folder
    assert 'train_loss' not in meta['figures']
    assert meta['figures']['copies'] == 3
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


@pytest.fixture(scope='module')
def born():
  """Variables of the optics."""
  return tiny.parts().variables


@pytest.fixture
def mine(born, tmp_path):
  """(workdir, its stage 1) of `tmp_path / 'mine'`, by optics that are born."""
  folder = tmp_path / 'mine'
  folder.mkdir()
  for i in range(4):
    _paint(folder / f'{i}.bmp', i)
  (folder / 'z.png').write_bytes(b'no picture')
  config = _config()
  config.data.source = str(folder)
  config.init_from = 'born'
  run = tmp_path / 'run'
  return run, lambda: stage_1.prepare(config, str(run), lambda _: born)


def _paint(path, seed):
  rng = np.random.default_rng(seed)
  picture = rng.integers(256, size=(40, 40, 3), dtype=np.uint8)
  Image.fromarray(picture).save(path)


def _change(folder):
  """Of the same size and age."""
  before = (folder / '2.bmp').stat()
  _paint(folder / '2.bmp', 9)
  os.utime(folder / '2.bmp', ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = [
  (_change, r'\(changed: /.*/2\.bmp\)'),
  (lambda f: (f / '1.bmp').unlink(), r'\(gone: /.*/1\.bmp\)'),
  (lambda f: _paint(f / '!.bmp', 9), r'\(new: /.*/!\.bmp\)'),
  (lambda f: _paint(f / 'z.png', 9), r'\(changed: /.*/z\.png\)'),
  (
    lambda f: os.replace(f / '1.bmp', f / '5.bmp'),
    r'\(new: /.*/5\.bmp; gone: /.*/1\.bmp\)',
  ),
]


@pytest.mark.parametrize(('change', 'names'), CHANGES)
def test_optics_of_other_photographs_are_not_gone_on_with(
  mine, tmp_path, change, names
):
  run, prepare = mine
  prepare()
  path = run / 'latents.npy'
  written = path.read_bytes()
  path.unlink()
  photographs = tmp_path / 'mine'
  shutil.copytree(photographs, tmp_path / 'kept')
  before = _modified(run)
  change(photographs)
  with pytest.raises(ValueError, match=f'other photographs {names}: put') as e:
    prepare()
  assert '\n' not in str(e.value)
  assert _modified(run) == before
  # Put back, with other times: by their contents they are what they were.
  shutil.rmtree(photographs)
  shutil.copytree(tmp_path / 'kept', photographs, copy_function=shutil.copyfile)
  prepare()
  assert path.read_bytes() == written


@pytest.mark.parametrize(('change', 'names'), CHANGES)
def test_latents_are_gone_on_with_and_what_changed_is_said(
  mine, tmp_path, change, names, warnings
):
  run, prepare = mine
  data = prepare()
  before = _modified(run)
  change(tmp_path / 'mine')
  warnings.clear()
  again = prepare()
  np.testing.assert_array_equal(again.paths_NxHxWxC, data.paths_NxHxWxC)
  assert again.crops == data.crops
  assert _modified(run) == before
  if 'new' in names:  # nothing that the latents are of
    names = names.replace(r'new: /.*/5\.bmp; ', '')
  if 'new' in names:
    assert warnings == []
  else:
    [line] = warnings
    assert re.search(names, line)


def test_photographs_that_were_only_touched_are_read_once_more(
  mine, tmp_path, warnings, monkeypatch
):
  _, prepare = mine
  prepare()
  shutil.copy(tmp_path / 'mine' / '1.bmp', tmp_path / 'copy')
  os.replace(tmp_path / 'copy', tmp_path / 'mine' / '1.bmp')
  warnings.clear()
  prepare()
  monkeypatch.setattr(images, 'open_source', None)
  prepare()
  assert warnings == []


def test_of_optics_without_a_record_nothing_is_said(mine, tmp_path, warnings):
  run, prepare = mine
  prepare()
  (run / 'optics' / 'sources.json').unlink()
  _change(tmp_path / 'mine')
  warnings.clear()
  prepare()
  assert warnings == []
  (run / 'latents.npy').unlink()
  prepare()


def test_a_record_that_is_broken_is_not_believed(mine, warnings):
  run, prepare = mine
  prepare()
  record = run / 'optics' / 'sources.json'
  record.write_text(record.read_text().replace('.bmp', '.bmq'))
  warnings.clear()
  prepare()
  [line] = warnings
  assert 'sources.json is not as it was written' in line
  (run / 'latents.npy').unlink()
  with pytest.raises(ValueError, match=r'is not as it was written.*--workdir'):
    prepare()


def test_path_params_that_were_replaced_are_told(tmp_path, warnings):
  config = _config()
  config.data.source = str(tmp_path / 'mine.npy')
  config.data.held_out_source = str(tmp_path / 'held.npy')
  for name, value in (('mine', 0.5), ('held', 0.75)):
    np.save(tmp_path / f'{name}.npy', np.full((21, 4, 4, 3), value, np.float32))
  run = tmp_path / 'run'
  first = np.array(stage_1.prepare(config, str(run)).paths_NxHxWxC)
  np.save(config.data.source, np.full((21, 4, 4, 3), 0.25, np.float32))
  assert warnings == []
  again = stage_1.prepare(config, str(run))
  np.testing.assert_array_equal(again.paths_NxHxWxC, first)
  [line] = warnings
  assert 'changed: ' in line
  assert line.endswith('mine.npy).')
  # Nothing was learned from them: all latents are made of what is there now.
  (run / 'latents.npy').unlink()
  new = stage_1.prepare(config, str(run))
  assert np.all(new.paths_NxHxWxC == 0.25)
  assert len(warnings) == 1


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
    training.load_optics(str(tmp_path))
  meta = pathlib.Path(workdir, 'optics', 'optics.json').read_text()
  (tmp_path / 'optics' / 'optics.json').write_text(meta)
  (tmp_path / 'optics' / 'optics.safetensors').write_bytes(b'\0' * 64)
  with pytest.raises(ValueError, match='must hold trained optics'):
    training.load_optics(str(tmp_path))


@pytest.mark.parametrize(
  'architecture',
  [
    {'cell': '4'},
    {'cell': 4.0},
    {'width': 0},
    {'width': 16},
    {'cell': 8},
    {'width': 10**9},
    {'radius': 'wide'},
    {'radius': None},
    {'blocks': 10**6},
    {'of_tomorrow': 1},
  ],
)
def test_optics_of_another_architecture_are_refused_in_one_line(
  workdir, tmp_path, architecture
):
  shutil.copytree(os.path.join(workdir, 'optics'), tmp_path / 'optics')
  path = tmp_path / 'optics' / 'optics.json'
  meta = json.loads(path.read_text())
  meta['architecture'] |= architecture
  path.write_text(json.dumps(meta))
  with pytest.raises(ValueError, match='must hold trained optics') as e:
    training.load_optics(str(tmp_path))
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  'data', [b'', b'[]', b'{"settings": 7}', b'{', b'\xff', b'[' * 10**5]
)
def test_settings_that_are_none_are_refused_in_one_line(tmp_path, data):
  (tmp_path / 'optics').mkdir()
  (tmp_path / 'optics' / 'optics.json').write_bytes(data)
  with pytest.raises(ValueError, match=r'optics\.json must be the JSON') as e:
    stage_1.prepare(_config(), str(tmp_path))
  assert '\n' not in str(e.value)


def test_whole_crops_too_few_for_a_lesson_are_refused_before_anything_learns(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(stage_1, '_learn', lambda *_: 1 / 0)
  config = _config()
  config.data.crop = 'whole'  # 12 photographs, of which one is in bin 9
  with pytest.raises(ValueError, match=r'smallest lesson, 1 of 12 whole crops'):
    stage_1.prepare(config, str(tmp_path))
  config.train.batch_size = 1
  with pytest.raises(ZeroDivisionError):
    stage_1.prepare(config, str(tmp_path))


def test_loaded_optics_see_what_the_trained_ones_saw(workdir):
  model, variables = training.load_optics(workdir)
  data = stage_1.prepare(_config(), workdir)
  pixels = model.apply(variables, data.held_out_paths, method='decode')
  meta = pathlib.Path(workdir, 'optics', 'optics.json').read_text()
  error = pixels - images.to_float(data.held_out_images)
  psnr = 10 * np.log10(4 / np.mean(error**2, axis=(1, 2, 3)))
  np.testing.assert_allclose(
    json.loads(meta)['figures']['psnr'], psnr.mean(), rtol=1e-4
  )


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


def test_path_params_that_are_held_out_are_not_trained_on(tmp_path, said):
  rng = np.random.default_rng(0)
  paths = rng.uniform(0, 0.7, (40, 4, 4, 3)).astype(np.float32)
  config = _config()
  for name, rows in (('mine', paths[:30]), ('held', paths[20:])):
    np.save(tmp_path / f'{name}.npy', rows)
  config.data.source = str(tmp_path / 'mine.npy')
  config.data.held_out_source = str(tmp_path / 'held.npy')
  _, train_N, held_out = stage_1.split_path_params(config)
  # The 12 are from all over the file.
  rows = [int(np.flatnonzero((paths == x).all((1, 2, 3)))[0]) for x in held_out]
  assert len(set(rows)) == 12
  assert min(rows) >= 20
  assert max(rows) > 32
  np.testing.assert_array_equal(train_N, sorted({*range(30)} - {*rows}))
  np.save(config.data.source, paths[20:])
  with config.unlocked():
    config.data.held_out_count = 20
  with pytest.raises(ValueError, match=r'got 0 of .*held_out_source'):
    stage_1.split_path_params(config)
  assert '20 of 20 rows are held out too, and not trained on.' in said
  # Two rows are one where the source is split, too.
  config.data.held_out_source = ''
  np.save(config.data.source, np.concatenate([paths, paths]))
  _, train_N, held_out = stage_1.split_path_params(config)
  assert len(held_out) == 20
  both = {x.tobytes() for x in held_out}
  assert not any(paths[i % 40].tobytes() in both for i in train_N)


def _distinct(samples):
  rng = np.random.default_rng(0)
  return rng.uniform(0, 0.7, (samples, 4, 4, 3)).astype(np.float32)


@pytest.mark.parametrize(
  'error', [OSError(errno.ENOSPC, 'No space left'), preemption.Stopped(15, '')]
)
@pytest.mark.parametrize('name', ['fsync', 'replace'])
def test_what_fails_gives_its_room_back(tmp_path, monkeypatch, error, name):
  source = str(tmp_path / 'mine.npy')
  np.save(source, _distinct(21))
  config = _config()
  config.data.source = source
  run = tmp_path / 'run'
  run.mkdir()
  temporary = run / 'latents.npy.tmp'
  temporary.write_bytes(b'of a process that was killed')
  split, act = stage_1.split_path_params, getattr(os, name)

  def look(config):
    assert not temporary.read_bytes()
    return split(config)

  def fail(what, *to):
    if os.path.samefile(what, temporary):
      raise error
    return act(what, *to)

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
  np.save(source, _distinct(samples))
  config = _config()
  config.data.source = source
  run = tmp_path / 'run'
  run.mkdir()
  with pytest.raises(ValueError, match='at least 10 samples to train on'):
    stage_1.prepare(config, str(run))
  assert list(run.iterdir()) == []


def test_latents_in_float64_are_rounded_and_the_log_says_so(tmp_path, caplog):
  source = str(tmp_path / 'mine.npy')
  paths = np.linspace(0.1, 0.7, 40 * 48).reshape(40, 4, 4, 3)
  np.save(source, paths)
  config = _config()
  config.data.source = source
  with caplog.at_level('INFO', 'absl'):
    data = stage_1.prepare(config, str(tmp_path / 'run'))
  assert f'{source} holds float64, rounded to float32.' in caplog.messages
  rows = [int(c.source.split('[')[1][:-1]) for c in data.crops]
  np.testing.assert_array_equal(data.paths_NxHxWxC, np.float32(paths[rows]))
