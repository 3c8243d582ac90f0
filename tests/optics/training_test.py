"""The optics learn to see, in noise, by a seed."""

import jax
import jax.numpy as jnp
import numpy as np

from chimera.data import images
from chimera.optics import modules as optics
from chimera.optics import poincare, training


def test_training_lowers_the_error():
  rng = np.random.default_rng(0)
  colors = rng.integers(256, size=(64, 2, 2, 3), dtype=np.uint8)
  pictures = colors.repeat(4, 1).repeat(4, 2)
  model = optics.Optics(cell=4, width=8, radius='contrast', blocks=1)
  errors = []
  for steps in (1, 150):
    variables, _ = training.train_optics(
      model,
      pictures,
      steps=steps,
      batch_size=8,
      learning_rate=1e-2,
      noise=0.0,
      seed=0,
    )
    paths = training.encode_images(model, variables, pictures, 64)
    seen = model.apply(variables, paths, method='decode')
    errors.append(np.mean((seen - images.to_float(pictures)) ** 2))
  assert errors[1] < 0.4 * errors[0]


def test_optics_that_learned_in_noise_bear_the_errors_of_a_tokenizer():
  rng = np.random.default_rng(0)
  colors = rng.integers(256, size=(64, 2, 2, 3), dtype=np.uint8)
  pictures = colors.repeat(4, 1).repeat(4, 2)
  model = optics.Optics(cell=4, width=8, radius='contrast', blocks=1)
  harm = []
  for noise in (0.0, 0.2):
    variables, _ = training.train_optics(
      model,
      pictures,
      steps=150,
      batch_size=8,
      learning_rate=1e-2,
      noise=noise,
      seed=0,
    )
    x = poincare.normalize(
      training.encode_images(model, variables, pictures, 64)
    )
    wrong = poincare.denormalize(x + 0.2 * rng.normal(size=x.shape))
    seen, shown = (
      model.apply(variables, jnp.float32(paths), method='decode')
      for paths in (poincare.denormalize(x), wrong)
    )
    harm.append(np.mean((seen - shown) ** 2))
  assert harm[1] < 0.5 * harm[0]


def test_the_same_seed_trains_the_same_optics():
  rng = np.random.default_rng(0)
  pictures = rng.integers(256, size=(8, 8, 8, 3), dtype=np.uint8)
  model = optics.Optics(cell=4, width=8, radius='free', blocks=0)
  a, b, c = (
    training.train_optics(
      model,
      pictures,
      steps=3,
      batch_size=2,
      learning_rate=1e-2,
      noise=0.1,
      seed=seed,
    )[0]
    for seed in (1, 1, 2)
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)
  kernels = [x['params']['look']['kernel'] for x in (a, c)]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-2


def test_latents_are_computed_as_by_what_is_exported():
  """On accelerators, too, whose products are rounded by default."""
  model = optics.Optics(cell=4, width=8, radius='local')
  images_NxSxSx3 = np.zeros((2, 16, 16, 3), np.uint8)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  for lowered in (
    training.encode_images.__wrapped__.lower(model, variables, images_NxSxSx3),
    training.gradients.__wrapped__.lower(images_NxSxSx3),
  ):
    text = lowered.as_text()
    assert 'HIGHEST' in text
    assert 'DEFAULT' not in text
