"""The tokenizer, against brute force and identities."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.clones import layer_norm, models, quantizer

CODES, DIM = 12, 3
SETTINGS = {'width': 8, 'blocks': 1, 'downsample': 2}
SETTINGS |= {'codes': CODES, 'code_dim': DIM}
TOKENIZER = models.create_tokenizer(**SETTINGS, norm='layer')


def images(seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, (3, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope='module')
def params():
  return jax.jit(TOKENIZER.init)(jax.random.key(0), images())['params']


@jax.jit
def run(params, x):
  return TOKENIZER.apply({'params': params}, x)


def test_shapes_and_dtypes(params):
  x_hat, codes, tokens = run(params, images())
  assert x_hat.shape == (3, 8, 8, 3)
  assert x_hat.dtype == jnp.float32
  assert tokens.shape == (3, 4, 4)
  assert tokens.dtype == jnp.int32
  assert codes.z_BxhxwxD.shape == codes.q_BxhxwxD.shape == (3, 4, 4, DIM)
  assert [x.shape for x in codes.logits] == [(3, 4, 4, CODES)]


@pytest.mark.parametrize(('downsample', 'side'), [(1, 8), (4, 2)])
def test_downsample_is_the_cells_a_side_of_one_token(downsample, side):
  tokenizer = TOKENIZER.clone(downsample=downsample)

  def both(key, x):
    return tokenizer.init_with_output(key, x)[0]

  x_hat, _, tokens = jax.eval_shape(both, jax.random.key(0), images())
  assert tokens.shape == (3, side, side)
  assert x_hat.shape == (3, 8, 8, 3)


def test_a_token_is_the_nearest_code(params):
  # Codes of any length: only their direction may count.
  length_V = np.linspace(0.2, 5, CODES, dtype=np.float32)
  params = {**params, 'codebook': params['codebook'] * length_V[:, None]}
  _, codes, tokens = run(params, images())
  book = np.asarray(params['codebook'], np.float64)
  book /= np.linalg.norm(book, axis=-1, keepdims=True)
  z = np.asarray(codes.z_BxhxwxD, np.float64)
  for cell in np.ndindex(tokens.shape):
    distance_V = [np.sum((z[cell] - code) ** 2) for code in book]
    assert tokens[cell] == np.argmin(distance_V)
    np.testing.assert_allclose(
      codes.q_BxhxwxD[cell], book[tokens[cell]], atol=1e-6
    )
  assert len(np.unique(tokens)) > 1


def test_encodings_and_codes_lie_on_the_unit_sphere(params):
  _, codes, _ = run(params, images())
  for x in (codes.z_BxhxwxD, codes.q_BxhxwxD):
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-5)
  (logits,) = map(np.asarray, codes.logits)
  assert np.all(np.abs(logits) <= 1 + 1e-6)


def test_the_tokens_alone_give_the_reconstruction_back(params):
  x = images()
  x_hat, _, tokens = run(params, x)
  tokenize = jax.jit(
    lambda x: TOKENIZER.apply({'params': params}, x, method='tokenize')
  )
  detokenize = jax.jit(
    lambda t: TOKENIZER.apply({'params': params}, t, method='detokenize')
  )
  np.testing.assert_array_equal(tokenize(x), tokens)
  np.testing.assert_allclose(detokenize(tokens), x_hat, atol=1e-5)


def test_straight_through_the_encoder_gets_the_decoder_s_gradient(params):
  """d loss / d encoder = (d loss / d q of the decoder) (d z / d encoder)."""
  x = images()
  weights = images(1)

  @jax.jit
  def whole(encoder):
    x_hat, _, _ = TOKENIZER.apply({'params': {**params, 'encoder': encoder}}, x)
    return jnp.sum(weights * x_hat)

  @jax.jit
  def by_hand(encoder):
    def encode(encoder):
      half = models.Encoder(8, 1, 2, DIM, 'layer', 'zeros')
      return quantizer.unit(half.apply({'params': encoder}, x))

    def decode(q):
      half = models.Decoder(8, 1, 2, 'layer')
      x_hat = half.apply({'params': params['decoder']}, q)
      return jnp.sum(weights * x_hat)

    _, codes, _ = run(params, x)
    _, pull_back = jax.vjp(encode, encoder)
    return pull_back(jax.grad(decode)(codes.q_BxhxwxD))[0]

  got = jax.grad(whole)(params['encoder'])
  expected = by_hand(params['encoder'])
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
  assert max(np.abs(g).max() for g in jax.tree.leaves(got)) > 0


def test_the_reconstruction_is_bounded_whatever_the_decoder_holds(params):
  loud = jax.tree.map(lambda p: 100 * p, params['decoder'])
  x_hat, _, _ = run({**params, 'decoder': loud}, images())
  assert np.all(np.isfinite(x_hat))
  assert np.abs(x_hat).max() <= 1
  assert np.abs(x_hat).max() > 0.99


def test_a_reconstruction_is_of_its_own_sample_alone(params):
  x = images()
  x_hat = run(params, x)[0]
  alone = run(params, jnp.concatenate([x[:1], images(1)[1:]]))[0]
  np.testing.assert_allclose(alone[0], x_hat[0], atol=1e-5)


def test_no_network_keeps_batch_statistics():
  variables = jax.eval_shape(TOKENIZER.init, jax.random.key(0), images())
  assert set(variables) == {'params'}


class Bare(nn.Module):
  """The codebook where the tokenizer itself would declare it."""

  @nn.compact
  def __call__(self, x):
    return self.param(
      'codebook',
      lambda key: quantizer.unit(jax.random.normal(key, (CODES, DIM))),
    )


def test_a_codebook_is_stored_and_born_as_the_tokenizer_s_own(params):
  born = jax.jit(Bare().init)(jax.random.key(0), images())['params']
  np.testing.assert_array_equal(params['codebook'], born['codebook'])
  assert set(params) == {'codebook', 'decoder', 'encoder'}


def test_with_fsq_there_is_nothing_but_the_networks():
  tokenizer = models.create_tokenizer(
    width=8, blocks=1, downsample=2, quantizer='fsq', levels=[4, 5]
  )
  assert tokenizer.codes == 20
  assert hash(tokenizer) == hash(tokenizer.clone())
  x = images()
  params = jax.jit(tokenizer.init)(jax.random.key(0), x)['params']
  assert set(params) == {'decoder', 'encoder'}
  x_hat, codes, tokens = jax.jit(tokenizer.apply)({'params': params}, x)
  assert x_hat.shape == x.shape
  assert [z.shape for z in codes.logits] == [(3, 4, 4, 4), (3, 4, 4, 5)]
  back = jax.jit(
    lambda t: tokenizer.apply({'params': params}, t, method='detokenize')
  )(tokens)
  np.testing.assert_allclose(back, x_hat, atol=1e-5)


def test_a_tokenizer_is_made_of_what_its_quantizer_takes():
  made = models.create_tokenizer(**SETTINGS, norm='layer', levels=(4, 5))
  assert made == TOKENIZER


def test_one_from_before_there_was_a_choice_has_groups():
  older = models.create_tokenizer(**SETTINGS)
  assert older == models.create_tokenizer(**SETTINGS, norm='group')
  assert older != TOKENIZER
  assert older.reach is None


@pytest.mark.parametrize(
  ('norm', 'is_local'), [('layer', True), ('group', False)]
)
def test_by_layers_a_cell_is_normalized_for_itself(norm, is_local):
  block = models.ResidualBlock(8, norm)
  x = np.random.default_rng(4).normal(size=(1, 9, 9, 8)).astype(np.float32)
  y, params = jax.jit(block.init_with_output)(jax.random.key(0), x)
  other = x.copy()
  other[0, 8, 8, 0] += 9
  z = jax.jit(block.apply)(params, other)
  changed = np.argwhere(np.abs(np.asarray(y - z)[0]).max(-1) > 1e-4)
  # Two convolutions see two cells.
  assert changed.max() == 8
  assert changed.min() == (6 if is_local else 0)
  names = {'layer': 'LayerNorm', 'group': 'GroupNorm'}
  assert {f'{names[norm]}_{i}' for i in (0, 1)} < set(params['params'])


def test_norm_by_layers_is_of_the_channels_of_each_cell():
  block = models.ResidualBlock(8, 'layer')
  x = np.random.default_rng(5).normal(3, 2, (1, 4, 4, 8)).astype(np.float32)
  params = jax.jit(block.init)(jax.random.key(0), x)
  _, state = block.apply(
    params,
    x,
    capture_intermediates=lambda module, _: isinstance(
      module, layer_norm.LayerNorm
    ),
  )
  norm = state['intermediates']['LayerNorm_0']['__call__'][0]
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  expected = (x - mean) / np.sqrt(variance + 1e-6)
  np.testing.assert_allclose(norm, expected, atol=1e-5)


@pytest.mark.parametrize(
  ('downsample', 'blocks', 'reach'),
  [
    # A convolution each side at the cells; the blocks' two, of one cell.
    (1, 1, (1 + 2, 1 + 1 + 2)),
    # At the cells 1 + 2, between them and the tokens 2, blocks 2 * 2 * 2.
    (2, 2, (1 + 2 + 2 + 8, 2 + 8 + 2 + 1)),
    # Also at a grid between: 2 * 2 and 4; the blocks' cells are 4 wide.
    (4, 0, (1 + 2 + 2 + 4 + 4, 4 + 4 + 2 + 1)),
  ],
)
def test_the_reach_is_the_sum_of_what_the_convolutions_see(
  downsample, blocks, reach
):
  settings = SETTINGS | {'downsample': downsample, 'blocks': blocks}
  made = models.create_tokenizer(**settings, norm='layer')
  assert made.reach == reach


def test_a_part_is_told_the_mean_of_the_whole():
  """With that, its middle has the encodings that it has in the whole."""
  tokenizer = TOKENIZER.clone(border='mean')
  rng = np.random.default_rng(1)
  whole = rng.uniform(-1, 1, (1, 8, 64, 3)).astype(np.float32)
  params = jax.jit(tokenizer.init)(jax.random.key(0), whole)
  params = jax.tree.map(lambda p: p + rng.normal(0, 0.1, p.shape), params)
  run = jax.jit(functools.partial(tokenizer.apply, method='quantize'))
  mean = models.mean_of(whole, tokenizer.downsample)
  z, told, alone = (
    np.asarray(run(params, *args)[0].z_BxhxwxD)
    for args in ((whole,), (whole[:, :, :48], mean), (whole[:, :, :48],))
  )
  reach = -(-tokenizer.reach[0] // 2)
  keep = 24 - reach
  assert keep > 10
  np.testing.assert_allclose(told[:, :, :keep], z[:, :, :keep], atol=1e-4)
  assert np.abs(alone[:, :, :keep] - z[:, :, :keep]).max() > 0.01


@pytest.mark.parametrize('downsample', [2, 4])
def test_what_repeats_in_two_cells_has_tokens_of_one_kind(downsample):
  """What the optics make of an image of one color, by a border of its mean."""
  rng = np.random.default_rng(2)
  x = np.tile(rng.uniform(-1, 1, (1, 2, 2, 3)), (1, 16, 16, 1))
  made = models.create_tokenizer(
    **{**SETTINGS, 'downsample': downsample}, norm='layer'
  )
  params = jax.jit(made.init)(jax.random.key(0), x)
  params = jax.tree.map(lambda p: p + rng.normal(0, 0.1, p.shape), params)
  kinds = {}
  for border in ('mean', 'zeros'):
    run = jax.jit(
      functools.partial(made.clone(border=border).apply, method='tokenize')
    )
    kinds[border] = len(np.unique(run(params, x)))
  assert kinds['mean'] == 1
  assert kinds['zeros'] > 1


def _groups(width):
  """How many groups a block of that width normalizes in."""
  x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 2, 2, width)))
  seen = []
  with pytest.MonkeyPatch.context() as patch:
    norm = nn.GroupNorm

    def look(**keywords):
      seen.append(keywords['num_groups'])
      return norm(**keywords)

    patch.setattr(nn, 'GroupNorm', look)
    jax.eval_shape(
      models.ResidualBlock(width, 'group').init, jax.random.key(0), x
    )
  return seen


def test_any_width_is_normalized_and_those_that_were_as_they_were():
  for width in (1, 7, 8, 12, 16, 20, 64, 128, 256):
    assert _groups(width) == [max(1, width // 8)] * 2
  # 12, 12, 5 and 2 do not divide these.
  for width, groups in ((100, 10), (98, 7), (43, 1), (22, 2), (23, 1)):
    assert _groups(width) == [groups] * 2
