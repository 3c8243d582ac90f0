"""The READMEs: their Python run as it stands, and that they lead somewhere."""

import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from chimera import main
from chimera.tokenizer import store, tokens
from configs import chimera as chimera_config
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
PACKAGES = sorted(p.parent for p in (ROOT / 'chimera').glob('*/__init__.py'))
PAGES = [
  *(ROOT / 'README.md', ROOT / 'WORKSPACE.md'),
  *(ROOT / folder / 'README.md' for folder in ('configs', 'launch', 'tests')),
  *sorted((ROOT / 'chimera').rglob('*.md')),
]
CODE = ('.py', '.sh')
# Read by whoever wrote this, and left behind.
UNSHIPPED = re.compile(r'DESIGN|STYLE\.md|design_card|project_chimera_design')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with what the README's examples open."""
  home = tmp_path_factory.mktemp('home')
  tokenizer = home / 'runs' / 'chimera' / 'tokenizer'
  tiny.save_tokenizer(tokenizer, artefacts=True)
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
  for out, config.tokens.crop in (('tokens', 'center'), ('whole', 'whole')):
    out = str(home / 'runs' / out)
    tokens.tokenize(str(photographs), str(tokenizer), out, config)
  return home


def _example(page):
  """The Python of a page."""
  text = (ROOT / page).read_text()
  (block,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  return block


def _run(home, program):
  return subprocess.run(
    [sys.executable, '-c', program],
    cwd=home,
    env={'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'PATH': ''},
    capture_output=True,
    text=True,
    check=False,
  )


def test_tokens_in_seven_lines(home):
  five = _example('README.md')
  assert len(re.findall(r'^\w.*', five, re.MULTILINE)) <= 7
  check = """
assert image.shape == (16, 16, 3) and image.dtype == 'uint8'
assert tokens.shape == (2, 2), tokens.shape
assert back.shape == (16, 16, 3) and back.dtype == 'float32'
assert whole.shape == (64, 64, 3) and whole.dtype == 'uint8'
assert many.shape == (8, 2, 2)
"""
  done = _run(home, five + check)
  assert done.returncode == 0, done.stderr


def test_the_artefact_opens(home):
  check = '\nimport numpy\nassert encode(numpy.zeros((3, 16, 24, 3), "f4"))'
  artefact = _example('chimera/tokenizer/README.md')
  done = _run(home, artefact + check + '.shape == (3, 2, 3)')
  assert done.returncode == 0, done.stderr


def test_the_generator_learns_and_draws(home):
  program = _example('chimera/tokenizer/generator.md')
  lines = [line for line in program.splitlines() if line.strip()]
  assert len(lines) < 60
  short, count = re.subn(r'adamw\(1e-3\), 300', 'adamw(1e-2), 30', program)
  assert count == 1
  done = _run(home, short)
  assert done.returncode == 0, done.stderr
  losses = [float(x) for x in re.findall(r': ([\d.]+) nats', done.stdout)]
  # Less than if it had learned nothing but how often each token comes.
  found = store.load(home / 'runs' / 'whole').tokens_Nxhxw
  share = np.bincount(found.ravel()) / found.size
  entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
  assert losses[-1] < entropy < losses[0]
  with Image.open(home / 'samples.png') as picture:
    assert picture.size == (8 * 64, 64)


def test_every_command_stands_in_the_readme():
  for name in main.COMMANDS:
    assert re.search(rf'^\| `{name}[` ]', README, re.MULTILINE), name


def test_the_readme_is_short_enough_for_a_stranger():
  assert len(README.splitlines()) <= 300


@pytest.mark.parametrize('package', PACKAGES, ids=lambda p: p.name)
def test_a_package_says_what_it_is_and_names_its_files(package):
  page = (package / 'README.md').read_text()
  assert len(page.splitlines()) <= 60
  for word in ('**Design document:**', '**Switch:**', '**To change it:**'):
    assert word in page
  named = set(re.findall(r'^\| `(\w+\.py)`', page, re.MULTILINE))
  assert named == {p.name for p in package.glob('*.py')} - {'__init__.py'}


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page):
  links = re.findall(r'\]\(([^)]+)\)', page.read_text())
  for link in links:
    if not link.startswith('https://'):
      assert (page.parent / link).exists(), link


def test_nothing_cites_what_does_not_ship():
  paths = [*PAGES, *(ROOT / 'chimera').rglob('*.py')]
  for folder in ('configs', 'launch', 'tests'):
    paths += [p for p in (ROOT / folder).rglob('*') if p.suffix in CODE]
  for path in paths:
    if path != pathlib.Path(__file__):
      assert not UNSHIPPED.search(path.read_text()), path


def test_the_outline_has_every_section_that_is_cited():
  workspace = (ROOT / 'WORKSPACE.md').read_text()
  outline = set(re.findall(r'^\| (\d(?:\.\d)?) \|', workspace, re.MULTILINE))
  cited = set()
  for path in (ROOT / 'chimera').rglob('*.py'):
    text = ' '.join(path.read_text().split())
    for list_ in re.findall(
      r'[Dd]esign document(?:\'s)?,? (?:\(?sections? )?([\d., and]+)', text
    ):
      cited |= set(re.findall(r'\d(?:\.\d)?', list_))
  assert len(cited) > 5
  assert cited <= outline
