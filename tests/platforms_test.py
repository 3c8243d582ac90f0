"""requirements.txt resolves, from wheels alone, wherever JAX runs.

By uv: pip takes the markers of where it runs itself, whatever its --platform.
"""

import os
import pathlib
import subprocess
import sys

import pytest
import uv

ROOT = pathlib.Path(__file__).parent.parent
PYTHONS = ('3.11', '3.12', '3.13', '3.14')
# And by which name it has TensorFlow.
PLATFORMS = {
  'x86_64-unknown-linux-gnu': 'tensorflow-cpu',
  'aarch64-unknown-linux-gnu': 'tensorflow',
  'aarch64-apple-darwin': 'tensorflow',
}


def _resolve(requirements, *flags):
  """uv at work: it answers with `name==version` a line."""
  return subprocess.Popen(
    [
      *(uv.find_uv_bin(), 'pip', 'compile', '--quiet', '--no-annotate'),
      *('--no-header', '--only-binary=:all:', f'--python={sys.executable}'),
      *(*flags, requirements),
    ],
    env={**os.environ, 'UV_PYTHON_DOWNLOADS': 'never'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.fixture(scope='module')
def index(tmp_path_factory):
  """That there is one; a machine may be cut off from it."""
  path = tmp_path_factory.mktemp('index') / 'requirements.txt'
  path.write_text('absl-py\n')
  asked = _resolve(path)
  _, complaint = asked.communicate()
  if asked.returncode:
    pytest.skip(f'no package index is reached: {" ".join(complaint.split())}')


def test_every_platform_and_python_has_all_that_is_required(index):
  asked = {
    (platform, python): _resolve(
      ROOT / 'requirements.txt',
      *(f'--python-platform={platform}', f'--python-version={python}'),
    )
    for platform in PLATFORMS
    for python in PYTHONS
  }
  answers = {key: process.communicate() for key, process in asked.items()}
  for (platform, python), (found, complaint) in answers.items():
    assert found, f'{platform}, Python {python}: {complaint}'
    names = {line.partition('==')[0] for line in found.splitlines()}
    needed = {'jax', 'jaxlib', 'flax', 'orbax-checkpoint', 'flatbuffers', 'uv'}
    assert needed <= names, (platform, python)
    flow = {PLATFORMS[platform]} if python != '3.14' else set()
    assert {'tensorflow', 'tensorflow-cpu'} & names == flow, (platform, python)


@pytest.mark.parametrize(
  'platform', ['x86_64-apple-darwin', 'x86_64-unknown-linux-musl']
)
def test_the_launch_scripts_refuse_but_what_jax_has_no_wheels_for(
  index, platform, tmp_path
):
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  [line] = (line for line in lines if line.startswith('jax'))
  (tmp_path / 'requirements.txt').write_text(line)
  asked = _resolve(
    tmp_path / 'requirements.txt',
    *(f'--python-platform={platform}', '--python-version=3.12'),
  )
  _, complaint = asked.communicate()
  assert asked.returncode
  assert 'no wheels' in complaint
