"""A run small enough for tests: 8x8 path_params, 120 samples."""

import functools
import math
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera import step as step_lib
from chimera.clones import models, specialists, terms
from chimera.clones import state as state_lib
from chimera.optics import modules as optics
from chimera.run import engine
from chimera.school import lessons
from chimera.system import disk
from chimera.tokenizer import export
from configs import chimera as chimera_config

SAMPLES = 120


def get_config(arg=''):
  c = chimera_config.get_config(arg)
  c.model.width = 8
  c.model.blocks = 1
  c.model.codes = 16
  c.model.code_dim = 4
  c.model.critic_width = 4
  c.train.batch_size = 4
  c.train.learning_rate /= 16  # gently: rounding grows with it
  c.train.warmup = 4
  c.train.audition = False
  c.train.schedule = 'cosine'
  c.train.cycles = 40
  c.loss.adv_ramp = 5
  c.q.every = 4
  c.q.window = 4
  c.school.enrol_from = 0
  return c


def bins_and_paths():
  rng = np.random.default_rng(0)
  smooth = rng.normal(size=(SAMPLES, 3, 3, 3)).repeat(3, 1).repeat(3, 2)
  paths = np.tanh(smooth[:, :8, :8] + 0.2 * rng.normal(size=(SAMPLES, 8, 8, 3)))
  low = np.array([-np.pi, -np.pi / 4, 0])
  high = np.array([np.pi, np.pi / 4, np.pi / 2])
  paths = ((paths + 1) / 2 * (high - low) + low).astype(np.float32)
  order = np.argsort(paths[..., 2].mean((1, 2)))
  return dict(enumerate(np.split(order.astype(np.int32), 10))), paths


def shard(paths):
  return lessons.make_shards(
    paths, [], resident_mb=1, rotating_samples=0, rotation=0, seed=0
  )[0]


def on_devices(config, spec, bins, paths, devices):
  states = state_lib.create_states(config, spec, bins, paths.shape[1:3])
  return (
    engine.put(state_lib.stack(states), devices),
    engine.put(
      state_lib.stack(specialists.create_missions(config, bins)), devices
    ),
    engine.put_shared(shard(paths), devices),
  )


def run(config, cycles, devices, spec=None):
  """(state, [metrics]) of a fresh run, on the host."""
  bins, paths = bins_and_paths()
  spec = spec or state_lib.create_spec(config)
  step = step_lib.make_train_step(spec, tuple(devices))
  state, mission, shard = on_devices(config, spec, bins, paths, devices)
  log = []
  for _ in range(cycles):
    state, metrics = step(state, mission, shard)
    log.append(engine.fetch({**metrics, 'specialist': ()}))
  return engine.fetch(state), log


def trees(spec, tree):
  """A state, or metrics, with trees where vectors of parameters were."""
  layouts = {
    sum(map(math.prod, layout.shapes)): layout
    for layout in (spec.generator_layout, spec.critic_layout)
  }

  def grown(x):
    layout = layouts.get(x.shape[-1]) if np.ndim(x) else None
    return layout.tree(x) if layout else x

  return jax.tree.map(grown, tree)


def vectors(spec, tree):
  """`trees` undone."""
  layouts = {
    layout.structure: layout
    for layout in (spec.generator_layout, spec.critic_layout)
  }
  return jax.tree.map(
    lambda x: (
      layouts[jax.tree.structure(x)].vector(x)
      if jax.tree.structure(x) in layouts
      else x
    ),
    tree,
    is_leaf=lambda x: jax.tree.structure(x) in layouts,
  )


def metrics(clones=4):
  """What the loop sees of a cycle: all zero."""
  of_terms = ('loss', 'lambda', 'pid/error', 'pid/integral', 'pid/derivative')
  of_clones = (
    *('loss/total', 'loss/base', 'loss/adv_share', 'loss/vq_share'),
    *('agent/lr', 'agent/epsilon'),
    *('agent/reward', 'agent/state', 'agent/action', 'agent/trim'),
    *('critic/loss', 'critic/wasserstein', 'critic/penalty', 'grads/rms'),
    *('meld/drift', 'meld/dropped', 'codebook/perplexity', 'codebook/used'),
    *('school/fence', 'school/outliers'),
  )
  return {
    **{name: np.zeros((clones, len(terms.TERMS))) for name in of_terms},
    **{name: np.zeros(clones) for name in of_clones},
  }


# Of a tokenizer, or of its optics, from before pictures were of any size.
OLDER = {'norm': 'group', 'radius': 'contrast'}


@functools.cache
def parts(
  *,
  seed=0,
  codes=16,
  downsample=2,
  norm='layer',
  border='zeros',
  radius='local',
  **quantizer,
):
  """A tokenizer as it is born: 16 x 16 images have 2 x 2 tokens."""
  module = models.create_tokenizer(
    **{'width': 8, 'blocks': 1, 'downsample': downsample},
    **{'norm': norm, 'border': border},
    **{'codes': codes, 'code_dim': 4, **quantizer},
  )
  model = optics.Optics(cell=4, width=8, radius=radius)
  key = jax.random.key(seed)
  params = jax.jit(module.init)(key, jnp.zeros((1, 4, 4, 3)))['params']
  variables = jax.jit(model.init)(key, jnp.zeros((1, 16, 16, 3)))
  return export.Parts(module, *jax.device_get((params,)), model, variables)


def grown(parts, seed=0, scale=0.1):
  """`parts`, nothing of which is zero any more, so that all of it counts."""
  rng = np.random.default_rng(seed)

  def grow(x):
    return (x + rng.normal(scale=scale, size=x.shape)).astype(np.float32)

  params, variables = jax.tree.map(grow, (parts.params, parts.variables))
  return parts._replace(params=params, variables=variables)


def save_tokenizer(folder, *, artefacts=False, **settings):
  """Exports `parts`; the artefacts, which take their time, may be empty."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, data in _exported(artefacts, **settings).items():
    disk.write(folder / name, data)
  return folder


@functools.cache
def _exported(artefacts, **settings):
  with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as p:
    if not artefacts:
      p.setattr(export, '_lower', no_artefacts)
    given = {'input_shape': (16, 16, 3), 'came_from': {'a': 1}}
    export.save(home, parts(**settings), **given)
    return {p.name: p.read_bytes() for p in pathlib.Path(home).iterdir()}


def no_artefacts(_):
  """In the place of `export._lower`."""
  return [b'' for _ in export.ARTEFACTS]
