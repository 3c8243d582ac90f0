"""What one clone carries, how it is born, and what tells it from the others.

State holds only what changes. What differs between clones but never changes is
a `Mission`, arrays built from the config; what is common to all and fixed at
compilation is the `StepSpec`.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from chimera.agents import pid as pid_lib
from chimera.agents import q_learning
from chimera.clones import losses, models
from chimera.meld import average, quarantine
from chimera.meld import optimizer as optimizer_lib
from chimera.school import lessons as lessons_lib


class TrainState(flax.struct.PyTreeNode):
  """Parameters and the state of their optimizer."""

  params: Any
  opt_state: Any


class CloneState(flax.struct.PyTreeNode):
  """One clone.

  Attributes:
    step: cycles done, int32.
    rng: the run's key, the same on every clone; folded with step and clone.
    generator: the tokenizer.
    critic: this clone's own W-Learner.
    master: the melded tokenizer.
    pid: the lambda controller.
    q: the learning rate controller.
    own_loss: the loss as it would stand by this clone's part in the melds
      alone, 1 when the agent's last decision was taken.
    school: who is enrolled, and what was tracked.
    health: what is remembered of all clones' health.
    dropped: cycles in which this clone was left out of the meld, int32.
  """

  step: jax.Array
  rng: jax.Array
  generator: TrainState
  critic: TrainState
  master: average.Master
  pid: pid_lib.State
  q: q_learning.State
  own_loss: jax.Array
  school: lessons_lib.SchoolState
  health: quarantine.Health
  dropped: jax.Array


class Mission(NamedTuple):
  """What tells the clones apart: data, never a Python branch.

  Attributes:
    clone: its number, int32.
    weight: of its parameters in the meld.
    enrols: 1.0 where its class follows the tracked varentropy, else 0.0.
    pid: base weights, targets and gains, each (K,).
    q: bounds of the learning rate's trim.
  """

  clone: jax.Array
  weight: jax.Array
  enrols: jax.Array
  pid: pid_lib.Mission
  q: q_learning.Mission


@dataclasses.dataclass(frozen=True)
class StepSpec:
  """The constants of a compiled step, a part a pillar."""

  tokenizer: models.Tokenizer
  critic: models.Critic
  batch_size: int
  school: lessons_lib.Spec
  loss: losses.Spec
  wgan: losses.CriticSpec
  pid: pid_lib.Spec
  q: q_learning.Spec
  meld: average.Spec
  quarantine: quarantine.Spec
  schedule: optimizer_lib.Schedule
  generator_optimizer: optimizer_lib.Spec
  critic_optimizer: optimizer_lib.Spec


def create_spec(config: ml_collections.ConfigDict) -> StepSpec:
  c = config
  school = _made(lessons_lib.Spec, c.school)
  if not c.school.enabled:
    school = dataclasses.replace(school, mix=1.0, enrol_from=0)
  q = _made(q_learning.Spec, c.q)
  if not c.q.enabled:
    q = dataclasses.replace(q, history='total')
  meld = _made(average.Spec, {**c.meld, 'revive_after': c.model.revive_after})
  optimizer_state = c.meld.optimizer_state
  if not meld.enabled:
    # Averaged gradients are the meld of every step with Adam in common.
    optimizer_state = 'shared'
    meld = dataclasses.replace(
      meld, every=1, alpha=0.0, outer_learning_rate=1.0, outer_momentum=0.0
    )
  return StepSpec(
    tokenizer=create_tokenizer(c),
    critic=models.Critic(width=c.model.critic_width),
    batch_size=c.train.batch_size,
    school=school,
    loss=_made(losses.Spec, c.loss),
    wgan=_made(losses.CriticSpec, c.critic),
    pid=_made(pid_lib.Spec, c.pid),
    q=q,
    meld=meld,
    quarantine=_made(quarantine.Spec, c.meld),
    schedule=_made(optimizer_lib.Schedule, c.train),
    generator_optimizer=optimizer_lib.Spec(
      c.train.adam_b1, c.train.adam_b2, optimizer_state
    ),
    # Critics are private, but where all clones are one learner.
    critic_optimizer=optimizer_lib.Spec(
      0.0, 0.9, 'local' if meld.enabled else 'shared'
    ),
  )


def _made(spec: type, part: Any) -> Any:
  """A pillar's constants of its part of the config, by the fields' names."""
  return spec(**{f.name: part[f.name] for f in dataclasses.fields(spec)})


def create_tokenizer(config: ml_collections.ConfigDict) -> models.Tokenizer:
  return models.Tokenizer(
    width=config.model.width,
    blocks=config.model.blocks,
    downsample=config.model.downsample,
    codes=config.model.codes,
    code_dim=config.model.code_dim,
  )


def create_missions(
  config: ml_collections.ConfigDict, bins: dict[int, list[int]]
) -> list[Mission]:
  """One Mission a clone, in the order of config.clone_names."""
  c = config
  samples = sum(map(len, bins.values()))
  missions = []
  for i in range(len(c.clone_names)):
    specialty_K = np.array([c.specialists[t][i] for t in losses.TERMS])
    base_K = np.array([c.loss[t] for t in losses.TERMS])
    base_K = base_K * (1 + c.specialists.strength * (specialty_K - 1))
    gain = float(c.pid.enabled)
    mass = sum(len(bins[b]) for b in c.school.lessons[i]) / samples
    one_K = np.ones(len(losses.TERMS))
    mission = Mission(
      clone=np.int32(i),
      weight=mass if c.meld.weights == 'mass' else 1.0,
      enrols=float(i == len(c.clone_names) - 1),
      pid=pid_lib.Mission(
        base_K=base_K,
        target_K=np.array([c.pid.target[t][i] for t in losses.TERMS]),
        proportional_K=gain * c.pid.proportional[i] * one_K,
        integral_K=gain * c.pid.integral[i] * one_K,
        derivative_K=gain * c.pid.derivative[i] * one_K,
      ),
      q=q_learning.Mission(
        low=c.q.low[i] if c.q.enabled else 1.0,
        high=c.q.high[i] if c.q.enabled else 1.0,
      ),
    )
    missions.append(
      jax.tree.map(
        lambda x: np.asarray(
          x, np.int32 if isinstance(x, np.int32) else np.float32
        ),
        mission,
      )
    )
  return missions


def create_states(
  config: ml_collections.ConfigDict,
  spec: StepSpec,
  bins: dict[int, list[int]],
  grid: tuple[int, int],
) -> list[CloneState]:
  """Four clones of one newborn master; each has a critic of its own.

  Args:
    config: the run's.
    spec: of the step that these states will enter.
    bins: the curriculum.
    grid: (H, W) of the path_params.
  """
  key = jax.random.key_data(jax.random.key(config.seed))
  x = jnp.zeros((1, *grid, 3))
  params = jax.jit(spec.tokenizer.init)(
    jax.random.fold_in(jax.random.wrap_key_data(key), 0), x
  )['params']
  samples = sum(map(len, bins.values()))
  length = lessons_lib.lesson_length(
    bins, config.school.lessons, batch_size=config.train.batch_size
  )
  init_critic = jax.jit(spec.critic.init)
  states = []
  for i, lesson in enumerate(config.school.lessons):
    # Averaged critics must be born alike.
    number = 1 + i if spec.meld.enabled else 1
    critic_params = init_critic(
      jax.random.fold_in(jax.random.wrap_key_data(key), number), x
    )['params']
    states.append(
      CloneState(
        step=jnp.int32(0),
        rng=key,
        generator=_at_birth(params, spec.generator_optimizer),
        critic=_at_birth(critic_params, spec.critic_optimizer),
        master=average.create_master(params, spec.tokenizer.codes, spec.meld),
        pid=pid_lib.init(len(losses.TERMS)),
        q=q_learning.init(window=config.q.window, actions=len(spec.q.actions)),
        own_loss=jnp.float32(1.0),
        school=lessons_lib.create_state(
          bins, lesson, samples=samples, length=length
        ),
        health=quarantine.healthy_at_birth(len(spec.quarantine.bounds)),
        dropped=jnp.int32(0),
      )
    )
  return states


def _at_birth(params: Any, spec: optimizer_lib.Spec) -> TrainState:
  return TrainState(params, optimizer_lib.make_optimizer(spec).init(params))


def stack(trees: Sequence[Any]) -> Any:
  """Clones as one tree of host arrays with a leading axis M."""
  return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *trees)
