"""config.json, the config that a workdir holds: no type in it is trusted.

People edit it, a copy is cut short, and an older Chimera wrote fewer keys.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

import ml_collections

from chimera.run import default_config, rules
from chimera.system import disk

NAME = 'config.json'
# Keys that there were not always, and what was in force before.
LATER = {
  'model.quantizer': 'vq',
  'model.levels': [8, 5, 5, 5],
  'model.norm': 'group',
  'model.border': 'zeros',
  'data.permuted': 0.0,
  'data.mirrored': 0.0,
  'optics.finish': 0,
  'school.fence': 0.0,
  'pid.bounded': False,
  'pid.vq_share': [0.08, 0.12],
  'pid.memory': 100.0,
  'q.caution': 0.0,
  'tokens.size': [0, 0],
  'train.decay': 0.2,
  'train.audition': False,
  'train.dtype': 'float32',
  'train.precision': 'default',
  'eval.features': '',
}


def keys(config: ml_collections.ConfigDict | dict[str, Any]) -> dict[str, Any]:
  """Every value of a config, or of a config.json, by its dotted key."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict | ml_collections.ConfigDict):
      flat |= {f'{key}.{k}': v for k, v in keys(value).items()}
    else:
      flat[key] = value
  return flat


def make_floats(config: ml_collections.ConfigDict) -> None:
  """Makes whole numbers floats where the config that ships has floats.

  1 and 1.0 are one setting, but not in config.json or in a digest.
  """
  shipped = keys(default_config.get_config())
  changes = {}
  for key, value in keys(config).items():
    usual = shipped.get(key)
    if type(usual) is float or (
      key.startswith('specialists.') and type(value) is int
    ):
      changes[key] = _float(value)
    elif _is_of_floats(usual) and isinstance(value, (tuple, list)):
      changes[key] = type(value)(map(_float, value))
  with config.ignore_type():
    config.update_from_flattened_dict(changes)


def _float(value: Any) -> Any:
  """A whole number as a float, if one holds it."""
  is_whole = type(value) is int and abs(value) < 2**53
  return float(value) if is_whole else value


def _is_of_floats(value: Any) -> bool:
  return isinstance(value, tuple) and {*map(type, value)} == {float}


def tree(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `keys`."""
  root: dict[str, Any] = {}
  for key, value in flat.items():
    *groups, leaf = key.split('.')
    group = root
    for name in groups:
      group = group.setdefault(name, {})
    group[leaf] = value
  return root


def flat(path: str | os.PathLike) -> dict[str, Any]:
  """What an object of JSON holds, by dotted key.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is no such thing.
  """
  try:
    return keys(disk.read_json(path))
  except RecursionError as e:
    raise ValueError(f'{path} is not readable: it is nested too deep.') from e


def parse(workdir: str | os.PathLike) -> dict[str, Any]:
  """What config.json holds by dotted key; of its values nothing is known.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is not of Chimera.
  """
  path = pathlib.Path(workdir, NAME)
  values = flat(path)
  if not isinstance(values.get('clone_names'), list):
    raise ValueError(f'{path} is not of Chimera: give a new --workdir.')
  return values


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """Every value of a run's config, by dotted key, as its rule wants it.

  Tuples are lists, as JSON has them. What an older run lacks is as it was then;
  what nobody reads is left out.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is not of Chimera, of an earlier one, or not as it was
      written: the file and the key.
  """
  path = pathlib.Path(workdir, NAME)
  values = parse(workdir)
  check_age(workdir, values)
  values |= {k: v for k, v in LATER.items() if k not in values}
  hold(path, values, {'clone_names': rules.RULES['clone_names']})
  known = rules.of_clones(values['clone_names'])
  hold(path, values, known)
  return {k: v for k, v in values.items() if k in known}


def hold(
  path: str | os.PathLike,
  values: Mapping[str, Any],
  known: Mapping[str, rules.Rule],
) -> None:
  """Holds what a file says, by dotted key, to the rules of `known` keys."""
  for key, rule in known.items():
    if key not in values:
      wrong = f'it lacks {key}'
    elif not rule.holds(as_python(values[key])):
      shown = rules.shown(values[key])
      wrong = f'{key} must be {rule.text}, got {shown}'
    else:
      continue
    raise ValueError(
      f'{path} is not as it was written: {wrong}. Put it back as it was.'
    )


def as_python(value: Any) -> Any:
  """A value of JSON as a config has it."""
  return tuple(value) if isinstance(value, list) else value


def check_age(workdir: str | os.PathLike, values: Mapping[str, Any]) -> None:
  """Refuses a config, by dotted key, of when it had tuples of four."""
  if 'school.lessons' not in values:
    return
  advice = 'give a new --workdir.'
  if os.path.exists(os.path.join(workdir, 'tokenizer', 'tokenizer.json')):
    advice = (
      f'its tokenizer still works (--tokenizer={workdir}/tokenizer); to train '
      f'on, give a new --workdir and --config.init_from={workdir}/tokenizer.'
    )
  raise ValueError(
    f'{workdir} is of an earlier Chimera, and its run cannot be read: {advice}'
  )
