"""How far a sweep by hypothesis goes: in CI as seeded; `--long` goes on.

bash launch/test.sh tests/sweeps --long
"""

import hypothesis

_is_long = False


def lengthen():
  """From here on sweeps have their full length."""
  global _is_long
  _is_long = True


def of(ci: int, long: int) -> hypothesis.settings:
  """Settings of a sweep of so many examples, the same ones at every run."""
  return hypothesis.settings(
    max_examples=long if _is_long else ci,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
