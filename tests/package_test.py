"""Chimera as a package: what is in it, and what importing it offers."""

import pathlib
import shutil
import subprocess
import sys
import tomllib

import numpy as np
from PIL import Image
import pytest

import chimera
from chimera import main
from chimera.data import images
from chimera.tokenizer import export, store

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def _python(home, *words, **env):
  """What Python says in a folder that is no checkout."""
  done = subprocess.run(
    [sys.executable, *words],
    cwd=home,
    env={'PATH': '', 'JAX_PLATFORMS': 'cpu', **env},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A folder laid out as the wheel is."""
  site = tmp_path_factory.mktemp('site')
  targets = PROJECT['tool']['hatch']['build']['targets']['wheel']
  for package in targets['packages']:
    shutil.copytree(
      ROOT / package,
      site / package,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  for source, target in targets['force-include'].items():
    (site / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / source, site / target)
  return site


def test_requirements_are_the_dependencies_and_those_of_developing():
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  wanted = [line for line in lines if line and not line.startswith('#')]
  project = PROJECT['project']
  extras = project['optional-dependencies']
  assert project['dependencies'] + extras['dev'] == wanted
  assert set(extras) == {'tpu', 'cuda', 'dev'}


def test_the_console_command_is_the_program():
  assert PROJECT['project']['scripts'] == {'chimera': 'chimera.main:main'}
  assert callable(main.main)


def test_the_version_is_the_one_to_cite():
  cited = (ROOT / 'CITATION.cff').read_text().splitlines()
  assert f'version: {PROJECT["project"]["version"]}' in cited
  assert f'license: {PROJECT["project"]["license"]}' in cited
  assert 'Apache License' in (ROOT / 'LICENSE').read_text()


def test_an_installed_program_finds_its_config_from_any_folder(
  installed, tmp_path
):
  program = """
import sys
from chimera import main
print(main.__file__)
for config in ('--config=:smoke', '--config=:control'):
  print(main.parse(['chimera', config])[1].config.basename)
print(main.parse(['chimera'])[1].config.basename)
"""
  where, *names = _python(
    tmp_path, '-c', program, PYTHONPATH=str(installed)
  ).splitlines()
  assert pathlib.Path(where).is_relative_to(installed)
  assert names == ['smoke', 'control', 'chimera']


def test_an_installed_ledger_finds_the_config_too(installed, tmp_path):
  said = _python(
    tmp_path, '-m', 'chimera.ledger', '--help', PYTHONPATH=str(installed)
  )
  assert '--methods' in said


def test_importing_it_loads_nothing_heavy(tmp_path):
  program = """
import sys
import chimera
print(*{name.partition('.')[0] for name in sys.modules})
"""
  loaded = _python(tmp_path, '-c', program, PYTHONPATH=str(ROOT)).split()
  assert 'chimera' in loaded
  assert not {'jax', 'tensorflow', 'numpy', 'flax', 'PIL'} & set(loaded)


def test_it_offers_what_a_user_needs():
  assert {'load', 'load_tokens', 'read_image'} <= set(dir(chimera))
  assert chimera.load is export.load
  assert chimera.load_tokens is store.load
  assert chimera.read_image is images.read_image


def test_what_it_does_not_offer_is_no_attribute():
  with pytest.raises(AttributeError, match=r'no attribute .lode'):
    _ = chimera.lode


def test_an_image_is_read_whole_or_as_a_square_of_a_size(tmp_path):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (12, 20, 3), np.uint8)
  Image.fromarray(picture).save(tmp_path / 'a.png')
  np.testing.assert_array_equal(chimera.read_image(tmp_path / 'a.png'), picture)
  # As large as the square itself: nothing is resized.
  np.testing.assert_array_equal(
    chimera.read_image(str(tmp_path / 'a.png'), 12), picture[:, 4:16]
  )
  small = chimera.read_image(tmp_path / 'a.png', size=6)
  assert small.shape == (6, 6, 3)
  assert small.dtype == np.uint8
