"""Stage 2's loop: the School opens, the clones learn, a master is melded."""

import contextlib
import os
from typing import Any

from absl import logging
import ml_collections
import numpy as np

from chimera.clones import specialists as specialists_lib
from chimera.clones import state as state_lib
from chimera.clones import terms as terms_lib
from chimera.data import crops
from chimera.evaluation import evaluate as evaluate_lib
from chimera.evaluation import exam as exam_lib
from chimera.evaluation import protocol
from chimera.meld import quarantine
from chimera.monitor import observers as observers_lib
from chimera.monitor import report, summary
from chimera.optics import stage_1
from chimera.run import audition, checkpoint, init_from, results
from chimera.run import engine as engine_lib
from chimera.run import rollbacks as rollbacks_lib
from chimera.school import curriculum, curriculum_file
from chimera.system import disk, hosts, lock, preemption, provenance


def prepare_curriculum(
  config: ml_collections.ConfigDict,
  workdir: str,
  data: stage_1.Prepared,
  *,
  afresh: bool = False,
) -> dict[int, np.ndarray]:
  """Scores, sorts and bins latents.npy, or loads the curriculum it finds."""
  bins, scores_N = curriculum_file.make_or_check(
    os.path.join(workdir, f'curriculum_bins_{config.basename}.pkl'),
    data.paths_NxHxWxC,
    metric=config.school.metric,
    afresh=afresh,
  )
  if data.gradients_N is not None:
    found = curriculum.radius_check(scores_N, data.gradients_N)
    logging.info(
      'Rank correlation of complexity with gradient magnitude: %.3f.', found
    )
  manifest = os.path.join(workdir, 'manifest.csv')
  crops.write_manifest(manifest, data.crops, scores_N)
  return bins


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  data: stage_1.Prepared,
  watch: preemption.Watch | None = None,
  team: hosts.Team | None = None,
) -> dict[str, float]:
  """Trains to the last cycle, from wherever the workdir stands.

  Order: 1. curriculum, 2. newborn clones, 3. the newest whole checkpoint over
  them, 4. the audition of a new run, 5. onto the devices, 6. the loop.

  An evaluation comes before the checkpoint of its cycle, which says that it has
  been, and what was the best so far: whatever ends the run, it is made up for.
  A signal ends it by preemption.Stopped, once what was done is saved.

  Returns:
    The last held-out figures, by 'tokenizer/figure'; empty where the workdir
    has all its cycles already, and what is made of them.
  """
  watch = watch or preemption.Watch()
  bins = prepare_curriculum(config, workdir, data)
  devices = engine_lib.choose_devices(
    config.devices, len(config.clone_names), config.train.batch_size
  )
  spec, born = newborn(config, data, bins)
  checkpointer = checkpoint.Checkpointer(config, workdir, bins)
  rollbacks = rollbacks_lib.Rollbacks(workdir, config.train.rollbacks)
  done, host, specialists = set_out(config, checkpointer, rollbacks, born)
  if done:
    logging.info('Resuming from cycle %d.', done)
  elif config.init_from:
    logging.info('Starting from %s.', config.init_from)
  cycles = config.train.cycles
  is_over = done >= cycles
  if is_over and results.are_there(config, workdir, done):
    logging.info('Nothing to do: %s has all its cycles.', workdir)
    return {}
  held_out, scores_N = exam_lib.look_at_held_out(config, data)
  observers = observers_lib.Observers(config, workdir, spec, done)

  def examine(done: int, tokenizers: tuple[Any, Any]) -> exam_lib.Exam:
    nonlocal data
    is_last = done == cycles
    if is_last:
      with observers.during('finishing the optics'):
        data = results.finished(config, spec, tokenizers[0], data, workdir)
    with observers.during('evaluating'):
      # Of the average only the last figures are shown anywhere.
      exam = exam_lib.examine(
        config, spec, held_out, data.optics, *tokenizers, with_ema=is_last
      )
      record = _protocol(config, held_out, done, data)
      with disk.spared('evaluation.json'):
        exam_lib.save_figures(workdir, exam.figures, record)
    return exam

  def evaluate(done: int, tokenizers: tuple[Any, Any]) -> exam_lib.Exam:
    exam = examine(done, tokenizers)
    with observers.during('evaluating'):
      sheet = exam_lib.save_preview(workdir, exam, done)
      observers.evaluated(done, exam, sheet)
    checkpointer.evaluated(done, exam.figures)
    return exam

  with observers, contextlib.ExitStack() as deferred:
    observers.introduce(held_out, scores_N, done)
    if not checkpointer.extra['is_evaluated']:
      exam = evaluate(done, (host.master, specialists))
    elif is_over:
      exam = examine(done, (host.master, specialists))
    if not is_over:
      paths = data.paths_NxHxWxC
      if not done:
        with observers.during('auditioning learning rates'):
          rate, start_P = find_rate(
            *(config, workdir, spec, host.master.params[0], paths),
            engine_lib.local(devices),
            checkpointer.bound,
          )
        host, born = (state_lib.begun(x, start_P) for x in (host, born))
        checkpointer.extra['rate'] = rate
      # Of a run of before there were auditions there is none.
      rate = checkpointer.extra.get('rate', 1.0)
      logging.info('Learning rate: %.2g.', rate * config.train.learning_rate)
      if spec.schedule.warmup > config.train.warmup:
        logging.info(
          'Warm-up: %d cycles, as of an audition (train.warmup: %d).',
          *(spec.schedule.warmup, config.train.warmup),
        )
      if warning := spec.schedule.warning:
        logging.warning('%s', warning)
      engine = engine_lib.Engine(config, spec, bins, paths, devices, rate, team)
      engine.place(host, done)
      observers.compiling(len(devices))
      is_new = True
    while done < cycles:
      engine.dispatch()
      if team:
        watch.heed(team.signum)
      done += engine.cycles
      is_last = done == cycles
      if is_new:
        observers.compiled()
        deferred.enter_context(watch.deferred())
        is_new = False
      if done % config.train.log_every == 0 or is_last:
        (seen,) = engine.fetch('seen')
        observers.saw(done, seen)
        if has_diverged(config, done, seen, rollbacks):
          done, host, _ = set_out(config, checkpointer, rollbacks, born)
          checkpointer.extra['rate'] = rate
          logging.warning('Rolled back to cycle %d, with another key.', done)
          observers.rewind(done)
          engine.place(host, done)
          continue
      engine.deal_if_due(done)
      if done % config.train.eval_every == 0 or is_last:
        checkpointer.extra['is_evaluated'] = False
        if watch.signum is None:
          with watch.interruptible():
            exam = evaluate(done, engine.fetch('master', 'specialists'))
      if watch.signum is not None or checkpointer.is_due(done):
        with observers.during('saving'):
          *saved, seen = engine.fetch('state', 'specialists', 'seen')
          checkpointer.extra['rows'] = results.summarize(config, bins, seen)
          checkpointer.save(done, *saved, watch)
      watch.stop(
        f'Stopped at cycle {done}, saved: the same command goes on from here.'
      )
    if not is_over:
      (host,) = engine.fetch('state')
  rows = checkpointer.extra['rows']
  subject = report.Subject(
    tokenizer=spec.tokenizer,
    params=spec.generator_layout.tree(host.master.params[0]),
    eyes=evaluate_lib.Eyes(*data.optics) if data.optics else None,
    counts_V=exam.counts_V,
    paths_NxHxWxC=data.paths_NxHxWxC,
    crops=data.crops,
    scores_N=scores_N,
    bins=bins,
    outliers=results.outliers(host, data),
  )
  save_report(config, workdir, subject, rows)
  try:
    results.save_tokenizer(config, workdir, spec, host.master, data, cycles)
  except OSError as e:
    raise OSError(
      f'The tokenizer is not exported: {e}. All cycles are saved: fix that, '
      'and give the same command again.'
    ) from e
  record = _protocol(config, held_out, cycles, data)
  summary.show(summary.summary(rows, exam.figures, record))
  return exam_lib.flat(exam.figures)


def find_rate(
  config: ml_collections.ConfigDict,
  workdir: str,
  spec: state_lib.StepSpec,
  start_P: np.ndarray,
  paths_NxHxWxC: np.ndarray,
  devices: list[Any],
  bound: dict[str, str],
) -> tuple[float, np.ndarray]:
  """How many times the config's learning rate that of a new run is.

  And the weights that it starts from. Where those are what another run has
  learned, or there is no audition: once, and those given. An audition that the
  workdir has of the same, by the digests that the run is `bound` to, is not
  held again.
  """
  if not audition.images(config):
    audition.forget(workdir)
    return 1.0, start_P
  of = provenance.digest(bound)
  if not (known := audition.resume(workdir, of)):
    known = audition.hold(config, spec, start_P, paths_NxHxWxC, devices)
    audition.save(workdir, of, *known)
  held, best_P = known
  found = held.found / config.train.learning_rate
  if config.meld.enabled:  # it is of steps that are gone whole
    found /= (1 - config.meld.alpha) * config.meld.outer_learning_rate
    found *= 1 - config.meld.outer_momentum
  return found, best_P


def set_out(
  config: ml_collections.ConfigDict,
  checkpointer: checkpoint.Checkpointer,
  rollbacks: rollbacks_lib.Rollbacks,
  born: state_lib.CloneState,
) -> tuple[int, state_lib.CloneState, Any]:
  """From where the run goes on: the newest whole checkpoint, else birth."""
  if restored := checkpointer.restore(born):
    done, host, specialists = restored
  else:
    checkpointer.begin()
    done, host, specialists = (
      0,
      (init_from.inherit(config, born) if config.init_from else born),
      None,
    )
  key = rollbacks.key_data(config.seed)
  host = host.replace(rng=np.stack([key] * len(host.rng)))
  return done, host, specialists


def has_diverged(
  config: ml_collections.ConfigDict,
  done: int,
  seen: dict[str, np.ndarray],
  rollbacks: rollbacks_lib.Rollbacks,
) -> bool:
  """Whether the run must go back, which is noted then; warns before that."""
  sick = int(seen['sick'].max())
  if not sick:
    return False
  columns = (seen[k] for k in ('healthy', 'loss/base', 'meld/dropped'))
  clones = [
    f'{name} {"healthy" if healthy else "sick"}, loss {loss:.4g}, left out of '
    f'{dropped} cycles'
    for name, healthy, loss, dropped in zip(config.clone_names, *columns)
  ]
  reason = (
    f'Fewer than {min(quarantine.QUORUM, len(clones))} clones were healthy for '
    f'{sick} cycles in a row, seen at cycle {done} ({"; ".join(clones)})'
  )
  logging.warning('%s.', reason)
  if sick < config.meld.sick_cycles:
    return False
  rollbacks.add(reason)
  return True


def newborn(
  config: ml_collections.ConfigDict,
  data: stage_1.Prepared,
  bins: dict[int, np.ndarray],
) -> tuple[state_lib.StepSpec, state_lib.CloneState]:
  """The step's constants and the clones, host arrays with a leading M."""
  spec, grid = state_lib.create_spec(config), data.paths_NxHxWxC.shape[1:3]
  states = state_lib.create_states(config, spec, bins, grid)
  return spec, state_lib.stack(states)


def evaluate_workdir(
  config: ml_collections.ConfigDict, workdir: str, data: stage_1.Prepared
) -> dict[str, float]:
  """Evaluates the newest whole checkpoint and rewrites evaluation.json."""
  bins = prepare_curriculum(config, workdir, data)
  spec, born = newborn(config, data, bins)
  done, host, specialists = checkpoint.restore(config, workdir, born, bins)
  held_out, _ = exam_lib.look_at_held_out(config, data)
  data = results.finished(config, spec, host.master, data, workdir)
  tokenizers = host.master, specialists
  exam = exam_lib.examine(config, spec, held_out, data.optics, *tokenizers)
  record = _protocol(config, held_out, done, data)
  exam_lib.save_figures(workdir, exam.figures, record)
  summary.show(summary.summary([], exam.figures, record))
  return exam_lib.flat(exam.figures)


def export_workdir(
  config: ml_collections.ConfigDict,
  workdir: str,
  data: stage_1.Prepared,
  out: str,
) -> None:
  """Exports the newest whole checkpoint to `out`; '' is `tokenizer/`."""
  # The workdir, and with it `tokenizer/`, is held by the command.
  with lock.hold(out, '--out') if out else contextlib.nullcontext():
    bins = prepare_curriculum(config, workdir, data)
    spec, born = newborn(config, data, bins)
    done, host, _ = checkpoint.restore(config, workdir, born, bins)
    data = results.finished(config, spec, host.master, data, workdir)
    results.save_tokenizer(config, workdir, spec, host.master, data, done, out)


def save_report(
  config: ml_collections.ConfigDict,
  workdir: str,
  subject: report.Subject,
  rows: list[dict[str, Any]],
) -> None:
  """report.html; what goes wrong with it is a warning."""
  terms = terms_lib.of(config.model.quantizer)
  try:
    path = report.write(
      workdir,
      subject,
      rows,
      base={
        name: {t: specialists_lib.base_weights(config, name)[t] for t in terms}
        for name in config.clone_names
      },
      image_size=config.data.image_size,
      chunk=config.optics.chunk,
    )
  except report.FAILURES as e:
    logging.warning('No report.html of this run: %r.', e)
    with contextlib.suppress(OSError):  # it would be of an earlier cycle
      os.unlink(os.path.join(workdir, 'report.html'))
  else:
    logging.info('The report is %s.', path)


def _protocol(
  config: ml_collections.ConfigDict,
  held_out: evaluate_lib.HeldOut,
  done: int,
  data: stage_1.Prepared,
) -> dict[str, Any]:
  seen = audition.images(config)
  return protocol.protocol(config, held_out, done, data.drawn_by, seen)
