"""A benchmark's programs are what their names say."""

import pytest

from chimera.benchmarks import programs


@pytest.mark.parametrize('name', [programs.PLAIN, *programs.ABLATIONS, 'seed'])
def test_every_program_sees_as_many_images_a_cycle(name, monkeypatch):
  seen = []
  for kind in ('_plain', '_engine'):
    monkeypatch.setattr(
      *(programs, kind),
      lambda config, paths, devices, kind=kind: seen.append((kind, config)),
    )
  assert programs.Program(name, 'smoke', 1, 3).images == 32
  ((kind, config),) = seen
  assert kind == ('_plain' if name == programs.PLAIN else '_engine')
  assert config.train.cycles_per_dispatch == 3
  assert config.train.batch_size * len(config.clone_names) == 32
  assert config.school.enabled == (name != 'no_school')
  assert config.meld.enabled == (name != 'no_meld')
  assert config.q.enabled == (name != 'no_q')
  assert config.pid.enabled == (name != 'no_pid')
  assert config.meld.alpha == (0.5 if name == 'seed' else 0)
  assert config.model.width == 16  # smoke's
