"""The document's loop, as the benchmark runs it, learns; its agents act."""

import jax
import numpy as np

from chimera.benchmarks import appendix_a
from tests import tiny


def test_its_clones_are_the_master_after_a_cycle():
  loop = appendix_a.Loop(tiny.get_config('seed'), 4)
  before = jax.device_get(loop._master)
  loop.run(2)
  for generator, *_ in loop._states:
    jax.tree.map(np.testing.assert_array_equal, generator, loop._master)
  assert any(
    np.any(a != b)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(loop._master))
  )
  assert len({s[0]['codebook'].device for s in loop._states}) == 4


def test_a_loss_above_its_target_raises_its_weight_alone():
  agent = appendix_a.PIDAgent(np.array([1.0, 2.0]), np.array([0.1, 0.1]))
  np.testing.assert_array_equal(agent.calculate_lambdas(), [1, 2])
  agent.update(np.array([0.2, 0.1]))
  # error 0.1 ln 2; 0.3 of it, 0.002 of it, and 0.5 of its change.
  np.testing.assert_allclose(
    agent.calculate_lambdas(), [np.exp(0.802 * 0.1 * np.log(2)), 2]
  )


def test_a_rate_stays_within_its_bounds():
  agent = appendix_a.QAgent(0)
  rates = []
  for i in range(200):
    rates.append(agent.choose_action())
    agent.update(1.0 + 0.1 * (i % 3))
  assert min(rates) >= 0.5
  assert max(rates) <= 1.5
  assert len(set(rates)) > 3
