"""TensorBoard: a run for each clone and one of the master.

The four runs share their tags, so that TensorBoard lays the clones' curves over
each other and their pictures side by side. A writer that fails is switched off
with one warning: it costs metrics, never training. Without TensorFlow, by which
CLU writes, there is none of this, and one line that says so.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import itertools
import json
import os
import re
import textwrap
import threading
from typing import TYPE_CHECKING, Any

from absl import logging
import numpy as np

from chimera.evaluation import metrics
from chimera.school import curriculum
from chimera.system import disk

if TYPE_CHECKING:
  from tensorboard.plugins.custom_scalar import layout_pb2


def silence_tensorflow() -> None:
  """Keeps TensorFlow, which CLU's writers import, from talking on stderr."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # oneDNN announces itself past the log level; nothing is computed with it.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')


def layout(terms: Sequence[str]) -> 'layout_pb2.Layout':
  """The custom-scalars page; each tag in it is a pattern for `re.match`.

  Each of the loss terms has a chart.
  """
  from tensorboard.plugins.custom_scalar import layout_pb2

  def category(
    title: str, rows: Iterable[metrics.Metric]
  ) -> 'layout_pb2.Category':
    tags: dict[str, list[str]] = {}
    for row in rows:
      tags.setdefault(row.label, []).append(f'^{row.tag}$')
    chart, lines = layout_pb2.Chart, layout_pb2.MultilineChartContent
    return layout_pb2.Category(
      title=title,
      closed=title == more,
      chart=[chart(title=k, multiline=lines(tag=v)) for k, v in tags.items()],
    )

  overview, figures = metrics.shown('overview'), metrics.FIGURES
  training = [m for m in metrics.TABLE if m not in figures]
  by_term = [m for m in training if m.tag.endswith(metrics.TERM)]
  by_bin = [m for m in figures if m.by_bin is not None]
  more = 'Agents, Meld and speed'
  pages = {
    'Mission Control': [
      m._replace(title=f'Held out: {m.title}') if m in figures else m
      for m in overview
    ],
    'Held-out quality': [m for m in figures if m not in overview],
    **{
      f'Held out, by bin: {m.label}': map(m.bin, range(curriculum.BINS))
      for m in by_bin
    },
    **{m.title: map(m.of_term, terms) for m in by_term},
    more: [m for m in training if m not in (*overview, *by_term)],
  }
  return layout_pb2.Layout(category=itertools.starmap(category, pages.items()))


class Writers:
  """A run a clone in a folder of its name, the master's in the workdir."""

  def __init__(self, workdir: str, clone_names: Sequence[str]):
    self._named = contextlib.ExitStack()
    home = str(self._named.enter_context(disk.plain(workdir)))
    library = _Library()
    self._master = _Run(home, 'the master', library)
    self._clones = [
      _Run(os.path.join(home, name), name, library) for name in clone_names
    ]

  def introduce(
    self,
    hparams: Mapping[str, Any],
    texts: Mapping[str, Mapping[str, Any]],
    terms: Sequence[str],
  ) -> None:
    """Writes once what the run is.

    Args:
      hparams: by dotted key; only those that are one number, switch or word.
      texts: what is shown as JSON, by tag.
      terms: names of the loss terms.
    """
    single = bool | int | float | str
    hparams = {k: v for k, v in hparams.items() if isinstance(v, single)}
    # Markdown: an indented block is code.
    texts = {
      tag: textwrap.indent(json.dumps(values, indent=2), '    ')
      for tag, values in texts.items()
    }
    self._master.call(_write_layout, terms)
    self._master.call('write_hparams', hparams)
    self._master.call('write_texts', 0, texts)

  def write(
    self,
    step: int,
    clone_scalars: Sequence[Mapping[str, float]],
    master_scalars: Mapping[str, float],
  ) -> None:
    """Writes scalars by tag, one mapping a clone and the master's."""
    for run, scalars in self._runs(clone_scalars, master_scalars):
      # TensorFlow keeps a tensor of every Python number that it was ever given
      # (TFE_TensorHandleCache in tensorflow/python/eager/pywrap_tensor.cc).
      values = {tag: np.float32(x) for tag, x in scalars.items()}
      run.call('write_scalars', np.int64(step), values)

  def images(
    self,
    step: int,
    clone_images: Sequence[Mapping[str, np.ndarray]],
    master_images: Mapping[str, np.ndarray],
  ) -> None:
    """Writes pictures by tag, uint8 (height, width, 3)."""
    for run, pictures in self._runs(clone_images, master_images):
      run.call('write_images', step, pictures)

  def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the master's histograms, of what is finite in them."""
    finite = {tag: x[np.isfinite(x)] for tag, x in arrays.items()}
    if finite := {tag: x for tag, x in finite.items() if x.size}:
      self._master.call('write_histograms', step, finite)

  def __enter__(self) -> 'Writers':
    return self

  def __exit__(self, *_: Any) -> None:
    with self._named:
      for run in (self._master, *self._clones):
        run.close()

  def _runs(
    self, of_clones: Sequence[Mapping[str, Any]], of_master: Mapping[str, Any]
  ) -> Iterator[tuple['_Run', Mapping[str, Any]]]:
    """The runs that there is something for."""
    for run, values in zip(self._clones, of_clones, strict=True):
      if values:
        yield run, values
    if of_master:
      yield self._master, of_master


class _Missing(Exception):
  """There is no TensorFlow, which has been said."""


class _Library:
  """TensorFlow and what writes with it, imported by who first needs it."""

  # What an installation raises that is broken, or of versions that do not fit.
  _BROKEN = (
    *(ImportError, AttributeError, OSError),
    *(RuntimeError, TypeError, ValueError),
  )

  def __init__(self):
    # Modules that import each other are not imported by two threads at once.
    self._lock = threading.Lock()
    self._has_tried = False
    self._modules: tuple[Any, Any] | None = None

  def load(self) -> tuple[Any, Any]:
    """(clu.metric_writers, tensorflow).

    Raises:
      _Missing: one of them cannot be imported.
    """
    with self._lock:
      if not self._has_tried:
        self._has_tried = True
        self._import()
    if self._modules is None:
      raise _Missing
    return self._modules

  def _import(self) -> None:
    silence_tensorflow()
    try:
      import tensorflow as tf

      # What it writes is on the host, and it would take all of a GPU's memory.
      tf.config.set_visible_devices([], 'GPU')
      from clu import metric_writers
    except self._BROKEN as e:
      logging.warning(
        'No TensorBoard, for TensorFlow cannot be imported (%s): history, '
        'dashboard and report are as ever.',
        ' '.join(str(e).split())[:200],
      )
    else:
      self._modules = metric_writers, tf


def load() -> None:
  """Imports what writes, if it is there: half a gigabyte of a process."""
  with contextlib.suppress(_Missing):
    _Library().load()


class _Run:
  """One run's writer on a thread of its own, off at its first failure.

  It is opened with the first that there is to write: TensorFlow takes seconds
  to import, and only this needs it.
  """

  def __init__(self, folder: str, name: str, library: _Library):
    from clu import asynclib

    self._folder = folder
    self._name = name
    self._library = library
    self._failures = (
      *(OSError, ValueError, TypeError, RuntimeError, ImportError),
      asynclib.AsyncError,
    )
    self._on = True
    self._writer: Any = None
    self._pool = asynclib.Pool(name, max_workers=1)

  def call(self, method: str | Callable[..., None], *args: Any) -> None:
    """Calls a method of the writer, or a function with the writer first."""
    self._try(self._pool(self._try), self._call, method, *args)

  def close(self) -> None:
    self._try(self._pool(self._try), self._close)
    self._try(self._pool.close)

  def _call(self, method: str | Callable[..., None], *args: Any) -> None:
    if self._writer is None:
      self._open()
    if isinstance(method, str):
      getattr(self._writer, method)(*args)
    else:
      method(self._writer, *args)

  def _open(self) -> None:
    metric_writers, tf = self._library.load()
    self._failures += (tf.errors.OpError,)
    self._writer = metric_writers.SummaryWriter(self._folder)

  def _close(self) -> None:
    if self._writer is not None:
      self._writer.close()

  def _try(self, f: Callable[..., Any], *args: Any) -> None:
    """Calls f unless switched off; switches off where it fails."""
    if not self._on:
      return
    try:
      f(*args)
    except _Missing:
      self._on = False
    except self._failures as e:
      self._on = False
      # One line, without the operation's name that TensorFlow wraps it in.
      reason = ' '.join(re.sub(r'{{.*?}}|\[Op:.*', '', str(e)).split())
      message = 'TensorBoard: %s is written no longer, training goes on: %s'
      logging.warning(message, self._name, reason)


def _write_layout(writer: Any, terms: Sequence[str]) -> None:
  from tensorboard.plugins.custom_scalar import metadata

  page = {metadata.CONFIG_SUMMARY_TAG: layout(terms).SerializeToString()}
  what = {metadata.CONFIG_SUMMARY_TAG: metadata.create_summary_metadata()}
  writer.write_summaries(0, page, what)
