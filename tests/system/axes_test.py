"""What goes along the axes of devices and clones, by `vmap` over both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.system import axes


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_rows_are_gathered_in_the_order_of_the_clones(devices):
  x = jnp.arange(16.0).reshape(devices, 4 // devices, 2, 2)
  gathered = jax.vmap(
    jax.vmap(axes.gather, axis_name='clones'), axis_name='devices'
  )(x)
  for received in np.asarray(gathered).reshape(4, 8, 2):
    np.testing.assert_array_equal(received, np.arange(16.0).reshape(8, 2))


def test_written_out_one_by_one_a_function_gives_what_its_vmap_gives():
  def f(a, b):
    return {'sum': a + b, 'product': a * b}

  a, b = jnp.arange(3.0), jnp.float32(2.0)
  got = jax.vmap(axes.one_by_one(f), in_axes=(0, None))(a, b)
  np.testing.assert_array_equal(got['sum'], [2, 3, 4])
  np.testing.assert_array_equal(got['product'], [0, 2, 4])


def test_a_tree_is_chosen_by_a_scalar():
  a, b = {'x': jnp.zeros(2)}, {'x': jnp.ones(2)}
  np.testing.assert_array_equal(axes.where(jnp.bool(True), a, b)['x'], [0, 0])
  np.testing.assert_array_equal(axes.where(jnp.bool(False), a, b)['x'], [1, 1])
