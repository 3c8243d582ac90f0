"""Every rule of a config, and of whose a workdir is."""

import contextlib
import json
import pickle
import re

import numpy as np
from PIL import Image
import pytest

from chimera.doctor import doctor
from chimera.monitor import live
from chimera.run import config_json, preflight
from chimera.school import curriculum
from chimera.system import preemption
from configs import chimera as chimera_config


def _config(**changes):
  config = chimera_config.get_config()
  config.update_from_flattened_dict(
    {k.replace('__', '.'): v for k, v in changes.items()}
  )
  return config


def _snapshot(folder):
  return {
    str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob('*')
  }


@pytest.mark.parametrize(
  'variant',
  ['', '64', '128', '256', 'smoke', 'seed', 'control', '128,control,smoke'],
)
def test_every_variant_passes(variant):
  config = chimera_config.get_config(variant)
  preflight.check_config(config)
  preflight.check_data(config)


def test_inception_needs_pixels(tmp_path):
  for name in ('source.npy', 'inception.jax'):
    (tmp_path / name).write_bytes(b'x')
  config = _config(
    data__source=str(tmp_path / 'source.npy'),
    eval__inception=str(tmp_path / 'inception.jax'),
  )
  with pytest.raises(ValueError, match=r"eval\.inception must be one of ''"):
    preflight.check_config(config)


def test_the_default_has_64_pixels():
  assert chimera_config.get_config('64') == chimera_config.get_config()
  assert chimera_config.get_config().data.image_size == 64


@pytest.mark.parametrize(
  ('key', 'value', 'rule'),
  [
    ('basename', '', 'a plain file name'),
    ('basename', '../x', 'a plain file name'),
    ('basename', '.hidden', 'a plain file name'),
    ('seed', -1, 'in [0, 2147483647]'),
    ('devices', 3, 'one of 0, 1, 2, 4'),
    ('clone_names', (), 'one or more names'),
    ('clone_names', ('structural', 'd/e'), 'letters, digits and _'),
    ('clone_names', ('structural', 'structural'), 'each once'),
    ('clone_names', ('structural', 'tokenizer'), '(but master, ema, '),
    ('data__held_out_fraction', 0.0, 'in (0, 1)'),
    ('data__held_out_fraction', 1.0, 'in (0, 1)'),
    ('data__train_count', 9, 'at least 10'),
    ('data__held_out_count', 0, 'at least 1'),
    ('data__crop', 'center', "one of 'random', 'whole'"),
    ('data__max_scale', 0.5, 'at least 1'),
    ('optics__radius', 'contrasts', "one of 'local', 'contrast', 'free'"),
    ('optics__learning_rate', 0.0, 'above 0'),
    ('optics__batch_size', 1, 'at least 2'),
    ('school__mix', 1.1, 'in [0, 1]'),
    ('school__half_life', 0.0, 'above 0'),
    ('specialists.structural__bins', (0, 0), 'bins from 0 to 9, each once'),
    ('specialists.structural__bins', (), 'bins from 0 to 9, each once'),
    ('specialists.structural__bins', (10,), 'from 0 to 9'),
    ('model__downsample', 3, 'a power of 2'),
    ('model__downsample', 0, 'a power of 2'),
    ('model__downsample', 128, 'at most 64'),
    ('model__codes', 1, 'at least 2'),
    ('loss__l1', -0.1, 'at least 0'),
    ('loss__l1', float('nan'), 'at least 0'),
    ('loss__l1', float('inf'), 'at least 0'),
    ('loss__emphasis', 2.0, 'in [0, 1]'),
    ('specialists.adversarial.emphasis__ssim', -1.0, 'at least 0'),
    ('specialists.adversarial.pid__proportional', -0.1, 'at least 0'),
    ('specialists.adversarial.pid.target__l1', 0.0, 'above 0'),
    ('specialists.adversarial.q__low', 1.6, 'at most its q.high = 1.5'),
    ('q__actions', (), 'a tuple of numbers above 0'),
    ('q__actions', (1.0, 0.0), 'a tuple of numbers above 0'),
    ('q__window', 1, 'at least 2'),
    ('q__epsilon_end', 0.5, 'at most q.epsilon = 0.3'),
    ('q__discount', 1.0, 'in [0, 1)'),
    ('meld__alpha', 1.0, 'in [0, 1)'),
    ('meld__weights', 'masses', "one of 'equal', 'mass'"),
    ('meld__optimizer_state', 'none', "'local', 'shared_v', 'shared'"),
    ('train__batch_size', 0, 'at least 1'),
    ('train__schedule', 'linear', "one of 'cosine', 'wsd', 'constant'"),
    ('train__cycles', 1005, 'multiple of train.cycles_per_dispatch = 10'),
    ('train__log_every', 7, 'multiple of train.cycles_per_dispatch = 10'),
    ('train__eval_every', 7, 'multiple of train.cycles_per_dispatch = 10'),
    ('train__checkpoint_every', 7, 'multiple of train.cycles_per_dispatch'),
    ('train__keep', 0, 'at least 1'),
    ('data__image_size', 60, 'multiple of optics.cell * model.downsample = 8'),
    ('data__image_size', 24, 'at least 32 (32 and 40 work)'),
    ('data__image_size', 60, '(56 and 64 work)'),
    ('train__cycles', 7, 'at least 10 (10 and 20 work)'),
    ('train__batch_size', 8.0, 'a whole number up to 2147483647'),
    ('model__codes', 64.0, 'a whole number up to 16777216'),
    ('school__enrol_from', 100000000000, 'a whole number up to 2147483647'),
    ('train__cycles', 3000000000, 'a whole number up to 2147483647'),
    ('train__learning_rate', 1e40, 'a number from 1e-12 to 1000'),
    ('clone_names', ('structural', 'Ema'), '(but master, ema, '),
    ('clone_names', ('structural', 'Structural'), 'each once'),
  ],
)
def test_a_value_that_breaks_its_rule_is_one_line_with_its_flag(
  key, value, rule
):
  config = _config(train__cycles_per_dispatch=10)
  *groups, leaf = key.replace('__', '.').split('.')
  block = config
  for group in groups:
    block = block[group]
  with config.ignore_type():
    block[leaf] = value
  with pytest.raises(ValueError, match='must be') as e:
    preflight.check_config(config)
  message = str(e.value)
  assert rule in message
  assert repr(value) in message
  assert message.endswith(f'fix --config.{key.replace("__", ".")}.')
  assert '\n' not in message


def test_one_of_the_actions_leaves_the_rate_as_it_is():
  with pytest.raises(ValueError, match=r'q.actions must be .*1\.0 among them'):
    preflight.check_config(_config(q__actions=(0.9, 1.1)))
  preflight.check_config(_config(q__actions=(0.9, 1.1), q__enabled=False))


def test_a_share_of_a_gradient_is_wanted_below_one():
  key = 'specialists__adversarial__pid__target__adv'
  for wrong in (1.0, 5.0):
    with pytest.raises(ValueError, match=r'target\.adv must be in \(0, 1\)'):
      preflight.check_config(_config(**{key: wrong}))
  preflight.check_config(_config(**{key: 0.9}))


def test_what_is_learned_after_the_last_meld_is_not_thrown_away():
  for every, near in ((7, '994 and 1001 work'), (2000, '2000 and 4000 work')):
    with pytest.raises(ValueError, match=f'train.cycles must.*{near}'):
      preflight.check_config(_config(meld__every=every))
    off = _config(meld__every=every, meld__enabled=False)
    preflight.check_config(off)
  preflight.check_config(_config(meld__every=8))


@pytest.mark.parametrize('size', [32, 40, 72, 200, 104])
def test_sizes_that_the_critic_cannot_fold_are_good(size):
  preflight.check_config(_config(data__image_size=size, model__width=100))


def test_a_clone_has_a_weight_that_is_no_critics():
  config = _config(loss__emphasis=1.0)
  for term in config.specialists.structural.emphasis:
    if term != 'l1':
      config.specialists.structural.emphasis[term] = 0.0
  preflight.check_config(config)
  config.specialists.structural.emphasis.l1 = 0.0
  config.specialists.structural.emphasis.adv = 1.0
  with pytest.raises(ValueError, match='of structural but adv must have') as e:
    preflight.check_config(config)
  assert '\n' not in str(e.value)
  # FSQ has no vq.
  config.specialists.structural.emphasis.vq = 1.0
  preflight.check_config(config)
  config.model.quantizer = 'fsq'
  with pytest.raises(ValueError, match='of structural but adv must have'):
    preflight.check_config(config)


@pytest.mark.parametrize('suffix', ['npy', 'npz', 'pkl'])
def test_path_params_pass_the_rules_of_their_grid(tmp_path, suffix):
  def config(samples, *grid, **changes):
    paths = np.zeros((samples, *grid, 3), np.float32)
    source = tmp_path / f'a.{suffix}'
    if suffix == 'npy':
      np.save(source, paths)
    elif suffix == 'npz':
      np.savez(source, latents=paths)
    else:
      source.write_bytes(pickle.dumps({'latents': paths}))
    # Of 400 a quarter is held out; 300 are in lessons of 30 and more.
    changed = _config(data__source=str(source), **changes)
    preflight.check_config(changed)
    return changed

  for shape, downsample, batch_size, complaint in (
    ((400, 10, 12), 2, 8, None),
    ((400, 8, 20), 4, 8, None),
    ((400, 9, 11), 1, 8, None),
    ((400, 8, 8), 2, 30, None),
    ((400, 9, 12), 2, 8, 'model.downsample must be one of 1 (for the grid of'),
    ((400, 12, 20), 8, 8, 'model.downsample must be one of 1, 2, 4 (for the'),
    ((400, 7, 30), 1, 8, 'a grid of 8 x 8 or more, got 7 x 30'),
    ((400, 8, 8), 2, 31, 'the samples of the smallest lesson, 30, got'),
    ((20, 8, 8), 2, 8, 'the samples of the smallest lesson, 1, got'),
  ):
    ours = config(
      *shape, model__downsample=downsample, train__batch_size=batch_size
    )
    if complaint is None:
      preflight.check_data(ours)
    else:
      with pytest.raises(ValueError, match=re.escape(complaint)) as e:
        preflight.check_data(ours)
      assert '\n' not in str(e.value)


def test_a_name_without_a_block_is_refused_and_a_block_without_a_name_ignored():
  with pytest.raises(ValueError, match='got none for nobody: add it') as e:
    preflight.check_config(_config(clone_names=('nobody', 'structural')))
  assert '\n' not in str(e.value)
  two = _config(clone_names=('latent_purity', 'structural'))
  two.specialists.perceptual.bins = ()
  preflight.check_config(two)
  del two.specialists['adversarial']
  preflight.check_config(two)
  del two.specialists.structural.emphasis['ssim']
  with pytest.raises(ValueError, match=r'key specialists\.structural\.emph'):
    preflight.check_config(two)


@pytest.mark.parametrize(
  ('names', 'fit'),
  [
    (1, '0, 1, 2, 4, 8'),
    (2, '0, 1, 2, 4, 8, 16'),
    (3, '0, 1, 3, 6, 12, 24'),
    (8, '0, 1, 2, 4, 8, 16, 32, 64'),
  ],
)
def test_devices_must_divide_the_clones_or_their_batch_of_eight(names, fit):
  config = _config()
  config.clone_names = tuple('abcdefgh'[:names])
  for name in config.clone_names:
    config.specialists[name] = config.specialists.structural
  for devices in map(int, fit.split(', ')):
    config.devices = devices
    preflight.check_config(config)
  config.devices = 5
  with pytest.raises(ValueError, match=f'devices must be one of {fit}, got'):
    preflight.check_config(config)


@pytest.mark.parametrize('samples', [100, 101, 107, 3072])
def test_a_batch_is_at_most_the_smallest_lesson(samples):
  lessons = ((9,), (0, 1, 2, 3), (4, 5, 6), (7, 8))
  bins = curriculum.bin_samples(np.arange(samples, dtype=np.float32))
  smallest = min(sum(len(bins[b]) for b in lesson) for lesson in lessons)
  config = _config(data__train_count=samples, train__batch_size=smallest)
  preflight.check_config(config)
  config.train.batch_size = smallest + 1
  with pytest.raises(ValueError, match=f'smallest lesson, {smallest}, got'):
    preflight.check_config(config)


def test_a_whole_number_is_a_float_where_a_float_ships():
  config = _config()
  gains = config.specialists.structural.pid
  with config.unlocked():
    del config.loss.l1, gains.proportional
    config.loss.l1, gains.proportional = 1, 2
  assert type(config.loss.l1) is type(gains.proportional) is int
  config_json.make_floats(config)
  assert (config.loss.l1, gains.proportional) == (1, 2)
  assert type(config.loss.l1) is type(gains.proportional) is float
  assert type(config.train.cycles) is int
  assert '"l1": 1.0' in config.to_json()


def test_without_the_school_a_batch_is_drawn_from_everything():
  config = _config(data__train_count=100, train__batch_size=100)
  config.school.enabled = False
  preflight.check_config(config)
  config.train.batch_size = 101
  with pytest.raises(ValueError, match='smallest lesson, 100, got'):
    preflight.check_config(config)


def test_a_run_of_before_a_key_binds_as_one_that_never_had_it():
  values = config_json.keys(_config(train__audition=False, pid__bounded=False))
  then = {
    k: v
    for k, v in values.items()
    if k not in ('train.audition', 'pid.bounded', 'pid.vq_share')
  }
  assert preflight.binding(then) == preflight.binding(values)
  # And not as one of now.
  now = config_json.keys(_config())
  differ = preflight.binding(now).keys() - preflight.binding(then).keys()
  assert differ == {'train.audition', 'pid.bounded', 'pid.vq_share'}


def test_a_config_file_that_lacks_a_key_is_told_which():
  config = chimera_config.get_config()
  del config.train['warmup']
  with pytest.raises(ValueError, match=r'lacks the key train\.warmup'):
    preflight.check_config(config)


def test_a_config_file_with_a_key_too_many_is_told_the_nearest():
  config = chimera_config.get_config()
  config.train.warm_up = 3
  with pytest.raises(ValueError, match=r'mean --config\.train\.warmup'):
    preflight.check_config(config)


@pytest.mark.parametrize(
  ('key', 'near'),
  [
    ('train.bath_size', 'train.batch_size'),
    ('trian.batch_size', 'train.batch_size'),
    ('optics.cycles', 'train.cycles'),
    ('warmup', 'train.warmup'),
    ('sed', 'seed'),
    ('meld.outer_moment', 'meld.outer_momentum'),
  ],
)
def test_an_unknown_key_is_told_the_nearest(key, near):
  known = config_json.keys(chimera_config.get_config())
  with pytest.raises(ValueError, match='Unknown config key') as e:
    preflight.check_keys([key], known)
  assert str(e.value).endswith(f'did you mean --config.{near}?')


def test_a_word_like_nothing_gets_no_advice():
  assert preflight.nearest('qqqqqq', ['train', 'evaluate']) is None


def test_sources_that_are_not_there_are_refused(tmp_path):
  for source, complaint in {
    str(tmp_path / 'none'): 'no such folder',
    str(tmp_path): 'No readable image',
    str(tmp_path / 'a.npy'): 'No such file',
    '': 'no such folder',
  }.items():
    with pytest.raises(ValueError, match=complaint):
      preflight.check_data(_config(data__source=source))
  with pytest.raises(ValueError, match=r'--config\.data\.held_out_source'):
    preflight.check_data(_config(data__held_out_source=str(tmp_path / 'x')))
  Image.new('RGB', (9, 9)).save(tmp_path / 'a.png')
  preflight.check_data(_config(data__held_out_source=str(tmp_path)))


def _claim(config, workdir):
  with preflight.claim_workdir(config, str(workdir)):
    pass


def _trained(workdir, config):
  _claim(config, workdir)
  (workdir / 'checkpoints' / '100').mkdir(parents=True)
  (workdir / 'latents.npy').write_bytes(b'x')


def _prepared(workdir, config):
  _claim(config, workdir)
  (workdir / 'latents.npy').write_bytes(b'x')


def test_a_claim_writes_the_config_and_nothing_else(tmp_path):
  workdir = tmp_path / 'runs' / 'a'
  config = chimera_config.get_config()
  preflight.check_workdir(config, str(workdir))
  assert not workdir.exists()
  _claim(config, workdir)
  assert [p.name for p in workdir.iterdir()] == ['config.json']
  written = json.loads((workdir / 'config.json').read_text())
  assert written['train']['batch_size'] == 8
  assert written['specialists']['structural']['bins'] == [0, 1, 2, 3]
  preflight.check_workdir(config, str(workdir))


def test_the_same_config_goes_on(tmp_path):
  _trained(tmp_path, chimera_config.get_config())
  preflight.check_workdir(chimera_config.get_config(), str(tmp_path))


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('train__batch_size', 4),
    ('train__warmup', 20),
    ('data__source', '/elsewhere'),
    ('specialists__latent_purity__bins', (7,)),
    ('clone_names', ('structural', 'perceptual')),
    ('basename', 'other'),
  ],
)
def test_a_trained_workdir_of_another_config_is_refused(tmp_path, key, value):
  _trained(tmp_path, chimera_config.get_config())
  before = _snapshot(tmp_path)
  with pytest.raises(ValueError, match='of another config') as e:
    preflight.check_workdir(_config(**{key: value}), str(tmp_path))
  assert key.replace('__', '.') in str(e.value)
  assert 'give another --workdir' in str(e.value)
  assert '\n' not in str(e.value)
  assert _snapshot(tmp_path) == before


def test_nobody_is_sent_to_start_from_what_would_be_refused(tmp_path):
  _trained(tmp_path, chimera_config.get_config())

  def advice(**changes):
    with pytest.raises(ValueError, match='of another config') as e:
      preflight.check_workdir(_config(**changes), str(tmp_path))
    return str(e.value).rpartition(': ')[2]

  assert advice(train__batch_size=4) == (
    f'give another --workdir, and --config.init_from={tmp_path} to start from '
    'this one.'
  )
  assert advice(model__codes=32) == 'give another --workdir.'
  # Its agents are a workdir's, and no tokenizer's.
  assert advice(model__critic_width=16) == 'give another --workdir.'
  _exported(tmp_path / 'tokenizer')
  assert advice(model__critic_width=16) == (
    f'give another --workdir, and --config.init_from={tmp_path}/tokenizer to '
    'start from this one.'
  )
  assert advice(model__codes=32) == 'give another --workdir.'


def _of_an_earlier_chimera(workdir):
  """As `:smoke` of commit b8cdb0f, as far as it is read."""
  tree = json.loads(chimera_config.get_config().to_json())
  tree['school']['lessons'] = [[9], [0, 1, 2, 3], [4, 5, 6], [7, 8]]
  tree['specialists'] = {'strength': 0.3, 'l1': [0.7, 2.0, 0.7, 0.7]}
  tree['q']['low'] = [0.5, 0.5, 0.5, 0.5]
  (workdir / 'config.json').write_text(json.dumps(tree))
  (workdir / 'history.jsonl').write_text('')


def test_a_run_of_an_earlier_chimera_is_refused_in_a_line_that_helps(tmp_path):
  workdir = str(tmp_path)
  _trained(tmp_path, _config())
  _of_an_earlier_chimera(tmp_path)
  before = _snapshot(tmp_path)
  readers = (
    lambda: preflight.check_workdir(_config(), workdir),
    lambda: preflight.check_init_from(_config(init_from=workdir), 'w'),
    lambda: preflight.adopt(_config(), workdir, []),
    lambda: live.watch(workdir),
    lambda: doctor.diagnose(workdir),
  )
  for read in readers:
    with pytest.raises(ValueError, match=r'earlier .*: give a new --workdir\.'):
      read()
  assert _snapshot(tmp_path) == before
  _exported(tmp_path / 'tokenizer')
  for read in readers:
    with pytest.raises(ValueError, match='earlier') as e:
      read()
    assert str(e.value).startswith(f'{workdir} is of an earlier Chimera')
    assert f'--config.init_from={workdir}/tokenizer.' in str(e.value)
    assert '\n' not in str(e.value)
  preflight.check_init_from(_config(init_from=f'{workdir}/tokenizer'), 'w')


def test_what_an_earlier_chimera_prepared_is_still_good(tmp_path):
  _prepared(tmp_path, _config())
  _of_an_earlier_chimera(tmp_path)
  preflight.check_workdir(_config(), str(tmp_path))


def test_a_specialist_whom_the_config_lacks_comes_with_its_workdir(tmp_path):
  theirs = _config()
  theirs.specialists.texture = theirs.specialists.structural
  theirs.specialists.texture.bins = (2, 3)
  theirs.clone_names = ('perceptual', 'texture')
  _trained(tmp_path, theirs)
  config = _config()
  config.lock()
  preflight.adopt(config, str(tmp_path), ['train.cycles'])
  assert config.specialists.texture.bins == (2, 3)
  preflight.check_config(config)
  preflight.check_workdir(config, str(tmp_path))
  # Blocks that nobody is named by do not bind.
  config.specialists.latent_purity.bins = (1,)
  preflight.check_workdir(config, str(tmp_path))
  config.specialists.texture.bins = (2,)
  with pytest.raises(ValueError, match=r'specialists\.texture\.bins \(\[2, 3'):
    preflight.check_workdir(config, str(tmp_path))


def _exported(folder, **changes):
  """Of the default config; only what preflight reads."""
  meta = {
    'tokenizer': {
      'width': 64,
      'blocks': 2,
      'downsample': 2,
      'codes': 1024,
      'code_dim': 8,
      'norm': 'layer',
      'border': 'mean',
    },
    'optics': {'cell': 4, 'width': 48, 'radius': 'local', 'blocks': 3},
  }
  folder.mkdir()
  (folder / 'tokenizer.json').write_text(json.dumps({**meta, **changes}))
  return str(folder)


def _trained_elder(folder, **changes):
  folder.mkdir()
  _trained(folder, _config(**changes))
  return str(folder)


@pytest.mark.parametrize('make', [_exported, _trained_elder])
def test_a_run_starts_from_its_own_kind(tmp_path, make):
  folder = make(tmp_path / 'elder')
  workdir = str(tmp_path / 'w')
  config = _config(init_from=folder, data__image_size=128, train__batch_size=4)
  preflight.check_config(config)
  preflight.check_init_from(config, workdir)
  preflight.check_init_from(_config(), workdir)
  for key, there, here in (
    ('model__codes', 1024, 512),
    ('model__width', 64, 32),
    ('optics__cell', 4, 2),
    ('optics__radius', "'local'", "'free'"),
    ('model__norm', "'layer'", "'group'"),
    ('model__border', "'mean'", "'zeros'"),
  ):
    value = here.strip("'") if isinstance(here, str) else here
    with pytest.raises(ValueError, match='must be as in') as e:
      preflight.check_init_from(
        _config(init_from=folder, **{key: value}), workdir
      )
    key = key.replace('__', '.')
    assert str(e.value) == (
      f'{key} must be as in --config.init_from={folder}, {there}, got {here}: '
      f'fix --config.{key}.'
    )


def test_a_tokenizer_from_before_there_was_a_norm_has_groups(tmp_path):
  network = {'width': 64, 'blocks': 2, 'downsample': 2}
  network |= {'codes': 1024, 'code_dim': 8, 'border': 'mean'}
  older = _exported(tmp_path / 'older', tokenizer=network)
  with pytest.raises(ValueError, match=r"norm must be .*'group', got 'layer'"):
    preflight.check_init_from(_config(init_from=older), 'w')
  preflight.check_init_from(_config(init_from=older, model__norm='group'), 'w')


def test_a_run_starts_from_an_elder_of_its_own_quantizer(tmp_path):
  network = {'width': 64, 'blocks': 2, 'downsample': 2}
  network |= {'norm': 'layer', 'border': 'mean'}
  fsq = {'model__quantizer': 'fsq', 'model__levels': (4, 5)}
  for elder in (
    _exported(
      tmp_path / 'a',
      tokenizer={**network, 'quantizer': 'fsq', 'levels': [4, 5]},
    ),
    _trained_elder(tmp_path / 'b', **fsq),
  ):
    preflight.check_init_from(
      _config(init_from=elder, model__codes=2, **fsq), 'w'
    )
    for changes, text in (
      ({}, r"model\.quantizer must be as in .*, 'fsq', got 'vq'"),
      (fsq | {'model__levels': (5, 4)}, r'\[4, 5\], got \[5, 4\]'),
    ):
      with pytest.raises(ValueError, match=text):
        preflight.check_init_from(_config(init_from=elder, **changes), 'w')
  elder = _exported(tmp_path / 'c')
  with pytest.raises(ValueError, match="'vq', got 'fsq'"):
    preflight.check_init_from(_config(init_from=elder, **fsq), 'w')


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('model__critic_width', 8),
    ('clone_names', ('structural', 'perceptual')),
    ('q__window', 4),
    ('q__actions', (0.9, 1.0)),
    ('meld__enabled', False),
    ('meld__optimizer_state', 'shared'),
    ('q__enabled', False),
    ('q__history', 'total'),
    ('meld__outer_momentum', 0.9),
  ],
)
def test_a_workdir_binds_its_critics_and_agents_too(tmp_path, key, value):
  elder = _trained_elder(tmp_path / 'elder')
  with pytest.raises(ValueError, match=key.replace('__', r'\.')):
    preflight.check_init_from(_config(init_from=elder, **{key: value}), 'w')
  export = _exported(tmp_path / 'export')
  preflight.check_init_from(_config(init_from=export, **{key: value}), 'w')


def test_images_need_an_origin_with_optics_and_path_params_do_not(tmp_path):
  blind = _exported(tmp_path / 'blind', optics=None)
  with pytest.raises(ValueError, match='must have optics'):
    preflight.check_init_from(_config(init_from=blind), 'w')
  preflight.check_init_from(
    _config(init_from=blind, data__source='a.npy', optics__cell=2), 'w'
  )
  elder = _trained_elder(tmp_path / 'elder', data__source='a.npy')
  with pytest.raises(ValueError, match='must have optics'):
    preflight.check_init_from(_config(init_from=elder), 'w')


@pytest.mark.parametrize(
  ('text', 'complaint'),
  [
    ('{', r'tokenizer\.json is not readable'),
    ('[]', r'tokenizer\.json is not readable'),
    ('{"tokenizer": 3}', 'it lacks model.width'),
    ('{}', 'it lacks model.width'),
    ('{"tokenizer": {"width": "8"}}', "model.width must be .*, got '8'"),
    (
      '{"tokenizer": {"quantizer": ["vq"]}}',
      r'model\.quantizer must be one of',
    ),
  ],
)
def test_an_origin_that_is_none_is_refused_in_a_line(tmp_path, text, complaint):
  (tmp_path / 'tokenizer.json').write_text(text)
  with pytest.raises(ValueError, match=complaint) as e:
    preflight.check_init_from(_config(init_from=str(tmp_path)), 'w')
  assert '\n' not in str(e.value)
  for nothing in (tmp_path / 'none', tmp_path.parent):
    with pytest.raises(ValueError, match='a workdir with checkpoints'):
      preflight.check_init_from(_config(init_from=str(nothing)), 'w')


def test_a_resumed_run_needs_its_origin_no_more(tmp_path):
  config = _config(init_from=str(tmp_path / 'gone'))
  _trained(tmp_path, config)
  preflight.check_workdir(config, str(tmp_path))
  preflight.check_init_from(config, str(tmp_path))
  with pytest.raises(ValueError, match='init_from'):
    preflight.check_workdir(_config(init_from='other'), str(tmp_path))


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('devices', 1),
    ('train__keep', 5),
    ('train__keep_best', False),
    ('train__log_every', 10),
    ('train__eval_every', 20),
    ('train__checkpoint_every', 30),
    ('train__decay', 0.5),
    ('train__dashboard', False),
    ('eval__batch_size', 8),
    ('export__weights', 'ema'),
    ('tokens__crop', 'tiles'),
  ],
)
def test_what_nothing_learned_depends_on_may_change(tmp_path, key, value):
  _trained(tmp_path, chimera_config.get_config())
  preflight.check_workdir(_config(**{key: value}), str(tmp_path))


@pytest.mark.parametrize('schedule', ['constant', 'wsd'])
def test_without_a_cosine_a_run_may_be_of_another_length(tmp_path, schedule):
  _trained(tmp_path, _config(train__schedule=schedule))
  for cycles in (500, 2000):
    longer = _config(train__schedule=schedule, train__cycles=cycles)
    preflight.check_workdir(longer, str(tmp_path))
  with pytest.raises(ValueError, match=r'train\.cycles_per_dispatch \(1 there'):
    preflight.check_workdir(
      _config(train__schedule=schedule, train__cycles_per_dispatch=2),
      str(tmp_path),
    )


def test_a_cosine_is_as_long_as_it_was_planned(tmp_path):
  _trained(tmp_path, _config(train__schedule='cosine'))
  longer = _config(train__schedule='cosine', train__cycles=2000)
  with pytest.raises(ValueError, match='of another config') as e:
    preflight.check_workdir(longer, str(tmp_path))
  assert str(e.value) == (
    f'{tmp_path} is of another config, which differs in train.cycles (1000 '
    'there, 2000 now): give another --workdir, and --config.init_from='
    f'{tmp_path} to start from this one; only a run of --config.train.schedule'
    '=wsd can be made longer.'
  )


def test_prepared_latents_bind_what_they_were_made_by_and_no_more(tmp_path):
  _prepared(tmp_path, chimera_config.get_config())
  preflight.check_workdir(_config(train__batch_size=4), str(tmp_path))
  for key, value in (('optics__steps', 7), ('seed', 3), ('data__seed', 1)):
    with pytest.raises(ValueError, match='of another config'):
      preflight.check_workdir(_config(**{key: value}), str(tmp_path))


def test_a_run_that_failed_before_it_made_anything_binds_nothing(tmp_path):
  _claim(_config(data__source='/nope'), tmp_path)
  (tmp_path / 'optics').mkdir()
  preflight.check_workdir(chimera_config.get_config(), str(tmp_path))


def test_a_command_that_fails_before_it_made_anything_leaves_no_trace(tmp_path):
  config = chimera_config.get_config()
  workdir = tmp_path / 'w'
  with (
    pytest.raises(ValueError, match='wrong'),
    preflight.claim_workdir(config, str(workdir)),
  ):
    raise ValueError('wrong')
  assert list(tmp_path.iterdir()) == []
  _trained(workdir, config)
  before = _snapshot(workdir)
  with (
    pytest.raises(ValueError, match='wrong'),
    preflight.claim_workdir(_config(eval__preview=3), str(workdir)),
  ):
    raise ValueError('wrong')
  assert _snapshot(workdir) == before


def test_a_flag_of_a_command_that_does_not_bind_is_for_this_once(tmp_path):
  _trained(tmp_path, _config(seed=3))
  before = _snapshot(tmp_path)
  once = _config(seed=3, export__weights='ema')
  with preflight.claim_workdir(once, str(tmp_path), binds=False):
    pass
  assert _snapshot(tmp_path) == before
  config = _config()
  preflight.adopt(config, str(tmp_path), [])
  assert (config.seed, config.export.weights) == (3, 'master')


def test_what_a_command_made_before_it_failed_keeps_its_config(tmp_path):
  _claim(chimera_config.get_config(), tmp_path)
  config = _config(seed=3)

  def make_and_fail():
    (tmp_path / 'latents.npy').write_bytes(b'x')
    raise ValueError('wrong')

  with (
    pytest.raises(ValueError, match='wrong'),
    preflight.claim_workdir(config, str(tmp_path)),
  ):
    make_and_fail()
  preflight.check_workdir(config, str(tmp_path))
  with pytest.raises(ValueError, match='of another config'):
    preflight.check_workdir(chimera_config.get_config(), str(tmp_path))


def test_a_longer_run_keeps_its_config_once_it_has_a_checkpoint(tmp_path):
  _trained(tmp_path, chimera_config.get_config())
  longer = _config(train__cycles=2000)
  for ended, name, cycles in (
    (preemption.Stopped(15, ''), None, 1000),
    (KeyboardInterrupt(), None, 1000),
    (OSError('full'), 'checkpoints/1500', 2000),
  ):
    with (
      contextlib.suppress(type(ended)),
      preflight.claim_workdir(longer, str(tmp_path)),
    ):
      if name:
        (tmp_path / name).mkdir()
      raise ended
    assert config_json.read(tmp_path)['train.cycles'] == cycles


def test_where_the_latents_are_no_source_is_looked_for(tmp_path):
  config = _config(data__source='/gone')
  with pytest.raises(ValueError, match='no such folder: /gone'):
    preflight.check_data(config, str(tmp_path))
  (tmp_path / 'latents.npy').touch()
  preflight.check_data(config, str(tmp_path))


def test_the_first_host_alone_needs_the_networks_of_the_figures():
  config = _config(eval__features='/srv/only-there.npz')
  preflight.check_config(config)
  with pytest.raises(ValueError, match=r"eval\.features must be '' or a file"):
    preflight.check_data(config)


def test_folders_of_others_are_left_alone(tmp_path):
  config = chimera_config.get_config()
  for i, (name, text, complaint) in enumerate(
    (
      ('config.json', '{"name": "a web site"}', 'not of Chimera'),
      ('config.json', '[1, 2]', 'not readable'),
      ('config.json', '{"broken', 'not readable'),
      ('latents.npy', 'x', 'no config.json'),
    )
  ):
    workdir = tmp_path / str(i)
    workdir.mkdir()
    (workdir / name).write_text(text)
    before = _snapshot(workdir)
    with pytest.raises(ValueError, match=complaint):
      preflight.check_workdir(config, str(workdir))
    assert _snapshot(workdir) == before


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
  (tmp_path / 'a').write_text('x')
  with pytest.raises(ValueError, match='must be a folder'):
    preflight.check_workdir(chimera_config.get_config(), str(tmp_path / 'a'))
