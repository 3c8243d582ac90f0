"""Chimera: trains an image tokenizer with four specialists.

  python -m chimera.main [COMMAND] --config=configs/chimera.py[:VARIANT]
      [--workdir=DIR] [--config.some.key=value] [--debug]

COMMAND, before or after the flags:
"""

from collections.abc import Callable, Sequence
import logging as std_logging
import os
import re
import sys

from absl import flags, logging
import ml_collections
from ml_collections import config_flags

from chimera import live, preflight, writers

_HOME = os.path.dirname(os.path.abspath(__file__))
_CONFIG = os.path.join(os.path.dirname(_HOME), 'configs', 'chimera.py')
# What a config file of the user's may raise, beside what absl catches itself.
_BROKEN = (
  ArithmeticError,
  AttributeError,
  ImportError,
  LookupError,
  NameError,
  SyntaxError,
)

# The heavy imports are made when the flags are known to be right.


def _train(config: ml_collections.ConfigDict, workdir: str) -> None:
  """prepares what is missing, trains, resumes what it finds (the default)"""
  from chimera import latents, train

  train.train(config, workdir, latents.prepare(config, workdir))


def _prepare_latents(config: ml_collections.ConfigDict, workdir: str) -> None:
  """stage 1: trains the optics and writes the path_params of every sample"""
  from chimera import latents

  latents.prepare(config, workdir)


def _prepare_curriculum(
  config: ml_collections.ConfigDict, workdir: str
) -> None:
  """scores, sorts and bins the samples, afresh"""
  from chimera import latents, train

  data = latents.prepare(config, workdir)
  train.prepare_curriculum(config, workdir, data, afresh=True)


def _evaluate(config: ml_collections.ConfigDict, workdir: str) -> None:
  """the master, its average and the specialists on held-out images"""
  from chimera import latents, train

  train.evaluate_workdir(config, workdir, latents.prepare(config, workdir))


def _mission_control(_: ml_collections.ConfigDict, workdir: str) -> None:
  """shows a run that is going on, or is over: --workdir names it"""
  live.watch(workdir)


COMMANDS: dict[str, Callable[[ml_collections.ConfigDict, str], None]] = {
  'train': _train,
  'prepare-latents': _prepare_latents,
  'prepare-curriculum': _prepare_curriculum,
  'evaluate': _evaluate,
  'mission-control': _mission_control,
}
# They neither claim the workdir nor ask for its config.
_WATCHERS = ('mission-control',)


def main(argv: Sequence[str]) -> int:
  """Runs one command.

  Args:
    argv: the command line, the program's name first.

  Returns:
    The exit code: 0; 2 where the user can mend it; 130 where interrupted.
  """
  if {'--help', '-h'} & set(argv):
    sys.stdout.write(usage())
    return 0
  debug = '--debug' in argv
  try:
    command, config, workdir = parse(argv)
    if command in _WATCHERS:
      COMMANDS[command](config, workdir)
      return 0
    preflight.check_config(config)
    preflight.check_data(config)
    preflight.check_workdir(config, workdir)
    if command == 'evaluate':
      preflight.check_trained(workdir)
    _set_up_logging(debug)
    with preflight.claim_workdir(config, workdir):
      COMMANDS[command](config, workdir)
  except (ValueError, OSError, flags.Error, FloatingPointError) as e:
    if debug:
      raise
    sys.stderr.write(f'Error: {" ".join(str(e).split())}\n')
    return 2
  except KeyboardInterrupt:
    if debug:
      raise
    sys.stderr.write('Interrupted: the same command goes on from here.\n')
    return 130
  return 0


def usage() -> str:
  """What --help says."""
  width = max(map(len, COMMANDS))
  lines = [f'  {k:{width}}  {f.__doc__}\n' for k, f in COMMANDS.items()]
  return f'{__doc__}{"".join(lines)}'


def parse(
  argv: Sequence[str],
) -> tuple[str, ml_collections.ConfigDict, str]:
  """The command line's command, config and workdir.

  Raises:
    ValueError: an unknown command, config file, variant or key.
    flags.Error: an unknown flag or a value of the wrong type.
  """
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
  except _BROKEN as e:
    raise ValueError(f'--config does not load: {e!r}.') from e
  path, _, _ = values['config'].config_filename.partition(':')
  if not os.path.isfile(path):
    raise ValueError(f'No such config file: {path}. Mend --config.')
  preflight.check_keys(
    [match[2] for match in matches if match], preflight.keys(values.config)
  )
  values = _create_flags(argv)
  command, *extra = values(argv)[1:] or ['train']
  if command not in COMMANDS:
    near = preflight.nearest(command, COMMANDS)
    raise ValueError(
      f'COMMAND must be one of {", ".join(COMMANDS)}, got {command}'
      + (f': did you mean {near}?' if near else '.')
    )
  if extra:
    raise ValueError(
      f'{command} takes no further arguments, got {" ".join(extra)}.'
    )
  config = values.config
  return (
    command,
    config,
    values.workdir or os.path.join('runs', config.basename),
  )


def _create_flags(argv: Sequence[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  config_flags.DEFINE_config_file(
    'config', _CONFIG, flag_values=values, sys_argv=list(argv)
  )
  flags.DEFINE_string(
    'workdir', '', 'All that a run writes.', flag_values=values
  )
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
  sys.exit(main(sys.argv))
