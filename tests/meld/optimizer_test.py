"""The optimizer on a collective axis of four, made by `vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chimera.meld import optimizer
from chimera.system import axes
from tests.meld import average_test

M = average_test.M
clones = average_test.clones
assert_all_receive = average_test.assert_all_receive

B1, B2, RATE = 0.9, 0.99, 0.5


def directions(mode, gradients_TxM):
  """Each clone's direction at every step: (T, M, ...)."""
  descent = optimizer.make_optimizer(optimizer.Spec(B1, B2, mode))

  def one(state, gradient):
    mean = jax.tree.map(lambda g: jax.lax.pmean(g, 'clones'), gradient)
    return descent.update(gradient, state, mean_grads=mean, learning_rate=RATE)

  state = jax.vmap(descent.init)(gradients_TxM[0])
  trail = []
  for gradient in gradients_TxM:
    update, state = jax.vmap(one, axis_name='clones')(state, gradient)
    trail.append(jax.tree.map(lambda u: u / -RATE, update))
  return trail, state[0]


def adam_trail(gradients_T):
  adam = optax.scale_by_adam(B1, B2)
  state, trail = adam.init(gradients_T[0]), []
  for g in gradients_T:
    direction, state = adam.update(g, state)
    trail.append(direction)
  return trail, state


GRADIENTS_TxM = [clones(seed) for seed in range(6)]
MEANS_T = [{k: v.mean(0) for k, v in g.items()} for g in GRADIENTS_TxM]


def test_shared_is_adam_on_the_mean_gradient():
  got, _ = directions('shared', GRADIENTS_TxM)
  for mine, reference in zip(got, adam_trail(MEANS_T)[0], strict=True):
    assert_all_receive(mine, reference, rtol=1e-5)


def test_local_is_adam_on_each_clone_s_own_gradient():
  got, _ = directions('local', GRADIENTS_TxM)
  for i in range(M):
    own = [{k: v[i] for k, v in g.items()} for g in GRADIENTS_TxM]
    for mine, reference in zip(got, adam_trail(own)[0], strict=True):
      for name, x in reference.items():
        np.testing.assert_allclose(mine[name][i], x, rtol=1e-5, atol=1e-6)


def test_the_mean_direction_under_shared_v_is_adam_of_the_mean_gradient():
  """So that a meld of destinations costs nothing."""
  got, state = directions('shared_v', GRADIENTS_TxM)
  trail, reference_state = adam_trail(MEANS_T)
  for mine, reference in zip(got, trail, strict=True):
    for name, x in reference.items():
      np.testing.assert_allclose(
        mine[name].mean(0), x, rtol=1e-6, atol=1e-6 * np.abs(x).max()
      )
      assert np.abs(mine[name][0] - x).max() > 0.1  # yet it goes its own way
  assert_all_receive(state.nu, reference_state.nu, rtol=1e-5)


def test_under_adam_of_its_own_the_scale_of_a_clone_s_loss_is_lost():
  """What 'shared_v' is for: a clone of ten times the loss votes no more."""
  louder = [
    {k: np.concatenate([10 * v[:1], v[1:]]) for k, v in g.items()}
    for g in GRADIENTS_TxM
  ]
  plain, loud = (directions('local', g)[0][-1] for g in (GRADIENTS_TxM, louder))
  for name in plain:
    np.testing.assert_allclose(
      loud[name].mean(0), plain[name].mean(0), rtol=1e-4, atol=1e-5
    )
  plain, loud = (
    directions('shared_v', g)[0][-1] for g in (GRADIENTS_TxM, louder)
  )
  assert np.abs(loud['bias'].mean(0) - plain['bias'].mean(0)).max() > 0.1


def pooled(mode, weight_M):
  """What each of the clones would restart from, after a step of seed 0."""
  spec = optimizer.Spec(B1, B2, mode)
  descent = optimizer.make_optimizer(spec)
  fallback = {k: np.full_like(v[0], 7.0) for k, v in clones().items()}

  def one(params, weight):
    _, state = descent.update(
      params,
      descent.init(params),
      mean_grads=jax.tree.map(lambda g: axes.total(g) / M, params),
      learning_rate=1.0,
    )
    return optimizer.pool(params, state, weight, fallback=fallback, spec=spec)

  return jax.vmap(axes.along(one), axis_name='devices')(
    jax.tree.map(lambda x: x[None], clones()),
    jnp.asarray(weight_M, jnp.float32)[None],
  )


def test_a_restart_holds_of_the_moments_what_is_common():
  mean = {k: v.mean(0) for k, v in clones().items()}
  for mode, has_mu, has_nu in (
    ('local', False, False),
    ('shared_v', False, True),
    ('shared', True, True),
  ):
    params, state = pooled(mode, np.ones(M))
    adam = state[0]
    for name, x in mean.items():
      for i in range(M):
        np.testing.assert_allclose(params[name][0, i], x, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(
          adam.mu[name][0, i], has_mu * (1 - B1) * x, rtol=1e-5, atol=1e-7
        )
        np.testing.assert_allclose(
          adam.nu[name][0, i], has_nu * (1 - B2) * x**2, rtol=1e-4, atol=1e-9
        )
    np.testing.assert_array_equal(adam.count[0], [int(has_nu)] * M)


@pytest.mark.parametrize('mode', ['local', 'shared_v', 'shared'])
def test_where_all_are_left_out_a_restart_is_newborn(mode):
  params, state = pooled(mode, np.zeros(M))
  for x in jax.tree.leaves(params):
    np.testing.assert_array_equal(x, np.full_like(x, 7.0))
  assert not any(np.any(x) for x in jax.tree.leaves(state))


def test_weight_decay_is_one_more_line_of_a_chain():
  """What the recipe for an optimizer says, with optax's own parts."""
  chain = optax.chain(
    optimizer.scale_by_adam_in_common(B1, B2),
    optax.add_decayed_weights(0.1),
    optimizer.scale_by_given_rate(),
  )
  plain = optimizer.make_optimizer(optimizer.Spec(B1, B2, 'shared_v'))
  params = {'w': jnp.array([2.0, -4.0])}
  gradient = {'w': jnp.array([1.0, 3.0])}
  of = dict(mean_grads=gradient, learning_rate=0.5)
  decayed, _ = chain.update(gradient, chain.init(params), params, **of)
  update, _ = plain.update(gradient, plain.init(params), params, **of)
  # 0.5 * 0.1 * (2, -4) more.
  np.testing.assert_allclose(decayed['w'] - update['w'], [-0.1, 0.2], rtol=1e-5)


def test_any_optimizer_can_run_on_the_mean_gradient():
  sgd = optimizer.on_mean(optax.trace(0.5))
  state = sgd.init(jnp.zeros(2))
  update, _ = sgd.update(
    jnp.array([9.0, 9.0]), state, mean_grads=jnp.array([1.0, 2.0])
  )
  np.testing.assert_allclose(update, [1.0, 2.0])


def schedule(kind, **changed):
  base = dict(cycles=40, learning_rate=1e-3, warmup=4, decay=0.2)
  return optimizer.Schedule(schedule=kind, **{**base, **changed})


def test_warm_up_stable_decay_by_hand():
  wsd = schedule('wsd')
  assert wsd.stable == 32
  # After 32 cycles the next one is the first of 8: 1e-3 - 9.9e-4 sqrt(k / 8).
  for step, rate in (
    *((0, 2.5e-4), (2, 7.5e-4), (3, 1e-3), (31, 1e-3)),
    *((32, 6.49982e-4), (33, 5.05e-4), (37, 1.42635e-4), (39, 1e-5)),
    (1000, 1e-5),
  ):
    np.testing.assert_allclose(wsd(step), rate, rtol=1e-4)


@pytest.mark.parametrize(
  ('kind', 'warmup', 'left'),
  [('wsd', 32, None), ('wsd', 33, 7), ('wsd', 50, 0)]
  + [('cosine', 39, None), ('cosine', 40, 0), ('constant', 50, None)],
)
def test_a_warm_up_that_takes_of_the_decay_is_told(kind, warmup, left):
  warning = schedule(kind, warmup=warmup).warning
  assert bool(warning) == (left is not None)
  if warning:
    assert f'{warmup} of 40 cycles leaves {left} to the decay' in warning


@pytest.mark.parametrize('decay', [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize('cycles', [5, 41, 1000])
def test_a_decay_of_any_length_is_its_formula(cycles, decay):
  wsd = schedule('wsd', cycles=cycles, decay=decay)
  length = round(decay * cycles)
  begin = max(cycles - length, 4)
  got = jax.jit(jax.vmap(wsd))(jnp.arange(cycles))
  n = np.arange(1, cycles + 1)
  k = np.clip((n - begin) / max(cycles - begin, 1), 0, 1)
  want = 1e-3 * np.minimum(n / 4, 1) * (1 - 0.99 * np.sqrt(k))
  np.testing.assert_allclose(got, want, rtol=1e-4)
  assert wsd.stable == begin
  # What is stable is bit for bit that of any longer run.
  longer = schedule('wsd', cycles=3 * cycles, decay=decay / 3)
  np.testing.assert_array_equal(
    got[:begin], jax.jit(jax.vmap(longer))(jnp.arange(begin))
  )


@pytest.mark.parametrize('kind', ['cosine', 'wsd', 'constant'])
def test_without_a_warm_up_the_first_cycle_has_the_full_rate(kind):
  np.testing.assert_allclose(schedule(kind, warmup=0)(0), 1e-3, rtol=2e-3)


def test_how_much_of_a_run_is_that_of_a_longer_one():
  assert schedule('cosine').stable == 0
  assert schedule('constant').stable == 40
  assert schedule('wsd', decay=0.0).stable == 40
  assert schedule('wsd', warmup=38).stable == 38
  assert schedule('wsd', warmup=99).stable == 40
