"""The loss terms and WGAN-GP, by hand and by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.clones import critic as critic_lib
from chimera.clones import losses, quantizer, terms


def images(seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, (3, 8, 8, 3)), dtype)


def codes(z, q, logits):
  """One sample of one cell."""
  z, q, logits = (
    jnp.asarray(v, jnp.float32)[None, None, None] for v in (z, q, logits)
  )
  return quantizer.Codes(z, q, (logits,))


def test_the_terms_stand_in_the_order_of_their_names():
  x, x_hat = images(), images(1)
  some = codes([0.6, 0.8], [1.0, 0.0], [0.3, 0.1])
  terms_K, varentropy_B = losses.terms(
    x,
    x_hat,
    some,
    jnp.arange(3.0),
    names=terms.TERMS,
    commitment=0.25,
    temperature=0.1,
  )
  by_name = dict(zip(terms.TERMS, terms_K, strict=True))
  np.testing.assert_allclose(by_name['adv'], -1.0)
  np.testing.assert_allclose(
    by_name['l1'], np.abs(np.asarray(x) - np.asarray(x_hat)).mean(), rtol=1e-5
  )
  np.testing.assert_allclose(by_name['vq'], 1.25 * 0.8, rtol=1e-6)
  np.testing.assert_allclose(by_name['varentropy'], varentropy_B.mean())
  for name, value_B in losses.reconstruction_terms(x, x_hat).items():
    np.testing.assert_allclose(by_name[name], value_B.mean(), rtol=1e-6)
    assert by_name[name] > 0


def test_every_term_is_zero_at_a_perfect_and_decided_reconstruction():
  x = images()
  terms_K, _ = losses.terms(
    x,
    x,
    codes([1.0, 0.0], [1.0, 0.0], [1.0, -1.0]),
    jnp.zeros(3),
    names=terms.TERMS,
    commitment=0.25,
    temperature=0.01,
  )
  np.testing.assert_allclose(terms_K, 0, atol=1e-6)


def test_vq_and_its_stopped_gradients_by_hand():
  # z - q = (-0.4, 0.8): |.|^2 = 0.8; a mean over one cell.
  z, q = jnp.array([0.6, 0.8]), jnp.array([1.0, 0.0])

  def loss(z, q):
    return losses.vq(codes_of(z, q), commitment=0.25)

  def codes_of(z, q):
    return quantizer.Codes(
      z[None, None, None], q[None, None, None], (jnp.zeros((1, 1, 1, 2)),)
    )

  np.testing.assert_allclose(loss(z, q), 1.25 * 0.8, rtol=1e-6)
  by_z, by_q = jax.grad(loss, argnums=(0, 1))(z, q)
  np.testing.assert_allclose(by_z, 0.25 * 2 * np.array([-0.4, 0.8]), rtol=1e-6)
  np.testing.assert_allclose(by_q, -2 * np.array([-0.4, 0.8]), rtol=1e-6)


def test_varentropy_of_two_codes_by_hand():
  # p = (3/4, 1/4): E[(log p)^2] - E[log p]^2 = p0 p1 (log p0/p1)^2.
  logits = 0.5 * np.log([3.0, 1.0])
  some = codes([1.0, 0.0], [1.0, 0.0], logits)
  got = losses.varentropy(some, temperature=0.5)
  assert got.shape == (1,)
  np.testing.assert_allclose(got, 3 / 16 * np.log(3) ** 2, rtol=1e-5)


def test_varentropy_is_a_mean_over_the_cells_of_a_sample():
  logits = np.zeros((2, 2, 1, 2), np.float32)
  logits[0, 0, 0] = np.log([3.0, 1.0])  # the other cells have no opinion
  zq = jnp.zeros((2, 2, 1, 2))
  got = losses.varentropy(
    quantizer.Codes(zq, zq, (jnp.asarray(logits),)), temperature=1
  )
  np.testing.assert_allclose(
    got, [3 / 16 * np.log(3) ** 2 / 2, 0], rtol=1e-5, atol=1e-7
  )


@pytest.mark.parametrize('logits', [np.zeros(16), [50.0] + 15 * [0.0]])
def test_varentropy_is_zero_without_an_opinion_and_when_decided(logits):
  some = codes([1.0, 0.0], [1.0, 0.0], logits)
  np.testing.assert_allclose(
    losses.varentropy(some, temperature=0.1), 0, atol=1e-6
  )
  gradient = jax.grad(
    lambda l: losses.varentropy(
      some._replace(logits=(l,)), temperature=0.1
    ).sum()
  )(*some.logits)
  assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize('length', [0.25, 1.0, 3.0])
def test_the_penalty_of_a_linear_critic_by_hand(length):
  w = images(2)[0]
  w = length * w / jnp.linalg.norm(w.ravel())
  got = losses.gradient_penalty(
    lambda x: jnp.einsum('bhwc,hwc->b', x, w),
    images(),
    images(1),
    jnp.array([0.0, 0.3, 1.0]),
  )
  np.testing.assert_allclose(got, (length - 1) ** 2, rtol=1e-4, atol=1e-6)


def test_the_penalty_is_a_mean_of_each_sample_s_own_norm():
  """score = s |x|^2 / 2 has the gradient s x: norms by numpy."""
  real, fake = images(), images(1)
  epsilon_B = np.array([0.0, 0.3, 1.0], np.float32)
  got = losses.gradient_penalty(
    lambda x: 0.1 * jnp.sum(x**2, axis=(1, 2, 3)) / 2,
    real,
    fake,
    jnp.asarray(epsilon_B),
  )
  norms = [
    np.linalg.norm(0.1 * (e * np.asarray(r) + (1 - e) * np.asarray(f)))
    for e, r, f in zip(epsilon_B, real, fake, strict=True)
  ]
  np.testing.assert_allclose(
    got, np.mean((np.array(norms) - 1) ** 2), rtol=1e-5
  )


def test_the_penalty_has_a_gradient_where_the_critic_is_flat():
  gradient = jax.grad(
    lambda s: losses.gradient_penalty(
      lambda x: s * x.sum(axis=(1, 2, 3)), images(), images(1), jnp.ones(3)
    )
  )(0.0)
  assert np.isfinite(gradient)


def test_the_critic_s_loss_by_hand():
  # score = 2 x_0: real 2, 4 and fake 1, -1. wasserstein = 3 - 0, norm = 2.
  real = jnp.zeros((2, 8, 8, 3)).at[:, 0, 0, 0].set(jnp.array([1.0, 2.0]))
  fake = jnp.zeros((2, 8, 8, 3)).at[:, 0, 0, 0].set(jnp.array([0.5, -0.5]))
  loss, parts = losses.critic_loss(
    2.0,
    lambda s, x: s * x[:, 0, 0, 0],
    real,
    fake,
    jnp.array([0.2, 0.9]),
    penalty=10.0,
    drift=1e-3,
  )
  np.testing.assert_allclose(parts['wasserstein'], 3.0)
  np.testing.assert_allclose(parts['penalty'], 1.0, rtol=1e-5)
  # -3 + 10 * (2 - 1)^2 + 0.001 * (4 + 16) / 2
  np.testing.assert_allclose(loss, 7.01, rtol=1e-5)


def test_the_critic_s_loss_asks_of_the_fake_what_their_scores_ask():
  real, fake = images(), images(1)
  score = lambda s, x: s * jnp.sum(x**2, axis=(1, 2, 3))  # noqa: E731

  def loss(fake):
    return losses.critic_loss(
      *(3.0, score, real, fake, jnp.array([0.2, 0.5, 0.9])),
      penalty=10.0,
      drift=1e-3,
    )

  by_fake, parts = jax.grad(loss, has_aux=True)(fake)
  np.testing.assert_allclose(by_fake, 2 * 3.0 * fake / 3, rtol=1e-6)
  np.testing.assert_allclose(parts['fake_B'], score(3.0, fake), rtol=1e-6)


def test_the_critic_s_gradient_is_that_of_finite_differences():
  with jax.enable_x64(True):
    critic = critic_lib.Critic(width=2)
    real, fake = images(0, jnp.float64), images(1, jnp.float64)
    params = jax.tree.map(
      lambda p: jnp.asarray(p, jnp.float64),
      jax.jit(critic.init)(jax.random.key(0), real)['params'],
    )

    @jax.jit
    def loss(params):
      return losses.critic_loss(
        params,
        lambda p, x: critic.apply({'params': p}, x),
        real,
        fake,
        jnp.array([0.1, 0.5, 0.8]),
        penalty=10.0,
        drift=1e-3,
      )[0]

    gradient = jax.jit(jax.grad(loss))(params)
    leaves, tree = jax.tree.flatten(params)
    h = 1e-6
    for seed in range(8):
      rng = np.random.default_rng(seed)
      direction = jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(size=p.shape)) for p in leaves]
      )
      up, down = (
        loss(jax.tree.map(lambda p, d: p + s * d, params, direction))  # noqa: B023
        for s in (h, -h)
      )
      along = sum(
        jnp.vdot(g, d)
        for g, d in zip(
          jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
        )
      )
      np.testing.assert_allclose((up - down) / (2 * h), along, rtol=1e-5)
