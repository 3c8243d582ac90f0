"""What goes along the axes of devices and clones, by `vmap` over both."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.system import axes


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_rows_are_gathered_in_the_order_of_the_clones(devices):
  x = jnp.arange(16.0).reshape(devices, 4 // devices, 2, 2)
  gathered = jax.vmap(axes.along(axes.gather), axis_name='devices')(x)
  for received in np.asarray(gathered).reshape(4, 8, 2):
    np.testing.assert_array_equal(received, np.arange(16.0).reshape(8, 2))


def test_written_out_one_by_one_a_function_gives_what_its_vmap_gives():
  def f(a, b):
    return {'sum': a + b, 'product': a * b}

  a, b = jnp.arange(3.0), jnp.float32(2.0)
  got = jax.vmap(axes.one_by_one(f), in_axes=(0, None))(a, b)
  np.testing.assert_array_equal(got['sum'], [2, 3, 4])
  np.testing.assert_array_equal(got['product'], [0, 2, 4])


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_a_total_is_of_all_clones(devices):
  x = jnp.arange(8.0).reshape(devices, 4 // devices, 2)
  total = jax.vmap(axes.along(axes.total), axis_name='devices')(x)
  mean = jax.vmap(axes.along(axes.mean), axis_name='devices')(x)
  np.testing.assert_array_equal(mean, total / 4)
  torn = x.at[0, 0, 1].set(jnp.nan)
  mean = jax.vmap(axes.along(axes.mean), axis_name='devices')(torn)
  np.testing.assert_array_equal(mean[..., 0], 3)
  np.testing.assert_array_equal(mean[..., 1], (3 + 5 + 7) / 3)
  for received in np.asarray(total).reshape(4, 2):
    np.testing.assert_array_equal(received, [0 + 2 + 4 + 6, 1 + 3 + 5 + 7])


def test_of_replicas_one_counts_and_each_has_its_part():
  """Two clones, with two devices each."""

  def f(x, batch):
    part = axes.part(batch)
    return {
      'total': axes.total(x),
      'gathered': axes.gather(x[None]),
      'part': part,
      'whole': axes.gather_parts(part),
      'sum': axes.total_of_parts(part.sum()),
      'mean': axes.mean_of_parts(part.mean()),
    }

  x = jnp.array([5.0, 5.0, 7.0, 7.0])[:, None]
  batch = jnp.array([[0.0, 1, 2, 3]] * 2 + [[4.0, 5, 6, 7]] * 2)[:, None]
  got = jax.pmap(axes.along(f, replicas=2), 'devices')(x, batch)
  got = jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0], got)
  np.testing.assert_array_equal(got['total'], [12] * 4)
  np.testing.assert_array_equal(got['gathered'], [[5, 7]] * 4)
  np.testing.assert_array_equal(got['part'], [[0, 1], [2, 3], [4, 5], [6, 7]])
  np.testing.assert_array_equal(got['whole'], batch[:, 0])
  np.testing.assert_array_equal(got['sum'], [6, 6, 22, 22])
  np.testing.assert_array_equal(got['mean'], [1.5, 1.5, 5.5, 5.5])


def test_what_is_in_common_is_worked_out_once():
  def f(a, b):
    return jnp.sin(axes.in_common({'x': a})['x']) + b

  jaxpr = str(jax.make_jaxpr(jax.vmap(f))(jnp.zeros(2), jnp.zeros(2)))
  assert re.search(r':f32\[\] = sin', jaxpr)

  got = jax.vmap(f)(jnp.array([3.0, 3.0]), jnp.array([1.0, 2.0]))
  np.testing.assert_allclose(got, np.sin(3) + np.array([1, 2]), rtol=1e-6)
  # Of clones that did hold something else, the first one's counts.
  got = jax.vmap(f)(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0]))
  np.testing.assert_allclose(got, np.sin(3) + np.array([1, 2]), rtol=1e-6)


def test_a_tree_is_chosen_by_a_scalar():
  a, b = {'x': jnp.zeros(2)}, {'x': jnp.ones(2)}
  np.testing.assert_array_equal(axes.where(jnp.bool(True), a, b)['x'], [0, 0])
  np.testing.assert_array_equal(axes.where(jnp.bool(False), a, b)['x'], [1, 1])
