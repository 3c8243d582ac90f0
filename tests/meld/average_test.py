"""The meld on a collective axis of four, made by `vmap`: no device needed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from chimera.meld import average as meld
from chimera.system import axes

M = 4


def clones(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'kernel': rng.normal(size=(M, 3, 2)).astype(np.float32),
    'bias': rng.normal(size=(M, 2)).astype(np.float32),
  }


def brain_mean(tree, weight_M, fallback=None):
  """The mean as each of the clones receives it."""
  one = fallback or jax.tree.map(lambda x: np.full_like(x[0], 7.0), tree)
  of_clones = axes.along(lambda x, w: meld.mean(x, w, one))
  return jax.tree.map(
    lambda x: x[0],
    jax.vmap(of_clones, axis_name='devices')(
      jax.tree.map(lambda x: x[None], tree),
      jnp.asarray(weight_M, jnp.float32)[None],
    ),
  )


def assert_all_receive(actual, expected, rtol=2e-6):
  for name, x in expected.items():
    for received in np.asarray(actual[name]):
      np.testing.assert_allclose(received, x, rtol=rtol, atol=1e-7)


def test_the_mean_of_the_clones_is_numpy_s():
  tree = clones()
  expected = {k: np.mean(v, axis=0) for k, v in tree.items()}
  assert_all_receive(brain_mean(tree, np.ones(M)), expected)


def test_weights_by_mass_give_the_weighted_mean():
  tree, mass_M = clones(), np.array([0.1, 0.4, 0.3, 0.2])
  expected = {
    k: np.average(v.astype(np.float64), axis=0, weights=mass_M)
    for k, v in tree.items()
  }
  assert_all_receive(brain_mean(tree, mass_M), expected, rtol=1e-5)
  assert_all_receive(brain_mean(tree, 50 * mass_M), expected, rtol=1e-5)


@pytest.mark.parametrize('poison', [np.nan, np.inf, -np.inf, 1e38])
def test_a_clone_of_no_weight_leaves_the_mean_of_the_other_three(poison):
  tree = clones()
  expected = {k: np.mean(v[[0, 1, 3]], axis=0) for k, v in tree.items()}
  tree['kernel'][2, 1, 1] = poison
  tree['bias'][2] = poison
  assert_all_receive(brain_mean(tree, [1, 1, 0, 1]), expected)


def test_where_every_clone_is_left_out_the_mean_is_the_fallback():
  tree = {k: np.full_like(v, np.nan) for k, v in clones().items()}
  fallback = {k: v[0] for k, v in clones(1).items()}
  got = brain_mean(tree, np.zeros(M), fallback)
  for name, x in fallback.items():
    np.testing.assert_array_equal(got[name], np.stack([x] * M))


def test_no_leaf_hides_a_nan_or_an_infinity():
  tree = {
    'a': jnp.ones(3),
    'count': jnp.int32(2),
    'b': {'c': jnp.zeros((2, 2))},
  }
  assert meld.all_finite(tree)
  for poison in (np.nan, np.inf, -np.inf):
    assert not meld.all_finite(
      {**tree, 'b': {'c': tree['b']['c'].at[1, 0].set(poison)}}
    )


def test_alpha_one_keeps_the_master_and_alpha_zero_takes_the_mean():
  master = {'w': jnp.array([2.0, -4.0])}
  mean = {'w': jnp.array([6.0, 8.0])}
  np.testing.assert_array_equal(meld.fold(master, mean, 1.0)['w'], master['w'])
  np.testing.assert_array_equal(meld.fold(master, mean, 0.0)['w'], mean['w'])
  # 0.75 * 2 + 0.25 * 6 = 3, 0.75 * -4 + 0.25 * 8 = -1
  np.testing.assert_allclose(meld.fold(master, mean, 0.75)['w'], [3.0, -1.0])


@pytest.mark.parametrize('alpha', [0.0, 0.5, 0.9, 0.999])
def test_alpha_is_an_inverse_step_size(alpha):
  """Re-cloning is an outer step of size 1 - alpha, over five cycles."""
  rng = np.random.default_rng(3)
  master, sgd = {'w': jnp.ones(5)}, optax.sgd(1 - alpha)
  stepped, state = master, sgd.init(master)
  for _ in range(5):
    displacement = rng.normal(size=5).astype(np.float32)
    folded = meld.fold(master, {'w': master['w'] + displacement}, alpha)
    update, state = sgd.update({'w': -displacement}, state)
    stepped = optax.apply_updates(stepped, update)
    np.testing.assert_allclose(folded['w'], stepped['w'], rtol=1e-5, atol=1e-6)
    master = folded


def outer(learning_rate, momentum):
  return meld.Spec(
    enabled=True,
    every=1,
    alpha=0.0,
    outer_learning_rate=learning_rate,
    outer_momentum=momentum,
    ema=0.9,
    revive_after=0,
  ).outer


def outer_steps(outer, master, targets):
  state, trail = outer.init(master), []
  for target in targets:
    update, state = outer.update(master - target, state)
    master = optax.apply_updates(master, update)
    trail.append(float(master))
  return trail


def test_the_outer_step_of_diloco_by_hand():
  # g = 10 - 8 = 2, m = 2,              10  - 0.7 (2 + 0.9 * 2)      = 7.34
  # g = 7.34 - 5 = 2.34, m = 4.14,      7.34 - 0.7 (2.34 + 0.9 * 4.14) = 3.0938
  trail = outer_steps(
    outer(0.7, 0.9), jnp.float32(10.0), (jnp.float32(8.0), 5.0)
  )
  np.testing.assert_allclose(trail, [7.34, 3.0938], rtol=1e-6)


def test_without_momentum_the_master_becomes_its_target():
  trail = outer_steps(outer(1.0, 0.0), jnp.float32(10.0), (8.0, 5.0))
  np.testing.assert_allclose(trail, [8.0, 5.0], rtol=1e-6)


@pytest.mark.parametrize(
  ('step', 'decay'), [(0, 0.1), (8, 0.5), (90, 0.91), (10**6, 0.995)]
)
def test_the_evaluation_average_starts_quick_and_ends_at_its_decay(step, decay):
  got = meld.smooth(
    {'w': jnp.float32(1.0)}, {'w': jnp.float32(3.0)}, 0.995, jnp.int32(step)
  )
  np.testing.assert_allclose(got['w'], decay * 1 + (1 - decay) * 3, rtol=1e-6)
  assert got['w'].dtype == jnp.float32


def test_the_cosine_is_of_the_trees_taken_as_vectors():
  a = {'x': jnp.array([3.0]), 'y': jnp.array([[4.0]])}
  b = {'x': jnp.array([4.0]), 'y': jnp.array([[3.0]])}
  # (3 * 4 + 4 * 3) / (5 * 5)
  np.testing.assert_allclose(meld.cosine(a, b), 24 / 25, rtol=1e-6)
  opposite = jax.tree.map(jnp.negative, a)
  np.testing.assert_allclose(meld.cosine(a, opposite), -1.0, rtol=1e-6)
  assert meld.cosine(a, jax.tree.map(jnp.zeros_like, a)) == 0.0
