"""What one clone carries, and how it is born.

State holds only what changes. What differs between clones but never changes is
a `specialists.Mission`; what is common to all and fixed at compilation is the
`StepSpec`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from chimera.agents import pid as pid_lib
from chimera.agents import q_learning
from chimera.clones import critic as critic_lib
from chimera.clones import losses, models, vectors
from chimera.clones import terms as terms_lib
from chimera.meld import average, quarantine
from chimera.meld import optimizer as optimizer_lib
from chimera.school import lessons as lessons_lib
from chimera.system import compiled

# Cycles in which the rates of an audition rise, and at least those it finds.
FOUND_WARMUP = 20


class TrainState(flax.struct.PyTreeNode):
  """Parameters and the state of their optimizer."""

  params: Any  # one vector, see vectors.py; float32
  opt_state: Any


class CloneState(flax.struct.PyTreeNode):
  """One clone."""

  step: jax.Array  # cycles done, int32
  # the run's key, the same on every clone; folded with step and clone
  rng: jax.Array
  generator: TrainState  # the tokenizer
  critic: TrainState  # this clone's own W-Learner
  master: average.Master  # the melded tokenizer
  pid: pid_lib.State  # the lambda controller
  q: q_learning.State  # the learning rate controller
  # the loss as it would stand by this clone's part in the melds alone, 1 when
  # the agent's last decision was taken
  own_loss: jax.Array
  # by which it follows; None where the agent looks at the total loss
  own_step: q_learning.OwnStep | None
  school: lessons_lib.SchoolState  # who is enrolled, and what was tracked
  health: quarantine.Health  # what is remembered of all clones' health
  # cycles in which this clone was left out of the meld, int32
  dropped: jax.Array


@dataclasses.dataclass(frozen=True)
class StepSpec:
  """The constants of a compiled step, a part a pillar."""

  tokenizer: models.Tokenizer
  critic: critic_lib.Critic
  batch_size: int
  dtype: str  # what the tokenizer's convolutions multiply while it learns
  precision: str  # of products of float32, where a device has several
  school: lessons_lib.Spec
  loss: losses.Spec
  wgan: critic_lib.Spec
  pid: pid_lib.Spec
  q: q_learning.Spec
  meld: average.Spec
  quarantine: quarantine.Spec
  schedule: optimizer_lib.Schedule
  generator_optimizer: optimizer_lib.Spec
  critic_optimizer: optimizer_lib.Spec

  @property
  def generator_layout(self) -> vectors.Layout:
    """Where the tokenizer's parameters lie in their vector."""
    return vectors.layout(self.tokenizer)

  @property
  def critic_layout(self) -> vectors.Layout:
    """Where a critic's parameters lie in their vector."""
    return vectors.layout(self.critic)

  @property
  def terms(self) -> tuple[str, ...]:
    """Names of the K loss terms, in their order."""
    return terms_lib.of(self.tokenizer.quantizer.kind)

  @property
  def adv(self) -> int:
    """Which of the terms is the adversarial one."""
    return self.terms.index('adv')


def is_auditioned(config: ml_collections.ConfigDict) -> bool:
  """Whether a run finds its learning rate, before its first cycle."""
  return config.train.audition and not config.init_from


def create_spec(config: ml_collections.ConfigDict) -> StepSpec:
  c = config
  school = _made(lessons_lib.Spec, c.school)
  if not c.school.enabled:
    school = dataclasses.replace(school, mix=1.0, enrol_from=0, fence=0.0)
  meld = _made(average.Spec, {**c.meld, 'revive_after': c.model.revive_after})
  optimizer_state = c.meld.optimizer_state
  if not meld.enabled:
    # Averaged gradients are the meld of every step with Adam in common.
    optimizer_state = 'shared'
    meld = dataclasses.replace(
      meld, every=1, alpha=0.0, outer_learning_rate=1.0, outer_momentum=0.0
    )
  q = _made(q_learning.Spec, c.q)
  is_one_step = optimizer_state == 'shared' or len(c.clone_names) == 1
  if not c.q.enabled or is_one_step:  # no clone's step is its own
    q = dataclasses.replace(q, history='total')
  schedule = _made(optimizer_lib.Schedule, c.train)
  if is_auditioned(c):
    # Of moments that are 0, Adam's first steps at such a rate are too long.
    warmup = max(schedule.warmup, FOUND_WARMUP)
    schedule = dataclasses.replace(schedule, warmup=warmup)
  return StepSpec(
    tokenizer=models.create_tokenizer(**c.model),
    critic=critic_lib.Critic(width=c.model.critic_width),
    batch_size=c.train.batch_size,
    dtype=c.train.dtype,
    precision=c.train.precision,
    school=school,
    loss=_made(losses.Spec, c.loss),
    wgan=_made(critic_lib.Spec, c.critic),
    pid=_made(pid_lib.Spec, c.pid),
    q=q,
    meld=meld,
    quarantine=_made(quarantine.Spec, {**c.meld, 'every': meld.every}),
    schedule=schedule,
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


def create_states(
  config: ml_collections.ConfigDict,
  spec: StepSpec,
  bins: dict[int, list[int]],
  grid: tuple[int, int],
) -> list[CloneState]:
  """Clones of one newborn master, of path_params of a grid (H, W).

  Each has a critic of its own, and what the School keeps for its lessons.
  """
  key = jax.random.key_data(jax.random.key(config.seed))
  samples = sum(map(len, bins.values()))
  of_clones = [config.specialists[name].bins for name in config.clone_names]
  # Without the School a batch is drawn from everything.
  batch_size = config.train.batch_size if config.school.enabled else 1
  length = lessons_lib.lesson_length(bins, of_clones, batch_size=batch_size)

  born = _birth(spec, grid, config.q.window)
  # Averaged critics must be born alike.
  numbers = [1 + i if spec.meld.enabled else 1 for i in range(len(of_clones))]
  schools = (
    lessons_lib.create_state(bins, lesson, samples=samples, length=length)
    for lesson in of_clones
  )
  return [
    born(key, number).replace(school=school)
    for number, school in zip(numbers, schools)
  ]


@functools.cache
def _birth(
  spec: StepSpec, grid: tuple[int, int], window: int
) -> Callable[[jax.Array, int], CloneState]:
  """A clone but for its School, of the run's key and the number of its critic.

  One program for all of it: done one by one, each shape would be one.
  """

  @functools.partial(jax.jit, compiler_options=compiled.sooner())
  def born(key: jax.Array, number: int) -> CloneState:
    rng, x = jax.random.wrap_key_data(key), jnp.zeros((1, *grid, 3))
    params = spec.generator_layout.vector(
      spec.tokenizer.init(jax.random.fold_in(rng, 0), x)['params']
    )
    critic = spec.critic_layout.vector(
      spec.critic.init(jax.random.fold_in(rng, number), x)['params']
    )
    return CloneState(
      step=jnp.int32(0),
      rng=key,
      generator=_at_birth(params, spec.generator_optimizer),
      critic=_at_birth(critic, spec.critic_optimizer),
      master=average.create_master(params, spec.tokenizer.codes, spec.meld),
      pid=pid_lib.init(len(spec.terms)),
      q=q_learning.init(window=window, actions=len(spec.q.actions)),
      own_loss=jnp.float32(1.0),
      own_step=q_learning.OwnStep(jnp.zeros_like(params), jnp.float32(0.0))
      if spec.q.history == 'own'
      else None,
      school=None,
      health=quarantine.healthy_at_birth(len(spec.quarantine.bounds)),
      dropped=jnp.int32(0),
    )

  return born


def _at_birth(params: Any, spec: optimizer_lib.Spec) -> TrainState:
  return TrainState(params, optimizer_lib.make_optimizer(spec).init(params))


def begun(newborn: CloneState, generator_P: np.ndarray) -> CloneState:
  """Newborn clones (M, ...) whose generators have those weights.

  So have their masters; critics, agents and moments stay newborn.
  """
  old = newborn.master.params
  params = np.broadcast_to(generator_P.astype(old.dtype), old.shape)
  return newborn.replace(
    generator=newborn.generator.replace(params=params),
    master=newborn.master.replace(params=params, ema=params),
  )


def stack(trees: Sequence[Any]) -> Any:
  """Clones as one tree of host arrays with a leading axis M."""
  return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *trees)
