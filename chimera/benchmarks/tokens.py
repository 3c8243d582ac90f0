"""Tokenizing, against bare `encode` on arrays in memory."""

import argparse
from collections.abc import Callable
import os
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import rich.console

from chimera.run import default_config

_say = rich.console.Console().print


def tokens(args: argparse.Namespace) -> None:
  """Images/s of `tokenize` over those of `encode`, round by round."""
  from PIL import Image

  from chimera.data import crops as crops_lib
  from chimera.data import cutting
  from chimera.tokenizer import export
  from chimera.tokenizer import tokens as tokens_lib

  config = default_config.get_config()
  loaded = export.load(args.tokenizer)
  plan = crops_lib.plan_crops(
    args.source,
    held_out_source='',
    held_out_fraction=0.5,
    image_size=loaded.image_size,
    train_count=args.count,
    held_out_count=1,
    crop='random',
    max_scale=3.0,
    seed=0,
  )
  crops = cutting.read(plan.train, image_size=loaded.image_size)
  batch = min(config.tokens.batch_size, len(crops))
  starts = range(0, len(crops) - batch + 1, batch)

  def bare() -> float:
    start = time.perf_counter()
    for i in starts:
      np.asarray(loaded.encode(crops[i : i + batch]))
    return len(starts) * batch / (time.perf_counter() - start)

  ratios = []
  with tempfile.TemporaryDirectory() as home:
    folder = os.path.join(home, 'crops')
    os.mkdir(folder)
    for i, crop in enumerate(crops):
      Image.fromarray(crop).save(f'{folder}/{i:06d}.png')
    bare()
    for i in range(args.rounds):
      before = bare()
      start = time.perf_counter()
      tokens_lib.tokenize(folder, args.tokenizer, f'{home}/{i}', config)
      rate = len(crops) / (time.perf_counter() - start)
      ratios.append(rate / statistics.mean([before, bare()]))
      _say(f'tokenize {rate:.0f} images/s, {ratios[-1]:.3f} of bare encode')
  _say(f'median {statistics.median(ratios):.3f}')


def door(args: argparse.Namespace) -> None:
  """Prints the door's share of `encode`, of NumPy's floats and of JAX's."""
  import jax

  from chimera.tokenizer import door as door_lib
  from chimera.tokenizer import export

  loaded = export.load(args.tokenizer)
  shape = loaded.image_size, loaded.image_size, 3
  rng = np.random.default_rng(0)
  floats = rng.random((args.batch, *shape), np.float32) * 2 - 1

  def seconds(f: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    return time.perf_counter() - start

  for x in (floats, jax.device_put(floats)):
    rounds = [
      (seconds(door_lib.images, x, loaded.side), seconds(loaded.encode, x))
      for _ in range(args.rounds + 1)
    ][1:]  # the first one compiles
    look, whole = map(statistics.median, zip(*rounds))
    share = statistics.median(a / b for a, b in rounds)
    _say(
      f'{type(x).__name__:9s} {1e3 * look:6.2f} ms of {1e3 * whole:6.1f} ms '
      f'for {len(x)} images: {100 * share:.2f} % of encode'
    )
