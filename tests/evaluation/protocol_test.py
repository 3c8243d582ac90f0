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
  found = protocol.protocol(config, held_out, 7)
  assert found['split'] == 'a source of its own'
  assert found['source'] == '/data/test'
  assert (found['count'], found['crop']) == (5, 64)
  assert found['color_range'] == '[-1, 1]'
  assert 'Lanczos' in found['resize_filter']
  assert '8 bits' in found['rounding']
  assert found['inception'] == 'inception.jax ba7816bf8f01'
  assert (found['cycles'], found['images_seen']) == (7, 7 * 4 * 4)
  (tmp_path / 'config.json').write_text(config.to_json())
  kept = json.loads((tmp_path / 'config.json').read_text())
  assert found['config'] == provenance.digest(kept)
