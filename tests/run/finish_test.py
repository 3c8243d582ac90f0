"""The optics finished at a run's end: of what, and where they cannot be."""

import functools

import jax
import numpy as np
from PIL import Image
import pytest

from chimera.data import cutting
from chimera.optics import finishing, stage_1
from chimera.run import finish
from configs import chimera as chimera_config
from tests import tiny


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """(config, data, workdir) of eight photographs in a folder."""
  home = tmp_path_factory.mktemp('finish')
  rng = np.random.default_rng(0)
  (home / 'photographs').mkdir()
  for i in range(8):
    pixels = rng.integers(0, 256, (5, 6, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC)
    picture.save(home / 'photographs' / f'{i}.png')
  c = chimera_config.get_config()
  c.data.source = str(home / 'photographs')
  c.data.image_size = 16
  c.data.train_count = 60
  c.data.held_out_count = 4
  c.optics.width = 8
  c.optics.steps = 5
  c.optics.batch_size = 4
  c.optics.finish = 3
  return c, stage_1.prepare(c, str(home / 'run')), str(home / 'run')


@pytest.fixture(scope='module')
def tokenizer():
  parts = tiny.parts()
  return parts.tokenizer, parts.params


@pytest.fixture
def asked(monkeypatch):
  """What `finishing.finish` is asked for, in its place."""
  calls = []

  def finish_as(model, variables, *arrays, **how):
    calls.append((*arrays, how))
    return 'finished'

  monkeypatch.setattr(finishing, 'finish', finish_as)
  return calls


def test_crops_meet_their_own_path_params_and_what_becomes_of_them(
  prepared, tokenizer, asked
):
  config, data, workdir = prepared
  found = finish.finish(config, *tokenizer, data, workdir)
  assert found.optics == (data.optics[0], 'finished')
  assert found.drawn_by == 'finished, 3 steps, for the master'
  assert data.drawn_by == 'as of stage 1'
  ((images, paths, made, how),) = asked
  # Of 60, at most the 3 steps of 4 that see one.
  chosen = np.arange(0, 60, 5)
  np.testing.assert_array_equal(paths[:12], data.paths_NxHxWxC[chosen])
  crops = [data.crops[i] for i in chosen]
  wanted = cutting.read(crops, image_size=16)
  np.testing.assert_array_equal(images[:12], wanted)
  # And for 16 of them, or fewer, one of one color, as the optics see it.
  assert images.shape == (13, 16, 16, 3) == (len(made), *images.shape[1:])
  (color,) = np.unique(images[12].reshape(-1, 3), axis=0)
  assert len(set(color.tolist())) > 1
  model, variables = data.optics
  flat = np.full((1, 16, 16, 3), color, np.float32) / 127.5 - 1
  encode = jax.jit(functools.partial(model.apply, method='encode'))
  seen = encode(variables, flat)
  np.testing.assert_allclose(paths[12:], seen, atol=1e-5)
  module, params = tokenizer
  # By hand, one sample alone.
  low = np.array([-np.pi, -np.pi / 4, 0], np.float32)
  high = np.array([np.pi, np.pi / 4, np.pi / 2], np.float32)
  x = 2 * (paths[5:6] - low) / (high - low) - 1
  x_hat, _, _ = jax.jit(module.apply)({'params': params}, x)
  alone = (np.asarray(x_hat) + 1) / 2 * (high - low) + low
  np.testing.assert_allclose(made[5:6], alone, atol=1e-4)
  assert (how['steps'], how['batch_size']) == (3, 4)


def test_without_optics_or_steps_nothing_is_done(prepared, tokenizer, asked):
  config, data, workdir = prepared
  blind = data._replace(optics=None)
  assert finish.finish(config, *tokenizer, blind, workdir) is blind
  config = config.copy_and_resolve_references()
  config.optics.finish = 0
  assert finish.finish(config, *tokenizer, data, workdir) is data
  assert not asked


def test_where_a_photograph_is_gone_the_optics_stay_with_a_warning(
  prepared, tokenizer, asked, caplog
):
  config, data, workdir = prepared
  gone = [crop._replace(source='/gone.png') for crop in data.crops]
  there = data._replace(crops=gone)
  assert finish.finish(config, *tokenizer, there, workdir) is there
  assert not asked
  assert 'The optics are not finished' in caplog.text
  assert '/gone.png' in caplog.text


def test_where_a_photograph_is_another_the_optics_stay_with_a_warning(
  prepared, tokenizer, asked, caplog
):
  config, data, workdir = prepared
  path = data.crops[0].source
  with open(path, 'rb') as f:
    before = f.read()
  try:
    Image.new('RGB', (48, 40), (9, 99, 199)).save(path)
    assert finish.finish(config, *tokenizer, data, workdir) is data
  finally:
    with open(path, 'wb') as f:
      f.write(before)
  assert not asked
  assert 'not finished (photographs are not what they were' in caplog.text


@pytest.mark.parametrize(
  'error', [FloatingPointError, jax.errors.JaxRuntimeError]
)
def test_where_they_diverge_or_do_not_fit_they_stay_with_a_warning(
  prepared, tokenizer, monkeypatch, caplog, error
):
  config, data, workdir = prepared

  def diverge(*args, **how):
    raise error('the squared error is nan')

  monkeypatch.setattr(finishing, 'finish', diverge)
  assert finish.finish(config, *tokenizer, data, workdir) is data
  assert 'not finished (the squared error is nan)' in caplog.text
