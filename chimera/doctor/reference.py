"""Reference curves: how the default run looks when all is well.

  python -m chimera.doctor.reference RUN RUN RUN

makes `reference_curves.json` of finished runs of the default config that differ
in their seeds alone. `doctor.py` holds other runs against it, without JAX.
"""

import argparse
from collections.abc import Mapping, Sequence
import datetime
import json
import os
import pathlib
import platform
from typing import Any, NamedTuple

import numpy as np

from chimera.doctor import readings
from chimera.run import preflight
from chimera.system import provenance

PATH = pathlib.Path(__file__).with_name('reference_curves.json')


class Band(NamedTuple):
  """A quantity of several runs by cycle: its mean, least and greatest."""

  cycles: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


class Reference(NamedTuple):
  """What `reference_curves.json` holds.

  Attributes:
    made: of what, by whom and when.
    settings: the config of the runs, flat, but for what may differ.
    figures: (least, greatest) of what is known of the data.
    bands: of the curves, by the name of the quantity.
  """

  made: dict[str, Any]
  settings: dict[str, Any]
  figures: dict[str, tuple[float, float]]
  bands: dict[str, Band]


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

  Args:
    workdirs: of finished runs of one config.

  Raises:
    ValueError: there is no run, one is not finished, or their configs differ
      in more than the seed.
  """
  runs = [readings.read_run(workdir, {}) for workdir in workdirs]
  kept = [binding(run.settings) for run in runs]
  for run, settings in zip(runs, kept):
    if run.cycles < run.settings['train.cycles']:
      raise ValueError(
        f'A reference run must be finished, got {run.cycles} of '
        f'{run.settings["train.cycles"]} cycles in {run.workdir}.'
      )
    if other := differences(settings, kept[0]):
      raise ValueError(
        f'Reference runs must differ in their seeds alone, got {other[0]} in '
        f'{run.workdir}.'
      )
  bands = {}
  all_curves = [readings.curves(run) for run in runs]
  for name, first in all_curves[0].items():
    values = np.stack([found[name].values for found in all_curves])
    bands[name] = {
      'cycles': first.cycles.tolist(),
      **{
        field: [float(f'{v:.4g}') for v in reduced]
        for field, reduced in (
          ('mean', values.mean(0)),
          ('low', values.min(0)),
          ('high', values.max(0)),
        )
      },
    }
  known = []
  for run in runs:
    samples = readings.read_samples(run)
    if samples is None:
      raise ValueError(
        f'A reference run must have its data, got none in {run.workdir}.'
      )
    known.append(readings.figures(run, samples))
  common = {
    k: v for k, v in kept[0].items() if all(k in settings for settings in kept)
  }
  made = {
    'seeds': [run.settings['seed'] for run in runs],
    'commit': provenance.commit(),
    'date': datetime.date.today().isoformat(),
    'data': f'{common["data.source"]}, {common["data.train_count"]} crops',
    'machine': f'{platform.machine()}, {os.cpu_count()} cores',
    'command': 'python -m chimera.doctor.reference RUN RUN RUN',
  }
  least_and_greatest = {
    k: [
      float(f'{v:.4g}')
      for v in (min(x[k] for x in known), max(x[k] for x in known))
    ]
    for k in known[0]
  }
  return {
    'made': made,
    'settings': common,
    'figures': least_and_greatest,
    'bands': bands,
  }


def binding(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The settings by which runs of one config may not differ."""
  return {
    k: v
    for k, v in settings.items()
    if k not in ('seed', 'basename') and not k.startswith(preflight.FREE)
  }


def differences(
  settings: Mapping[str, Any], others: Mapping[str, Any]
) -> list[str]:
  """'key = value (other value)' of the settings that both have, and differ."""
  return [
    f'{k} = {v} ({others[k]})'
    for k, v in settings.items()
    if k in others and _plain(v) != _plain(others[k])
  ]


def _plain(value: Any) -> str:
  """Tuples and lists alike."""
  return json.dumps(value)


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m chimera.doctor.reference')
  parser.add_argument('runs', nargs='+', help='workdirs of finished runs')
  body = make(parser.parse_args().runs)
  blocks = (f' "{k}": {_lines(v)}' for k, v in body.items())
  PATH.write_text('{\n' + ',\n'.join(blocks) + '\n}\n', encoding='utf-8')


def _lines(block: Mapping[str, Any]) -> str:
  """A line a key."""
  lines = (f'  "{k}": {json.dumps(v)}' for k, v in block.items())
  return '{\n' + ',\n'.join(lines) + '\n }'


if __name__ == '__main__':
  main()
