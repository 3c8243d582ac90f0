"""The config that ships with Chimera, configs/chimera.py."""

import pathlib
import runpy

import ml_collections

# A wheel has it inside the package, a checkout beside.
_HOMES = pathlib.Path(__file__).resolve().parents[1:3]
PATH = next(str(p) for h in _HOMES if (p := h / 'configs/chimera.py').exists())


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """What --config=:{arg} gives."""
  return runpy.run_path(PATH)['get_config'](arg)
