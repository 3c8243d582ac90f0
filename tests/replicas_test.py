"""More devices than clones follow one device; with 16: a process of their own.

python -m tests.replicas_test 4 8 16
"""

import os
import sys

from tests import xla

COUNTS = tuple(map(int, sys.argv[1:])) if __name__ == '__main__' else ()
if COUNTS:
  forced = f'--xla_force_host_platform_device_count={max(COUNTS)}'
  os.environ['XLA_FLAGS'] = f'{forced} {xla.SOONER}'
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

import numpy as np  # noqa: E402

from tests import step_test  # noqa: E402

CYCLES, POISONED = 20, 8


def run(devices, **overrides):
  """20 cycles, as [(state before, metrics, state after)]; one clone falls sick.

  With re-enrolment, and a codebook of which parts are revived.
  """
  config = step_test.get_config(
    # By 'total': the agent's own probe sees codes, which flip on rounding.
    **{'q__history': 'total', 'model__revive_after': 3, **overrides}
  )
  program = step_test.Program(config, devices)
  rows = program.run(POISONED)
  bad = step_test.poisoned(rows[-1][2], [1], 'generator', 'params', np.nan)
  return rows + program.run(CYCLES - POISONED, bad)


def assert_same(mine, theirs):
  """To 1e-4 of each leaf's largest entry."""
  for (_, expected, _), (_, metrics, here) in zip(mine, theirs, strict=True):
    np.testing.assert_array_equal(metrics['lesson_B'], expected['lesson_B'])
    for name in ('loss', 'lambda', 'agent/lr', 'critic/loss'):
      step_test.assert_close(metrics[name], expected[name])
    assert step_test.alike(here.master)
  for cycle in (POISONED - 1, CYCLES - 1):
    states = theirs[cycle][2], mine[cycle][2]
    step_test.assert_close(*map(_without_a_bias, states))


def assert_eventful(rows):
  """Somebody was left out, others were enrolled, and codes were revived."""
  first, last = rows[0][0], rows[-1][2]
  np.testing.assert_array_equal(last.dropped, np.arange(len(last.dropped)) == 1)
  assert not np.array_equal(first.school.enrolled_L, last.school.enrolled_L)
  assert any(
    np.sum(after.master.unused_V[0] == 0) > metrics['codebook/used'][0]
    for _, metrics, after in rows
  )


def _without_a_bias(state):
  """Without the critic's last: all but the drift's share is rounding."""

  def of(net):
    return {k: v for k, v in net.items() if k != 'Conv_3'}

  adam, *rest = state.critic.opt_state
  adam = adam._replace(mu=of(adam.mu), nu=of(adam.nu))
  return state.replace(
    critic=state.critic.replace(
      params=of(state.critic.params), opt_state=(adam, *rest)
    )
  )


def test_two_devices_for_each_clone_follow_the_trajectory_of_one_for_both():
  names = ('structural', 'latent_purity')
  one, four = (run(devices, clone_names=names) for devices in (1, 4))
  assert_eventful(one)
  assert_same(one, four)


if __name__ == '__main__':
  by_one = run(1)
  assert_eventful(by_one)
  for count in COUNTS:
    assert_same(by_one, run(count))
    print(f'{count} devices follow one over {CYCLES} cycles.', flush=True)
