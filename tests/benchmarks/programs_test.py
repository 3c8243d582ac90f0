"""A benchmark's programs are what their names say."""

import pytest

from chimera.benchmarks import programs


@pytest.mark.parametrize('name', [programs.PLAIN, *programs.ABLATIONS, 'seed'])
def test_every_program_sees_as_many_images_a_cycle(name, monkeypatch):
  seen = []
  monkeypatch.setattr(
    programs, 'Program', lambda config, devices: seen.append(config)
  )
  monkeypatch.setattr(
    programs, 'Plain', lambda config, devices: seen.append(config)
  )
  programs.create(name, 'smoke', 1, 3)
  (config,) = seen
  assert config.train.cycles_per_dispatch == 3
  assert config.train.batch_size * len(config.clone_names) == 32
  assert config.school.enabled == (name != 'no_school')
  assert config.meld.enabled == (name != 'no_meld')
  assert config.q.enabled == (name != 'no_q')
  assert config.pid.enabled == (name != 'no_pid')
  assert config.meld.alpha == (0.5 if name == 'seed' else 0)
  assert config.model.width == 16  # smoke's
