"""The config that ships with Chimera, configs/chimera.py."""

import pathlib
import runpy

import ml_collections

_HOME = pathlib.Path(__file__).resolve().parents[1]
# A checkout has it beside the package, a wheel inside.
_FOLDER = _HOME if (_HOME / 'configs').is_dir() else _HOME.parent
PATH = str(_FOLDER / 'configs' / 'chimera.py')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """What --config=:{arg} gives."""
  return runpy.run_path(PATH)['get_config'](arg)
