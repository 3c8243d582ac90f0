"""The config that ships, from any folder."""

import pathlib

import pytest

from chimera.run import default_config
from configs import chimera as chimera_config

ROOT = pathlib.Path(__file__).parents[2]


def test_in_a_checkout_it_is_the_file_in_configs():
  assert pathlib.Path(default_config.PATH) == ROOT / 'configs' / 'chimera.py'


@pytest.mark.parametrize('arg', ['', 'smoke', '256,control'])
def test_it_takes_variants_as_the_flag_does(arg, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  ours = default_config.get_config(arg)
  assert ours.to_json() == chimera_config.get_config(arg).to_json()


def test_the_control_learns_at_its_rate_whatever_stands_beside_it():
  rate = default_config.get_config('control').train.learning_rate
  both = default_config.get_config('seed,control')
  assert both.train.learning_rate == rate
  # What is folded by a half takes steps twice as long.
  seed = default_config.get_config('seed')
  assert seed.train.learning_rate == 2 * rate


def test_a_variant_is_named_once():
  with pytest.raises(ValueError, match="must be named once, got 'seed,seed'"):
    default_config.get_config('seed,seed')


def test_a_mistaken_variant_is_named():
  with pytest.raises(ValueError, match="got 'smoky'"):
    default_config.get_config('smoky')
