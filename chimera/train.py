"""Stage 2's loop: the School opens, four clones learn, a master is melded."""

from collections.abc import Iterator
import contextlib
import json
import math
import operator
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import logging
import jax
import ml_collections
import numpy as np

from chimera import (
  checkpoint,
  dashboard,
  disk,
  divergence,
  evaluate,
  export,
  history,
  images,
  live,
  losses,
  mission_control,
  origin,
  preemption,
  preflight,
  provenance,
  report,
  school,
  sheets,
  writers,
)
from chimera import state as state_lib
from chimera import step as step_lib

if TYPE_CHECKING:
  from chimera import latents


def prepare_curriculum(
  config: ml_collections.ConfigDict,
  workdir: str,
  data: 'latents.Prepared',
  *,
  afresh: bool = False,
) -> dict[int, list[int]]:
  """Scores, sorts and bins latents.npy, or loads the curriculum it finds."""
  bins, scores_N = school.prepare_curriculum(
    os.path.join(workdir, f'curriculum_bins_{config.basename}.pkl'),
    data.paths_NxHxWxC,
    metric=config.school.metric,
    chunk=config.optics.chunk,
    afresh=afresh,
  )
  if data.gradients_N is not None:
    logging.info(
      'Rank correlation of complexity with gradient magnitude: %.3f.',
      school.radius_check(scores_N, data.gradients_N),
    )
  images.write_manifest(
    os.path.join(workdir, 'manifest.csv'), data.crops, scores_N
  )
  return bins


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  data: 'latents.Prepared',
  watch: preemption.Watch | None = None,
) -> dict[str, float]:
  """Trains to the last cycle, from wherever the workdir stands.

  Order: 1. curriculum, 2. newborn clones, 3. the newest whole
  checkpoint over them, 4. onto the devices, 5. the loop.

  An evaluation comes before the checkpoint of its cycle, which says that it has
  been, and what was the best so far: whatever ends the run, it is made up for.

  Args:
    config: the run's.
    workdir: of the run.
    data: what stage 1 made.
    watch: of the signals; None has none.

  Returns:
    The last held-out figures, by 'tokenizer/figure'; empty where the workdir
    has all its cycles already, and what is made of them.

  Raises:
    preemption.Stopped: a signal; what was done is saved.
    OSError: the last checkpoint cannot be written.
  """
  watch = watch or preemption.Watch()
  bins = prepare_curriculum(config, workdir, data)
  devices = choose_devices(config.devices)
  spec, born = newborn(config, data, bins)
  keeper = Keeper(config, workdir, bins)
  rollbacks = divergence.Rollbacks(workdir, config.train.rollbacks)
  first, host, specialists = set_out(config, keeper, rollbacks, born)
  if first:
    logging.info('Resuming from cycle %d.', first)
  elif config.init_from:
    born = host = inherit(config, host)
    logging.info('Starting from %s.', config.init_from)
  is_over = first >= config.train.cycles
  if is_over and keeper.extra['is_judged'] and has_results(workdir, first):
    logging.info('Nothing to do: %s has all its cycles.', workdir)
    return {}
  held_out, eyes, scores_N = look_at_held_out(config, data, bins)
  observers = Observers(config, workdir, spec, first)

  def judge(done: int, master: state_lib.Master, specialists: Any) -> Exam:
    with observers.during('evaluating'):
      exam = examine(config, spec, held_out, eyes, master, specialists)
      with spared('evaluation.json'):
        save_figures(workdir, exam.figures, protocol(config, held_out, done))
      observers.judged(done, exam, save_preview(workdir, exam, done))
    keeper.judged(done, exam.figures)
    return exam

  with observers:
    observers.introduce(held_out, scores_N, first)
    if not keeper.extra['is_judged']:
      exam = judge(first, host.master, specialists)
    elif is_over:
      exam = examine(config, spec, held_out, eyes, host.master, specialists)
    if not is_over:
      missions = step_lib.put(
        state_lib.stack(state_lib.create_missions(config, bins)), devices
      )
      shards = Shards(config, data.paths_NxHxWxC, devices)
      shard = shards.deal(host.school.enrolled_L, first)
      state = step_lib.put(host, devices)
      cycles = config.train.cycles_per_dispatch
      train_step = step_lib.make_train_step(
        spec, devices, cycles=cycles, resident=shards.resident
      )
      observers.compiling(len(devices))
    done, is_new = first, True
    with contextlib.ExitStack() as deferred:
      while done < config.train.cycles:
        done += cycles
        with jax.transfer_guard('disallow'):
          state, metrics = train_step(state, missions, shard)
        specialists = metrics.pop('specialist')
        if is_new:
          observers.compiled()
          deferred.enter_context(watch.deferred())
          is_new = False
        last = done == config.train.cycles
        if done % config.train.log_every == 0 or last:
          seen = step_lib.fetch(metrics)
          observers.saw(done, seen)
          if has_diverged(config, done, seen, rollbacks):
            done, host, _ = set_out(config, keeper, rollbacks, born)
            logging.warning('Rolled back to cycle %d, with another key.', done)
            observers.rewind(done)
            state = step_lib.put(host, devices)
            shard = shards.deal(host.school.enrolled_L, done)
            continue
        if last:
          keeper.extra['rows'] = summarize(config, bins, seen)
        if shards.are_due(done, cycles):
          shard = shards.deal(step_lib.fetch(state.school.enrolled_L), done)
        if done % config.train.eval_every == 0 or last:
          keeper.extra['is_judged'] = False
          if watch.signum is None:
            with watch.interruptible():
              exam = judge(done, *step_lib.fetch((state.master, specialists)))
        if watch.signum is not None or keeper.is_due(done):
          with observers.during('saving'):
            keeper.save(done, *step_lib.fetch((state, specialists)), watch)
        watch.stop(
          f'Stopped at cycle {done}, saved: the same command goes on from here.'
        )
    if not is_over:
      host = step_lib.fetch(state)
  with spared('The tokenizer'):
    save_tokenizer(
      config, workdir, spec, host.master, data, config.train.cycles
    )
  rows = keeper.extra['rows']
  save_report(
    config,
    workdir,
    report.Subject(
      tokenizer=spec.tokenizer,
      params=jax.tree.map(lambda x: x[0], host.master.params),
      eyes=eyes,
      counts_V=exam.counts_V,
      paths_NxHxWxC=data.paths_NxHxWxC,
      crops=data.crops,
      scores_N=scores_N,
      bins=bins,
    ),
    rows,
  )
  record = protocol(config, held_out, config.train.cycles)
  mission_control.show(mission_control.summary(rows, exam.figures, record))
  return _flat(exam.figures)


class Keeper:
  """The checkpoints of a run, and what they hold beside the state.

  Attributes:
    extra: `config` and `curriculum`, digests of what the run is bound to;
      `best`, cycle and held-out path_l1 of the best evaluation so far;
      `is_judged`, False where the evaluation of this cycle is still to come;
      `rows` of the last table, once the last cycle is done.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str,
    bins: dict[int, list[int]],
  ):
    self._config = config
    self._workdir = workdir
    self._checkpoints = open_checkpoints(config, workdir)
    self._bound = {
      'config': provenance.digest(preflight.binding(config)),
      'curriculum': provenance.digest({str(k): v for k, v in bins.items()}),
    }
    self.begin()

  def begin(self) -> None:
    """As a run that has no checkpoint."""
    self.extra: dict[str, Any] = {
      **self._bound,
      'best': {'cycle': None, 'score': None},
      'is_judged': True,
      'rows': [],
    }

  def restore(
    self, born: state_lib.CloneState
  ) -> tuple[int, state_lib.CloneState, Any] | None:
    """(cycles done, state, specialists) of the newest whole one, if any.

    Args:
      born: newborn clones.

    Raises:
      ValueError: it is of another config or curriculum.
    """
    restored = self._checkpoints.restore(saved(born))
    if restored is None:
      return None
    done, tree, extra = restored
    for name, digest in self._bound.items():
      if extra.get(name) != digest:
        raise ValueError(
          f'The checkpoints in {self._workdir} must be of this {name}, and are '
          'of another (a digest differs): give a new --workdir.'
        )
    self.extra = extra
    return done, tree['state'], tree['specialists']

  def judged(self, done: int, figures: dict[str, dict[str, float]]) -> None:
    """An evaluation; the best is that of the master's least path_l1."""
    score, best = figures['master']['path_l1'], self.extra['best']['score']
    if score < (math.inf if best is None else best):  # NaN never is
      self.extra['best'] = {'cycle': done, 'score': score}
    self.extra['is_judged'] = True

  def is_due(self, done: int) -> bool:
    """Whether a checkpoint is to be made of this cycle."""
    config = self._config
    return (
      done % config.train.checkpoint_every == 0
      or done == config.train.cycles
      or (config.train.keep_best and self.extra['best']['cycle'] == done)
    )

  def save(
    self,
    done: int,
    state: state_lib.CloneState,
    specialists: Any,
    watch: preemption.Watch,
  ) -> None:
    """Saves all that goes on; what cannot be written is tried again later.

    Raises:
      preemption.Stopped: it cannot, and a signal ends the run.
      OSError: it cannot, and the run is over.
    """
    there = self._checkpoints.latest() or 0
    is_over = done == self._config.train.cycles
    lost = f'Cycles {there + 1} to {done} are not saved'
    if state.health.sick.any() and not is_over:
      watch.stop(f'{lost}, their clones are sick.')
      logging.warning('%s: their clones are sick.', lost)
      return
    best = self.extra['best']['cycle'] if self._config.train.keep_best else None
    try:
      self._checkpoints.save(done, saved(state, specialists), self.extra, best)
    except OSError as e:
      watch.stop(f'{lost}: {e}')
      if is_over:
        raise OSError(
          f'{lost}: {e} Make room: the same command goes on from cycle {there}.'
        ) from e
      logging.warning('%s: %s The next one is tried.', lost, e)


def has_results(workdir: str, done: int) -> bool:
  """Whether what is made of the last cycle is there."""
  try:
    for path, key in (
      ('evaluation.json', 'protocol'),
      (os.path.join('tokenizer', export.META), 'came_from'),
    ):
      with open(os.path.join(workdir, path)) as f:
        if json.load(f)[key]['cycles'] != done:
          return False
  except (OSError, ValueError, KeyError, TypeError):
    return False
  return os.path.exists(os.path.join(workdir, 'report.html'))


@contextlib.contextmanager
def spared(name: str) -> Iterator[None]:
  """Where it cannot be written, the run goes on, with a warning."""
  try:
    yield
  except OSError as e:
    logging.warning('%s could not be written, the run goes on: %s', name, e)


class Observers:
  """Who is told what happens: the dashboard, TensorBoard and the history.

  Args:
    config: the run's.
    workdir: the run's.
    spec: of the step.
    first: cycle from which the run goes on.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str,
    spec: state_lib.StepSpec,
    first: int,
  ):
    self._config = config
    self._spec = spec
    self._progress = mission_control.Progress(config.train.cycles, first)
    self._last_time = dashboard.compile_seconds(history.read(workdir))
    self._compile_seconds: float | None = None
    self._since = time.time()
    self._history = history.History(workdir, first)
    self._history_is_whole = True
    self._look = live.Look(
      workdir, json.loads(config.to_json()), self._history.rows
    )
    self._live = live.Live(
      self._look,
      os.path.join(workdir, 'train.log'),
      wanted=config.train.dashboard,
    )
    self._workdir = workdir
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
    """Once: what the run is."""
    self._board.introduce(
      preflight.keys(self._config),
      {
        'config': self._config.to_dict(),
        'protocol': protocol(self._config, held_out, self._config.train.cycles),
      },
      losses.TERMS,
    )
    self._board.histograms(first, {'school/complexity': scores_N})

  def compiling(self, devices: int) -> None:
    doing, last_time = f'compiling the step for {devices} device(s)', ''
    if self._last_time is not None:
      seconds = mission_control.format_seconds(self._last_time)
      last_time = f' ({seconds} last time)'
    logging.info('%s%s.', doing.capitalize(), last_time)
    self._look.say(doing, last_time)
    self._start = time.monotonic()

  def compiled(self) -> None:
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
    self._progress = mission_control.Progress(self._config.train.cycles, done)
    self._history.rewind(done)

  def saw(self, done: int, seen: dict[str, np.ndarray]) -> None:
    """A log cycle."""
    rate = self._progress.update(done, f'loss {seen["base_loss"].mean():.4f}')
    names = self._config.clone_names
    clones = [clone_scalars(seen, i) for i in range(len(names))]
    master = master_scalars(seen, rate, self._spec)
    if self._compile_seconds is not None:
      # In the row whose rate it is a part of.
      master['perf/compile_seconds'] = self._compile_seconds
      self._compile_seconds = None
    self._tell(done, dict(zip(names, clones)), master)

  def judged(self, done: int, exam: 'Exam', sheet: np.ndarray) -> None:
    """An evaluation, and the contact sheet that was saved of it."""
    of = {name: eval_scalars(row) for name, row in exam.figures.items()}
    names = self._config.clone_names
    self._tell(done, {n: of[n] for n in names if n in of}, of['master'])
    of_clones, of_master = reconstructions(self._config, exam)
    self._board.images(done, of_clones, {**of_master, 'contact_sheet': sheet})
    self._board.histograms(done, {'codebook/usage': even_shares(exam.counts_V)})

  def _tell(
    self,
    done: int,
    clones: dict[str, dict[str, float]],
    master: dict[str, float],
  ) -> None:
    self._board.write(
      done, [clones.get(n, {}) for n in self._config.clone_names], master
    )
    try:
      self._history.append(done, clones, master)
    except OSError as e:
      if self._history_is_whole:
        logging.warning('%s lacks rows, training goes on: %s', history.NAME, e)
      self._history_is_whole = False


def set_out(
  config: ml_collections.ConfigDict,
  keeper: Keeper,
  rollbacks: divergence.Rollbacks,
  born: state_lib.CloneState,
) -> tuple[int, state_lib.CloneState, Any]:
  """From where the run goes on: the newest whole checkpoint, else birth."""
  done, host, specialists = 0, born, None
  if restored := keeper.restore(born):
    done, host, specialists = restored
  else:
    keeper.begin()
  key = rollbacks.key_data(config.seed)
  host = host.replace(rng=np.stack([key] * len(host.rng)))
  return done, host, specialists


def has_diverged(
  config: ml_collections.ConfigDict,
  done: int,
  seen: dict[str, np.ndarray],
  rollbacks: divergence.Rollbacks,
) -> bool:
  """Whether the run must go back, which is noted then; warns before that.

  Raises:
    FloatingPointError: it went back as often as it may.
  """
  sick = int(seen['sick'].max())
  if not sick:
    return False
  clones = [
    f'{name} {"healthy" if healthy else "sick"}, loss {loss:.4g}, left out of '
    f'{dropped} cycles'
    for name, healthy, loss, dropped in zip(
      config.clone_names, seen['healthy'], seen['base_loss'], seen['dropped']
    )
  ]
  reason = (
    f'Fewer than {divergence.QUORUM} clones were healthy for {sick} cycles in '
    f'a row, seen at cycle {done} ({"; ".join(clones)})'
  )
  logging.warning('%s.', reason)
  if sick < config.meld.sick_cycles:
    return False
  rollbacks.add(reason)
  return True


def newborn(
  config: ml_collections.ConfigDict,
  data: 'latents.Prepared',
  bins: dict[int, list[int]],
) -> tuple[state_lib.StepSpec, state_lib.CloneState]:
  """The step's constants and four clones, host arrays with a leading M."""
  spec = state_lib.create_spec(config)
  states = state_lib.create_states(
    config, spec, bins, data.paths_NxHxWxC.shape[1:3]
  )
  return spec, state_lib.stack(states)


def inherit(
  config: ml_collections.ConfigDict, born: state_lib.CloneState
) -> state_lib.CloneState:
  """Newborn clones with what `config.init_from` has learned."""
  folder = config.init_from
  if origin.is_exported(folder):
    return origin.from_tokenizer(born, folder)
  restored = open_checkpoints(config, folder).restore(
    saved(origin.school_of(born, folder))
  )
  if restored is None:
    raise ValueError(
      f'There must be a trained tokenizer, got none in {folder}: mend '
      '--config.init_from.'
    )
  return origin.from_workdir(born, restored[1]['state'])


def saved(
  state: state_lib.CloneState, specialists: Any = None
) -> dict[str, Any]:
  """A checkpoint's tree.

  Args:
    state: of all clones.
    specialists: the clones as they were before the last meld, from which
      nothing goes on, but which are evaluated; None where but shapes count.
  """
  if specialists is None:
    specialists = state.generator.params
  return {'state': state, 'specialists': specialists}


def open_checkpoints(
  config: ml_collections.ConfigDict, workdir: str
) -> checkpoint.Checkpoints:
  return checkpoint.Checkpoints(
    os.path.join(workdir, 'checkpoints'), keep=config.train.keep
  )


def restore(
  config: ml_collections.ConfigDict,
  workdir: str,
  born: state_lib.CloneState,
  bins: dict[int, list[int]],
) -> tuple[int, state_lib.CloneState, Any]:
  """(cycles done, state, specialists) of the newest whole checkpoint.

  Raises:
    ValueError: there is none, or it is of another config or curriculum.
  """
  restored = Keeper(config, workdir, bins).restore(born)
  if restored is None:
    raise ValueError(
      f'There must be a trained tokenizer, got none in {workdir}: run '
      '`python -m chimera.main train` with the same flags first.'
    )
  return restored


def evaluate_workdir(
  config: ml_collections.ConfigDict, workdir: str, data: 'latents.Prepared'
) -> dict[str, float]:
  """Evaluates the newest whole checkpoint and rewrites evaluation.json."""
  bins = prepare_curriculum(config, workdir, data)
  spec, born = newborn(config, data, bins)
  done, host, specialists = restore(config, workdir, born, bins)
  held_out, eyes, _ = look_at_held_out(config, data, bins)
  exam = examine(config, spec, held_out, eyes, host.master, specialists)
  record = protocol(config, held_out, done)
  save_figures(workdir, exam.figures, record)
  mission_control.show(mission_control.summary([], exam.figures, record))
  return _flat(exam.figures)


def export_workdir(
  config: ml_collections.ConfigDict,
  workdir: str,
  data: 'latents.Prepared',
  out: str,
) -> None:
  """Exports the newest whole checkpoint to `out`; '' is `tokenizer/`."""
  bins = prepare_curriculum(config, workdir, data)
  spec, born = newborn(config, data, bins)
  done, host, _ = restore(config, workdir, born, bins)
  save_tokenizer(config, workdir, spec, host.master, data, done, out)


class Shards:
  """Deals each clone what its device holds of the training set."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    paths_NxHxWxC: np.ndarray,
    devices: list[jax.Device],
  ):
    self._config = config
    self._paths = paths_NxHxWxC
    self._devices = devices
    self.resident = paths_NxHxWxC.nbytes <= config.school.resident_mb << 20

  def deal(self, enrolled_MxL: np.ndarray, cycle: int) -> school.Shard:
    """The shards from `cycle` on, a function of it and who is enrolled then."""
    shards = school.make_shards(
      self._paths,
      enrolled_MxL,
      resident_mb=self._config.school.resident_mb,
      rotating_samples=self._config.school.rotating_samples,
      rotation=cycle // self._config.school.rotate_every,
      seed=self._config.seed,
    )
    if self.resident:
      return step_lib.put_shared(shards[0], self._devices)
    return step_lib.put(state_lib.stack(shards), self._devices)

  def are_due(self, cycle: int, cycles: int) -> bool:
    """Whether the last `cycles` rotated the shards, or enrolled others.

    As they follow from the state, a run that is resumed between two rotations
    goes on with the shards that it had.
    """
    c = self._config.school
    if self.resident:
      return False
    before = cycle - cycles
    enrolments = range(c.enrol_from, cycle, c.enrol_every)
    enrols = c.enabled and c.enrol_from and enrolments[-1:]
    return bool(
      cycle // c.rotate_every != before // c.rotate_every
      or (enrols and enrolments[-1] >= before)
    )


def choose_devices(count: int) -> list[jax.Device]:
  """The first `count` devices; 0 is the most of 1, 2 and 4 there are."""
  there = jax.local_devices()
  count = count or max(n for n in (1, 2, 4) if n <= len(there))
  if count not in (1, 2, 4) or count > len(there):
    raise ValueError(
      f'devices must be 1, 2 or 4 and at most {len(there)} here, got '
      f'devices = {count}: mend --config.devices (0 chooses).'
    )
  return there[:count]


def look_at_held_out(
  config: ml_collections.ConfigDict,
  data: 'latents.Prepared',
  bins: dict[int, list[int]],
) -> tuple[evaluate.HeldOut, evaluate.Eyes | None, np.ndarray]:
  """Places the held-out samples in the bins of the training scores_N."""
  scores_N, scores_M = (
    school.score(paths, metric=config.school.metric, chunk=config.optics.chunk)
    for paths in (data.paths_NxHxWxC, data.held_out_paths)
  )
  held_out = evaluate.HeldOut(
    data.held_out_paths,
    data.held_out_images,
    school.place(scores_M, bins, scores_N),
  )
  if data.optics:
    held_out = held_out._replace(
      yardsticks=evaluate.yardsticks(
        data.held_out_images,
        config.eval.inception,
        batch_size=config.eval.batch_size,
      )
    )
  eyes = evaluate.Eyes(*data.optics) if data.optics else None
  return held_out, eyes, scores_N


def clone_scalars(seen: dict[str, np.ndarray], i: int) -> dict[str, float]:
  """Clone i's row of TensorBoard scalars."""
  return {
    **{f'loss/{t}': v for t, v in _terms(seen['terms_K'][i])},
    **{f'lambda/{t}': v for t, v in _terms(seen['lambda_K'][i])},
    **{f'pid/error/{t}': v for t, v in _terms(seen['error_K'][i])},
    **{f'pid/integral/{t}': v for t, v in _terms(seen['integral_K'][i])},
    **{f'pid/derivative/{t}': v for t, v in _terms(seen['derivative_K'][i])},
    'loss/total': float(seen['g_loss'][i]),
    'loss/base': float(seen['base_loss'][i]),
    'loss/adv_share': float(seen['adv_share'][i]),
    'agent/lr': float(seen['learning_rate'][i]),
    'agent/epsilon': float(seen['epsilon'][i]),
    'agent/reward': float(seen['reward'][i]),
    'agent/state': float(seen['q_state'][i]),
    'agent/action': float(seen['q_action'][i]),
    'agent/trim': float(seen['trim'][i]),
    'critic/loss': float(seen['critic_loss'][i]),
    'critic/wasserstein': float(seen['wasserstein'][i]),
    'critic/penalty': float(seen['penalty'][i]),
    'grads/rms': float(seen['grads_rms'][i]),
    'meld/drift': float(seen['drift'][i]),
    'meld/dropped': float(seen['dropped'][i]),
  }


def master_scalars(
  seen: dict[str, np.ndarray], rate: float, spec: state_lib.StepSpec
) -> dict[str, float]:
  clones = len(seen['g_loss'])
  return {
    'codebook/perplexity': float(seen['perplexity'][0]),
    'codebook/used': float(seen['used'][0]),
    'meld/dropped': float(seen['dropped'].sum()),
    'perf/cycles_per_sec': rate,
    'perf/images_per_sec': rate * clones * spec.batch_size,
  }


def eval_scalars(figures: dict[str, float]) -> dict[str, float]:
  return {f'eval/{k}': v for k, v in figures.items()}


def summarize(
  config: ml_collections.ConfigDict,
  bins: dict[int, list[int]],
  seen: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
  """Each clone's row of the final table."""
  rows = []
  for i, name in enumerate(config.clone_names):
    base_K = np.array([dashboard.base_of(config, t, i) for t in losses.TERMS])
    ratio_K = seen['lambda_K'][i] / np.where(base_K > 0, base_K, np.inf)
    k = int(np.argmax(ratio_K))
    rows.append(
      {
        'name': name,
        'bins': config.school.lessons[i],
        'samples': sum(len(bins[b]) for b in config.school.lessons[i]),
        'g_loss': float(seen['g_loss'][i]),
        'critic_loss': float(seen['critic_loss'][i]),
        'dominant': losses.TERMS[k],
        'dominance': float(ratio_K[k]),
        'learning_rate': float(seen['learning_rate'][i]),
      }
    )
  return rows


class Exam(NamedTuple):
  """What an evaluation found.

  Attributes:
    figures: {tokenizer: {figure: value}}, of master, ema and specialists.
    counts_V: uses of each code by the master.
    tiles: the contact sheet's pictures (rows, columns, T, T, 3), uint8.
    sheet: how it is laid out.
  """

  figures: dict[str, dict[str, float]]
  counts_V: np.ndarray
  tiles: np.ndarray
  sheet: sheets.Sheet


def examine(
  config: ml_collections.ConfigDict,
  spec: state_lib.StepSpec,
  held_out: evaluate.HeldOut,
  eyes: evaluate.Eyes | None,
  master: state_lib.Master,
  specialists: Any,
) -> Exam:
  """Figures of master, EMA and specialists, and the sheet that shows them.

  Args:
    config: the run's.
    spec: of the step.
    held_out: samples.
    eyes: the optics.
    master: of all clones, host arrays with a leading M.
    specialists: the clones' own generators before the last meld, likewise.
  """
  tokenizers = {
    'master': jax.tree.map(lambda x: x[0], master.params),
    'ema': jax.tree.map(lambda x: x[0], master.ema),
  }
  for i, name in enumerate(config.clone_names):
    tokenizers[name] = jax.tree.map(operator.itemgetter(i), specialists)
  found = {
    name: evaluate.evaluate(
      spec.tokenizer,
      params,
      held_out,
      eyes,
      batch_size=config.eval.batch_size,
    )
    for name, params in tokenizers.items()
  }
  del tokenizers['ema']
  tiles, sheet = evaluate.preview(
    spec.tokenizer, tokenizers, held_out, eyes, columns=config.eval.preview
  )
  figures = {name: row for name, (row, _) in found.items()}
  return Exam(figures, found['master'][1], tiles, sheet)


def reconstructions(
  config: ml_collections.ConfigDict, exam: Exam
) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
  """A picture each for the clones' runs and the master's, of one tag.

  The originals above, what became of them below; nothing of a clone that was
  not evaluated.
  """
  row_of = {name: tiles for name, tiles in zip(exam.sheet.rows, exam.tiles)}
  pictures = [
    {
      'reconstructions': np.concatenate(
        [np.concatenate(row_of[row], axis=1) for row in ('original', name)]
      )
    }
    if name in row_of
    else {}
    for name in (*config.clone_names, 'master')
  ]
  return pictures[:-1], pictures[-1]


def even_shares(counts_V: np.ndarray) -> np.ndarray:
  """Uses of each code over what they would be if all were used alike."""
  return counts_V / max(counts_V.mean(), 1e-12)


def protocol(
  config: ml_collections.ConfigDict, held_out: evaluate.HeldOut, done: int
) -> dict[str, Any]:
  """What figures were taken by."""
  by = 'sample' if held_out.images_NxSxSx3 is None else 'photograph'
  record = {
    'split': f'held out by {by}',
    'source': config.data.held_out_source or config.data.source,
    'count': len(held_out.paths_NxHxWxC),
    'color_range': '[-1, 1]',
  }
  if config.data.held_out_source:
    record['split'] = 'a source of its own'
  if held_out.images_NxSxSx3 is not None:
    record |= {
      'crop': config.data.image_size,
      'crop_scale': f'1 to {config.data.max_scale:g}, at random',
      'resize_filter': 'Lanczos (Pillow)',
      'rounding': '8 bits, photograph and reconstruction, before pixel figures',
    }
  if config.eval.inception:
    record['inception'] = provenance.file_digest(config.eval.inception)
    record['inception_resize_filter'] = 'bicubic, to 299'
  return record | {
    'cycles': done,
    'images_seen': done * config.train.batch_size * len(config.clone_names),
    'seed': config.seed,
    'config': provenance.digest(json.loads(config.to_json())),
    'commit': provenance.commit(),
  }


def save_figures(
  workdir: str,
  figures: dict[str, dict[str, float]],
  record: dict[str, Any],
) -> None:
  """evaluation.json: flat figures and the protocol they were taken by."""
  path = os.path.join(workdir, 'evaluation.json')
  disk.write_json(path, {**_flat(figures), 'protocol': record})


def save_tokenizer(
  config: ml_collections.ConfigDict,
  workdir: str,
  spec: state_lib.StepSpec,
  master: state_lib.Master,
  data: 'latents.Prepared',
  done: int,
  out: str = '',
) -> None:
  """Exports the master, or its average, as `config.export.weights` says.

  Args:
    config: the run's.
    workdir: of the run; its evaluation.json goes along, if of this cycle.
    spec: of the step.
    master: of all clones, host arrays with a leading M.
    data: what it was trained on.
    done: cycles.
    out: the folder; '' is `tokenizer/` in the workdir.
  """
  weights = {'master': master.params, 'ema': master.ema}[config.export.weights]
  model, variables = data.optics or (None, None)
  parts = export.Parts(
    spec.tokenizer, jax.tree.map(lambda x: x[0], weights), model, variables
  )
  size = config.data.image_size
  came_from = {'weights': config.export.weights, 'cycles': done}
  with contextlib.suppress(OSError, ValueError, KeyError):
    with open(os.path.join(workdir, 'evaluation.json')) as f:
      seen = json.load(f)
    if seen['protocol']['cycles'] == done:
      came_from['evaluation'] = seen
  out = out or os.path.join(workdir, 'tokenizer')
  export.save(
    out,
    parts,
    input_shape=(size, size, 3) if model else data.paths_NxHxWxC.shape[1:],
    came_from=came_from,
  )
  logging.info('The tokenizer is in %s.', out)


def save_preview(workdir: str, exam: Exam, done: int) -> np.ndarray:
  """Draws the contact sheet into previews/ and returns it."""
  folder = os.path.join(workdir, 'previews')
  picture = sheets.compose(exam.tiles, exam.sheet)
  with spared('The preview'):
    os.makedirs(folder, exist_ok=True)
    sheets.save(os.path.join(folder, f'{done:07d}.png'), picture, exam.sheet)
  return picture


def save_report(
  config: ml_collections.ConfigDict,
  workdir: str,
  subject: report.Subject,
  rows: list[dict[str, Any]],
) -> None:
  """report.html; what goes wrong with it is a warning."""
  try:
    path = report.write(
      workdir,
      subject,
      rows,
      base={t: config.loss[t] for t in losses.TERMS},
      image_size=config.data.image_size,
      chunk=config.optics.chunk,
    )
  except report.FAILURES as e:
    logging.warning('No report.html of this run: %r.', e)
  else:
    logging.info('The report is %s.', path)


def _flat(figures: dict[str, dict[str, float]]) -> dict[str, float]:
  return {f'{g}/{k}': v for g, row in figures.items() for k, v in row.items()}


def _terms(values_K: np.ndarray) -> Iterator[tuple[str, float]]:
  return zip(losses.TERMS, map(float, values_K))
