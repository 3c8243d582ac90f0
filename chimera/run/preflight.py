"""What a config and a workdir must satisfy before anything compiles.

Each check raises ValueError in one line: the rule, the value, the flag that
fixes it. The rules of single values are in `rules.py`.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import difflib
import json
import os
import pathlib
from typing import Any

import ml_collections

from chimera.clones import terms
from chimera.data import images
from chimera.run import rules
from chimera.system import disk, lock

# What a resumed run may do differently: nothing that is learned depends on it.
FREE = (
  *('devices', 'optics.chunk', 'eval.', 'export.', 'tokens.'),
  'train.keep',  # and train.keep_best
  *('train.rollbacks', 'train.dashboard', 'train.log_every'),
)
# What latents.npy and the optics are made by; the rest binds once a run began.
STAGE_1 = ('seed', 'init_from', 'data.', 'optics.')
# What a run shares with the one that it starts from: of all, and of a workdir.
_OPTICS = ('optics.cell', 'optics.width', 'optics.radius')
_MODEL = ('width', 'blocks', 'downsample', 'quantizer')
_AGENTS = (
  *('clone_names', 'model.critic_width', 'q.window', 'q.actions'),
  *('meld.enabled', 'meld.outer_momentum'),
)
_TRAINED = ('checkpoints/*', 'evaluation.json')
_PREPARED = ('optics/*', 'latents.npy', 'manifest.csv', 'curriculum_bins_*')


def keys(config: ml_collections.ConfigDict | dict[str, Any]) -> dict[str, Any]:
  """Every value of a config, or of a config.json, by its dotted key."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict | ml_collections.ConfigDict):
      flat |= {f'{key}.{k}': v for k, v in keys(value).items()}
    else:
      flat[key] = value
  return flat


def check_keys(named: Iterable[str], known: Iterable[str]) -> None:
  """Refuses a key that there is not, with the nearest that there is."""
  known = list(known)
  for key in (k for k in named if k not in known):
    if inside := [k for k in known if k.startswith(f'{key}.')]:
      raise ValueError(
        f'--config.{key} is a group of keys: name one, as --config.{inside[0]}.'
      )
    near = nearest(key, known)
    advice = f', did you mean --config.{near}' if near else ''
    raise ValueError(f'Unknown config key --config.{key}{advice}?')


def binding(values: Mapping[str, Any]) -> dict[str, Any]:
  """What of a config, by dotted key, must stay for a run: all but FREE."""
  flat = sorted(_of_clones(values).items())
  return {k: v for k, v in flat if not k.startswith(FREE)}


def nearest(word: str, known: Iterable[str]) -> str | None:
  """The known word or dotted key that was most likely meant."""
  known = list(known)
  # The right key under the wrong group is nearer than any spelling.
  leaf = [k for k in known if k.rpartition('.')[2] == word.rpartition('.')[2]]
  near = difflib.get_close_matches(word, leaf or known, 1, 0.0 if leaf else 0.5)
  return near[0] if near else None


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks every value, then the values together, to the first that fails."""
  values = keys(config)
  # The other rules hold for those whom this one names.
  _check(values, {'clone_names': rules.RULES['clone_names']})
  values = _of_clones(values)
  known = dict(rules.RULES)
  for name in config.clone_names:
    block = f'specialists.{name}.'
    if not any(key.startswith(block) for key in values):
      raise ValueError(
        'Each of clone_names must have a block in config.specialists, got none '
        f'for {name}: add it to the config file, or fix --config.clone_names.'
      )
    known |= {block + key: rule for key, rule in rules.OF_SPECIALIST.items()}
  check_keys(values, known)
  _check(values, known)
  _check_together(config)


def _check(values: Mapping[str, Any], known: Mapping[str, rules.Rule]) -> None:
  for key, rule in known.items():
    if key not in values:
      raise ValueError(
        f'The config lacks the key {key}: take it over from configs/chimera.py.'
      )
    rules.check(key, rule, values[key])


def check_data(config: ml_collections.ConfigDict) -> None:
  """Looks for the sources, without opening them, and loads rFID's network."""
  for key in ('source', 'held_out_source'):
    source = config.data[key]
    if images.is_path_params(source):
      if not os.path.isfile(source):
        raise ValueError(f'No such file: {source}. Fix --config.data.{key}.')
    elif source or key == 'source':
      images.list_sources(source, f'--config.data.{key}')
  if config.eval.inception:
    # It imports JAX, for which those who have no such file need not wait.
    from chimera.evaluation import frechet

    frechet.load_network(config.eval.inception)


def check_workdir(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Refuses a workdir whose contents were made by another config.

  Once there are checkpoints every key binds, but those of `FREE`; while there
  is but stage 1's work, those of `STAGE_1`; an empty workdir binds nothing.
  """
  path = pathlib.Path(workdir)
  if path.exists() and not path.is_dir():
    raise ValueError(f'The workdir must be a folder, got --workdir={workdir}.')
  trained, prepared = _contents(path)
  claim = path / 'config.json'
  try:
    there = keys(json.loads(claim.read_text()))
  except FileNotFoundError:
    if trained or prepared:
      raise ValueError(
        f'{workdir} is not empty and has no config.json: give a new --workdir.'
      ) from None
    return
  except (OSError, ValueError, AttributeError) as e:
    raise ValueError(f'{claim} is not readable: give a new --workdir.') from e
  if not isinstance(there.get('clone_names'), list):
    raise ValueError(f'{claim} is not of Chimera: give a new --workdir.')
  if trained:
    check_age(workdir, there)
  here = binding(keys(json.loads(config.to_json())))
  there = binding(there)
  differ = [
    f'{k} ({there.get(k, "absent")!r} there, {here.get(k, "absent")!r} now)'
    for k in sorted(there.keys() | here.keys())
    if there.get(k) != here.get(k)
    and (trained or (prepared and k.startswith(STAGE_1)))
  ]
  if differ:
    raise ValueError(
      f'{workdir} is of another config, which differs in {", ".join(differ)}: '
      'give a new --workdir, or delete it.'
    )


def check_age(workdir: str, values: Mapping[str, Any]) -> None:
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


def check_init_from(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Refuses an `init_from` that this config cannot go on from.

  A workdir that has checkpoints goes on from them and needs it no more.
  """
  folder = config.init_from
  if not folder or _has_checkpoints(workdir):
    return
  there = _architecture(folder)
  sees = not images.is_path_params(config.data.source)
  if sees and 'optics.cell' not in there:
    raise ValueError(
      f'To train on images, --config.init_from must have optics, got {folder}, '
      'which is of path_params: fix --config.data.source.'
    )
  here = keys(json.loads(config.to_json()))
  for key, value in there.items():
    if here[key] != value and (sees or not key.startswith('optics.')):
      raise ValueError(
        f'{key} must be as in --config.init_from={folder}, {value!r}, got '
        f'{here[key]!r}: fix --config.{key}.'
      )


def _architecture(folder: str) -> dict[str, Any]:
  """The keys that an exported tokenizer or a trained workdir binds."""
  home = pathlib.Path(folder)
  is_exported = (home / 'tokenizer.json').exists()
  if not is_exported and not _has_checkpoints(folder):
    raise ValueError(
      '--config.init_from must be an exported tokenizer or a workdir with '
      f'checkpoints, got {folder}.'
    )
  try:
    if is_exported:
      meta = json.loads((home / 'tokenizer.json').read_text())
      elder = {'model': meta['tokenizer'], 'optics': meta['optics']}
      sees = meta['optics'] is not None
    else:
      elder = json.loads((home / 'config.json').read_text())
      check_age(folder, keys(elder))
      sees = not images.is_path_params(elder['data']['source'])
    kind = terms.kind_of(elder['model'])
    values = {**keys(elder), 'model.quantizer': kind}
    network = (f'model.{k}' for k in (*_MODEL, *terms.KINDS[kind].settings))
    agents, optics = () if is_exported else _AGENTS, _OPTICS if sees else ()
    return {k: values[k] for k in (*network, *agents, *optics)}
  except (
    *(OSError, UnicodeError, json.JSONDecodeError),
    *(LookupError, TypeError, AttributeError),
  ) as e:
    line = f'--config.init_from={folder} is not readable: {e!r}.'
    raise ValueError(line) from e


def adopt(
  config: ml_collections.ConfigDict, workdir: str, named: Iterable[str]
) -> None:
  """Has a config say what that of the workdir says, but for what was named.

  Where there is none, or it cannot be read, the config stays; `check_workdir`
  complains of it.
  """
  try:
    path = pathlib.Path(workdir, 'config.json')
    there = _of_clones(keys(json.loads(path.read_text())))
    # A specialist that this config has no block of comes with its block.
    known = {*keys(config), *(k for k in there if k.startswith('specialists.'))}
    for key in known & there.keys() - set(named):
      change = there[key]
      change = tuple(change) if isinstance(change, list) else change
      for name in reversed(key.split('.')):
        change = {name: change}
      with config.unlocked():
        config.update(change)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return


def _has_checkpoints(workdir: str) -> bool:
  return any(pathlib.Path(workdir).glob('checkpoints/*'))


def check_trained(workdir: str) -> None:
  """Refuses to go on where nothing was trained yet."""
  if not _has_checkpoints(workdir):
    raise ValueError(
      f'There must be a checkpoint, got none in {workdir}: run `python -m '
      'chimera.main train` with the same flags first.'
    )


@contextlib.contextmanager
def claim_workdir(
  config: ml_collections.ConfigDict, workdir: str
) -> Iterator[None]:
  """Holds a workdir, which was checked, for a command by its config.json.

  Where the command fails by an error of the user's before it has made anything,
  the workdir is left as it was found.
  """
  path = pathlib.Path(workdir)
  claim = path / 'config.json'
  with lock.hold(path):
    # Another process may have claimed it since it was checked.
    check_workdir(config, workdir)
    contents = _contents(path)
    before = claim.read_bytes() if claim.exists() else None
    disk.write_json(claim, json.loads(config.to_json()))
    try:
      yield
    except (ValueError, OSError):
      if _contents(path) == contents:
        if before is None:
          claim.unlink()
        else:
          disk.write(claim, before)
      raise


def _contents(path: pathlib.Path) -> tuple[bool, ...]:
  """Whether there is a trained tokenizer, and whether stage 1's work."""
  kinds = (_TRAINED, _PREPARED)
  return tuple(any(any(path.glob(name)) for name in names) for names in kinds)


def _check_together(config: ml_collections.ConfigDict) -> None:
  """Rules between keys."""
  c, block, clones = config, config.specialists, len(config.clone_names)
  divisors = (n for n in range(1, clones + 1) if clones % n == 0)
  n = c.train.cycles_per_dispatch
  whole = _multiple('train.cycles_per_dispatch', n)
  together = [
    ('devices', rules.one_of(0, *divisors)),
    ('q.epsilon_end', _at_most('q.epsilon =', c.q.epsilon)),
    *(
      (f'specialists.{k}.q.low', _at_most('its q.high =', block[k].q.high))
      for k in c.clone_names
    ),
    ('train.cycles', whole),
    ('train.log_every', whole),
    ('train.eval_every', whole),
    ('train.checkpoint_every', whole),
  ]
  if images.is_path_params(c.data.source):
    together.append(('eval.inception', rules.one_of('')))
  else:
    side = c.optics.cell * c.model.downsample
    cuts = [(c.data.train_count * k + 5) // 10 for k in range(11)]
    lessons = [c.specialists[name].bins for name in c.clone_names]
    smallest = min(sum(cuts[b + 1] - cuts[b] for b in bins) for bins in lessons)
    lesson = _at_most('the samples of the smallest lesson,', smallest)
    together += [
      ('data.image_size', _multiple('optics.cell * model.downsample', side)),
      # The perceptual terms need a grid of 8.
      ('data.image_size', rules.at_least(8 * c.optics.cell)),
      ('train.batch_size', lesson),
    ]
  values = keys(config)
  for key, rule in together:
    rules.check(key, rule, values[key])


def _at_most(what: str, high: float) -> rules.Rule:
  return rules.number(f'at most {what} {high}', lambda v: v <= high)


def _multiple(what: str, n: int) -> rules.Rule:
  return rules.number(f'a multiple of {what} = {n}', lambda v: v % n == 0)


def _of_clones(flat: Mapping[str, Any]) -> dict[str, Any]:
  """A config by dotted key, without the blocks that clone_names leaves out."""
  ours = tuple(f'specialists.{name}.' for name in flat['clone_names'])
  return {
    k: v
    for k, v in flat.items()
    if k.startswith(ours) or not k.startswith('specialists.')
  }
