"""Chimera: trains an image tokenizer with four specialists.

  python -m chimera.main [COMMAND] [--config=[FILE][:VARIANT]]
      [--workdir=DIR] [--tokenizer=DIR] [--out=DIR]
      [--config.some.key=value] [--dry-run] [--debug]

FILE is configs/chimera.py where none is named. COMMAND, before or after flags:
"""

from collections.abc import Callable, Sequence
import contextlib
import errno
import logging as std_logging
import os
import re
import sys
from typing import Any, NamedTuple

from absl import flags, logging
import ml_collections
from ml_collections import config_flags

from chimera.monitor import live, writers
from chimera.run import default_config, preflight
from chimera.system import compiled, disk, preemption

_HOME = os.path.dirname(os.path.abspath(__file__))

# The heavy imports are made when the flags are known to be right.


class Job(NamedTuple):
  """What the command line asks for.

  Attributes:
    config: with its overrides.
    named: the keys of the config that the command line names.
    workdir: of the run.
    arguments: what stands behind the command.
    out: --out, where the results go; '' is the command's own place.
    tokenizer: the folder of an exported tokenizer.
    dry_run: only says what the training would take.
    watch: of the signals that end it.
  """

  config: ml_collections.ConfigDict
  named: list[str]
  workdir: str
  arguments: list[str]
  out: str
  tokenizer: str
  dry_run: bool
  watch: preemption.Watch


def _prepare(job: Job) -> Any:
  from chimera.optics import stage_1
  from chimera.run import init_from

  return stage_1.prepare(job.config, job.workdir, init_from.load_optics)


def _train(job: Job) -> None:
  """prepares what is missing, trains, resumes what it finds (the default)"""
  from chimera import train

  train.train(job.config, job.workdir, _prepare(job), job.watch)


def _rehearse(job: Job) -> None:
  from chimera.doctor import dry_run as dry_run_lib

  dry_run_lib.rehearse(job.config, job.workdir)


def _prepare_latents(job: Job) -> None:
  """stage 1: trains the optics and writes the path_params of every sample"""
  _prepare(job)


def _prepare_curriculum(job: Job) -> None:
  """scores, sorts and bins the samples, afresh"""
  from chimera import train

  data = _prepare(job)
  train.prepare_curriculum(job.config, job.workdir, data, afresh=True)


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


COMMANDS: dict[str, Callable[[Job], int | None]] = {
  'train': _train,
  'prepare-latents': _prepare_latents,
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
# They need a checkpoint, and go by its config.
_JUDGES = ('evaluate', 'export')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: the command line, the program's name first; None: this process's.

  Returns:
    The exit code: 0; 1 where the doctor found something; 2 where the user can
    mend it; 128 + the signal that ended it: 130 (SIGINT), 143 (SIGTERM), 129
    (SIGHUP).
  """
  argv = sys.argv if argv is None else argv
  if {'--help', '-h'} & set(argv):
    sys.stdout.write(usage())
    return 0
  debug = '--debug' in argv
  try:
    command, job = parse(argv)
    _set_up_logging(debug)
    if command in _JUDGES:
      preflight.adopt(job.config, job.workdir, job.named)
    preflight.check_config(job.config)
    with job.watch, compiled.kept():
      return _run(command, job)
  except (ValueError, OSError, flags.Error, FloatingPointError) as e:
    if debug:
      raise
    line = ' '.join(str(e).split())
    if isinstance(e, OSError) and e.errno == errno.ENOSPC:
      line += ': make room, then give the same command again.'
    sys.stderr.write(f'Error: {line}\n')
    return 2
  except KeyboardInterrupt:
    if debug:
      raise
    sys.stderr.write('Interrupted: the same command goes on from here.\n')
    return 130
  except preemption.Stopped as e:
    # After a hang-up there is no terminal to say it on.
    with contextlib.suppress(OSError):
      sys.stderr.write(f'{e}\n')
    return 128 + e.signum


def _run(command: str, job: Job) -> int:
  if command in _READERS:
    return COMMANDS[command](job) or 0
  preflight.check_data(job.config)
  preflight.check_workdir(job.config, job.workdir)
  preflight.check_origin(job.config, job.workdir)
  if job.dry_run:
    _rehearse(job)
    return 0
  if command in _JUDGES:
    preflight.check_trained(job.workdir)
  with preflight.claim_workdir(job.config, job.workdir):
    COMMANDS[command](job)
  return 0


def usage() -> str:
  """What --help says."""
  named = {k: f'{k} {_ARGUMENTS.get(k, "")}' for k in COMMANDS}
  width = max(map(len, named.values()))
  lines = [f'  {named[k]:{width}} {f.__doc__}\n' for k, f in COMMANDS.items()]
  return f'{__doc__}{"".join(lines)}'


def parse(argv: Sequence[str]) -> tuple[str, Job]:
  """The command line's command, and what it asks for.

  Raises:
    ValueError: an unknown command, config file, variant or key, or arguments
      that the command does not take.
    flags.Error: an unknown flag or a value of the wrong type.
  """
  # --config=:VARIANT, or the same in two words.
  bare = re.compile(r'(?<=\0--config[=\0])(?=:)|(?<=\0-config[=\0])(?=:)')
  argv = default_config.PATH.join(bare.split('\0'.join(argv))).split('\0')
  # config_flags answers an unknown key with a traceback: look first.
  override = re.compile(r'--?(no)?config\.([^=]*)')
  matches = [override.match(arg) for arg in argv]
  plain = [arg for arg, match in zip(argv, matches) if match is None]
  values = _create_flags(plain)
  try:
    values(plain, known_only=True)
  except flags.IllegalFlagValueError as e:
    # A config file that raises is quoted with its traceback.
    *_, reason = str(e).strip().splitlines()
    reason = reason.removeprefix('ValueError: ')
    raise ValueError(f'--config: {reason}') from e
  # A config file is code, and raises what it likes.
  except (ImportError, NameError, *disk.BROKEN) as e:
    raise ValueError(f'--config does not load: {e!r}.') from e
  path, _, _ = values['config'].config_filename.partition(':')
  if not os.path.isfile(path):
    raise ValueError(
      f'No such config file: {path}. Fix --config: without a file, as in '
      '--config=:smoke, it is the one that ships with Chimera.'
    )
  named = [match[2] for match in matches if match]
  preflight.check_keys(named, preflight.keys(values.config))
  values = _create_flags(argv)
  command, *arguments = values(argv)[1:] or ['train']
  if command not in COMMANDS:
    near = preflight.nearest(command, COMMANDS)
    raise ValueError(
      f'COMMAND must be one of {", ".join(COMMANDS)}, got {command}'
      + (f': did you mean {near}?' if near else '.')
    )
  wanted = _ARGUMENTS.get(command, '')
  too_many = len(arguments) > 1 and not wanted.endswith('...')
  if bool(arguments) != bool(wanted) or too_many:
    raise ValueError(
      f'{command} takes {wanted or "no further arguments"}, got '
      f'{" ".join(arguments) or "nothing"}.'
    )
  is_dry = values['dry-run'].value
  if is_dry and command != 'train':
    raise ValueError(f'--dry-run is of train, got {command}.')
  workdir = values.workdir or os.path.join('runs', values.config.basename)
  return command, Job(
    config=values.config,
    named=named,
    workdir=workdir,
    arguments=arguments,
    out=values.out,
    tokenizer=values.tokenizer or os.path.join(workdir, 'tokenizer'),
    dry_run=is_dry,
    watch=preemption.Watch(),
  )


def _create_flags(argv: Sequence[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  config_flags.DEFINE_config_file(
    'config', default_config.PATH, flag_values=values, sys_argv=list(argv)
  )
  for name, text in {
    'workdir': 'All that a run writes.',
    'out': 'Where the results of a command go.',
    'tokenizer': 'An exported tokenizer.',
  }.items():
    flags.DEFINE_string(name, '', text, flag_values=values)
  flags.DEFINE_bool('dry-run', False, 'Say what it takes.', flag_values=values)
  flags.DEFINE_bool('debug', False, 'Show tracebacks.', flag_values=values)
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
    handler.addFilter(_is_ours)


def _is_ours(record: std_logging.LogRecord) -> bool:
  """Others' lines only from warnings on."""
  return record.levelno > std_logging.INFO or record.pathname.startswith(_HOME)


if __name__ == '__main__':
  sys.exit(main())
