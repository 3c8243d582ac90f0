"""Stage 1 of very many small JPEGs, killed in the middle: what it takes.

    python -m tests.many 100000

makes them (1 ms each), then plans and reads them by `prepare-latents` in
processes of their own, kills those in the middle, and prints images/s beside
those of bare Pillow, the peak of memory, and how many were decoded anew.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

_SIDES = (96, 160)  # pixels
_PLANNED, _CROPS = 'optics/planned.jsonl', 'optics/crops.bin'
_SIZE = 64


def make(home: pathlib.Path, count: int) -> None:
  """Windows of the bundled photographs, no two of them alike."""
  from chimera.data import folders, images

  sources = folders.list_sources('photos', '')
  photographs = [images.load_photograph(source) for source in sources]

  def save(i: int) -> None:
    rng = np.random.default_rng(i)
    photograph = photographs[i % len(photographs)]
    side = int(rng.integers(*_SIDES))
    scale = int(rng.integers(1, 3))
    span = min(scale * side, *photograph.shape[:2])
    top, left = (int(rng.integers(n - span + 1)) for n in photograph.shape[:2])
    window = Image.fromarray(photograph[top : top + span, left : left + span])
    folder = home / f'{i // 1000:03d}'
    folder.mkdir(parents=True, exist_ok=True)
    # Noise of a few grays: of flat windows, too, no two are one file.
    pixels = np.asarray(window.resize((side, side))).astype(np.int16)
    pixels = pixels + rng.integers(-3, 4, pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(folder / f'{i:07d}.jpg', quality=90)

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(save, range(count)))


def bare(home: pathlib.Path) -> float:
  """Images/s that Pillow decodes on one thread, of every tenth."""
  paths = sorted(home.glob('*/*.jpg'))[::10]
  start = time.monotonic()
  for path in paths:
    with Image.open(path) as image:
      image.load()
  return len(paths) / (time.monotonic() - start)


def prepare(home: pathlib.Path, workdir: pathlib.Path, count: int) -> list[str]:
  """The command of stage 1, without the optics' learning to speak of."""
  flags = {
    'workdir': workdir,
    'config.data.source': home,
    'config.data.crop': 'whole',
    'config.data.train_count': count,
    'config.data.image_size': _SIZE,
    'config.optics.steps': 50,
  }
  flags = [f'--{key}={value}' for key, value in flags.items()]
  return [sys.executable, '-m', 'chimera.main', 'prepare-latents', *flags]


def run(command: list[str], kill_if=lambda: False) -> tuple[int, float]:
  """(exit code, MB at most) of a process; killed when `kill_if` says so."""
  with subprocess.Popen(command) as process:
    most = 0.0
    while process.poll() is None:
      status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
      peak = re.search(r'VmHWM:\s+(\d+) kB', status)
      most = max(most, int(peak[1]) / 1024 if peak else 0.0)
      if kill_if():
        process.send_signal(signal.SIGKILL)
      time.sleep(0.2)
    return process.returncode, most


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('count', type=int)
  parser.add_argument('--home', help='made there, and kept')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    top = pathlib.Path(args.home or scratch)
    home, workdir = top / 'folder', top / 'run'
    if not home.exists():
      make(home, args.count)
    print(f'bare Pillow, one thread: {bare(home):.0f} images/s', flush=True)
    command = prepare(home, workdir, args.count)
    planned, crops = workdir / _PLANNED, workdir / _CROPS

    def lines() -> int:
      if not planned.exists():
        return 0
      return planned.read_bytes().count(b'\n') - 1

    def cut() -> int:
      return crops.stat().st_size // (3 * _SIZE**2) if crops.exists() else 0

    for name, done in (('planning', lines), ('cutting', cut)):
      begun = done()
      start = time.monotonic()
      code, most = run(command, lambda done=done: done() > args.count / 2)
      print(
        f'killed in {name}: exit code {code}, {begun} of {args.count} were '
        f'done before, {done()} after {time.monotonic() - start:.0f} s; peak '
        f'{most:.0f} MB',
        flush=True,
      )
    start = time.monotonic()
    code, most = run(command)
    print(
      f'the rest: exit code {code}, {time.monotonic() - start:.0f} s, peak '
      f'{most:.0f} MB; left: {sorted(os.listdir(workdir / "optics"))}'
    )


if __name__ == '__main__':
  main()
