"""What Chimera costs, measured: `python -m chimera.benchmark WHAT`.

curriculum   score, sort and save a million samples, against a bare mean.
stage_1      reading photographs and learning to see, against bare programs.
step         the compiled step against a plain learner, on each layout.
appendix_a   the compiled step against the design document's own loop.
start        from the command to the first cycle, cold and warm.
loop         what a run spends beside the step.
dashboard    training with the dashboard and without.
tokens       tokenizing a folder, against bare `encode` on arrays in memory.
door         the look at a batch of floats before they are encoded.
"""

import argparse
import sys

from chimera.benchmarks import (
  appendix_a,
  dashboard,
  loop,
  school,
  stage_1,
  start,
  step,
  tokens,
)
from chimera.system import memory

# The flags of each and their defaults; that of --rounds is 5.
COMMANDS = {
  school.curriculum: {'samples': 1_000_000, 'grid': 16},
  stage_1.stage_1: {'variant': '', 'photographs': 64, 'steps': 50},
  step.step: {
    'variant': '',
    'programs': 'default,no_school,no_pid,no_q,no_meld,seed,control',
    'devices': '',
    'cycles_per_dispatch': 1,
    'dispatches': 5,
  },
  appendix_a.appendix_a: {'variant': '', 'cycles': 5},
  loop.loop: {'variant': '', 'cycles': 500, 'rounds': 1},
  start.start: {'flags': ''},
  dashboard.dashboard: {'variant': '', 'dispatches': 60},
  tokens.tokens: {
    'tokenizer': 'runs/chimera/tokenizer',
    'source': 'photos',
    'count': 2000,
  },
  tokens.door: {'tokenizer': 'runs/chimera/tokenizer', 'batch': 64},
}


def _whole(text: str) -> int:
  if (number := int(text)) < 1:
    raise argparse.ArgumentTypeError(f'must be 1 or more, got {number}')
  return number


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m chimera.benchmark')
  commands = parser.add_subparsers(dest='command', required=True)
  for run, flags in COMMANDS.items():
    command = commands.add_parser(run.__name__)
    command.set_defaults(run=run)
    for name, value in {'rounds': 5, **flags}.items():
      kind = _whole if isinstance(value, int) else str
      command.add_argument(f'--{name}', type=kind, default=value)
  args = parser.parse_args()
  memory.keep_freed()  # as a training does
  try:
    args.run(args)
  except ValueError as e:
    sys.exit(f'Error: {e}')


if __name__ == '__main__':
  main()
