"""What held-out figures were taken by."""

import json

import numpy as np

from chimera.evaluation import evaluate, protocol
from chimera.system import provenance
from tests import tiny


def test_the_protocol_names_what_pixel_figures_were_taken_by(tmp_path):
  config = tiny.get_config()
  config.data.held_out_source = '/data/test'
  config.eval.inception = str(tmp_path / 'inception.jax')
  (tmp_path / 'inception.jax').write_bytes(b'abc')
  held_out = evaluate.HeldOut(
    np.zeros((5, 8, 8, 3)), np.zeros((5, 64, 64, 3), np.uint8), np.zeros(5)
  )
  found = protocol.protocol(config, held_out, 7, 'as of stage 1')
  assert found['split'] == 'a source of its own'
  assert found['source'] == '/data/test'
  assert (found['count'], found['crop']) == (5, 64)
  assert found['color_range'] == '[-1, 1]'
  assert 'Lanczos' in found['resize_filter']
  assert '8 bits' in found['rounding']
  assert found['inception'] == 'inception.jax ba7816bf8f01'
  assert (found['cycles'], found['images_seen']) == (7, 7 * 4 * 4)
  after = protocol.protocol(config, held_out, 7, auditioned=1000)
  assert after['images_seen'] == 1000 + 7 * 4 * 4
  (tmp_path / 'config.json').write_text(config.to_json())
  kept = json.loads((tmp_path / 'config.json').read_text())
  assert found['config'] == provenance.digest(kept)


_PIXELS = np.zeros((5, 64, 64, 3), np.uint8)


def _protocol(images_NxSxSx3=_PIXELS, **data):
  config = tiny.get_config()
  config.data.update(data)
  held_out = evaluate.HeldOut(
    np.zeros((5, 8, 8, 3)), images_NxSxSx3, np.zeros(5)
  )
  return protocol.protocol(config, held_out, 7, 'as of stage 1')


def test_the_protocol_says_what_was_in_force_of_the_crops():
  assert _protocol()['crop_scale'] == '1 to 3, at random'
  assert _protocol(max_scale=1.5)['crop_scale'] == '1 to 1.5, at random'
  whole = _protocol(crop='whole', max_scale=3.0)
  assert whole['crop_scale'] == 'the largest centered square, one a photograph'
  assert (whole['crop'], whole['split']) == (64, 'held out by photograph')
  own = _protocol(crop='whole', held_out_source='/data/test.zip')
  assert own['split'] == 'a source of its own'
  assert own['source'] == '/data/test.zip'
  assert 'square' in own['crop_scale']


def test_of_path_params_nothing_was_cropped_or_resized():
  for found, split, source in (
    (_protocol(None, source='a.npy'), 'held out by sample', 'a.npy'),
    (
      _protocol(None, source='a.npy', held_out_source='b.npy', crop='whole'),
      'a source of its own',
      'b.npy',
    ),
  ):
    assert (found['split'], found['source']) == (split, source)
    assert not {'crop', 'crop_scale', 'resize_filter', 'rounding'} & set(found)
