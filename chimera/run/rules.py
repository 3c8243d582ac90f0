"""What every value of configs/chimera.py must be: a rule a key.

Every bound is one beyond which nothing trains: a whole number that int32 does
not hold, a number that leaves float32 inside the step, a size that nobody has
the memory for.
"""

from collections.abc import Callable
import math
import operator
import os
from typing import Any, NamedTuple
import unicodedata

from chimera.clones import terms

# What a clone cannot be called, in capitals or not: rows of evaluation.json and
# of a contact sheet, and what else stands in a workdir beside the clones' own
# folders.
RESERVED = (
  *('master', 'ema', 'protocol', 'original'),
  *('optics', 'checkpoints', 'previews', 'tokenizer'),
)
_INT32 = 2**31 - 1
_SHOWN = 200  # characters of a value in an error


class Rule(NamedTuple):
  """What a value must be."""

  text: str  # what follows 'must be'
  holds: Callable[[Any], bool]  # of anything at all


def whole(low: int, high: int = _INT32) -> Rule:
  """A whole number from `low` to `high`; 8.0 and True are none."""
  return Rule(
    f'at least {low}, a whole number up to {high}',
    lambda v: type(v) is int and low <= v <= high,
  )


def number(text: str, holds: Callable[[Any], bool]) -> Rule:
  """A finite number, and more; True is none."""

  def check(v: Any) -> bool:
    is_number = isinstance(v, int | float) and not isinstance(v, bool)
    # Of an integer too large for any float math.isfinite raises.
    return is_number and -1e300 < v < 1e300 and holds(v)

  return Rule(text, check)


def at_least(low: float, high: float) -> Rule:
  """A number from `low` to `high`."""
  return number(
    f'at least {low:g}, a number up to {high:g}', lambda v: low <= v <= high
  )


def positive(least: float, high: float) -> Rule:
  """A number above 0: from `least`, which float32 still tells from 0."""
  return number(
    f'above 0, a number from {least:g} to {high:g}',
    lambda v: least <= v <= high,
  )


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


def multiple(what: str, n: int, value: int, least: int = 1) -> Rule:
  """A multiple of n, which is `what`; its text names those next to a value."""
  least = -(-least // n) * n
  below = max(value // n * n, least)
  near = [str(m) for m in (below, below + n) if m <= _INT32]
  work = f'{" and ".join(near)} work{"" if near[1:] else "s"}'
  return number(
    f'a multiple of {what} = {n}, at least {least} ({work})',
    lambda v: v % n == 0 and v >= least,
  )


def _bytes(v: str) -> int:
  """Of it as a file's name; more than any has where none can be it."""
  try:
    return len(os.fsencode(v)) if '\0' not in v else _INT32
  except UnicodeError:
    return _INT32


def _is_path(v: Any) -> bool:
  return (
    isinstance(v, str)
    and _bytes(v) < 4096
    and all(_bytes(part) <= 255 for part in v.split(os.sep))
  )


def _is_file_name(v: Any) -> bool:
  """Such as leaves room for what is put around it."""
  return (
    isinstance(v, str)
    and v == os.path.basename(v)
    and v[:1] not in '.'
    and _bytes(v) <= 200
  )


def _plain(name: str) -> str:
  """The same for names that some file system takes for one."""
  return unicodedata.normalize('NFKC', name).casefold()


def _is_clone_name(v: Any) -> bool:
  """Such as can stand in a dotted key, in a path and before a figure."""
  return (
    isinstance(v, str)
    and v.isidentifier()
    and len(v.encode()) <= 100
    and _plain(v) not in RESERVED
  )


def _each_once(
  text: str, holds: Callable[[Any], bool], same: Callable[[Any], Any]
) -> Rule:
  """A tuple of one or more values that hold, no two the `same`."""
  return Rule(
    f'a tuple of one or more {text}, each once',
    lambda v: (
      isinstance(v, tuple)
      and v
      and all(map(holds, v))
      and len({same(x) for x in v}) == len(v)
    ),
  )


def _are_levels(v: Any) -> bool:
  are_whole = isinstance(v, tuple) and all(map(whole(2).holds, v))
  return are_whole and 1 < math.prod(v) <= _INT32


def _are_shares(v: Any) -> bool:
  are = isinstance(v, tuple) and len(v) == 2 and all(map(_DECAY.holds, v))
  return are and v[0] <= v[1]


def _is_size(v: Any) -> bool:
  return isinstance(v, tuple) and len(v) == 2 and all(map(_SIDE_OR_0.holds, v))


def _is_power(v: Any) -> bool:
  return whole(1, 64).holds(v) and not v & (v - 1)


_FLAG = one_of(True, False)
_PATH = Rule('text that can be a path', _is_path)
FILE = Rule(
  "'' or a file", lambda v: _is_path(v) and (not v or os.path.isfile(v))
)
_SEED = Rule('a whole number in [0, 2147483647]', whole(0).holds)
_SHARE = _within('[0, 1]')
PART = _within('(0, 1)')
# Of actions one leaves all as it is.
WITH_NONE = Rule('numbers with 1.0 among them', lambda v: 1 in v)
# What float32 rounds to 1 leaves nothing to divide by.
_DECAY = number('in [0, 1), to float32 too', lambda v: 0 <= v <= 1 - 2**-24)
_BOUND = number(
  'above 1, or 0 for none, a number up to 1e+30',
  lambda v: 1 < v <= 1e30 or v == 0,
)
_RATE = positive(1e-12, 1e3)
_WEIGHT = at_least(0, 1e6)
_GAIN = at_least(0, 1e6)
_SPAN = positive(1e-12, 1e12)
_TRIM = positive(1e-6, 1e6)
_SIDE = whole(1, 1 << 14)  # of images and of layers
_SIDE_OR_0 = whole(0, 1 << 14)

RULES = {
  'basename': Rule('a plain file name', _is_file_name),
  'init_from': _PATH,
  'seed': _SEED,
  'devices': whole(0),
  'clone_names': _each_once(
    f'names of letters, digits and _ (but {", ".join(RESERVED)})',
    _is_clone_name,
    _plain,
  ),
  'data.source': _PATH,
  'data.held_out_source': _PATH,
  'data.held_out_fraction': _within('(0, 1)'),
  'data.image_size': _SIDE,
  'data.train_count': whole(10),
  'data.held_out_count': whole(1),
  'data.crop': one_of('random', 'whole'),
  'data.max_scale': at_least(1, 1e12),
  'data.permuted': _SHARE,
  'data.mirrored': _SHARE,
  'data.seed': whole(0, 2**63 - 1),  # numpy's, and a hash's
  'optics.cell': _SIDE,
  'optics.width': _SIDE,
  'optics.radius': one_of('local', 'contrast', 'free'),
  'optics.steps': whole(1),
  # One image of each batch is a flat color.
  'optics.batch_size': whole(2, 1 << 20),
  'optics.learning_rate': _RATE,
  'optics.noise': at_least(0, 100),
  'optics.finish': whole(0),
  'optics.chunk': whole(1),
  'school.enabled': _FLAG,
  'school.metric': one_of('mean_radius', 'total_variation'),
  'school.mix': _SHARE,
  'school.enrol_from': whole(0),
  'school.enrol_every': whole(1),
  'school.half_life': _SPAN,
  'school.floor': _SHARE,
  'school.fence': at_least(0, 1e6),
  'school.resident_mb': whole(0),
  'school.rotating_samples': whole(1),
  'school.rotate_every': whole(1),
  'model.width': _SIDE,
  'model.blocks': whole(0, 1000),
  'model.downsample': Rule('a power of 2, at most 64', _is_power),
  'model.norm': one_of('layer', 'group'),
  'model.border': one_of('mean', 'zeros'),
  'model.quantizer': one_of(*terms.KINDS),
  'model.levels': Rule(
    'a tuple of whole numbers from 2 on, whose product is below 2^31',
    _are_levels,
  ),
  'model.codes': whole(2, 1 << 24),
  'model.code_dim': _SIDE,
  'model.revive_after': whole(0),
  'model.critic_width': _SIDE,
  **{f'loss.{t}': _WEIGHT for t in terms.TERMS},
  'loss.commitment': _WEIGHT,
  'loss.adv_ramp': whole(0),
  'loss.emphasis': _SHARE,
  'loss.temperature': positive(1e-6, 1e6),
  'critic.penalty': _WEIGHT,
  'critic.drift': _WEIGHT,
  'critic.learning_rate': _RATE,
  'pid.enabled': _FLAG,
  'pid.bounded': _FLAG,
  'pid.vq_share': Rule('two numbers in [0, 1), the less first', _are_shares),
  'pid.smoothing': _DECAY,
  'pid.limit': at_least(0, 80),  # exp of more is no float32
  'pid.slew': _GAIN,
  'pid.memory': at_least(1, 1e6),
  'q.enabled': _FLAG,
  'q.actions': Rule(
    'a tuple of numbers above 0, each from 1e-06 to 1e+06',
    lambda v: isinstance(v, tuple) and v and all(map(_TRIM.holds, v)),
  ),
  'q.window': whole(2, 1 << 20),
  'q.every': whole(1),
  'q.history': one_of('own', 'total'),
  'q.rate': _SHARE,
  'q.discount': _DECAY,
  'q.caution': at_least(0, 1e6),
  'q.epsilon': _SHARE,
  'q.epsilon_end': _SHARE,
  'q.epsilon_decay': _SPAN,
  'meld.enabled': _FLAG,
  'meld.every': whole(1),
  'meld.alpha': _DECAY,
  'meld.weights': one_of('equal', 'mass'),
  'meld.optimizer_state': one_of('local', 'shared_v', 'shared'),
  'meld.outer_learning_rate': _RATE,
  'meld.outer_momentum': _DECAY,
  'meld.ema': _DECAY,
  'meld.loss_bound': _BOUND,
  'meld.update_bound': _BOUND,
  'meld.sick_cycles': whole(1),
  'train.cycles': whole(1),
  'train.batch_size': whole(1),
  'train.learning_rate': _RATE,
  'train.audition': _FLAG,
  'train.warmup': whole(0),
  'train.schedule': one_of('cosine', 'wsd', 'constant'),
  'train.decay': _SHARE,
  'train.adam_b1': _DECAY,
  'train.adam_b2': _DECAY,
  'train.dtype': one_of('float32', 'bfloat16'),
  'train.precision': one_of('default', 'high', 'highest'),
  'train.cycles_per_dispatch': whole(1),
  'train.log_every': whole(1),
  'train.eval_every': whole(1),
  'train.checkpoint_every': whole(1),
  'train.keep': whole(1),
  'train.rollbacks': whole(0),
  'train.keep_best': _FLAG,
  'train.dashboard': _FLAG,
  'eval.batch_size': whole(1),
  'eval.preview': whole(1, 256),
  'eval.inception': _PATH,
  'eval.features': _PATH,
  'export.weights': one_of('master', 'ema'),
  'tokens.crop': one_of('center', 'whole'),
  'tokens.size': Rule(
    'two whole numbers, height and width in pixels, or 0', _is_size
  ),
  'tokens.batch_size': whole(1, 1 << 16),
  'tokens.shard': whole(1),
}
# Likewise of every block of `specialists`, whatever its name.
OF_SPECIALIST = {
  'bins': _each_once('bins from 0 to 9', one_of(*range(10)).holds, int),
  'enrols': _FLAG,
  **{f'emphasis.{t}': _WEIGHT for t in terms.TERMS},
  'pid.proportional': _GAIN,
  'pid.integral': _GAIN,
  'pid.derivative': _GAIN,
  **{f'pid.target.{t}': _SPAN for t in terms.TERMS},
  'q.low': _TRIM,
  'q.high': _TRIM,
}


def of_clones(names: Any) -> dict[str, Rule]:
  """Every key's, with those of the blocks of these clones."""
  return RULES | {
    f'specialists.{name}.{key}': rule
    for name in names
    for key, rule in OF_SPECIALIST.items()
  }


def check(key: str, rule: Rule, value: Any) -> None:
  """Holds a value to its rule; a ValueError names the flag that fixes it."""
  if not rule.holds(value):
    raise ValueError(
      f'{key} must be {rule.text}, got {key} = {shown(value)}: fix '
      f'--config.{key}.'
    )


def shown(value: Any) -> str:
  """A value as in Python, cut short where it goes on and on."""
  try:
    text = repr(value)
  except (ValueError, RecursionError):  # thousands of digits, or of lists
    return f'one {type(value).__name__} without end'
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'
