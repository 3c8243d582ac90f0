"""The dry run: its figures by hand, and that it leaves nothing behind."""

import pathlib
import re
import types

import jax
import numpy as np
from PIL import Image
import pytest

from chimera.clones import state as state_lib
from chimera.doctor import dry_run
from chimera.school import lessons as lessons_lib
from chimera.system import disk
from configs import chimera as chimera_config
from tests import tiny


def test_samples_drawn_of_each_bin_are_counted_by_hand():
  bins = {b: list(range(10 * b, 10 * b + 10)) for b in range(10)}
  lessons = ((9,), (0, 1, 2, 3), (4, 5, 6), (7, 8))
  drawn = dry_run.drawn(bins, lessons, batch_size=8, mix=0.5)
  # Four clones draw 4 from everything, a tenth of them of each bin, and 4 of
  # their own 1, 4, 3 or 2 bins.
  own = [4 / 4] * 4 + [4 / 3] * 3 + [4 / 2] * 2 + [4]
  np.testing.assert_allclose(drawn, [1.6 + x for x in own])
  np.testing.assert_allclose(sum(drawn), 32)
  alike = dry_run.drawn(bins, lessons, batch_size=8, mix=1.0)
  np.testing.assert_allclose(alike, [3.2] * 10)


def test_the_memory_is_that_of_one_device_and_counts_donated_state_once():
  compiled = types.SimpleNamespace(
    memory_analysis=lambda: types.SimpleNamespace(
      argument_size_in_bytes=100,
      output_size_in_bytes=60,
      alias_size_in_bytes=50,
      temp_size_in_bytes=7,
    )
  )
  shard = lessons_lib.Shard(
    *(np.zeros(n, np.float32) for n in (6, 2, 2))  # 40 bytes on two devices
  )
  assert dry_run.memory(compiled, shard, 2) == {
    'training set': 20,
    'clones': 80,
    'outputs': 10,
    'temporaries': 7,
    'together': 117,
  }


@pytest.mark.parametrize(('crop', 'samples'), [('random', 40), ('whole', 12)])
def test_photographs_and_crops_are_counted(tmp_path, crop, samples):
  config = chimera_config.get_config()
  config.data.crop = crop
  config.data.train_count = 40
  config.data.held_out_count = 3
  config.train.batch_size = 1  # 12 whole crops have no more for a lesson
  found = dry_run.survey(config, str(tmp_path / 'none'))
  # 16 photographs in all, of which a quarter is held out.
  assert found == dry_run.Survey(samples, 3, (16, 16), 12, 3, {}, {}, 0)
  assert list(tmp_path.iterdir()) == []


def test_what_a_training_would_refuse_is_refused():
  config = chimera_config.get_config()
  config.data.crop = 'whole'
  with pytest.raises(ValueError, match=r'give --config\.train\.batch_size=1,'):
    dry_run.survey(config, 'none')


def test_files_that_would_be_skipped_are_said_with_their_reasons(tmp_path):
  for i in range(3):
    Image.new('RGB', (64, 64), (i, 0, 0)).save(tmp_path / f'{i}.png')
  (tmp_path / 'page.png').write_text('<html>')
  (tmp_path / 'none.jpg').write_bytes(b'')
  config = chimera_config.get_config()
  config.data.source = str(tmp_path)
  found = dry_run.survey(config, str(tmp_path / 'none'))
  assert list(dry_run._data(config, found))[-3:] == [
    'Skipped 2 image(s):',
    f'{tmp_path}/none.jpg: it is empty',
    f'{tmp_path}/page.png: it is no image that Pillow knows, it begins with '
    "b'<html>'",
  ]


@pytest.fixture
def rehearsed(tmp_path, capsys):
  """(what was written, the workdir) of a dry run on a trained workdir."""
  _, paths = tiny.bins_and_paths()
  np.save(tmp_path / 'source.npy', paths)
  config = tiny.get_config()
  config.data.source = str(tmp_path / 'source.npy')
  config.data.held_out_count = 20
  step = tmp_path / 'w' / 'checkpoints' / '30'
  step.mkdir(parents=True)
  (step / 'digests.json').write_text('{}')
  dry_run.run(config, str(tmp_path / 'w'))
  return capsys.readouterr().out, tmp_path / 'w'


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(rehearsed):
  text, workdir = rehearsed
  # The first lines name the workdir and the source, of any length.
  assert max(map(len, text.splitlines()[3:])) <= 80
  assert '100 path_params to train on, 20 held out' in text
  assert '8x8 path_params -> 4x4 = 16 tokens of 16 codes' in text
  assert '64 bits a sample' in text
  # 4 of 4: bin 9 is a tenth of everything (2 of 4 each), and one clone's own.
  assert re.search(r'  9       10 +2\.80 +11\.2  perceptual', text)
  assert re.search(rf'{len(jax.devices())} cpu device\(s\), 1 clone', text)
  assert re.search(r'together +\d+ MiB', text)
  assert re.search(r'compiled in \d', text)
  assert re.search(r's a cycle, the median of [1-5] x 1 cycles', text)
  assert re.search(r'10 cycles: about \d', text)
  assert 'resumes from cycle 30 of 40' in text
  assert sorted(str(p.relative_to(workdir)) for p in workdir.rglob('*')) == [
    'checkpoints',
    str(pathlib.Path('checkpoints', '30')),
    str(pathlib.Path('checkpoints', '30', 'digests.json')),
  ]


def test_a_cycle_of_the_audition_is_tried_at_each_rate():
  config = tiny.get_config()
  bins, paths = tiny.bins_and_paths()
  spec = state_lib.create_spec(config)
  host = state_lib.stack(state_lib.create_states(config, spec, bins, (8, 8)))
  found = dry_run.Survey(len(paths), 1, (8, 8))
  losses = dry_run._hear(config, spec, host, found, jax.devices())
  # All begin alike, and one cycle is judged before anything is learned.
  assert len(losses) == 4
  np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
  assert 0 < losses[0] < np.inf


def test_what_was_held_at_most_is_of_a_device_or_of_the_process(monkeypatch):
  a_gpu = types.SimpleNamespace(
    memory_stats=lambda: {'bytes_in_use': 1 << 20, 'peak_bytes_in_use': 3 << 20}
  )
  assert dry_run._peak(a_gpu) == 'it held at most 3 MiB'
  loaded = []
  monkeypatch.setattr(dry_run.writers, 'load', lambda: loaded.append(1))
  used = types.SimpleNamespace(ru_maxrss=2048 << 10)
  monkeypatch.setattr(dry_run.resource, 'getrusage', lambda of: used)
  cpu = jax.devices()[0]
  # In KiB, but on a Mac in bytes.
  for platform, size in ('linux', '2,048'), ('darwin', '2'):
    monkeypatch.setattr(dry_run.sys, 'platform', platform)
    assert dry_run._peak(cpu) == f'this process held at most {size} MiB'
  assert loaded == [1, 1]


def test_what_would_begin_anew_beside_another_run_is_refused(tmp_path):
  step = tmp_path / 'checkpoints' / '900'
  step.mkdir(parents=True)
  disk.write_sealed(step / 'digests.json', {'plan': [1000, 800]})
  config = chimera_config.get_config()
  config.train.cycles = 500
  with pytest.raises(ValueError, match=r'got none but of cycles \[900\]'):
    dry_run.run(config, str(tmp_path))


def test_it_says_from_what_it_would_start():
  config = chimera_config.get_config()
  assert dry_run._start(config, 0) == 'newborn'
  config.init_from = 'runs/elder'
  assert dry_run._start(config, 0) == 'from runs/elder'


def test_it_says_how_long_what_is_left_takes():
  config = chimera_config.get_config()
  cycles, rates = dry_run._left(config, 0, 0.5)
  assert cycles.startswith('1000 cycles: about 8m20s, without')
  assert rates.endswith('an audition of rates, as 100 cycles: about 50s')
  assert [len(line) < 69 for line in (cycles, rates)] == [True, True]
  (cycles,) = dry_run._left(config, 400, 0.5)
  assert cycles.startswith('600 cycles: about 5m00s')
  config.init_from = 'runs/elder'
  assert len(list(dry_run._left(config, 0, 0.5))) == 1
