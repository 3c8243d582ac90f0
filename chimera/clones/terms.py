"""The loss terms and the quantizers by name, without JAX.

What a run is asked by those who show it: which terms its quantizer leaves in
the objective, and how many codes there are.
"""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

TERMS = (
  'l1',
  'vq',
  'adv',
  'varentropy',
  'ssim',
  'edge',
  'autocorrelation',
  'moments',
  'spectrum',
  'color_covariance',
)
# Cells a side of the least grid on which they can be taken: SSIM's window.
LEAST_GRID = 8


class Kind(NamedTuple):
  """A kind of quantizer."""

  terms: tuple[str, ...]  # the loss terms that it brings; no other has them
  settings: tuple[str, ...]  # what it is made of, keys of config.model


KINDS = {
  'vq': Kind(('vq', 'varentropy'), ('codes', 'code_dim')),
  'fsq': Kind(('varentropy',), ('levels',)),
}


def of(kind: str) -> tuple[str, ...]:
  """The terms of an objective with this quantizer, in the order of TERMS."""
  of_codes = {term for other in KINDS.values() for term in other.terms}
  return tuple(
    term for term in TERMS if term in KINDS[kind].terms or term not in of_codes
  )


def kind_of(model: Mapping[str, Any]) -> str:
  """The quantizer of config.model; there was VQ before there was a choice."""
  return model.get('quantizer', 'vq')


def codes_of(model: Mapping[str, Any]) -> int:
  """V of config.model."""
  if kind_of(model) == 'fsq':
    return math.prod(model['levels'])
  return model['codes']
