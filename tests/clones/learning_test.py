"""What a clone learns at one batch, against plain gradients of a whole loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from chimera.clones import learning, losses
from chimera.clones import state as state_lib
from chimera.optics import poincare
from tests import tiny


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
      *(x, x_hat, x_hat, codes, functools.partial(score, critic)),
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
  )(generator_P, critic_P, x, lambda_K, ramp, epsilon_B)
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
