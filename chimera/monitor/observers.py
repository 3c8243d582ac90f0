"""Who is told what happens: the dashboard, TensorBoard and the history."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import json
import os
import time
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from chimera.clones import state as state_lib
from chimera.evaluation import evaluate, metrics, protocol
from chimera.evaluation import exam as exam_lib
from chimera.monitor import history, live, writers
from chimera.monitor import snapshot as snapshot_lib
from chimera.run import audition, config_json
from chimera.system import progress


class Observers:
  """Who is told what happens, of a run that goes on from the cycle `first`."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str,
    spec: state_lib.StepSpec,
    first: int,
  ):
    self._config = config
    self._spec = spec
    self._progress = progress.Progress(config.train.cycles, first)
    self._last_time = snapshot_lib.compile_seconds(history.scan(workdir))
    self._compile_seconds: float | None = None
    self._since = time.time()
    self._history = history.History(workdir, first)
    self._history_is_whole = True
    as_saved = json.loads(config.to_json())
    self._look = live.Look(workdir, as_saved, self._history.rows)
    log = os.path.join(workdir, 'train.log')
    self._live = live.Live(self._look, log, wanted=config.train.dashboard)
    self._workdir, self._first = workdir, first
    self._introduction: Callable[[], None] | None = None
    self._open = contextlib.ExitStack()

  def __enter__(self) -> 'Observers':
    with contextlib.ExitStack() as opened:
      opened.enter_context(self._live)
      self._board = opened.enter_context(
        writers.Writers(self._workdir, self._config.clone_names)
      )
      self._open = opened.pop_all()
    return self

  def __exit__(self, *error: Any) -> None:
    self._open.__exit__(*error)

  def introduce(
    self, held_out: evaluate.HeldOut, scores_N: np.ndarray, first: int
  ) -> None:
    """Once: what the run is, which TensorBoard is told with the first row."""
    self._introduction = functools.partial(
      self._introduce, held_out, scores_N, first
    )

  def _introduce(
    self, held_out: evaluate.HeldOut, scores_N: np.ndarray, first: int
  ) -> None:
    config = self._config
    hparams = {
      k: v
      for k, v in config_json.keys(config).items()
      if not k.startswith('specialists.')  # a hundred columns; see the text
    }
    record = protocol.protocol(
      *(config, held_out, config.train.cycles),
      auditioned=audition.images(config),
    )
    texts = {'config': config.to_dict(), 'protocol': record}
    if held := audition.read(self._workdir):
      texts['audition'] = held._asdict()
    self._board.introduce(hparams, texts, self._spec.terms)
    self._board.histograms(first, {'school/complexity': scores_N})

  def compiling(self, devices: int) -> None:
    doing, last_time = f'compiling the step for {devices} device(s)', ''
    if self._last_time is not None:
      seconds = progress.format_seconds(self._last_time)
      last_time = f' ({seconds} last time)'
    logging.info('%s%s.', doing.capitalize(), last_time)
    self._look.say(doing, last_time)
    self._start = time.monotonic()
    self._progress.begin(self._start)

  def compiled(self) -> None:
    """After the first dispatch: who ended before it has lost nothing."""
    exam_lib.forget_previews(self._workdir, self._first)
    self._compile_seconds = time.monotonic() - self._start
    self._since = time.time()
    self._look.say('training')

  @contextlib.contextmanager
  def during(self, doing: str) -> Iterator[None]:
    """The dashboard says what keeps the training waiting."""
    self._look.say(doing)
    yield
    self._look.say('training', since=self._since)

  def rewind(self, done: int) -> None:
    """The run went back; what follows was not seen."""
    self._progress = progress.Progress(self._config.train.cycles, done)
    self._history.rewind(done)
    exam_lib.forget_previews(self._workdir, done)

  def saw(self, done: int, seen: dict[str, np.ndarray]) -> None:
    """A log cycle."""
    rate = self._progress.update(done, f'loss {seen["loss/base"].mean():.4f}')
    clones = {
      name: clone_scalars(seen, i, self._spec.terms)
      for i, name in enumerate(self._config.clone_names)
    }
    master = master_scalars(seen, rate, self._spec)
    if self._compile_seconds is not None:
      # In the row whose rate it is a part of.
      master['perf/compile_seconds'] = self._compile_seconds
      self._compile_seconds = None
    self._tell(done, clones, master)

  def evaluated(
    self, done: int, exam: exam_lib.Exam, sheet: np.ndarray
  ) -> None:
    """An evaluation, and the contact sheet that was saved of it."""
    of = {
      name: {f'{metrics.HELD_OUT}{k}': v for k, v in row.items()}
      for name, row in exam.figures.items()
    }
    names = self._config.clone_names
    self._tell(done, {n: of[n] for n in names if n in of}, of['master'])
    of_clones, of_master = exam_lib.reconstructions(self._config, exam)
    self._board.images(done, of_clones, {**of_master, 'contact_sheet': sheet})
    usage = exam_lib.even_shares(exam.counts_V)
    self._board.histograms(done, {'codebook/usage': usage})

  def _tell(
    self,
    done: int,
    clones: dict[str, dict[str, float]],
    master: dict[str, float],
  ) -> None:
    introduce, self._introduction = self._introduction, None
    if introduce:
      introduce()
    of_clones = [clones.get(n, {}) for n in self._config.clone_names]
    self._board.write(done, of_clones, master)
    try:
      self._history.append(done, clones, master)
    except OSError as e:
      if self._history_is_whole:
        logging.warning('%s lacks rows, training goes on: %s', history.NAME, e)
      self._history_is_whole = False


def clone_scalars(
  seen: dict[str, np.ndarray], i: int, terms: Sequence[str]
) -> dict[str, float]:
  """Clone i's row of TensorBoard scalars."""
  found: dict[str, float] = {}
  for tag, values in seen.items():
    if f'{tag}{metrics.TERM}' in metrics.BY_TAG:
      found |= {f'{tag}/{t}': float(v) for t, v in zip(terms, values[i])}
    elif tag in metrics.BY_TAG and not metrics.BY_TAG[tag].of_master:
      found[tag] = float(values[i])
  return found


def master_scalars(
  seen: dict[str, np.ndarray], rate: float, spec: state_lib.StepSpec
) -> dict[str, float]:
  """What the clones have in common; all of them hold the same of it."""
  in_common = (
    tag for tag, m in metrics.BY_TAG.items() if m.of_master and tag in seen
  )
  return {
    **{tag: float(seen[tag][0]) for tag in in_common},
    'meld/dropped': float(seen['meld/dropped'].sum()),
    'perf/cycles_per_sec': rate,
    'perf/images_per_sec': rate * len(seen['loss/base']) * spec.batch_size,
  }
