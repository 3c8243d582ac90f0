"""Runs written by hand: a config.json, a history and what they trained on."""

import json
import math

import numpy as np

from chimera.clones import terms
from chimera.data import crops as crops_lib
from chimera.data import fingerprints
from chimera.monitor import history
from configs import chimera as chimera_config

TERMS = terms.TERMS
CLONES = chimera_config.get_config().clone_names
CYCLES = range(50, 1001, 50)


def clone_row(i):
  """Healthy figures of a clone in the i-th log cycle."""
  row = {
    'loss/base': 0.3 + 0.4 * math.exp(-i / 4),
    'loss/l1': 0.1,
    'loss/adv_share': 0.1,
    'loss/vq_share': 0.1,
    'agent/trim': (0.9, 1.1)[i % 2],
    'agent/reward': (1.0, -1.0)[i % 2],
    'agent/action': i % 5,
    'critic/loss': -0.2,
    'critic/wasserstein': 0.2,
    'critic/penalty': 0.003,
  }
  for term in TERMS:
    row |= {f'pid/error/{term}': 0.1, f'pid/integral/{term}': 0.1}
  return row


def master_row(i):
  """Likewise of the master."""
  return {
    'codebook/perplexity': 600.0,
    'codebook/used': 800.0,
    'meld/dropped': 0.0,
  }


def write(home, *, clone=None, master=None, held_out=(0.09, 0.08), **settings):
  """A run whose rows are healthy but for what is given.

  Args:
    home: its workdir.
    clone: (i, name) -> what differs in a clone's i-th row.
    master: i -> what differs in the master's.
    held_out: L1 at half and at the end.
    **settings: of the config, with __ for a dot; `done`, cycles done.
  """
  home.mkdir(parents=True, exist_ok=True)
  done = settings.pop('done', 1000)
  config = chimera_config.get_config()
  changes = {k.replace('__', '.'): v for k, v in settings.items()}
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  (home / 'config.json').write_text(config.to_json())
  rows = history.History(str(home))
  for i, cycle in enumerate(CYCLES):
    if cycle > done:
      break
    rows.append(
      cycle,
      {
        name: clone_row(i) | (clone(i, name) if clone else {})
        for name in CLONES
      },
      master_row(i) | (master(i) if master else {}),
    )
    if cycle in (500, 1000):
      l1 = held_out[cycle // 1000]
      rows.append(cycle, {}, {'eval/path_l1': l1, 'eval/psnr': 22.0})
  return str(home)


def write_data(
  home, *, scores_N, gradients_N, paths_NxHxWxC, sources_N=None, copies=0
):
  """What a run trains on; `copies` of its photographs are near copies."""
  (home / 'optics').mkdir(parents=True)
  sources_N = sources_N or [f'/{i}.png' for i in range(len(scores_N))]
  crops = [crops_lib.Crop(source, 0, 0, 64) for source in sources_N]
  crops_lib.write_manifest(home / 'manifest.csv', crops, scores_N)
  crops_lib.write_manifest(home / 'optics' / 'crops.csv', crops, gradients_N)
  np.save(home / 'latents.npy', paths_NxHxWxC)
  optics = json.dumps({'figures': {'copies': copies}})
  (home / 'optics' / 'optics.json').write_text(optics)
  taken = {source: {'sha256': source, 'stat': []} for source in sources_N}
  fingerprints.write(home / 'optics' / 'sources.json', taken)


def varied(n=1000):
  """Data with nothing wrong: keywords of `write_data`."""
  rng = np.random.default_rng(0)
  scores_N = np.linspace(0.2, 0.6, n)
  return {
    'scores_N': scores_N,
    'gradients_N': scores_N / 4,
    'paths_NxHxWxC': rng.normal(size=(n, 16, 16, 3)).astype(np.float32),
  }


def read_json(path):
  return json.loads(path.read_text())
