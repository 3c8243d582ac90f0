"""What history holds of a run that was never trained."""

import io
import json

import numpy as np
import rich.console

from chimera.clones import specialists
from chimera.monitor import dashboard, history
from chimera.monitor import snapshot as snapshot_lib
from configs import chimera as chimera_config

CONFIG = json.loads(chimera_config.get_config().to_json())
TERMS = tuple(CONFIG['specialists']['perceptual']['emphasis'])


def clone(**changes):
  """What history holds of a clone; every lambda at its base but ssim."""
  base = specialists.base_weights(CONFIG, changes.pop('name', 'perceptual'))
  values = {f'lambda/{t}': base[t] for t in TERMS}
  values['lambda/ssim'] *= 2
  for part in ('error', 'integral', 'derivative'):
    values |= {f'pid/{part}/{t}': 0.0 for t in TERMS}
  return values | {
    'loss/total': 0.75,
    'critic/loss': -1.5,
    'agent/lr': 1.25e-3,
    'agent/trim': 1.25,
    'agent/epsilon': 0.2,
    'agent/reward': 1.5,
    'agent/state': 9.0,
    'agent/action': 3.0,
    'meld/drift': 0.625,
    **changes,
  }


def row(cycle, time=0.0, **master):
  clones = {name: clone(name=name) for name in CONFIG['clone_names']}
  return history.Row(
    cycle, time, clones, {k.replace('__', '/'): v for k, v in master.items()}
  )


def rows():
  return [
    row(50, 0.0, perf__cycles_per_sec=1.0, perf__compile_seconds=25.0),
    row(
      100,
      25.0,
      perf__cycles_per_sec=2.0,
      perf__images_per_sec=64.0,
      codebook__used=467.0,
      codebook__perplexity=279.0,
      meld__dropped=0.0,
    ),
    history.Row(
      100, 26.0, {}, {'eval/psnr': 21.5, 'eval/ssim': 0.5, 'eval/pixel_l1': 0.1}
    ),
    history.Row(
      200, 76.0, {}, {'eval/psnr': 20.0, 'eval/ssim': 0.6, 'eval/pixel_l1': 0.2}
    ),
  ]


def pictures():
  rng = np.random.default_rng(0)
  tile = snapshot_lib.Tile(64, rng.bytes(64 * 64 * 3))
  names = (*CONFIG['clone_names'], 'master')
  return snapshot_lib.Pictures(
    200, (tile,) * 6, {n: (tile,) * 6 for n in names}
  )


def snapshot(rows, pictures=None, now=76.0, **config):
  config = {**CONFIG, **config}
  return snapshot_lib.snapshot_of(rows, config, pictures, now, title='a run')


def lines(snapshot, width, height):
  """What a terminal of that size gets, without its styles."""
  console = rich.console.Console(
    width=width,
    height=height,
    record=True,
    file=io.StringIO(),
    force_terminal=True,
  )
  console.print(dashboard.render(snapshot, width, height), end='')
  return console.export_text().splitlines()
