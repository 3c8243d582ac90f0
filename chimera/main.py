"""Chimera: trains an image tokenizer with specialists.

  python -m chimera.main [COMMAND] [--config=[FILE][:VARIANT]]
      [--workdir=DIR] [--tokenizer=DIR] [--out=DIR]
      [--config.some.key=value] [--dry-run] [--debug]

FILE is configs/chimera.py where none is named. COMMAND, before or after flags:
"""

from collections.abc import Callable, Sequence
import errno
import importlib.metadata
import logging as std_logging
import os
import re
import sys
from typing import Any, NamedTuple

from absl import flags, logging
import ml_collections
from ml_collections import config_flags

from chimera.monitor import live, writers
from chimera.run import config_json, default_config, preflight, rules
from chimera.system import (
  compiled,
  cpus,
  disk,
  hosts,
  meeting,
  memory,
  preemption,
  provenance,
  streams,
)

_HOME = os.path.dirname(os.path.abspath(__file__))

# The heavy imports are made when the flags are known to be right.


class Job(NamedTuple):
  """What the command line asks for."""

  config: ml_collections.ConfigDict  # with its overrides
  named: list[str]  # the keys of the config that the command line names
  workdir: str
  arguments: list[str]  # what stands behind the command
  out: str  # where the results go; '' is the command's own place
  tokenizer: str  # the folder of an exported one
  dry_run: bool  # only says what the training would take
  place: hosts.Place | None  # of this host among several
  watch: preemption.Watch  # of the signals that end it
  team: hosts.Team | None = None  # the hosts, once they are joined


def _prepare(job: Job) -> Any:
  """stage 1: trains the optics and writes the path_params of every sample"""
  from chimera.optics import stage_1
  from chimera.run import init_from

  return stage_1.prepare(job.config, job.workdir, init_from.load_optics)


def _train(job: Job) -> None:
  """prepares what is missing, trains, resumes what it finds (the default)"""
  from chimera import train

  train.train(job.config, job.workdir, _prepare(job), job.watch, job.team)


def _dry_run(job: Job) -> None:
  from chimera.doctor import dry_run as dry_run_lib

  dry_run_lib.run(job.config, job.workdir)


def _prepare_curriculum(job: Job) -> None:
  """scores, sorts and bins the samples, afresh"""
  from chimera import train

  train.prepare_curriculum(job.config, job.workdir, _prepare(job), afresh=True)


def _evaluate(job: Job) -> None:
  """the newest checkpoint on held-out images: evaluation.json"""
  from chimera import train

  train.evaluate_workdir(job.config, job.workdir, _prepare(job))


def _export(job: Job) -> None:
  """the newest checkpoint's tokenizer as one folder: --out, or tokenizer/"""
  from chimera import train

  train.export_workdir(job.config, job.workdir, _prepare(job), job.out)


def _reconstruct(job: Job) -> None:
  """images, and what becomes of them: a PNG each in --out"""
  from chimera.tokenizer import pictures

  pictures.reconstruct(job.arguments, job.tokenizer, job.out)


def _tokenize(job: Job) -> None:
  """a folder of images to tokens in --out"""
  from chimera.tokenizer import tokens

  (source,) = job.arguments
  tokens.tokenize(source, job.tokenizer, job.out, job.config)


def _detokenize(job: Job) -> None:
  """tokens back to images in --out"""
  from chimera.tokenizer import pictures

  (folder,) = job.arguments
  pictures.detokenize(folder, job.tokenizer, job.out)


def _mission_control(job: Job) -> None:
  """shows a run that is going on, or is over: --workdir names it"""
  live.watch(job.workdir)


def _doctor(job: Job) -> int:
  """says what is wrong with the run in --workdir; exit code 1 if anything is"""
  from chimera.doctor import doctor

  diagnosis = doctor.diagnose(job.workdir)
  sys.stdout.write(doctor.describe(diagnosis))
  return int(bool(diagnosis.findings))


COMMANDS: dict[str, Callable[[Job], Any]] = {
  'train': _train,
  'prepare-latents': _prepare,
  'prepare-curriculum': _prepare_curriculum,
  'evaluate': _evaluate,
  'export': _export,
  'reconstruct': _reconstruct,
  'tokenize': _tokenize,
  'detokenize': _detokenize,
  'mission-control': _mission_control,
  'doctor': _doctor,
}
_ARGUMENTS = {
  'reconstruct': 'IMAGE...',
  'tokenize': 'FOLDER',
  'detokenize': 'FOLDER',
}
# They read a workdir or a tokenizer and neither claim nor bind it.
_READERS = (*_ARGUMENTS, 'mission-control', 'doctor')
# Keys of the config that are paths: a shell expands no `~` behind a `=`.
_PATHS = (
  *('data.source', 'data.held_out_source', 'init_from'),
  *('eval.inception', 'eval.features'),
)
# The commands that have these flags.
_FLAGS_OF = {
  'out': ('export', 'reconstruct', 'tokenize', 'detokenize'),
  'tokenizer': ('reconstruct', 'tokenize', 'detokenize'),
}
# They need a checkpoint, and go by its config.
_OF_CHECKPOINTS = ('evaluate', 'export')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command, of a line that begins with the program's name.

  The exit code is 0; 1 where the doctor found something; 2 where the user can
  fix it; 128 + the signal that ended it: 130 (SIGINT), 143 (SIGTERM), 129
  (SIGHUP); 134 where another host is gone, 75 where one did not come.
  """
  with streams.spoken():
    return _main(sys.argv if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
  if {'--help', '-h'} & set(argv):
    sys.stdout.write(usage())
    return 0
  debug = any(re.fullmatch('--?debug(=(true|t|1))?', a, re.I) for a in argv)
  try:
    command, job = parse(argv)
    _set_up_logging(debug)
    if command in _OF_CHECKPOINTS:
      preflight.adopt(job.config, job.workdir, job.named)
    preflight.check_config(job.config)
    if job.place and not hosts.is_guarded():
      return hosts.guard(argv[1:], job.place)
    memory.keep_freed()
    cpus.split(len(job.config.clone_names))
    with job.watch, compiled.kept():
      return _run_on_all(job) if job.place else _run(command, job)
  except (ValueError, OSError, flags.Error, FloatingPointError) as e:
    if debug:
      raise
    line = ' '.join(str(e).split())
    if isinstance(e, OSError) and e.errno == errno.ENOSPC:
      line += ': make room, then give the same command again.'
    sys.stderr.write(f'Error: {line}\n')
    return meeting.ABSENT_CODE if isinstance(e, meeting.AbsentError) else 2
  except hosts.GoneError as e:
    if debug:
      raise
    sys.stderr.write(f'Error: {e}\n')
    sys.stderr.flush()
    os._exit(hosts.GONE_CODE)  # JAX would wait for the host that is gone
  except MemoryError as e:
    if debug:
      raise
    sys.stderr.write(
      f'Error: there is not enough memory ({disk.reason(e)}): give fewer '
      'samples by --config.data.train_count, or end other programs.\n'
    )
    return 2
  except RuntimeError as e:
    from chimera.run import engine

    line = engine.explain(e)
    if debug or line is None:
      raise
    sys.stderr.write(f'Error: {line}\n')
    return 2
  except KeyboardInterrupt:
    if debug:
      raise
    sys.stderr.write('Interrupted: the same command goes on from here.\n')
    return 130
  except preemption.Stopped as e:
    sys.stderr.write(f'{e}\n')
    return 128 + e.signum


def _run_on_all(job: Job) -> int:
  """Trains as the first host, or as one that follows it."""
  hosts.end_with_the_guard()
  values = config_json.keys(job.config)
  values.pop('train.dashboard')
  meeting.meet(
    job.place,
    {
      'code': provenance.commit(),
      'jax': importlib.metadata.version('jax'),
      **{f'--config.{k}': str(v) for k, v in values.items()},
    },
  )
  with hosts.Team(job.place) as team:
    if team.is_first:
      return _run('train', job._replace(team=team))
    from chimera.run import follow

    return follow.follow(job.config, team, job.watch)


def _run(command: str, job: Job) -> int:
  if command in _READERS:
    return COMMANDS[command](job) or 0
  preflight.check_data(job.config, '' if job.dry_run else job.workdir)
  preflight.check_workdir(job.config, job.workdir)
  preflight.check_init_from(job.config, job.workdir)
  if command == 'train':
    # Before stage 1, which takes minutes.
    from chimera.run import engine

    c = job.config
    engine.check_devices(c.devices, len(c.clone_names), c.train.batch_size)
  if job.dry_run:
    _dry_run(job)
    return 0
  if command in _OF_CHECKPOINTS:
    preflight.check_trained(job.workdir)
  binds = command not in _OF_CHECKPOINTS
  with preflight.claim_workdir(job.config, job.workdir, binds):
    COMMANDS[command](job)
  return 0


def usage() -> str:
  """What --help says."""
  named = {k: f'{k} {_ARGUMENTS.get(k, "")}' for k in COMMANDS}
  width = max(map(len, named.values()))
  lines = [f'  {named[k]:{width}} {f.__doc__}\n' for k, f in COMMANDS.items()]
  return f'{__doc__}{"".join(lines)}'


def parse(argv: Sequence[str]) -> tuple[str, Job]:
  """The command and what it asks for; a mistake is ValueError, flags.Error."""
  # What stands behind `--` is no flag.
  end = [*argv, '--'].index('--')
  argv, behind = list(argv[:end]), argv[end + 1 :]
  # In one word or two; no argument holds a NUL.
  shipped = re.compile(r'(\0--?config[=\0])(?=:)')
  argv = shipped.sub(
    lambda match: match[1] + default_config.PATH, '\0'.join(argv)
  ).split('\0')
  # config_flags answers an unknown key with a traceback: look first.
  override = re.compile(r'--?(no)?config\.([^=]*)')
  matches = [override.match(arg) for arg in argv]
  plain = [arg for arg, match in zip(argv, matches) if match is None]
  values = _create_flags(plain)
  try:
    values(plain, known_only=True)
  except flags.IllegalFlagValueError as e:
    # A config file that raises is quoted with its traceback.
    reason = str(e).strip().splitlines()[-1].removeprefix('ValueError: ')
    # And one that is refused in full.
    raise ValueError(
      reason if reason.startswith('flag --') else f'--config: {reason[:500]}'
    ) from e
  # A config file is code, and raises what it likes.
  except (ImportError, NameError, *disk.BROKEN) as e:
    raise ValueError(f'--config does not load: {e!r}.') from e
  path, _, _ = values['config'].config_filename.partition(':')
  if not os.path.isfile(path):
    raise ValueError(
      f'No such config file: {path}. Fix --config: without a file, as in '
      '--config=:smoke, it is the one that ships with Chimera.'
    )
  if not isinstance(values.config, ml_collections.ConfigDict):
    kind = type(values.config).__name__
    raise ValueError(
      f'--config: get_config must return a ConfigDict, got {kind}.'
    )
  named = [match[2] for match in matches if match]
  preflight.check_keys(named, config_json.keys(values.config))
  # Neither is the name of a file.
  argv = [f'./{word}' if _is_file(word, values) else word for word in argv]
  values = _create_flags(argv)
  command, *arguments = [*values(argv)[1:], *behind] or ['train']
  arguments = [_expand(path) for path in arguments]
  for flag in ('workdir', 'out', 'tokenizer'):
    values[flag].value = _expand(values[flag].value)
  config_json.make_floats(values.config)
  there = config_json.keys(values.config)
  paths = {k: _expand(there[k]) for k in _PATHS if type(there.get(k)) is str}
  values.config.update_from_flattened_dict(paths)
  if command not in COMMANDS:
    near = preflight.nearest(command, COMMANDS)
    raise ValueError(
      f'COMMAND must be one of {", ".join(COMMANDS)}, got {command}'
      + (f': did you mean {near}?' if near else '.')
    )
  wanted = _ARGUMENTS.get(command, 'no further arguments')
  is_list = arguments and wanted.endswith('...')
  if not is_list and len(arguments) != (command in _ARGUMENTS):
    raise ValueError(
      f'{command} takes {wanted}, got {" ".join(arguments) or "nothing"}.'
    )
  if values['dry-run'].value and command != 'train':
    raise ValueError(f'--dry-run is of train, got {command}.')
  for flag, commands in _FLAGS_OF.items():
    if values[flag].present and command not in commands:
      raise ValueError(
        f'--{flag} is of {", ".join(commands)}, got {command}: leave it out.'
      )
  place = None
  if command == 'train' and not values['dry-run'].value:
    place = hosts.find(values.coordinator, values.hosts, values.host)
  elif (
    values.coordinator not in ('', 'auto') or values.hosts or values.host >= 0
  ):
    raise ValueError(
      f'Several hosts train; {"--dry-run" if command == "train" else command} '
      'is of one: leave out --coordinator, --hosts and --host.'
    )
  for flag in ('workdir', 'out', 'tokenizer'):
    disk.check_folder(values[flag].value, f'--{flag}')
  if command == 'detokenize':
    disk.check_folder(*arguments, 'FOLDER')
  basename = getattr(values.config, 'basename', None)
  rules.check('basename', rules.RULES['basename'], basename)
  workdir = values.workdir or os.path.join('runs', basename)
  return command, Job(
    config=values.config,
    named=named,
    workdir=workdir,
    arguments=arguments,
    out=values.out,
    tokenizer=values.tokenizer or os.path.join(workdir, 'tokenizer'),
    dry_run=values['dry-run'].value,
    place=place,
    watch=preemption.Watch(),
  )


def _expand(path: str) -> str:
  """A path with `~` for the home folder, where nothing is called that."""
  return path if os.path.lexists(path) else os.path.expanduser(path)


def _is_file(word: str, known: flags.FlagValues) -> bool:
  """Whether a word that looks like a flag is the name of a file."""
  name = word.lstrip('-').partition('=')[0]
  is_flag = {name, name.removeprefix('no')} & set(known)
  return word.startswith('-') and not is_flag and os.path.exists(word)


def _create_flags(argv: Sequence[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  config_flags.DEFINE_config_file(
    'config', default_config.PATH, flag_values=values, sys_argv=list(argv)
  )
  for define, name, default, text in (
    (flags.DEFINE_string, 'workdir', '', 'All that a run writes.'),
    (flags.DEFINE_string, 'out', '', 'Where the results of a command go.'),
    (flags.DEFINE_string, 'tokenizer', '', 'An exported tokenizer.'),
    (flags.DEFINE_string, 'coordinator', '', "The first host's address."),
    (flags.DEFINE_integer, 'hosts', 0, 'How many there are.'),
    (flags.DEFINE_integer, 'host', -1, 'Which of them this is, from 0.'),
    (flags.DEFINE_bool, 'dry-run', False, 'Only say what train would take.'),
    (flags.DEFINE_bool, 'debug', False, 'Show tracebacks.'),
  ):
    define(name, default, text, flag_values=values)
  return values


def _set_up_logging(debug: bool) -> None:
  writers.silence_tensorflow()
  # absl warns of logging before its own flags are parsed; we have none of them.
  flags.FLAGS.mark_as_parsed()
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  if not debug:
    handler.setFormatter(std_logging.Formatter('%(asctime)s %(message)s', '%X'))
    # Others' lines only from warnings on.
    handler.addFilter(
      lambda r: r.levelno > std_logging.INFO or r.pathname.startswith(_HOME)
    )


if __name__ == '__main__':
  sys.exit(main())
