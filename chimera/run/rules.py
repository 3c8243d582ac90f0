"""What every value of configs/chimera.py must be: a rule a key."""

from collections.abc import Callable
import math
import operator
import os
from typing import Any, NamedTuple

from chimera.clones import terms

# What a clone cannot be called: rows of evaluation.json and of a contact sheet,
# and what else stands in a workdir beside the clones' own folders.
RESERVED = (
  *('master', 'ema', 'protocol', 'original'),
  *('optics', 'checkpoints', 'previews', 'tokenizer'),
)


class Rule(NamedTuple):
  """What a value must be."""

  text: str  # what follows 'must be'
  holds: Callable[[Any], bool]  # of anything at all


def number(text: str, holds: Callable[[Any], bool]) -> Rule:
  """A finite number, and more; True is none."""

  def check(v: Any) -> bool:
    is_number = isinstance(v, int | float) and not isinstance(v, bool)
    return is_number and math.isfinite(v) and holds(v)

  return Rule(text, check)


def at_least(low: float) -> Rule:
  """A number from `low` on."""
  return number(f'at least {low:g}', lambda v: v >= low)


def above(low: float) -> Rule:
  """A number beyond `low`."""
  return number(f'above {low:g}', lambda v: v > low)


def _within(text: str) -> Rule:
  """From an interval as it is written: '[0, 1)'."""
  low, high = (float(x) for x in text[1:-1].split(','))
  above_low = operator.ge if text[0] == '[' else operator.gt
  below_high = operator.le if text[-1] == ']' else operator.lt
  return number(
    f'in {text}', lambda v: above_low(v, low) and below_high(v, high)
  )


def one_of(*choices: Any) -> Rule:
  """A choice, of its type too: 1 is not True."""
  return Rule(
    f'one of {", ".join(map(repr, choices))}',
    lambda v: type(v) in map(type, choices) and v in choices,
  )


def _is_file_name(v: Any) -> bool:
  return isinstance(v, str) and v == os.path.basename(v) and v[:1] not in '.'


def _is_clone_name(v: Any) -> bool:
  """Such as can stand in a dotted key, in a path and before a figure."""
  return isinstance(v, str) and v.isidentifier() and v not in RESERVED


def _each_once(text: str, holds: Callable[[Any], bool]) -> Rule:
  """A tuple of one or more values that hold."""
  return Rule(
    f'a tuple of one or more {text}, each once',
    lambda v: (
      isinstance(v, tuple) and v and all(map(holds, v)) and len({*v}) == len(v)
    ),
  )


def _are_levels(v: Any) -> bool:
  each = number('', lambda n: n >= 2 and n == int(n))
  are_whole = isinstance(v, tuple) and all(map(each.holds, v))
  return are_whole and 1 < math.prod(v) < 1 << 31


_FLAG = one_of(True, False)
_TEXT = Rule('text', lambda v: isinstance(v, str))
_SHARE = _within('[0, 1]')
_DECAY = _within('[0, 1)')
_BOUND = number('above 1, or 0 for none', lambda v: v > 1 or v == 0)

RULES = {
  'basename': Rule('a plain file name', _is_file_name),
  'init_from': _TEXT,
  'seed': _within('[0, 2147483647]'),
  'devices': at_least(0),
  'clone_names': _each_once(
    f'names of letters, digits and _ (but {", ".join(RESERVED)})',
    _is_clone_name,
  ),
  'data.source': _TEXT,
  'data.held_out_source': _TEXT,
  'data.held_out_fraction': _within('(0, 1)'),
  'data.image_size': at_least(1),
  'data.train_count': at_least(10),
  'data.held_out_count': at_least(1),
  'data.crop': one_of('random', 'whole'),
  'data.max_scale': at_least(1),
  'data.seed': at_least(0),
  'optics.cell': at_least(1),
  'optics.width': at_least(1),
  'optics.radius': one_of('contrast', 'free'),
  'optics.steps': at_least(1),
  'optics.batch_size': at_least(1),
  'optics.learning_rate': above(0),
  'optics.noise': at_least(0),
  'optics.chunk': at_least(1),
  'school.enabled': _FLAG,
  'school.metric': one_of('mean_radius', 'total_variation'),
  'school.mix': _SHARE,
  'school.enrol_from': at_least(0),
  'school.enrol_every': at_least(1),
  'school.half_life': above(0),
  'school.floor': _SHARE,
  'school.resident_mb': at_least(0),
  'school.rotating_samples': at_least(1),
  'school.rotate_every': at_least(1),
  'model.width': at_least(1),
  'model.blocks': at_least(0),
  'model.downsample': number(
    'a power of 2', lambda v: v >= 1 and not v & (v - 1)
  ),
  'model.quantizer': one_of(*terms.KINDS),
  'model.levels': Rule(
    'a tuple of whole numbers from 2 on, whose product is below 2^31',
    _are_levels,
  ),
  'model.codes': at_least(2),
  'model.code_dim': at_least(1),
  'model.revive_after': at_least(0),
  'model.critic_width': at_least(1),
  **{f'loss.{t}': at_least(0) for t in terms.TERMS},
  'loss.commitment': at_least(0),
  'loss.adv_ramp': at_least(0),
  'loss.emphasis': _SHARE,
  'loss.temperature': above(0),
  'critic.penalty': at_least(0),
  'critic.drift': at_least(0),
  'critic.learning_rate': above(0),
  'pid.enabled': _FLAG,
  'pid.smoothing': _DECAY,
  'pid.limit': at_least(0),
  'pid.slew': at_least(0),
  'q.enabled': _FLAG,
  'q.actions': Rule(
    'a tuple of numbers above 0',
    lambda v: isinstance(v, tuple) and v and all(map(above(0).holds, v)),
  ),
  'q.window': at_least(2),
  'q.every': at_least(1),
  'q.history': one_of('own', 'total'),
  'q.rate': _SHARE,
  'q.discount': _DECAY,
  'q.epsilon': _SHARE,
  'q.epsilon_end': _SHARE,
  'q.epsilon_decay': above(0),
  'meld.enabled': _FLAG,
  'meld.every': at_least(1),
  'meld.alpha': _DECAY,
  'meld.weights': one_of('equal', 'mass'),
  'meld.optimizer_state': one_of('local', 'shared_v', 'shared'),
  'meld.outer_learning_rate': above(0),
  'meld.outer_momentum': _DECAY,
  'meld.ema': _DECAY,
  'meld.loss_bound': _BOUND,
  'meld.update_bound': _BOUND,
  'meld.sick_cycles': at_least(1),
  'train.cycles': at_least(1),
  'train.batch_size': at_least(1),
  'train.learning_rate': above(0),
  'train.warmup': at_least(0),
  'train.schedule': one_of('cosine', 'constant'),
  'train.adam_b1': _DECAY,
  'train.adam_b2': _DECAY,
  'train.cycles_per_dispatch': at_least(1),
  'train.log_every': at_least(1),
  'train.eval_every': at_least(1),
  'train.checkpoint_every': at_least(1),
  'train.keep': at_least(1),
  'train.rollbacks': at_least(0),
  'train.keep_best': _FLAG,
  'train.dashboard': _FLAG,
  'eval.batch_size': at_least(1),
  'eval.preview': at_least(1),
  'export.weights': one_of('master', 'ema'),
  'tokens.crop': one_of('center', 'tiles'),
  'tokens.batch_size': at_least(1),
  'tokens.shard': at_least(1),
  'eval.inception': Rule(
    "'' or a file",
    lambda v: isinstance(v, str) and (not v or os.path.isfile(v)),
  ),
}
# Likewise of every block of `specialists`, whatever its name.
OF_SPECIALIST = {
  'bins': _each_once('bins from 0 to 9', one_of(*range(10)).holds),
  'enrols': _FLAG,
  **{f'emphasis.{t}': at_least(0) for t in terms.TERMS},
  'pid.proportional': at_least(0),
  'pid.integral': at_least(0),
  'pid.derivative': at_least(0),
  **{f'pid.target.{t}': above(0) for t in terms.TERMS},
  'q.low': above(0),
  'q.high': above(0),
}


def check(key: str, rule: Rule, value: Any) -> None:
  """Holds a value to its rule; a ValueError names the flag that fixes it."""
  if not rule.holds(value):
    raise ValueError(
      f'{key} must be {rule.text}, got {key} = {value!r}: fix --config.{key}.'
    )
