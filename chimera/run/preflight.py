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

from chimera.clones import specialists, terms
from chimera.data import folders, images
from chimera.run import config_json, rules
from chimera.school import curriculum
from chimera.system import disk, lock, preemption

# What a resumed run may do differently: no token depends on it.
FREE = (
  *('devices', 'optics.chunk', 'optics.finish'),
  *('eval.', 'export.', 'tokens.'),
  'train.keep',  # and train.keep_best
  *('train.rollbacks', 'train.dashboard', 'train.log_every'),
  *('train.eval_every', 'train.checkpoint_every'),
  'train.decay',  # what was learned in it is undone: steps.Plan
)
# What latents.npy and the optics are made by; the rest binds once a run began.
STAGE_1 = ('seed', 'init_from', 'data.', 'optics.')
# What a run shares with the one that it starts from: of all, and of a workdir.
_OPTICS = ('optics.cell', 'optics.width', 'optics.radius')
_MODEL = ('width', 'blocks', 'downsample', 'quantizer', 'norm', 'border')
_AGENTS = (
  *('clone_names', 'model.critic_width'),
  *('q.enabled', 'q.history', 'q.window', 'q.actions'),
  *('meld.enabled', 'meld.optimizer_state', 'meld.outer_momentum'),
)
# What a run of before they were keys had not.
_LATER = ('train.audition', 'pid.bounded', 'train.dtype', 'train.precision')
_LEAST_WEIGHT = 1e-12  # of all terms of a clone: the PID divides by their size
_TRAINED = ('checkpoints/*', 'evaluation.json')
_PREPARED = (
  'optics/*.json',
  'latents.npy',
  'manifest.csv',
  'curriculum_bins_*',
)


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
  """What of a config, by dotted key, must stay for a run: all but FREE.

  Its length is free but with a cosine, which is made for it.
  """
  flat = sorted(_of_clones(values).items())
  bound = {k: v for k, v in flat if not k.startswith(FREE)}
  if values.get('train.schedule') != 'cosine':
    bound.pop('train.cycles', None)
  # A run of before there was one of these is one without.
  for key in _LATER:
    if bound.get(key) == config_json.LATER[key]:
      bound.pop(key)
  if 'pid.bounded' not in bound:
    bound.pop('pid.vq_share', None)
  return bound


def nearest(word: str, known: Iterable[str]) -> str | None:
  """The known word or dotted key that was most likely meant."""
  known = list(known)
  # The right key under the wrong group is nearer than any spelling.
  leaf = [k for k in known if k.rpartition('.')[2] == word.rpartition('.')[2]]
  near = difflib.get_close_matches(word, leaf or known, 1, 0.0 if leaf else 0.5)
  return near[0] if near else None


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks every value, then the values together, to the first that fails."""
  values = config_json.keys(config)
  # The other rules hold for those whom this one names.
  _check(values, {'clone_names': rules.RULES['clone_names']})
  values = _of_clones(values)
  for name in config.clone_names:
    if not any(key.startswith(f'specialists.{name}.') for key in values):
      raise ValueError(
        'Each of clone_names must have a block in config.specialists, got none '
        f'for {name}: add it to the config file, or fix --config.clone_names.'
      )
  known = rules.of_clones(config.clone_names)
  check_keys(values, known)
  _check(values, known)
  _check_together(config, values)


def _check(values: Mapping[str, Any], known: Mapping[str, rules.Rule]) -> None:
  for key, rule in known.items():
    if key not in values:
      raise ValueError(
        f'The config lacks the key {key}: take it over from configs/chimera.py.'
      )
    rules.check(key, rule, values[key])


def check_data(config: ml_collections.ConfigDict, workdir: str = '') -> None:
  """Looks for the sources, and loads the networks of rFID and features.

  Of path_params the header is read, of images nothing; neither where a workdir
  has its latents, whatever became of the sources.
  """
  _check_networks(config)
  if workdir and os.path.exists(os.path.join(workdir, 'latents.npy')):
    return
  for key in ('source', 'held_out_source'):
    source = config.data[key]
    if images.is_path_params(source):
      if not os.path.isfile(source):
        raise ValueError(f'No such file: {source}. Fix --config.data.{key}.')
    elif source or key == 'source':
      folders.list_sources(source, f'--config.data.{key}')
  if images.is_path_params(config.data.source):
    _check_path_params(config)


def _check_networks(config: ml_collections.ConfigDict) -> None:
  # Of several hosts the first one alone has them.
  for key in ('inception', 'features'):
    rules.check(f'eval.{key}', rules.FILE, config.eval[key])
  if config.eval.inception:
    # It imports JAX, for which those who have no such file need not wait.
    from chimera.evaluation import frechet

    frechet.load_network(config.eval.inception)
  if config.eval.features:
    from chimera.evaluation import features

    features.load_network(config.eval.features, config.data.image_size)


def check_workdir(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Refuses a workdir whose contents were made by another config.

  Once there are checkpoints every key binds, but those of `FREE`; while there
  is but stage 1's work, those of `STAGE_1`; an empty workdir binds nothing.
  """
  path = pathlib.Path(workdir)
  if path.exists() and not path.is_dir():
    raise ValueError(f'The workdir must be a folder, got --workdir={workdir}.')
  trained, prepared = map(bool, _contents(path))
  try:
    there = config_json.parse(path)
  except FileNotFoundError:
    if trained or prepared:
      raise ValueError(
        f'{workdir} is not empty and has no config.json: give a new --workdir.'
      ) from None
    return
  if trained:
    config_json.check_age(workdir, there)
  here = _as_json(config)
  there = {**{k: config_json.LATER[k] for k in _LATER}, **there}
  bound = binding(here).keys() | binding(there).keys()
  differ = [
    key
    for key in sorted(bound)
    if there.get(key) != here.get(key)
    and (trained or (prepared and key.startswith(STAGE_1)))
  ]
  if not differ:
    return
  advice = 'give another --workdir'
  if trained and (elder := _elder(workdir, differ)):
    advice += f', and --config.init_from={elder} to start from this one'
  if 'train.cycles' in differ:
    advice += '; only a run of --config.train.schedule=wsd can be made longer'
  said = [
    f'{k} ({_said(there, k)} there, {_said(here, k)} now)' for k in differ
  ]
  raise ValueError(
    f'{workdir} is of another config, which differs in {", ".join(said)}: '
    f'{advice}.'
  )


def _elder(workdir: str, differ: list[str]) -> str:
  """What of a workdir a run can start from that differs so; '' for nothing."""
  for folder in (workdir, os.path.join(workdir, 'tokenizer')):
    with contextlib.suppress(OSError, ValueError):
      if not _architecture(folder).keys() & {*differ}:
        return folder
  return ''


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
  here = _as_json(config)
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
  if is_exported:
    path = home / 'tokenizer.json'
    # It may be from before there was a choice.
    values = {'model.quantizer': terms.kind_of({})}
    values |= {k: config_json.LATER[k] for k in ('model.norm', 'model.border')}
    for key, value in config_json.flat(path).items():
      block, dot, name = key.partition('.')
      values[f'{"model" if block == "tokenizer" else block}{dot}{name}'] = value
    sees = 'optics.cell' in values
  else:
    path, values = home / config_json.NAME, config_json.read(folder)
    sees = not images.is_path_params(values['data.source'])
  kind = 'model.quantizer'
  config_json.hold(path, values, {kind: rules.RULES[kind]})
  network = (*_MODEL, *terms.KINDS[values[kind]].settings)
  agents, optics = () if is_exported else _AGENTS, _OPTICS if sees else ()
  bound = (*(f'model.{k}' for k in network), *agents, *optics)
  config_json.hold(path, values, {key: rules.RULES[key] for key in bound})
  return {key: values[key] for key in bound}


def adopt(
  config: ml_collections.ConfigDict, workdir: str, named: Iterable[str]
) -> None:
  """Has a config say what that of the workdir says, but for what was named.

  Where there is none the config stays; `check_trained` complains of it.

  Raises:
    ValueError: it is not as it was written.
  """
  try:
    there = config_json.read(workdir)
  except FileNotFoundError:
    return
  # A specialist that this config has no block of comes with its block.
  ours = config_json.keys(config).keys() - set(named)
  changes = {
    key: config_json.as_python(value)
    for key, value in there.items()
    if key in ours or (key.startswith('specialists.') and key not in named)
  }
  with config.unlocked():
    config.update(config_json.tree(changes))


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
  config: ml_collections.ConfigDict, workdir: str, binds: bool = True
) -> Iterator[None]:
  """Holds a workdir, which was checked, for a command by its config.json.

  Where the command ends before it has made anything, whatever ends it, the
  workdir is left as it was found. Where it does not bind, its flags are for
  this once, and a config.json that is there stays.
  """
  path = pathlib.Path(workdir)
  claim = path / config_json.NAME
  with lock.hold(path):
    # Another process may have claimed it since it was checked.
    check_workdir(config, workdir)
    contents = _contents(path)
    before = claim.read_bytes() if claim.exists() else None
    if binds or before is None:
      disk.write_json(claim, json.loads(config.to_json()))
    try:
      yield
    except (ValueError, OSError, KeyboardInterrupt, preemption.Stopped):
      if _contents(path) == contents:
        if before is None:
          claim.unlink()
        else:
          disk.write(claim, before)
      raise


def _contents(path: pathlib.Path) -> tuple[list[pathlib.Path], ...]:
  """What there is of a trained tokenizer, and what of stage 1's work."""
  kinds = (_TRAINED, _PREPARED)
  return tuple(
    sorted(x for k in names for x in path.glob(k)) for names in kinds
  )


def _check_together(
  config: ml_collections.ConfigDict, values: Mapping[str, Any]
) -> None:
  """Rules between keys; `values` are the config's, by dotted key."""
  c, block, clones = config, config.specialists, len(config.clone_names)
  devices = specialists.fitting_devices(clones, c.train.batch_size)
  dispatch, n = 'train.cycles_per_dispatch', c.train.cycles_per_dispatch
  together = [
    ('devices', rules.one_of(0, *devices)),
    ('q.epsilon_end', _at_most('q.epsilon =', c.q.epsilon)),
    *(
      (f'specialists.{k}.q.low', _at_most('its q.high =', block[k].q.high))
      for k in c.clone_names
    ),
    *((f'specialists.{k}.pid.target.adv', rules.PART) for k in c.clone_names),
    *(
      (f'train.{k}', rules.multiple(dispatch, n, c.train[k]))
      for k in ('cycles', 'log_every', 'eval_every', 'checkpoint_every')
    ),
  ]
  if c.meld.enabled:
    # What is learned after the last meld would be lost.
    rule = rules.multiple('meld.every', c.meld.every, c.train.cycles)
    together.append(('train.cycles', rule))
  if c.q.enabled:
    together.append(('q.actions', rules.WITH_NONE))
  steps_are_own = c.meld.enabled and c.meld.optimizer_state != 'shared'
  is_one = len(c.clone_names) == 1
  if c.q.enabled and c.q.history == 'own' and steps_are_own and not is_one:
    # What an action did is told from its second cycle on.
    together.append(('q.every', rules.whole(2)))
  if images.is_path_params(c.data.source):
    together.append(('eval.inception', rules.one_of('')))
    together.append(('eval.features', rules.one_of('')))
  else:
    size = rules.multiple(
      'optics.cell * model.downsample',
      c.optics.cell * c.model.downsample,
      c.data.image_size,
      terms.LEAST_GRID * c.optics.cell,
    )
    together += [
      ('data.image_size', size),
      ('train.batch_size', _batch(config, c.data.train_count)),
    ]
  for key, rule in together:
    rules.check(key, rule, values[key])
  for name in c.clone_names:
    base = specialists.base_weights(config, name)
    weighed = terms.of(c.model.quantizer)
    if sum(base[t] for t in weighed if t != 'adv') < _LEAST_WEIGHT:
      raise ValueError(
        f'The loss terms of {name} but adv must have weights above 0, got none '
        f'of {_LEAST_WEIGHT:g} in all: fix --config.loss.l1 or --config.'
        f'specialists.{name}.emphasis.l1.'
      )


def _check_path_params(config: ml_collections.ConfigDict) -> None:
  """Holds the grid and the number of path_params to what the step needs."""
  c = config.data
  samples, height, width, _ = images.path_params_shape(c.source)
  least = terms.LEAST_GRID
  if min(height, width) < least:
    raise ValueError(
      f'data.source must hold path_params on a grid of {least} x {least} or '
      f'more, got {height} x {width} in {c.source}: fix --config.data.source.'
    )
  fit = [
    n for n in (1 << i for i in range(15)) if not (height % n or width % n)
  ]
  rule = rules.one_of(*fit)
  where = f'{rule.text} (for the grid of {height} x {width} in {c.source})'
  downsample = config.model.downsample
  rules.check('model.downsample', rule._replace(text=where), downsample)
  if not c.held_out_source:
    samples -= images.count_held_out(
      samples, fraction=c.held_out_fraction, most=c.held_out_count
    )
  if samples >= curriculum.BINS:  # else it is said where they are let in
    rules.check(
      'train.batch_size', _batch(config, samples), config.train.batch_size
    )


def _batch(config: ml_collections.ConfigDict, samples: int) -> rules.Rule:
  smallest = curriculum.smallest_lesson(samples, specialists.lessons(config))
  return _at_most('the samples of the smallest lesson,', smallest)


def _at_most(what: str, high: float) -> rules.Rule:
  return rules.number(f'at most {what} {high}', lambda v: v <= high)


def _as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Every value by its dotted key, as config.json has it."""
  return config_json.keys(json.loads(config.to_json()))


def _said(values: Mapping[str, Any], key: str) -> str:
  return rules.shown(values[key]) if key in values else "'absent'"


def _of_clones(flat: Mapping[str, Any]) -> dict[str, Any]:
  """A config by dotted key, without the blocks that clone_names leaves out."""
  ours = tuple(f'specialists.{name}.' for name in flat['clone_names'])
  return {
    k: v
    for k, v in flat.items()
    if k.startswith(ours) or not k.startswith('specialists.')
  }
