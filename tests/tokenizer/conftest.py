"""A tokenizer as it is born, and photographs for it."""

import shutil

import numpy as np
from PIL import Image
import pytest

from configs import chimera as chimera_config
from tests import tiny


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tiny.save_tokenizer(tmp_path_factory.mktemp('export') / 'tokenizer')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Nine photographs of several sizes, a corrupt one and a speck."""
  home = tmp_path_factory.mktemp('photographs')
  rng = np.random.default_rng(0)
  for i in range(9):
    size = (17 + 6 * i, 40 - 3 * i)
    picture = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(picture).save(home / f'{i}.png')
  (home / '3.5.jpg').write_bytes(b'no picture')
  Image.new('RGB', (3, 40)).save(home / '4.5.png')  # a cell is 4 pixels
  (home / 'inner').mkdir()
  shutil.copy(home / '0.png', home / 'inner' / '0.png')
  return home


@pytest.fixture
def config():
  c = chimera_config.get_config()
  c.tokens.batch_size = 4
  c.tokens.shard = 7
  return c
