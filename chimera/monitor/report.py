"""report.html: a finished run on one page that needs nothing but itself.

Curves come from history.jsonl, sheets from previews/, figures from
evaluation.json; every picture is inline.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import functools
import html
import io
import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from chimera.clones import models
from chimera.data import crops as crops_lib
from chimera.data import cutting
from chimera.evaluation import evaluate, exam, metrics, sheets
from chimera.monitor import curves, history, summary
from chimera.optics import poincare, stage_1
from chimera.run import audition
from chimera.school import curriculum
from chimera.system import disk

# What may go wrong with a report and must not cost a finished run.
FAILURES = (
  *(OSError, ValueError, TypeError, LookupError, ArithmeticError),
  *(RuntimeError, ImportError, MemoryError),
)
_SHEETS = 6  # at most, the last one among them
_SAMPLES = 10  # of each bin
_CODES = 4096  # at most, the most used
_GRID = 6  # tokens a side of the constant grid that shows a code
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 70rem;
  background: #fff; color: #222; line-height: 1.5;
  font-family: system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; }
h1 { margin: 0; font-size: 1.9rem; }
h2 { margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid #ddd;
  font-size: 1.3rem; }
p { max-width: 46rem; color: #555; }
img { max-width: 100%; display: block; }
figure { margin: 1.2rem 0; }
figcaption { color: #555; font-size: .9rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; }
th { font-weight: 600; border-bottom: 1px solid #999; vertical-align: bottom; }
td { border-bottom: 1px solid #eee; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
pre { padding: 1rem; background: #f6f6f6; overflow-x: auto; }
.dot { display: inline-block; width: .75em; height: .75em; margin-right: .45em;
  border-radius: 50%; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { padding: .5rem 1.1rem .6rem; border-radius: .4rem;
  background: #f6f6f6; }
.card b { display: block; font-size: 1.5rem;
  font-variant-numeric: tabular-nums; }
.card span { color: #555; font-size: .85rem; }
.pixels { width: 100%; image-rendering: pixelated; }
.bin { display: grid; grid-template-columns: 13rem 1fr; gap: 1rem;
  align-items: center; margin: .5rem 0; font-size: .9rem; }
.bin small { color: #555; display: block; }
"""


class Subject(NamedTuple):
  """What a report shows of a run beside what the workdir holds."""

  tokenizer: models.Tokenizer  # the module
  params: Any  # the master's
  eyes: evaluate.Eyes | None  # the optics; None where the data are path_params
  counts_V: np.ndarray  # uses of each code by the master, held out
  paths_NxHxWxC: np.ndarray  # path_params of the training set
  crops: Sequence[crops_lib.Crop]  # which crop each of them is
  scores_N: np.ndarray  # their complexity
  bins: Mapping[int, np.ndarray]  # sample indices by bin, easy to hard
  outliers: np.ndarray  # sample indices of whom no class has, by rising excess


def write(
  workdir: str | os.PathLike,
  subject: Subject,
  rows: Sequence[Mapping[str, Any]],
  *,
  base: Mapping[str, Mapping[str, float]],
  image_size: int,
  chunk: int,
) -> str:
  """Writes report.html, and returns its path.

  Args:
    workdir: with history.jsonl, evaluation.json and previews/.
    subject: what else is shown.
    rows: each clone's of the last table, see `summary.summary`.
    base: of each clone the base weight of each loss term.
    image_size: pixels, side of a crop.
    chunk: codes decoded at a time.
  """
  workdir = pathlib.Path(workdir)
  figures, protocol = exam.read_figures(workdir)
  seen = history.read(str(workdir), protocol['cycles'])
  colors = curves.palette([*base])
  title = f'Chimera: {workdir.resolve().name}'
  as_json = html.escape(json.dumps(protocol, indent=2))
  body = [
    f'<h1>{html.escape(title)}</h1>',
    f'<p>{protocol["cycles"]} cycles, {protocol["images_seen"]} images seen, '
    f'seed {protocol["seed"]}. All held-out figures are means over '
    f'{protocol["count"]} samples, {html.escape(protocol["split"])}.</p>',
    _cards(figures['master']),
    _section('Summary', _summary(rows, figures, colors)),
    _section('Curves', _curves(workdir, seen, figures, colors, base)),
    _section('Contact sheets', _sheets(workdir, protocol['cycles'])),
    _section('Codebook', _codebook(subject, chunk)),
    _section(
      'Curriculum', _curriculum(workdir, subject, rows, colors, image_size)
    ),
    _section('Protocol', [f'<pre>{as_json}</pre>']),
  ]
  page = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width">'
    f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
    f'<body>\n{chr(10).join(body)}\n</body></html>\n'
  )
  path = workdir / 'report.html'
  disk.write(path, page.encode(errors='backslashreplace'))
  return str(path)


def codebook(
  tokenizer: models.Tokenizer,
  params: Any,
  eyes: evaluate.Eyes | None,
  codes_X: np.ndarray,
  *,
  chunk: int,
) -> np.ndarray:
  """patches_XxPxPx3, uint8: what a grid of nothing but a code decodes to.

  Of each grid the innermost 2x2 tokens, away from the border.
  """
  decode = jax.jit(functools.partial(tokenizer.apply, method='detokenize'))
  patches = []
  size = min(chunk, len(codes_X))
  for start in range(0, len(codes_X), chunk):
    # The last chunk is filled up, so that one shape is compiled.
    ids_X = np.resize(codes_X[start : start + chunk], size)
    ids_Xx1x1 = jnp.asarray(ids_X, jnp.int32)[:, None, None]
    tokens_Xxhxw = jnp.tile(ids_Xx1x1, (1, _GRID, _GRID))
    pixels = evaluate.draw(decode({'params': params}, tokens_Xxhxw), eyes)
    side = pixels.shape[1] // _GRID
    inner = slice((_GRID // 2 - 1) * side, (_GRID // 2 + 1) * side)
    patches.append(pixels[:, inner, inner])
  return np.concatenate(patches)[: len(codes_X)]


def _section(title: str, parts: Iterable[str]) -> str:
  inside = '\n'.join(parts)
  return f'<section><h2>{html.escape(title)}</h2>\n{inside}\n</section>'


def _cards(master: Mapping[str, float]) -> str:
  cards = ''.join(
    f'<div class="card"><b>{master[m.name]:{m.form}}</b>'
    f'<span>{m.head}</span></div>'
    for m in metrics.shown('card')
    if m.name in master
  )
  return f'<div class="cards">{cards}</div>'


def _summary(
  rows: Sequence[Mapping[str, Any]],
  figures: metrics.Figures,
  colors: Mapping[str, str],
) -> Iterable[str]:
  clones = [summary.clone_cells(row) for row in rows]
  yield _table(
    'The clones, at the last cycle',
    clones[0] if clones else (),
    [
      (_name(name, colors), *map(html.escape, cells))
      for name, *cells in (row.values() for row in clones)
    ],
  )
  shown = [m for m in metrics.shown('report') if m.name in figures['master']]
  yield _table(
    'Held out',
    ('tokenizer', *(f'<span title="{m.label}">{m.head}</span>' for m in shown)),
    [
      (_name(name, colors), *(f'{of[m.name]:{m.form}}' for m in shown))
      for name, of in figures.items()
    ],
  )
  yield (
    '<p>The master is the tokenizer. The ema is its average over cycles, which '
    'is not learned from. Each clone is shown by its own weights, as they were '
    'before the last meld; the lower the learning rate has come down by then, '
    'the nearer to the master. Pixel figures compare the photograph and its '
    'reconstruction at 8 bits. rfd-random is a Frechet distance over the '
    'features of a random network, and no FID.</p>'
  )


def _curves(
  workdir: pathlib.Path,
  seen: Sequence[history.Row],
  figures: metrics.Figures,
  colors: Mapping[str, str],
  base: Mapping[str, Mapping[str, float]],
) -> Iterable[str]:
  legend = ''.join(
    f'<span style="margin-right:1.5rem">{_name(name, colors)}</span>'
    for name in (*colors, 'master')
  )
  yield f'<p>{legend}</p>'
  drawings = curves.draw(seen, figures, colors, base)
  if held := audition.read(workdir):
    drawings = itertools.chain([curves.draw_audition(held)], drawings)
  for title, svg in drawings:
    yield f'<figure>{_image("svg+xml", svg, title)}</figure>'


def _sheets(workdir: pathlib.Path, cycles: int) -> Iterable[str]:
  paths = [x for x in sheets.previews(workdir).items() if x[0] <= cycles]
  picks = np.linspace(0, len(paths) - 1, min(len(paths), _SHEETS))
  chosen = [paths[i] for i in picks.round().astype(int)]
  yield (
    '<p>Held-out samples, from easy to hard. The specialists are shown by '
    'their own weights before the meld. The last row is the absolute error of '
    'the master against the original, the mean of the channels, '
    f'{evaluate.ERROR_GAIN} times as bright. {len(chosen)} of {len(paths)} '
    'evaluations, the last one first.</p>'
  )
  for cycle, path in reversed(chosen):
    yield _captioned(path.read_bytes(), f'Cycle {cycle}')


def _codebook(subject: Subject, chunk: int) -> Iterable[str]:
  order_V = np.argsort(-subject.counts_V, kind='stable')
  used = int(np.sum(subject.counts_V > 0))
  patches = codebook(*subject[:3], order_V[:_CODES], chunk=chunk)
  columns = 32 if len(patches) > 256 else 16
  yield (
    '<p>Each code decoded alone: what a grid of nothing but it becomes, its '
    'middle. The most used come first.</p>'
  )
  for name, count, shown in (
    ('used', used, patches[:used]),
    ('unused', len(order_V) - used, patches[used:]),
  ):
    if len(shown):
      title = f'{count} codes {name} on the held-out samples'
      if len(shown) < count:
        title += f', {len(shown)} of them here'
      picture = sheets.glue(shown, columns=columns, gap=1)
      yield _captioned(_png(picture), title, 'pixels')


def _curriculum(
  workdir: pathlib.Path,
  subject: Subject,
  rows: Sequence[Mapping[str, Any]],
  colors: Mapping[str, str],
  image_size: int,
) -> Iterable[str]:
  bins = dict(sorted(subject.bins.items()))
  picks = [
    ids[np.linspace(0, len(ids) - 1, _SAMPLES).round().astype(int)]
    for ids in bins.values()
  ]
  worst = subject.outliers[-_SAMPLES:]
  ids_X = np.concatenate([*picks, worst])
  tiles, what = _samples(workdir, subject, ids_X, image_size)
  yield (
    f'<p>Training samples of each bin, {what}; within a bin too they go from '
    'easy to hard. Beside it the clones whose lessons begin with it.</p>'
  )
  strips = np.split(tiles, np.cumsum([len(pick) for pick in picks]))
  for (b, ids), strip in zip(bins.items(), strips):
    scores = subject.scores_N[ids]
    students = (_name(r['name'], colors) for r in rows if b in r['bins'])
    yield _strip(
      f'<b>{b}</b> {html.escape(curriculum.BIN_NAMES[b])}'
      f'<small>{len(ids)} samples, score {scores.min():.3f} to '
      f'{scores.max():.3f}</small>{" ".join(students)}',
      *(strip, f'Samples of bin {b}'),
    )
  if len(worst):
    yield _strip(
      f'<b>Outliers</b><small>{len(subject.outliers)} samples, the worst '
      'last: their error is far above that of all others, and they are in no '
      'lesson but by chance</small>',
      *(strips[-1], 'Outliers'),
    )


def _strip(text: str, tiles: np.ndarray, alt: str) -> str:
  """Up to `_SAMPLES` pictures beside a text, which is HTML."""
  picture = _png(sheets.glue(tiles, columns=_SAMPLES, gap=2))
  return (
    f'<div class="bin"><div>{text}</div>'
    f'{_image("png", picture, alt, "pixels")}</div>'
  )


def _samples(
  workdir: pathlib.Path, subject: Subject, ids_X: np.ndarray, image_size: int
) -> tuple[np.ndarray, str]:
  """Pictures of training samples, uint8, and what they are."""
  if subject.eyes is not None:
    try:
      crops = [subject.crops[i] for i in ids_X]
      changes = stage_1.changes_of(workdir, {crop.source for crop in crops})
      if any(changes):
        raise ValueError(f'photographs are not what they were ({changes})')
      pictures = cutting.read(crops, image_size=image_size)
      return pictures, 'the photographs themselves'
    except ValueError as e:
      logging.info('The report draws the bins by the optics: %s', e)
  paths = np.stack([subject.paths_NxHxWxC[i] for i in ids_X])
  pictures = evaluate.draw(poincare.normalize(paths), subject.eyes)
  return pictures, 'as the optics draw them' if subject.eyes else 'as colors'


def _table(
  caption: str, header: Iterable[str], rows: Iterable[Sequence[str]]
) -> str:
  """Header and cells are HTML."""
  head = ''.join(f'<th>{name}</th>' for name in header)
  lines = ''.join(
    f'<tr>{"".join(f"<td>{cell}</td>" for cell in row)}</tr>' for row in rows
  )
  return (
    f'<table><caption>{html.escape(caption)}</caption>'
    f'<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
  )


def _name(name: str, colors: Mapping[str, str]) -> str:
  """A tokenizer's name beside its color."""
  color = colors.get(name, curves.MASTER if name == 'master' else '#bbb')
  return (
    f'<span class="dot" style="background:{color}"></span>{html.escape(name)}'
  )


def _png(picture: np.ndarray) -> bytes:
  data = io.BytesIO()
  Image.fromarray(picture).save(data, format='PNG')
  return data.getvalue()


def _image(kind: str, data: bytes, alt: str, style: str = '') -> str:
  text = base64.b64encode(data).decode('ascii')
  return (
    f'<img class="{style}" alt="{html.escape(alt)}" '
    f'src="data:image/{kind};base64,{text}">'
  )


def _captioned(png: bytes, title: str, style: str = '') -> str:
  caption = f'<figcaption>{html.escape(title)}</figcaption>'
  return f'<figure>{caption}{_image("png", png, title, style)}</figure>'
