"""Figures and contact sheets of a frozen tokenizer.

Pixel figures compare the photograph with optics(tokenizer(optics(photograph))),
both rounded to 8 bits as a file would hold them. README.md says the rest.
"""

from collections.abc import Iterator, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from chimera.clones import models, perceptual
from chimera.data import images
from chimera.evaluation import features, frechet, metrics, sheets
from chimera.optics import modules as optics
from chimera.optics import poincare
from chimera.school import curriculum

# By which the sheet's error maps are brightened: 1 / 4 of full range is white.
ERROR_GAIN = 4


class HeldOut(NamedTuple):
  """Samples no training sample comes near."""

  paths_NxHxWxC: np.ndarray  # path_params
  images_NxSxSx3: np.ndarray | None  # uint8; None if the data are path_params
  bins_N: np.ndarray  # of the curriculum, that each would fall in, 0 to 9
  frechet_metrics: Sequence[frechet.FrechetMetric] = ()  # to the crops
  # Of the optics alone, the same for all tokenizers; None: to be measured.
  optics_psnr: float | None = None
  # Of pictures from the crops, by a network of the user's.
  distance: features.Distance | None = None


class Eyes(NamedTuple):
  """What turns path_params back into pixels: the frozen optics."""

  model: optics.Optics
  params: Any


def frechet_metrics(
  images_NxSxSx3: np.ndarray, inception: str, *, batch_size: int
) -> tuple[frechet.FrechetMetric, ...]:
  """rfd-random of the crops and, where a file of Inception is named, rfid.

  Raises:
    ValueError: the file holds no such network.
    OSError: it cannot be read.
  """
  networks = {frechet.RANDOM: frechet.random_features}
  if inception:
    networks[frechet.INCEPTION] = frechet.load_network(inception)
  return tuple(
    frechet.FrechetMetric(
      name,
      network,
      (
        images.to_float(images_NxSxSx3[part])
        for part in _batches(len(images_NxSxSx3), batch_size)
      ),
    )
    for name, network in networks.items()
  )


class Judged(NamedTuple):
  """What was found of one tokenizer."""

  figures: dict[str, float]  # every one, by name
  counts_V: np.ndarray  # uses of each code
  pictures: np.ndarray  # of the samples that were asked for, uint8


def evaluate(
  tokenizer: models.Tokenizer,
  params: Any,
  held_out: HeldOut,
  eyes: Eyes | None,
  *,
  batch_size: int,
  shown: Sequence[int] = (),
) -> Judged:
  """Judges one tokenizer; pictures are kept of the samples `shown`."""
  rows, counts_V = [], np.zeros(tokenizer.codes)
  moments, album = dict.fromkeys(held_out.frechet_metrics), _Album(shown)
  for part in _batches(len(held_out.paths_NxHxWxC), batch_size):
    paths = held_out.paths_NxHxWxC[part]
    row, seen, counts = _reconstruct(tokenizer, params, paths)
    if eyes:
      seen = _paint(*eyes, seen)
      pixels = images.to_float(held_out.images_NxSxSx3[part])
      row |= _compare(pixels, rounded := _to_8_bits(seen), of_paths=False)
      if held_out.distance:
        row[features.NAME] = held_out.distance(pixels, rounded)
    album.add(part, seen)
    rows.append(jax.device_get(row))
    counts_V += np.asarray(counts)
    for metric, so_far in moments.items():
      moments[metric] = metric.add(so_far, rounded)
  each = {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}
  figures = {k: float(np.mean(v)) for k, v in each.items()}
  for metric, so_far in moments.items():
    figures[metric.name] = metric.distance(so_far)
  if eyes:
    alone = held_out.optics_psnr
    if alone is None:
      alone, _ = judge_optics(held_out, eyes, batch_size=batch_size)
    figures['optics_psnr'] = alone
  for metric in metrics.FIGURES:
    if metric.by_bin is not None and metric.name in each:
      of_bins = {
        metric.bin(b).name: float(np.mean(each[metric.name][here_N]))
        for b in range(curriculum.BINS)
        if np.any(here_N := held_out.bins_N == b)
      }
      figures |= of_bins
      worst = metric.worst_of([*of_bins.values()])
      figures[metric.worst_bin().name] = float(worst)
  p = counts_V[counts_V > 0] / counts_V.sum()
  figures['perplexity'] = math.exp(-np.sum(p * np.log(p)))
  figures['codes_used'] = float(np.sum(counts_V > 0))
  return Judged(figures, counts_V, album.pictures())


def _batches(count: int, batch_size: int) -> Iterator[slice]:
  for start in range(0, count, batch_size):
    yield slice(start, start + batch_size)


class _Album:
  """Pictures of chosen samples, out of the batches that go by."""

  def __init__(self, shown: Sequence[int]):
    self._shown = [int(i) for i in shown]
    self._found: dict[int, np.ndarray] = {}

  def add(self, part: slice, seen_BxHxWx3: jax.Array) -> None:
    """A batch, in [-1, 1], and which samples it is of."""
    for i in {i for i in self._shown if part.start <= i < part.stop}:
      picture = np.asarray(seen_BxHxWx3)[i - part.start]
      self._found[i] = images.to_uint8(picture)

  def pictures(self) -> np.ndarray:
    """As they were asked for."""
    return np.array([self._found[i] for i in self._shown])


def judge_optics(
  held_out: HeldOut,
  eyes: Eyes,
  *,
  batch_size: int,
  shown: Sequence[int] = (),
) -> tuple[float, np.ndarray]:
  """PSNR of what the optics alone make of the samples, and pictures of it."""
  found, album = [], _Album(shown)
  for part in _batches(len(held_out.paths_NxHxWxC), batch_size):
    seen = _paint(*eyes, poincare.normalize(held_out.paths_NxHxWxC[part]))
    album.add(part, seen)
    pixels = images.to_float(held_out.images_NxSxSx3[part])
    found.append(_psnr(pixels, _to_8_bits(seen)))
  return float(np.mean(np.concatenate(found))), album.pictures()


@functools.partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision('highest')  # as what is exported
def _reconstruct(tokenizer, params, paths):
  """Figures of each sample, what becomes of it, and counts of the codes."""
  x = poincare.normalize(paths)
  x_hat, _, tokens = tokenizer.apply({'params': params}, x)
  row = _compare(x, x_hat, of_paths=True)
  return row, x_hat, jnp.bincount(tokens.ravel(), length=tokenizer.codes)


@functools.partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision('highest')
def _paint(eye_model, eye_params, x_BxHxWxC):
  """Pixels in [-1, 1] of normalized path_params."""
  paths = poincare.denormalize(x_BxHxWxC)
  return eye_model.apply(eye_params, paths, method='decode')


@functools.partial(jax.jit, static_argnames='of_paths')
def _compare(
  a: jax.Array, b: jax.Array, *, of_paths: bool
) -> dict[str, jax.Array]:
  """By name, (B,), what the table says of path_params, or of pixels."""
  return {
    metric.name: getattr(perceptual, metric.by)(a, b)
    for metric in metrics.FIGURES
    if metric.by and metric.is_of_paths == of_paths
  }


_psnr = jax.jit(perceptual.psnr)


@jax.jit
def _to_8_bits(x_BxHxWxC: jax.Array) -> jax.Array:
  """As if by way of uint8, in [-1, 1]; what is not finite stays so."""
  return jnp.round(jnp.clip(x_BxHxWxC + 1, 0, 2) * 127.5) / 127.5 - 1


def columns(held_out: HeldOut, count: int) -> np.ndarray:
  """Samples that a contact sheet shows, from easy to hard."""
  order = np.argsort(held_out.bins_N, kind='stable')
  return order[np.linspace(0, len(order) - 1, count).round().astype(int)]


def preview(
  made: dict[str, np.ndarray],
  held_out: HeldOut,
  shown: np.ndarray,
  by_optics: np.ndarray | None = None,
) -> tuple[np.ndarray, sheets.Sheet]:
  """What a contact sheet shows: tiles_RxCxTxTx3, uint8, and how they lie.

  A column of each of the samples `shown`, and a row of what each tokenizer made
  of them, the master first. path_params without optics are drawn as colors.
  """
  if by_optics is None:
    x = poincare.normalize(held_out.paths_NxHxWxC[shown])
    rows = {'original': draw(x, None)}
  else:
    originals = held_out.images_NxSxSx3[shown]
    rows = {'original': originals, 'optics': by_optics}
  rows |= made
  master = next(iter(made))
  rows[f'error x{ERROR_GAIN}'] = error_map(rows['original'], rows[master])
  tiles = np.stack(list(rows.values()))
  # A sheet's are square; path_params of others need not be.
  height, width = tiles.shape[2:4]
  more = [(0, max(height, width) - n) for n in (height, width)]
  white = [(0, 0), (0, 0), *more, (0, 0)]
  tiles = np.pad(tiles, white, constant_values=255)
  scale = max(1, 128 // tiles.shape[2])
  tiles = tiles.repeat(scale, axis=2).repeat(scale, axis=3)
  return tiles, sheets.create(
    tiles.shape[2], tuple(rows), tuple(held_out.bins_N[shown].tolist())
  )


def draw(x_BxHxWxC: jax.Array, eyes: Eyes | None) -> np.ndarray:
  """Pixels, uint8, of normalized path_params; themselves without optics."""
  if eyes is None:
    return images.to_uint8(np.asarray(x_BxHxWxC))
  return images.to_uint8(np.asarray(_paint(*eyes, x_BxHxWxC)))


def error_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Gray |a - b| of uint8 pictures (..., 3): the channels' mean, brightened."""
  error = np.abs(a.astype(np.float32) - b).mean(-1, keepdims=True)
  bright = np.minimum(np.rint(error * ERROR_GAIN), 255).astype(np.uint8)
  return np.broadcast_to(bright, a.shape)
