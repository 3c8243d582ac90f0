"""The names of terms and quantizers, and that no JAX is needed for them."""

import subprocess
import sys

import pytest

from chimera.clones import terms


def test_with_a_codebook_all_terms_are_weighed():
  assert terms.of('vq') == terms.TERMS


def test_with_fsq_what_it_lacks_leaves_and_the_order_stays():
  without = tuple(term for term in terms.TERMS if term != 'vq')
  assert terms.of('fsq') == without
  assert len(without) == 9


@pytest.mark.parametrize(
  ('model', 'kind', 'codes'),
  [
    ({'codes': 64, 'code_dim': 8}, 'vq', 64),
    ({'quantizer': 'vq', 'codes': 64, 'levels': [4, 4]}, 'vq', 64),
    ({'quantizer': 'fsq', 'codes': 64, 'levels': [8, 5, 5, 5]}, 'fsq', 1000),
  ],
)
def test_the_codes_of_a_config_of_now_or_from_before_fsq(model, kind, codes):
  assert terms.kind_of(model) == kind
  assert terms.codes_of(model) == codes


def test_whoever_shows_a_run_needs_no_jax():
  program = (
    'import sys\n'
    "sys.modules |= dict.fromkeys(['jax', 'flax', 'optax'])\n"
    'from chimera.clones import terms\n'
    'from chimera.doctor import doctor\n'
    'from chimera.monitor import live\n'
  )
  subprocess.run([sys.executable, '-c', program], check=True)
