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
import optax

from chimera.agents import pid as pid_lib
from chimera.agents import q_learning
from chimera.clones import critic as critic_lib
from chimera.clones import models
from chimera.clones import terms as terms_lib
from chimera.meld import average as meld
from chimera.meld import quarantine
from chimera.school import lessons

# Of the learning rate at the end of the cosine. At 0 the last specialists would
# be the master, and nothing would tell them apart.
COSINE_END = 0.01


class TrainState(flax.struct.PyTreeNode):
  """Parameters and their Adam moments."""

  params: Any
  opt_state: optax.ScaleByAdamState


class Master(flax.struct.PyTreeNode):
  """The same on every clone.

  Attributes:
    params: the melded generator.
    outer: state of the outer optimizer.
    ema: the evaluation-only average of params, never fed back.
    unused_V: cycles since any clone used each code, int32.
  """

  params: Any
  outer: Any
  ema: Any
  unused_V: jax.Array


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
  master: Master
  pid: pid_lib.State
  q: q_learning.State
  own_loss: jax.Array
  school: lessons.SchoolState
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
  """The constants of a compiled step; the config explains each."""

  tokenizer: models.Tokenizer
  critic: critic_lib.Critic
  batch_size: int
  mix: float
  enrol_from: int
  enrol_every: int
  half_life: float
  floor: float
  revive_after: int
  commitment: float
  temperature: float
  adv_ramp: int
  critic_learning_rate: float
  penalty: float
  drift: float
  pid_smoothing: float
  pid_limit: float
  pid_slew: float
  q_actions: tuple[float, ...]
  q_every: int
  q_history: str
  q_rate: float
  q_discount: float
  q_epsilon: float
  q_epsilon_end: float
  q_epsilon_decay: float
  average_gradients: bool
  every: int
  alpha: float
  optimizer_state: str
  outer_learning_rate: float
  outer_momentum: float
  ema: float
  loss_bound: float
  update_bound: float
  sick_cycles: int
  cycles: int
  learning_rate: float
  warmup: int
  schedule: str
  adam_b1: float
  adam_b2: float

  @property
  def terms(self) -> tuple[str, ...]:
    """Names of the K loss terms, in their order."""
    return terms_lib.of(self.tokenizer.quantizer.kind)

  @property
  def adv(self) -> int:
    """Which of the terms is the adversarial one."""
    return self.terms.index('adv')

  @property
  def bounds(self) -> tuple[float, ...]:
    """Of a clone's loss, its networks' two gradients, and its step."""
    return (self.loss_bound, *[self.update_bound] * 3)

  @property
  def adam(self) -> optax.GradientTransformation:
    return optax.scale_by_adam(self.adam_b1, self.adam_b2)

  @property
  def critic_adam(self) -> optax.GradientTransformation:
    return optax.scale_by_adam(0.0, 0.9)

  @property
  def outer(self) -> optax.GradientTransformation:
    return meld.outer(self.outer_learning_rate, self.outer_momentum)

  def plain_learning_rate(self, step: jax.Array) -> jax.Array:
    """The schedule before the Q-agent's trim."""
    if self.schedule == 'constant':
      return optax.warmup_constant_schedule(
        0.0, self.learning_rate, self.warmup
      )(step + 1)
    return optax.warmup_cosine_decay_schedule(
      0.0,
      self.learning_rate,
      self.warmup,
      max(self.cycles, self.warmup + 1),
      COSINE_END * self.learning_rate,
    )(step + 1)


def create_spec(config: ml_collections.ConfigDict) -> StepSpec:
  c = config
  # Averaged gradients are the meld of every step with Adam in common.
  melds = c.meld.enabled
  return StepSpec(
    tokenizer=create_tokenizer(c),
    critic=critic_lib.Critic(width=c.model.critic_width),
    batch_size=c.train.batch_size,
    mix=c.school.mix if c.school.enabled else 1.0,
    enrol_from=c.school.enrol_from if c.school.enabled else 0,
    enrol_every=c.school.enrol_every,
    half_life=c.school.half_life,
    floor=c.school.floor,
    revive_after=c.model.revive_after,
    commitment=c.loss.commitment,
    temperature=c.loss.temperature,
    adv_ramp=c.loss.adv_ramp,
    critic_learning_rate=c.critic.learning_rate,
    penalty=c.critic.penalty,
    drift=c.critic.drift,
    pid_smoothing=c.pid.smoothing,
    pid_limit=c.pid.limit,
    pid_slew=c.pid.slew,
    q_actions=tuple(c.q.actions),
    q_every=c.q.every,
    q_history=c.q.history if c.q.enabled else 'total',
    q_rate=c.q.rate,
    q_discount=c.q.discount,
    q_epsilon=c.q.epsilon,
    q_epsilon_end=c.q.epsilon_end,
    q_epsilon_decay=c.q.epsilon_decay,
    average_gradients=not melds,
    every=c.meld.every if melds else 1,
    alpha=c.meld.alpha if melds else 0.0,
    optimizer_state=c.meld.optimizer_state if melds else 'shared',
    outer_learning_rate=c.meld.outer_learning_rate if melds else 1.0,
    outer_momentum=c.meld.outer_momentum if melds else 0.0,
    ema=c.meld.ema,
    loss_bound=c.meld.loss_bound,
    update_bound=c.meld.update_bound,
    sick_cycles=c.meld.sick_cycles,
    cycles=c.train.cycles,
    learning_rate=c.train.learning_rate,
    warmup=c.train.warmup,
    schedule=c.train.schedule,
    adam_b1=c.train.adam_b1,
    adam_b2=c.train.adam_b2,
  )


def create_tokenizer(config: ml_collections.ConfigDict) -> models.Tokenizer:
  return models.create_tokenizer(
    width=config.model.width,
    blocks=config.model.blocks,
    downsample=config.model.downsample,
    quantizer=config.model.quantizer,
    codes=config.model.codes,
    code_dim=config.model.code_dim,
    levels=config.model.levels,
  )


def create_missions(
  config: ml_collections.ConfigDict, bins: dict[int, list[int]]
) -> list[Mission]:
  """One Mission a clone, in the order of config.clone_names."""
  c = config
  terms = terms_lib.of(c.model.quantizer)
  samples = sum(map(len, bins.values()))
  missions = []
  for i in range(len(c.clone_names)):
    specialty_K = np.array([c.specialists[t][i] for t in terms])
    base_K = np.array([c.loss[t] for t in terms])
    base_K = base_K * (1 + c.specialists.strength * (specialty_K - 1))
    gain = float(c.pid.enabled)
    mass = sum(len(bins[b]) for b in c.school.lessons[i]) / samples
    one_K = np.ones(len(terms))
    mission = Mission(
      clone=np.int32(i),
      weight=mass if c.meld.weights == 'mass' else 1.0,
      enrols=float(i == len(c.clone_names) - 1),
      pid=pid_lib.Mission(
        base_K=base_K,
        target_K=np.array([c.pid.target[t][i] for t in terms]),
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
  length = lessons.lesson_length(
    bins, config.school.lessons, batch_size=config.train.batch_size
  )
  init_critic = jax.jit(spec.critic.init)
  states = []
  for i, lesson in enumerate(config.school.lessons):
    # Averaged critics must be born alike.
    number = 1 if spec.average_gradients else 1 + i
    critic_params = init_critic(
      jax.random.fold_in(jax.random.wrap_key_data(key), number), x
    )['params']
    states.append(
      CloneState(
        step=jnp.int32(0),
        rng=key,
        generator=TrainState(params, spec.adam.init(params)),
        critic=TrainState(critic_params, spec.critic_adam.init(critic_params)),
        master=Master(
          params=params,
          outer=spec.outer.init(params),
          ema=params,
          unused_V=jnp.zeros(spec.tokenizer.codes, jnp.int32),
        ),
        pid=pid_lib.init(len(spec.terms)),
        q=q_learning.init(window=config.q.window, actions=len(spec.q_actions)),
        own_loss=jnp.float32(1.0),
        school=lessons.create_state(
          bins, lesson, samples=samples, length=length
        ),
        health=quarantine.healthy_at_birth(len(spec.bounds)),
        dropped=jnp.int32(0),
      )
    )
  return states


def stack(trees: Sequence[Any]) -> Any:
  """Clones as one tree of host arrays with a leading axis M."""
  return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *trees)
