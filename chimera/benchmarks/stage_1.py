"""Stage 1: reading against Pillow, learning against bare compiled programs."""

import argparse
from collections.abc import Callable
import itertools
import os
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import rich.console

from chimera.run import default_config

_say = rich.console.Console().print


def stage_1(args: argparse.Namespace) -> None:
  """Prints images/s of each part, and their ratio to the bare one."""
  config = default_config.get_config(args.variant)
  with tempfile.TemporaryDirectory() as folder:
    _save_photographs(folder, args.photographs)
    crops = _read(folder, config, args.rounds)
  _learn(crops, config, args.steps, args.rounds)


def _save_photographs(folder: str, count: int) -> None:
  """Bundled photographs as JPEG, no two of them alike."""
  from PIL import Image

  from chimera.data import folders, images

  sources = folders.list_sources('photos', '')
  for i in range(count):
    pixels = images.load_photograph(sources[i % len(sources)])
    image = Image.fromarray(np.roll(pixels, i, axis=1))
    image.save(os.path.join(folder, f'{i:06d}.jpg'), quality=90)


def _read(folder: str, config: Any, rounds: int) -> np.ndarray:
  """Planning and cropping; the config's crops."""
  from PIL import Image

  from chimera.data import crops as crops_lib
  from chimera.data import cutting

  files = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
  size, chunk = config.data.image_size, config.optics.chunk
  config.data.source = folder

  def plan(crop: str, count: int) -> list[crops_lib.Crop]:
    changed = {'crop': crop, 'train_count': count}
    return crops_lib.plan_crops(**{**config.data, **changed}).train

  def decode(file: str) -> np.ndarray:
    with Image.open(file) as image:
      return np.asarray(image)

  def cut(crops: list[crops_lib.Crop]) -> np.ndarray:
    parts = cutting.cut(crops, image_size=size, chunk=chunk)
    return np.concatenate(list(parts))

  def decode_and_resize(crops: list[crops_lib.Crop]) -> None:
    for source, group in itertools.groupby(crops, lambda crop: crop.source):
      pixels = decode(source)
      for _, top, left, side, *_ in group:
        window = pixels[top : top + side, left : left + side]
        Image.fromarray(window).resize((size, size), Image.Resampling.LANCZOS)

  whole = plan('whole', len(files))
  one = plan('random', len(whole))
  crops = plan('random', config.data.train_count)
  _compare(
    'planning',
    len(files),
    lambda: plan('whole', len(files)),
    'decoding by Pillow',
    lambda: [decode(file) for file in files],
    rounds,
  )
  _compare(
    'cropping, one of each',
    len(one),
    lambda: cut(one),
    'decoding by Pillow',
    lambda: [decode(crop.source) for crop in one],
    rounds,
  )
  for name, some in (('whole', whole), (f'{len(crops)} of all', crops)):
    _compare(
      f'cropping, {name}',
      len(some),
      lambda some=some: cut(some),
      'decoding and resizing by Pillow',
      lambda some=some: decode_and_resize(some),
      rounds,
    )
  return cut(crops)


def _learn(crops: np.ndarray, config: Any, steps: int, rounds: int) -> None:
  """Training and encoding."""
  import jax

  from chimera.optics import modules, training

  c = config.optics
  model = modules.Optics(cell=c.cell, width=c.width, radius=c.radius)
  *state, step = training.create(
    model,
    crops[:1],
    steps=c.steps,
    learning_rate=c.learning_rate,
    noise=c.noise,
    seed=0,
  )
  whole, shared = training.placements(c.batch_size)
  state = [*jax.device_put(state, whole)]
  batch = jax.device_put(crops[: c.batch_size], shared)
  chunk = min(c.chunk, len(crops))
  on_device = jax.device_put(crops[:chunk])
  bare_encode = training.encode_images.__wrapped__

  def descend() -> None:
    *state[:], loss = training.descend(
      step,
      *state,
      crops,
      steps=steps,
      batch_size=c.batch_size,
      seed=0,
      report=lambda done, said: None,
    )
    jax.block_until_ready(loss)

  def descend_bare() -> None:
    for i in range(steps):
      *state[:], loss = step(*state, batch, i)
      jax.block_until_ready(loss)

  def encode() -> None:
    for start in range(0, len(crops) - chunk + 1, chunk):
      part = crops[start : start + chunk]
      training.encode_images(model, variables, part, chunk)

  def encode_bare() -> None:
    for _ in range(len(crops) // chunk):
      jax.block_until_ready(bare_encode(model, variables, on_device))

  _compare(
    'training',
    steps * c.batch_size,
    descend,
    'the bare compiled step',
    descend_bare,
    rounds,
  )
  variables = jax.device_put(jax.device_get(state[0]))
  _compare(
    'encoding',
    len(crops) // chunk * chunk,
    encode,
    'the bare compiled encoder',
    encode_bare,
    rounds,
  )


def _compare(
  name: str,
  images: int,
  ours: Callable[[], Any],
  bare_name: str,
  bare: Callable[[], Any],
  rounds: int,
) -> None:
  """Says both rates and their ratio, round by round."""

  def rate(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return images / (time.perf_counter() - start)

  ours(), bare()  # what is compiled, is now
  pairs = [(rate(ours), rate(bare)) for _ in range(rounds)]
  ratios = [a / b for a, b in pairs]
  a, b = map(statistics.median, zip(*pairs))
  _say(
    f'{name}: {a:.0f} images/s; {bare_name}: {b:.0f}; ratio '
    f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
  )
