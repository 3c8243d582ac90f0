"""Reference curves: how the default run looks when all is well.

  python -m chimera.doctor.reference RUN RUN RUN

makes `reference_curves.json` of finished runs of the default config that differ
in their seeds alone. `doctor.py` holds other runs against it.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
import datetime
import json
import os
import pathlib
import platform
import sys
from typing import Any, NamedTuple

import numpy as np

from chimera.doctor import readings
from chimera.run import preflight
from chimera.system import provenance

PATH = pathlib.Path(__file__).with_name('reference_curves.json')
# The keys by which runs of one config may differ begin so.
_FREE = ('seed', 'basename', *preflight.FREE)


class Band(NamedTuple):
  """A quantity of several runs by cycle: its mean, least and greatest."""

  cycles: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


class Reference(NamedTuple):
  """What `reference_curves.json` holds."""

  made: dict[str, Any]  # of what, by whom and when
  settings: dict[str, Any]  # of the runs, flat, but for what may differ
  figures: dict[str, tuple[float, float]]  # of the data: least, greatest;
  # and `rate`, the learning rate, found
  bands: dict[str, Band]  # of the curves, by the name of the quantity


def load() -> Reference:
  """The reference that comes with the code."""
  body = json.loads(PATH.read_text(encoding='utf-8'))
  bands = {
    name: Band(*(np.array(band[field]) for field in Band._fields))
    for name, band in body['bands'].items()
  }
  known = {k: tuple(v) for k, v in body['figures'].items()}
  return Reference(body['made'], body['settings'], known, bands)


def make(workdirs: Sequence[str]) -> dict[str, Any]:
  """The body of `reference_curves.json`.

  Raises:
    ValueError: there is no run, one is not finished or without its data, or
      their configs, or the cycles of their rows, differ.
  """
  runs = [readings.read_run(workdir) for workdir in workdirs]
  settings, known = runs[0].settings, []
  for run in runs:
    if run.cycles < run.settings['train.cycles']:
      raise ValueError(
        f'A reference run must be finished, got {run.cycles} of '
        f'{run.settings["train.cycles"]} cycles in {run.workdir}.'
      )
    if other := differences(run.settings, settings):
      raise ValueError(
        f'Reference runs must differ in their seeds alone, got {other[0]} in '
        f'{run.workdir}.'
      )
    figures = readings.figures(run)
    if not figures:
      raise ValueError(
        f'A reference run must have its data, got none in {run.workdir}.'
      )
    known.append(figures | {'rate': run.rate})
  bands = {}
  all_curves = [readings.curves(run) for run in runs]
  for name, first in all_curves[0].items():
    for run, found in zip(runs, all_curves):
      if not np.array_equal(found[name].cycles, first.cycles):
        raise ValueError(
          'Reference runs must log and evaluate at the same cycles, got '
          f'others in {run.workdir}: train it again, without train.log_every '
          'and train.eval_every.'
        )
    values = np.stack([found[name].values for found in all_curves])
    bands[name] = {
      'cycles': first.cycles.tolist(),
      'mean': _rounded(values.mean(0)),
      'low': _rounded(values.min(0)),
      'high': _rounded(values.max(0)),
    }
  common = {
    k: v
    for k, v in settings.items()
    if not k.startswith(_FREE) and all(k in run.settings for run in runs)
  }
  made = {
    'seeds': [run.settings['seed'] for run in runs],
    'commit': provenance.commit(),
    'date': datetime.date.today().isoformat(),
    'data': f'{common["data.source"]}, {common["data.train_count"]} crops',
    'machine': f'{platform.machine()}, {os.cpu_count()} cores',
    'command': 'python -m chimera.doctor.reference RUN RUN RUN',
  }
  ranges = {
    k: _rounded((min(x[k] for x in known), max(x[k] for x in known)))
    for k in known[0]
  }
  return {'made': made, 'settings': common, 'figures': ranges, 'bands': bands}


def _rounded(values: Iterable[float]) -> list[float]:
  return [float(f'{v:.4g}') for v in values]


def differences(
  settings: Mapping[str, Any], others: Mapping[str, Any]
) -> list[str]:
  """'key = value (other value)' where two runs are not of one config.

  What only one of them has, or what may differ, does not count.
  """
  return [
    f'{k} = {v} ({others[k]})'
    for k, v in settings.items()
    if k in others
    and not k.startswith(_FREE)
    and json.dumps(v) != json.dumps(others[k])  # tuples and lists alike
  ]


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m chimera.doctor.reference')
  parser.add_argument('runs', nargs='+', help='workdirs of finished runs')
  blocks = []
  try:
    body = make(parser.parse_args().runs)
  except (OSError, ValueError) as e:
    sys.exit(f'Error: {e}')
  for name, block in body.items():
    lines = ',\n'.join(f'  "{k}": {json.dumps(v)}' for k, v in block.items())
    blocks.append(f' "{name}": {{\n{lines}\n }}')
  PATH.write_text('{\n' + ',\n'.join(blocks) + '\n}\n', encoding='utf-8')


if __name__ == '__main__':
  main()
