"""A network's parameters as one vector, and back."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from chimera.clones import vectors


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(nn.Conv(4, (3, 3))(x))


def test_leaves_lie_in_the_order_of_their_names():
  layout = vectors.layout(Net())
  assert layout.shapes == ((4,), (3, 3, 3, 4), (2,), (4, 2))
  tree = layout.tree(np.arange(122.0))
  np.testing.assert_array_equal(tree['Conv_0']['bias'], [0, 1, 2, 3])
  assert tree['Conv_0']['kernel'][0, 0, 0].tolist() == [4, 5, 6, 7]
  assert tree['Dense_0']['bias'].tolist() == [112, 113]
  assert tree['Dense_0']['kernel'].tolist() == [
    [114, 115],
    [116, 117],
    [118, 119],
    [120, 121],
  ]


def test_a_network_works_by_the_tree_of_its_vector():
  net, x = Net(), jnp.ones((1, 8, 8, 3))
  params = net.init(jax.random.key(0), x)['params']
  layout = vectors.layout(net)
  again = layout.tree(layout.vector(params))
  assert jax.tree.structure(again) == jax.tree.structure(params)
  np.testing.assert_array_equal(
    net.apply({'params': again}, x), net.apply({'params': params}, x)
  )


def test_what_lies_before_the_leaves_stays():
  layout = vectors.layout(Net())
  many = np.arange(3 * 122.0).reshape(3, 122)
  tree = layout.tree(many)
  assert tree['Dense_0']['kernel'].shape == (3, 4, 2)
  np.testing.assert_array_equal(layout.vector(tree), many)
  assert isinstance(layout.vector(tree), np.ndarray)  # stays on the host
