"""The optimizer of a clone, with moments of its own or in common.

Adam per clone divides the scale of a clone's loss out again. With a second
moment common to the clones, and one learning rate, the mean of their
destinations is the destination of their mean gradient: moments are linear but
for that one (design document 6.2).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from chimera.meld import average
from chimera.system import axes

# Of the learning rate at the end of a decay. At 0 the last specialists would be
# the master, and nothing would tell them apart.
DECAY_END = 0.01
# What the clones hold in common of an optimizer's state, by the leaf's name;
# None is all of it.
_IN_COMMON = {'local': (), 'shared_v': ('count', 'nu'), 'shared': None}


@dataclasses.dataclass(frozen=True)
class Spec:
  """What an optimizer is made of."""

  adam_b1: float  # decay of the first moment
  adam_b2: float  # decay of the second moment
  # 'local', Adam on the clone's own gradient; 'shared', Adam on the clones'
  # mean gradient; 'shared_v', the first moment of the clone's own gradient over
  # the second moment of the mean gradient
  optimizer_state: str


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The learning rate of a cycle; the config's `train` explains each.

  'wsd', a warm-up, a constant part and a decay: Hu et al., "MiniCPM", 2024,
  https://arxiv.org/abs/2404.06395. The decay goes by 1 less the square root:
  Hägele et al., 2024, https://arxiv.org/abs/2405.18392.
  """

  cycles: int
  learning_rate: float
  warmup: int
  schedule: str
  decay: float

  @property
  def stable(self) -> int:
    """The first cycles, whose rates are those of a run of any other length."""
    if self.schedule == 'cosine':
      return 0
    if self.schedule == 'constant':
      return self.cycles
    length = round(self.decay * self.cycles)
    return max(self.cycles - length, min(self.warmup, self.cycles))

  @property
  def warning(self) -> str:
    """What is left of the decay by a long warm-up; '' where all of it is."""
    wsd = round(self.decay * self.cycles)
    asked = {'wsd': wsd, 'cosine': 1, 'constant': 0}[self.schedule]
    left = max(self.cycles - self.warmup, 0)
    if left >= asked:
      return ''
    return (
      f'A warm-up of {self.warmup} of {self.cycles} cycles leaves {left} to '
      'the decay: raise --config.train.cycles, or lower --config.train.warmup '
      'where no audition set it.'
    )

  def __call__(self, step: jax.Array) -> jax.Array:
    """After `step` cycles, before the Q-agent's lr_scale."""
    peak, end = self.learning_rate, DECAY_END * self.learning_rate
    if self.schedule == 'cosine':
      return optax.warmup_cosine_decay_schedule(
        0.0, peak, self.warmup, max(self.cycles, self.warmup + 1), end
      )(step + 1)
    # Of no steps at all, optax's is 0 for good.
    warmup = max(self.warmup, 1)
    rate = optax.warmup_constant_schedule(0.0, peak, warmup)(step + 1)
    length = self.cycles - self.stable
    if not length:
      return rate
    share = jnp.clip((step + 1 - self.stable) / length, 0.0, 1.0)
    return rate - (peak - end) * jnp.sqrt(share)


def make_optimizer(spec: Spec) -> optax.GradientTransformationExtraArgs:
  """The optimizer of a generator or a critic.

  Its `update(gradient, state, params, mean_grads=, learning_rate=)` takes the
  clone's own gradient, that of the healthy clones' mean, and the learning rate
  of this cycle. Clipping or weight decay are one more line of the chain.
  """
  adam = optax.scale_by_adam(spec.adam_b1, spec.adam_b2)
  direction = {
    'local': adam,
    'shared': on_mean(adam),
    'shared_v': scale_by_adam_in_common(spec.adam_b1, spec.adam_b2),
  }[spec.optimizer_state]
  return optax.chain(direction, scale_by_given_rate())


def on_mean(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Any transformation, of the mean gradient instead of the clone's own."""

  def update(gradient, state, params=None, *, mean_grads, **extra):
    del gradient, extra
    return inner.update(mean_grads, state, params)

  return optax.GradientTransformationExtraArgs(inner.init, update)


def scale_by_adam_in_common(
  b1: float, b2: float, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
  """Adam of the clone's first moment over the mean gradient's second moment.

  Kingma and Ba, "Adam", 2014, https://arxiv.org/abs/1412.6980.
  """
  adam = optax.scale_by_adam(b1, b2, eps)

  def update(gradient, state, params=None, *, mean_grads, **extra):
    del params, extra
    _, own = adam.update(gradient, state)
    _, common = adam.update(mean_grads, state)
    mu_hat = optax.tree.bias_correction(own.mu, b1, own.count)
    nu_hat = optax.tree.bias_correction(common.nu, b2, own.count)
    direction = jax.tree.map(
      lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat
    )
    return direction, own._replace(nu=common.nu)

  return optax.GradientTransformationExtraArgs(adam.init, update)


def scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
  """Steps down by `learning_rate=`, which the Q-agent moves every cycle."""

  def update(updates, state, params=None, *, learning_rate, **extra):
    del params, extra
    return jax.tree.map(lambda u: -learning_rate * u, updates), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def pool(
  params: Any, state: Any, weight: jax.Array, *, fallback: Any, spec: Spec
) -> tuple[Any, Any]:
  """The healthy clones' mean (params, state), from which the others restart.

  Their state is fresh but for what all hold in common: over a second moment of
  its own, one clone's gradient alone is worlds apart from the direction that it
  is a part of. With every clone left out (weight 0) params are the fallback.
  """
  names = _IN_COMMON[spec.optimizer_state]

  def is_common(path: Any) -> bool:
    return names is None or any(getattr(k, 'name', '') in names for k in path)

  def averages(path: Any, x: jax.Array) -> jax.Array | None:
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return x if is_float and is_common(path) else None

  to_average = functools.partial(jax.tree_util.tree_map_with_path, averages)

  fresh = make_optimizer(spec).init(params)
  is_any = axes.total(weight) > 0
  params, means = average.mean(
    (params, to_average(state)), weight, (fallback, to_average(fresh))
  )

  def restarted(path: Any, mean: Any, own: Any, new: Any) -> Any:
    if mean is None:  # private, or a count
      return jnp.where(is_any, own, new) if is_common(path) else new
    return mean

  return params, jax.tree_util.tree_map_with_path(
    restarted, means, state, fresh, is_leaf=lambda x: x is None
  )
