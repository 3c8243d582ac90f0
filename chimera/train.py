"""Stage 2's loop: the School opens, four clones learn, a master is melded."""

from collections.abc import Iterator
import json
import os
import time
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from chimera import checkpoint
from chimera import evaluate
from chimera import latents
from chimera import losses
from chimera import mission_control
from chimera import school
from chimera import state as state_lib
from chimera import step as step_lib


def prepare_curriculum(
  config: ml_collections.ConfigDict, workdir: str
) -> tuple[latents.Prepared, dict[int, list[int]]]:
  """Scores, sorts and bins latents.npy, or loads the curriculum it finds."""
  data = latents.prepare(config, workdir)
  bins = school.prepare_curriculum(
    os.path.join(workdir, f'curriculum_bins_{config.basename}.pkl'),
    os.path.join(workdir, 'latents.npy'),
    data,
    metric=config.school.metric,
    chunk=config.optics.chunk,
  )
  return data, bins


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
  """Trains to the last cycle, from wherever the workdir stands.

  Order: 1. data and curriculum, 2. newborn clones, 3. the newest whole
  checkpoint over them, 4. onto the devices, 5. the loop.

  Returns:
    The master's last held-out figures.
  """
  data, bins = prepare_curriculum(config, workdir)
  devices = choose_devices(config.devices)
  held_out, eyes = look_at_held_out(config, data, bins)
  spec = state_lib.create_spec(config)
  states = state_lib.create_states(
    config, spec, bins, data.paths_NxHxWxC.shape[1:3]
  )
  host = state_lib.stack(states)
  checkpoints = checkpoint.Checkpoints(
    os.path.join(workdir, 'checkpoints'), keep=config.train.keep
  )
  first = 0
  if restored := checkpoints.restore(host):
    first, host, _ = restored
    logging.info('Resuming from cycle %d.', first)
  missions = step_lib.put(
    state_lib.stack(state_lib.create_missions(config, bins)), devices
  )
  shards = Shards(config, data.paths_NxHxWxC, devices)
  cycles = config.train.cycles_per_dispatch
  train_step = step_lib.make_train_step(
    spec, devices, cycles=cycles, resident=shards.resident
  )
  state = step_lib.put(host, devices)
  shard = shards.deal(host.school, first)
  progress = mission_control.Progress(config.train.cycles, first)
  summary = None
  figures: dict[str, float] = {}
  logging.info('Compiling the step for %d device(s).', len(devices))
  with mission_control.Writers(workdir, config.clone_names) as writers:
    for done in range(first + cycles, config.train.cycles + 1, cycles):
      with jax.transfer_guard('disallow'):
        state, metrics = train_step(state, missions, shard)
      last = done + cycles > config.train.cycles
      if done % config.train.log_every == 0 or last:
        seen = step_lib.fetch({**metrics, 'specialist': (), 'lesson_B': ()})
        rate = progress.update(done)
        rows = [clone_scalars(seen, i) for i in range(len(states))]
        writers.write(done, rows, master_scalars(seen, rate, spec))
        if not np.isfinite(seen['base_loss']).any():
          raise FloatingPointError(
            f'No clone was finite at cycle {done}: lower '
            '--config.train.learning_rate.'
          )
        if not shards.resident:
          shard = shards.deal(step_lib.fetch(state.school), done)
      if done % config.train.checkpoint_every == 0 or last:
        checkpoints.save(done, step_lib.fetch(state), {})
      if done % config.train.eval_every == 0 or last:
        figures = _examine(
          config, workdir, spec, held_out, eyes, state, metrics, done
        )
        writers.write(
          done,
          [{} for _ in states],
          {f'eval/{k}': v for k, v in _of(figures, 'master').items()},
        )
        summary = mission_control.summary(
          summarize(config, bins, step_lib.fetch({**metrics, 'specialist': ()})),
          _of(figures, 'master'),
        )
  if summary is None:
    logging.info('Nothing to do: %s has all its cycles.', workdir)
  else:
    mission_control.show(summary)
  return figures


def evaluate_workdir(
  config: ml_collections.ConfigDict, workdir: str
) -> dict[str, float]:
  """Evaluates the newest whole checkpoint; rewrites evaluation.json."""
  data, bins = prepare_curriculum(config, workdir)
  held_out, eyes = look_at_held_out(config, data, bins)
  spec = state_lib.create_spec(config)
  host = state_lib.stack(
    state_lib.create_states(config, spec, bins, data.paths_NxHxWxC.shape[1:3])
  )
  restored = checkpoint.Checkpoints(
    os.path.join(workdir, 'checkpoints'), keep=config.train.keep
  ).restore(host)
  if restored is None:
    raise ValueError(
      f'evaluate needs a trained tokenizer, got none in {workdir}: run '
      '`python -m chimera.main train` with the same flags first.'
    )
  done, host, _ = restored
  figures = {}
  for name, params in {
    'master': host.master.params,
    'ema': host.master.ema,
  }.items():
    figures[name] = evaluate.evaluate(
      spec.tokenizer,
      jax.tree.map(lambda x: x[0], params),
      held_out,
      eyes,
      batch_size=config.eval.batch_size,
    )
  return _write_evaluation(config, workdir, held_out, figures, done)


class Shards:
  """Deals each clone what its device holds of the training set."""

  def __init__(self, config, paths_NxHxWxC: np.ndarray, devices):
    self._config = config
    self._paths = paths_NxHxWxC
    self._devices = devices
    self.resident = paths_NxHxWxC.nbytes <= config.school.resident_mb << 20

  def deal(self, lessons: school.SchoolState, cycle: int) -> school.Shard:
    if self.resident:
      return step_lib.put_shared(
        school.resident_shard(self._paths), self._devices
      )
    shards = [
      school.rotating_shard(
        self._paths,
        lessons.enrolled_L[i],
        rotating_samples=self._config.school.rotating_samples,
        seed=self._config.seed,
        cycle=cycle,
      )
      for i in range(len(lessons.enrolled_L))
    ]
    return step_lib.put(state_lib.stack(shards), self._devices)


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
  data: latents.Prepared,
  bins: dict[int, list[int]],
) -> tuple[evaluate.HeldOut, evaluate.Eyes | None]:
  """Places the held-out samples in the bins of the training scores."""
  metric, chunk = config.school.metric, config.optics.chunk
  scores_N = school.score(data.paths_NxHxWxC, metric=metric, chunk=chunk)
  held_out = evaluate.HeldOut(
    data.held_out_paths,
    data.held_out_images,
    evaluate.bins_of(
      school.score(data.held_out_paths, metric=metric, chunk=chunk),
      [scores_N[bins[b]].max() for b in range(10)],
    ),
  )
  eyes = evaluate.Eyes(*data.optics) if data.optics else None
  return held_out, eyes


def clone_scalars(seen: dict[str, np.ndarray], i: int) -> dict[str, float]:
  """Clone i's row of TensorBoard scalars."""
  return {
    **{f'loss/{t}': v for t, v in _terms(seen['terms_K'][i])},
    **{f'lambda/{t}': v for t, v in _terms(seen['lambda_K'][i])},
    **{f'pid/integral/{t}': v for t, v in _terms(seen['integral_K'][i])},
    'loss/total': float(seen['g_loss'][i]),
    'loss/base': float(seen['base_loss'][i]),
    'loss/adv_share': float(seen['adv_share'][i]),
    'agent/lr': float(seen['learning_rate'][i]),
    'agent/epsilon': float(seen['epsilon'][i]),
    'agent/reward': float(seen['reward'][i]),
    'agent/state': float(seen['q_state'][i]),
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


def summarize(
  config: ml_collections.ConfigDict,
  bins: dict[int, list[int]],
  seen: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
  """Each clone's row of the final table."""
  rows = []
  base_K = np.array([config.loss[t] for t in losses.TERMS])
  for i, name in enumerate(config.clone_names):
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


def _examine(
  config, workdir, spec, held_out, eyes, state, metrics, done
) -> dict[str, float]:
  """Evaluates master and specialists, writes the sheet and the figures."""
  master = step_lib.fetch(state.master)
  specialists = step_lib.fetch(metrics['specialist'])
  tokenizers = {
    'master': jax.tree.map(lambda x: x[0], master.params),
    'ema': jax.tree.map(lambda x: x[0], master.ema),
  }
  for i, name in enumerate(config.clone_names):
    tokenizers[name] = jax.tree.map(lambda x, i=i: x[i], specialists)
  figures = {
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
  os.makedirs(os.path.join(workdir, 'previews'), exist_ok=True)
  evaluate.save_png(
    os.path.join(workdir, 'previews', f'{done:07d}.png'),
    evaluate.preview(
      spec.tokenizer, tokenizers, held_out, eyes, columns=config.eval.preview
    ),
  )
  return _write_evaluation(config, workdir, held_out, figures, done)


def _write_evaluation(
  config, workdir, held_out, figures, done
) -> dict[str, float]:
  """evaluation.json: flat figures and the protocol they were taken by."""
  flat = {f'{g}/{k}': v for g, row in figures.items() for k, v in row.items()}
  protocol = {
    'split': 'held out by photograph',
    'source': config.data.held_out_source or config.data.source,
    'crop': config.data.image_size,
    'count': len(held_out.paths_NxHxWxC),
    'color_range': '[-1, 1]',
    'cycles': done,
    'images_seen': done * config.train.batch_size * len(config.clone_names),
  }
  path = os.path.join(workdir, 'evaluation.json')
  with open(f'{path}.tmp', 'w') as f:
    json.dump({**flat, 'protocol': protocol}, f, indent=1)
  os.replace(f'{path}.tmp', path)
  return flat


def _of(figures: dict[str, float], group: str) -> dict[str, float]:
  return {
    k.split('/', 1)[1]: v
    for k, v in figures.items()
    if k.startswith(f'{group}/')
  }


def _terms(values_K: np.ndarray) -> Iterator[tuple[str, float]]:
  return zip(losses.TERMS, map(float, values_K))
