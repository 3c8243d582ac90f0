"""Trains six short runs, five of them spoilt, and asks the doctor of each.

  python -m tests.spoilt_runs --out=DIR

Exits with 1 where the doctor does not name the fault, or names one in the run
that is as it should be. Some minutes on two cores; no part of the test suite.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from chimera.data import images  # noqa: E402
from chimera.doctor import doctor, symptoms  # noqa: E402
from configs import chimera as chimera_config  # noqa: E402

# The default, short and small.
SMALL = {
  'optics.steps': 200,
  'optics.width': 16,
  'data.train_count': 640,
  'data.held_out_count': 64,
  'model.width': 16,
  'model.blocks': 1,
  'model.critic_width': 8,
  'model.codes': 128,
  'model.revive_after': 60,
  'school.enrol_from': 90,
  'school.enrol_every': 30,
  'loss.adv_ramp': 90,
  'train.cycles': 300,
  'train.warmup': 15,
  'train.log_every': 15,
  'train.eval_every': 150,
  'train.checkpoint_every': 300,
  'train.dashboard': False,
}
CONFIG = chimera_config.get_config()


class Spoilt(NamedTuple):
  """What is changed, and the finding that must name it."""

  changes: dict[str, object]
  finding: str


RUNS = {
  'healthy': Spoilt({}, ''),
  'collapsed_codebook': Spoilt(
    # All weight on encodings that lie on codes: one code is the cheapest.
    {'model.revive_after': 0, 'loss.vq': 100.0, 'loss.commitment': 10.0},
    symptoms.COLLAPSED,
  ),
  'learning_rate_x100': Spoilt(
    {'train.learning_rate': 0.8, 'train.audition': False}, symptoms.RATE
  ),
  'black_images': Spoilt({'data.source': 'BLACK'}, symptoms.CONSTANT),
  'copied_images': Spoilt({'data.source': 'COPIES'}, symptoms.COPIES),
  'unreachable_targets': Spoilt(
    {
      f'specialists.structural.pid.target.{term}': 1e-6
      for term in CONFIG.specialists.structural.pid.target
    },
    symptoms.UNREACHABLE,
  ),
}


def paint_black(folder: pathlib.Path) -> None:
  """16 black photographs of different sizes, so that no two are one file."""
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(16):
    black = np.zeros((200 + i, 240, 3), np.uint8)
    Image.fromarray(black).save(folder / f'{i:02d}.png')


def copy_one(folder: pathlib.Path) -> None:
  """16 files, ten of one photograph: other bytes, the same picture."""
  folder.mkdir(parents=True, exist_ok=True)
  others = ['brick', 'cell', 'chelsea', 'coffee', 'grass', 'moon']
  for i, name in enumerate(['astronaut'] * 10 + others):
    info = PngImagePlugin.PngInfo()
    info.add_text('Comment', f'copy {i}')
    picture = Image.fromarray(images.load_photograph(f'skimage:{name}.png'))
    picture.save(folder / f'{i:02d}.png', pnginfo=info, compress_level=1)


def train(workdir: pathlib.Path, changes: dict[str, object]) -> int:
  """The exit code of a run; its words are in the log beside the workdir."""
  flags = [f'--config.{k}={v}' for k, v in {**SMALL, **changes}.items()]
  with open(f'{workdir}.log', 'w') as log:
    return subprocess.run(
      [sys.executable, '-m', 'chimera.main', f'--workdir={workdir}', *flags],
      cwd=ROOT,
      stdout=log,
      stderr=log,
      check=False,
    ).returncode


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--runs', nargs='+', default=list(RUNS), choices=RUNS)
  args = parser.parse_args()
  out = args.out.resolve()
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(out / 'compiled'))
  folders = {'BLACK': out / 'black', 'COPIES': out / 'copies'}
  paint_black(folders['BLACK'])
  copy_one(folders['COPIES'])
  wrong = 0
  for name in args.runs:
    changes = {
      k: folders.get(v, v) if isinstance(v, str) else v
      for k, v in RUNS[name].changes.items()
    }
    workdir = out / name
    if not workdir.exists():
      if 'data.source' not in changes and (out / 'healthy/optics').exists():
        # Stage 1 is the same, and before training nothing else binds.
        workdir.mkdir()
        shutil.copy(out / 'healthy/config.json', workdir)
        shutil.copytree(out / 'healthy/optics', workdir / 'optics')
        shutil.copy(out / 'healthy/latents.npy', workdir)
      code = train(workdir, changes)
      sys.stdout.write(f'{name}: trained, exit code {code}\n')
    diagnosis = doctor.diagnose(str(workdir))
    named = [finding.name for finding in diagnosis.findings]
    wanted = RUNS[name].finding
    right = wanted in named if wanted else not named
    wrong += not right
    sys.stdout.write(
      f'\n===== {name}: {"right" if right else "WRONG"}\n'
      f'{doctor.describe(diagnosis)}\n'
    )
    sys.stdout.flush()
  return int(wrong > 0)


if __name__ == '__main__':
  sys.exit(main())
