"""What a clone learns at one batch, against plain gradients of a whole loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from chimera.clones import learning, losses
from chimera.clones import state as state_lib
from chimera.optics import poincare
from tests import tiny

FREE = learning.Bounds(*map(jnp.float32, (1.0, 0.0, 1.0)))


@functools.cache
def _lesson():
  """(spec, generator, critic, x, lambda_K) of a newborn."""
  config = tiny.get_config()
  bins, paths = tiny.bins_and_paths()
  spec = state_lib.create_spec(config)
  born = state_lib.create_states(config, spec, bins, paths.shape[1:3])[0]
  lambda_K = jnp.linspace(0.5, 2.0, len(spec.terms))
  x = poincare.normalize(jnp.asarray(paths[:4]))
  return spec, born.generator.params, born.critic.params, x, lambda_K


def _close(actual, expected):
  for a, e in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, e, rtol=2e-4, atol=1e-5 * np.abs(e).max())


def test_one_forward_pass_gives_both_networks_their_gradients():
  spec, generator_P, critic_P, x, lambda_K = _lesson()
  generator = spec.generator_layout.tree(generator_P)
  critic = spec.critic_layout.tree(critic_P)
  ramp, epsilon_B = 0.25, jnp.array([0.1, 0.4, 0.6, 0.9])

  def score(params, x):
    return spec.critic.apply({'params': params}, x)

  def objective(params):
    x_hat, codes, _ = spec.tokenizer.apply({'params': params}, x)
    terms_K, _ = losses.terms(
      *(x, x_hat, codes, score(critic, x_hat)),
      names=spec.terms,
      commitment=spec.loss.commitment,
      temperature=spec.loss.temperature,
    )
    return jnp.vdot(lambda_K.at[spec.adv].multiply(ramp), terms_K), terms_K

  def critic_loss(params):
    x_hat = spec.tokenizer.apply({'params': generator}, x)[0]
    return losses.critic_loss(
      *(params, score, x, x_hat, epsilon_B),
      penalty=spec.wgan.penalty,
      drift=spec.wgan.drift,
    )[0]

  gradients, seen, metrics = jax.jit(
    functools.partial(learning.learn, spec=spec)
  )(generator_P, critic_P, x, lambda_K, FREE, ramp, epsilon_B)
  expected, terms_K = jax.jit(jax.grad(objective, has_aux=True))(generator)
  _close(spec.generator_layout.tree(gradients['generator']), expected)
  _close(
    spec.critic_layout.tree(gradients['critic']),
    jax.jit(jax.grad(critic_loss))(critic),
  )
  _close(seen.terms_K, terms_K)
  np.testing.assert_allclose(
    metrics['loss/total'], jnp.vdot(lambda_K, terms_K), rtol=1e-5
  )
  assert int(seen.counts_V.sum()) == 4 * 4 * 4


def _gradient_at_reconstruction(share_of):
  """Norms of the adversarial and of the other terms' gradients there."""
  spec, generator_P, critic_P, x, lambda_K = share_of
  generator = spec.generator_layout.tree(generator_P)
  critic = spec.critic_layout.tree(critic_P)
  x_hat, codes, _ = jax.jit(spec.tokenizer.apply)({'params': generator}, x)

  def part(x_hat, chosen_K):
    terms_K, _ = losses.terms(
      *(x, x_hat, codes, spec.critic.apply({'params': critic}, x_hat)),
      names=spec.terms,
      commitment=spec.loss.commitment,
      temperature=spec.loss.temperature,
    )
    return jnp.vdot(chosen_K * lambda_K, terms_K)

  is_adv_K = np.arange(len(spec.terms)) == spec.adv
  norm = jax.jit(lambda k: jnp.linalg.norm(jax.grad(part)(x_hat, k)))
  return norm(is_adv_K.astype(np.float32)), norm(1.0 - is_adv_K)


def test_a_critic_has_no_more_than_its_share_of_the_gradient():
  spec, generator_P, critic_P, x, lambda_K = _lesson()
  heavy_K = lambda_K.at[spec.adv].multiply(100)
  adv, rest = _gradient_at_reconstruction(
    (spec, generator_P, critic_P, x, heavy_K)
  )
  share = adv / (adv + rest)
  assert share > 0.2
  learn = jax.jit(functools.partial(learning.learn, spec=spec))

  def gradient(lambda_K, most):
    found, seen, metrics = learn(
      *(generator_P, critic_P, x, lambda_K),
      *(FREE._replace(most_adv=most), 1.0, jnp.full(4, 0.5)),
    )
    return found['generator'], seen.adv_share, metrics['loss/adv_share']

  held, seen, shown = gradient(heavy_K, 0.2)
  # The weight with which its norm is a quarter of the others'.
  light_K = heavy_K.at[spec.adv].multiply(rest / 4 / adv)
  _close(held, gradient(light_K, 1.0)[0])
  np.testing.assert_allclose([seen, shown], [share, 0.2], rtol=1e-4)
  # Below the bound nothing is held.
  free, below = gradient(heavy_K, 1.0), gradient(heavy_K, float(share) + 0.01)
  np.testing.assert_array_equal(free[0], below[0])
  np.testing.assert_allclose(free[2], share, rtol=1e-4)


def test_the_encodings_are_held_to_their_codes_by_a_share_of_their_gradient():
  spec, generator_P, critic_P, x, lambda_K = _lesson()
  vq = spec.terms.index('vq')
  generator = spec.generator_layout.tree(generator_P)
  _, codes, _ = jax.jit(spec.tokenizer.apply)({'params': generator}, x)

  def commitment(z):
    return losses.vq(codes._replace(z_BxhxwxD=z), commitment=1.0)

  by_commitment = jax.grad(commitment)(codes.z_BxhxwxD)
  np.testing.assert_allclose(
    losses.commitment_gradient(codes, commitment=1.0), by_commitment, rtol=1e-5
  )
  learn = jax.jit(functools.partial(learning.learn, spec=spec))

  def gradient(lambda_K, *bounds):
    bounds = FREE._replace(least_vq=bounds[0], most_vq=bounds[1])
    found, _, metrics = learn(
      *(generator_P, critic_P, x, lambda_K, bounds, 0.0, jnp.full(4, 0.5))
    )
    encoder = spec.generator_layout.tree(found['generator'])['encoder']
    return encoder, float(metrics['loss/vq_share'])

  # Without its codebook, vq moves the encoder in proportion to its weight.
  none, _ = gradient(lambda_K.at[vq].set(0), 0.0, 1.0)
  free, share = gradient(lambda_K, 0.0, 1.0)
  assert 0.01 < share < 0.4
  for least, most, wanted in (
    (0.0, share / 3, share / 3),
    (2 * share, 1.0, 2 * share),
  ):
    held, shown = gradient(lambda_K, least, most)
    np.testing.assert_allclose(shown, wanted, rtol=1e-5)
    times = wanted / (1 - wanted) * (1 - share) / share
    _close(
      held, jax.tree.map(lambda a, b, t=times: a + t * (b - a), none, free)
    )
  within, shown = gradient(lambda_K, share / 2, (1 + share) / 2)
  np.testing.assert_allclose(shown, share, rtol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, within, free)


def test_a_share_is_bounded_where_there_is_nothing_else_or_nothing():
  for part, rest, least, most, expected in (
    (0.0, 0.0, 0.0, 0.3, (0.0, 0.0, 1.0)),
    (2.0, 0.0, 0.0, 0.3, (1.0, 0.3, 0.0)),
    (2.0, 0.0, 0.0, 1.0, (1.0, 1.0, 1.0)),
    (3.0, 1.0, 0.0, 0.5, (0.75, 0.5, 1 / 3)),
    (1.0, 3.0, 0.5, 0.9, (0.25, 0.5, 3.0)),
    (0.0, 3.0, 0.5, 0.9, (0.0, 0.0, 1.0)),  # a weight of 0 stays so
  ):
    part, rest = jnp.full((1, 1), part), jnp.array([rest, 0.0])
    found = learning.bound_share(part, rest, least=least, most=most)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
