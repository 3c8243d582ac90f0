"""The plain learner with optimizers that find their own learning rate.

All are optax's (https://optax.readthedocs.io/en/latest/api/contrib.html):
Prodigy (Mishchenko and Defazio, 2023, https://arxiv.org/abs/2306.06101),
D-Adaptation (Defazio and Mishchenko, 2023, https://arxiv.org/abs/2301.07733),
Mechanic (Cutkosky et al., 2023, https://arxiv.org/abs/2306.00144), and
Schedule-Free (Defazio et al., 2024, https://arxiv.org/abs/2405.15682), which is
told a rate and the warm-up. The others have the run's schedule, scaled to a
peak of 1. All have its decay rates of the moments. Unlike `:control` the plain
learner revives no codes: `adam`, its own optimizer, says what that costs.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np
import optax
from optax import contrib

from chimera.benchmarks import plain
from chimera.clones import state as state_lib
from chimera.evaluation import evaluate, exam
from chimera.optics import stage_1
from chimera.run import finish

_LOG_EVERY = 100  # cycles


def _rate_free(
  make: Callable[..., Any], spec: state_lib.StepSpec
) -> optax.GradientTransformation:
  return make(_shape(spec), betas=tuple(_betas(spec).values()))


def _mechanic(spec: state_lib.StepSpec) -> optax.GradientTransformation:
  return contrib.mechanize(optax.adam(_shape(spec), **_betas(spec)))


def _schedule_free(spec: state_lib.StepSpec) -> optax.GradientTransformation:
  return contrib.schedule_free_adamw(
    spec.schedule.learning_rate,
    warmup_steps=max(spec.schedule.warmup, 1),
    **_betas(spec),
  )


OPTIMIZERS: dict[
  str, Callable[[state_lib.StepSpec], optax.GradientTransformation | None]
] = {
  'adam': lambda spec: None,  # the plain learner's own
  'prodigy': functools.partial(_rate_free, contrib.prodigy),
  'dadapt_adamw': functools.partial(_rate_free, contrib.dadapt_adamw),
  'mechanize': _mechanic,
  'schedule_free_adamw': _schedule_free,
}


def train(
  name: str,
  config: ml_collections.ConfigDict,
  data: stage_1.Prepared,
  bins: dict[int, np.ndarray],
  devices: Sequence[jax.Device],
  stage_1_dir: str,
) -> dict[str, float]:
  """The held-out figures, by 'master/figure', of one of OPTIMIZERS.

  Drawn by optics that were finished for it, as those of any other method are.

  Of the last parameters; of Schedule-Free their average, which is its answer.
  """
  spec = state_lib.create_spec(config)
  paths = np.asarray(data.paths_NxHxWxC)
  optimizer = OPTIMIZERS[name](spec)
  learner = plain.Learner(config, spec, paths, devices, optimizer=optimizer)
  for done in range(1, config.train.cycles + 1):
    learner.dispatch()
    jax.block_until_ready(learner.state)
    if done % _LOG_EVERY == 0:
      logging.info('%s: cycle %d of %d', name, done, config.train.cycles)
  state = learner.state
  params = state.generator
  if name == 'schedule_free_adamw':
    params = contrib.schedule_free_eval_params(state.moments, params)
  params = jax.device_get(params)
  data = finish.finish(config, spec.tokenizer, params, data, stage_1_dir)
  held_out, _ = exam.look_at_held_out(config, data)
  judged = evaluate.evaluate(
    spec.tokenizer,
    params,
    held_out,
    evaluate.Eyes(*data.optics) if data.optics else None,
    batch_size=config.eval.batch_size,
  )
  return exam.flat({'master': judged.figures})


def _betas(spec: state_lib.StepSpec) -> dict[str, float]:
  adam = spec.generator_optimizer
  return {'b1': adam.adam_b1, 'b2': adam.adam_b2}


def _shape(spec: state_lib.StepSpec) -> Callable[[jax.Array], jax.Array]:
  """The schedule, whatever rate was asked for, with a peak of 1."""
  return lambda step: spec.schedule(step) / spec.schedule.learning_rate
