"""What the README's Python does when it is run as it stands."""

import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from chimera import main
from chimera.tokenizer import tokens
from configs import chimera as chimera_config
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with what the README's examples open."""
  home = tmp_path_factory.mktemp('home')
  tokenizer = tiny.save_tokenizer(home / 'runs' / 'chimera' / 'tokenizer')
  rng = np.random.default_rng(0)
  photographs = home / 'photographs'
  photographs.mkdir()
  for i in range(8):
    ramp = np.linspace(0, 255, 64) * (i + 1) / 8
    picture = np.broadcast_to(ramp[:, None, None], (64, 64, 3))
    picture = picture + 10 * rng.normal(size=picture.shape)
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(
      photographs / f'{i}.png'
    )
  shutil.copy(photographs / '0.png', home / 'cat.jpg')
  config = chimera_config.get_config()
  config.tokens.crop = 'tiles'
  out = str(home / 'runs' / 'tokens')
  tokens.tokenize(str(photographs), str(tokenizer), out, config)
  return home


def _run(home, program):
  return subprocess.run(
    [sys.executable, '-c', program],
    cwd=home,
    env={'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'PATH': ''},
    capture_output=True,
    text=True,
    check=False,
  )


def test_tokens_in_five_lines(home):
  five = BLOCKS[0]
  assert len(re.findall(r'^\w.*', five, re.MULTILINE)) <= 6
  check = '\nassert tokens.shape == (1, 2, 2), tokens.shape\n'
  check += 'assert back.shape == (1, 16, 16, 3) and back.dtype == "uint8"'
  done = _run(home, five + check)
  assert done.returncode == 0, done.stderr


def test_the_artefact_opens(home):
  check = '\nimport numpy\nassert encode(numpy.zeros((3, 16, 16, 3), "f4"))'
  done = _run(home, BLOCKS[1] + check + '.shape == (3, 2, 2)')
  assert done.returncode == 0, done.stderr


def test_the_generator_learns_and_draws(home):
  program = BLOCKS[2]
  lines = [line for line in program.splitlines() if line.strip()]
  assert len(lines) < 60
  short, count = re.subn(r'adamw\(1e-3\), 300', 'adamw(1e-2), 60', program)
  assert count == 1
  done = _run(home, short)
  assert done.returncode == 0, done.stderr
  losses = [float(x) for x in re.findall(r': ([\d.]+) nats', done.stdout)]
  # Less than if it had learned nothing but how often each token comes.
  found = tokens.load(home / 'runs' / 'tokens').tokens_Nxhxw
  share = np.bincount(found.ravel()) / found.size
  entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
  assert losses[-1] < entropy < losses[0]
  with Image.open(home / 'samples.png') as picture:
    assert picture.size == (8 * 16, 16)


def test_every_command_stands_in_the_readme():
  for name in main.COMMANDS:
    assert re.search(rf'^\| `{name}[` ]', README, re.MULTILINE), name
