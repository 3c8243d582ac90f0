"""What people get wrong: one line, exit code 2, before anything compiles."""

import os
import pathlib
import pickle
import struct
import sys
import tarfile
import zipfile

import jax.monitoring
import numpy as np
from PIL import Image
import pytest

from chimera import main
from chimera.run import preflight

ROOT = pathlib.Path(__file__).parent.parent
_compiled = []
jax.monitoring.register_event_duration_secs_listener(
  lambda name, *_, **__: (
    _compiled.append(name)
    if name.endswith('backend_compile_duration')
    else None
  )
)


def _latents(n=400, fill=0.5):
  return np.full((n, 8, 8, 3), fill, np.float32)


def _odd(height, width):
  return np.full((400, height, width, 3), 0.5, np.float32)


def _images(path, n=1, make='zip'):
  Image.new('RGB', (9, 9)).save('a.png')
  if make == 'zip':
    with zipfile.ZipFile(path, 'w') as archive:
      for i in range(n):
        archive.write('a.png', f'{i}.png')
  else:
    with tarfile.open(path, make) as archive:
      archive.add('a.png')
  os.remove('a.png')


def _encrypted():
  _images('e.zip', 2)
  data = bytearray(pathlib.Path('e.zip').read_bytes())
  data[data.index(b'PK\x01\x02') + 8] |= 1
  pathlib.Path('e.zip').write_bytes(data)


def _photographs(n):
  """A folder of different ones."""
  os.mkdir('f')
  for i in range(n):
    noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(f'f/{i}.png')


def _near_copies():
  _photographs(1)
  with Image.open('f/0.png') as image:
    image.resize((128, 128)).save('f/larger.png')
    image.convert('L').save('f/gray.webp')


def _folder(contents):
  os.mkdir('f')
  for name, data in contents.items():
    pathlib.Path('f', name).write_bytes(data)


def _workdir(name, text):
  os.makedirs(f'w/{os.path.dirname(name)}')
  pathlib.Path('w', name).write_text(text)


def _write(name, data):
  pathlib.Path(name).write_bytes(data)


_VAST = b'BM' + struct.pack(
  '<IIIIiiHHIIiiII', 99, 0, 54, 40, 99_999, 99_999, 1, 24, *[0] * 6
)
# Flags, what the line says, and what makes the files.
FLAGS = [
  (('trian',), 'did you mean train'),
  (('evaluate',), 'There must be a checkpoint'),
  (('export',), 'There must be a checkpoint'),
  (('train', 'more'), 'no further arguments'),
  (('reconstruct',), 'takes IMAGE'),
  (('tokenize', 'a', 'b'), 'takes FOLDER'),
  (('mission-control',), 'can be watched'),
  (('--workdirs=x',), 'Did you mean: workdir'),
  (('--config=nope.py',), 'No such config file'),
  (('--config=',), 'No such config file'),
  (('--config.train.bath_size=3',), 'mean --config.train.batch_size'),
  (('--config.train=3',), 'is a group of keys'),
  (('--config.train.batch_size=many',), 'batch_size=many'),
  (('--config.train.batch_size=4.5',), 'batch_size=4.5'),
  (('--config.train.batch_size=0',), 'at least 1'),
  (('--config.train.batch_size=400',), 'smallest lesson'),
  (('--config.train.cycles=0',), 'at least 1'),
  (('--config.train.cycles=-5',), 'at least 1'),
  (('--config.train.learning_rate=0',), 'above 0'),
  (('--config.train.learning_rate=nan',), 'above 0'),
  (('--config.train.learning_rate=inf',), 'above 0'),
  (('--config.train.schedule=linear',), "'cosine', 'wsd'"),
  (('--config.train.decay=1.5',), 'in [0, 1]'),
  (('--config.train.cycles_per_dispatch=7',), 'a multiple of'),
  (('--config.train.keep=0',), 'at least 1'),
  (('--config.devices=3',), '0, 1, 2, 4'),
  (('--config.seed=-1',), 'in [0, 2147483647]'),
  (('--config.seed=99999999999',), 'in [0, 2147483647]'),
  (('--config.basename=../x',), 'plain file name'),
  (('--config.basename=',), 'plain file name'),
  (('--config.data.image_size=60',), 'multiple'),
  (('--config.data.image_size=8',), 'at least 32'),
  (('--config.data.train_count=9',), 'at least 10'),
  (('--config.data.held_out_fraction=1.5',), 'in (0, 1)'),
  (('--config.data.max_scale=0.5',), 'at least 1'),
  (('--config.model.downsample=3',), 'a power of 2'),
  (('--config.model.codes=1',), 'at least 2'),
  (('--config.meld.alpha=1.0',), 'in [0, 1)'),
  (
    ('--config.specialists.structural.bins=(1, 1)',),
    'bins from 0 to 9, each once',
  ),
  (('--config.specialists.structural.q.low=3',), 'at most its q.high = 2.0'),
  (('--config.school.lessons=((9,),)',), 'Unknown config key'),
  (('--config.q.epsilon_end=0.9',), 'at most q.epsilon'),
  (("--config.clone_names=('structural',) * 2",), '--config.clone_names'),
  (("--config.clone_names=('structural', 'structural')",), 'each once'),
  (("--config.clone_names=('structural', 'master')",), '(but master, ema, '),
  (("--config.clone_names=('structural', 'texture')",), 'none for texture'),
  (('--config.clone_names=()',), 'one or more names'),
  (("--config.clone_names=('structural', 'Master')",), '(but master, ema, '),
  (('--config.school.enrol_from=100000000000',), 'a whole number up to'),
  (('--config.train.cycles=3000000000',), 'a whole number up to 2147483647'),
  (('--config.train.learning_rate=1e40',), 'from 1e-12 to 1000'),
  (('--config.data.image_size=36',), '(32 and 40 work)'),
  (('--config.data.source=' + 'x' * 9999,), 'text that can be a path'),
  (('--config.loss.l1=1e39', '--dry-run'), 'a number up to 1e+06'),
]
FILES = [
  ('none', 'no such folder', lambda: None),
  ('none.zip', 'no such folder', lambda: None),
  ('none.npy', 'No such file', lambda: None),
  ('f', 'No readable image', lambda: _folder({})),
  ('f', 'none of 1 can be', lambda: _folder({'a.png': b''})),
  (
    'f',
    'none of 1 can be',
    lambda: _folder({'a.jpg': b'\xff\xd8\xff' * 9}),
  ),
  (
    'f',
    'at least 2 different readable images, got 1 in',
    lambda: _photographs(1),
  ),
  ('f', 'got 1 (near copies are the same)', lambda: _near_copies()),
  ('f', 'left out: 1 .docx', lambda: _folder({'a.docx': b'x'})),
  ('f', 'too many pixels: 99999 x 99999', lambda: _folder({'a.bmp': _VAST})),
  ('a.txt', 'got the file a.txt', lambda: _write('a.txt', b'x')),
  ('a.zip', 'not a readable archive', lambda: _write('a.zip', b'PK\x03\x04')),
  ('a.tar', 'not a readable archive', lambda: _write('a.tar', b'x' * 600)),
  ('a.zip', 'No readable image', lambda: _images('a.zip', 0)),
  ('a.zip', 'at least 2 different', lambda: _images('a.zip')),
  ('a.tar', 'at least 2 different', lambda: _images('a.tar', make='w')),
  ('a.tar.gz', 'not compressed', lambda: _images('a.tar.gz', make='w:gz')),
  ('e.zip', 'must not be encrypted', _encrypted),
  ('a.npy', 'nothing that runs', lambda: _write('a.npy', b'x')),
  ('a.npy', 'promises', lambda: _write('a.npy', _npy()[:-1])),
  ('a.npy', 'finite', lambda: np.save('a.npy', _latents(fill=np.nan))),
  ('a.npy', 'radius in', lambda: np.save('a.npy', _latents(fill=-0.5))),
  ('a.npy', 'shape', lambda: np.save('a.npy', _latents()[0])),
  ('a.npy', 'float32, got', lambda: np.save('a.npy', _latents().astype(int))),
  ('a.npy', 'must be one of 1 (for', lambda: np.save('a.npy', _odd(9, 8))),
  ('a.npz', 'a grid of 8 x 8', lambda: np.savez('a.npz', latents=_odd(8, 6))),
  ('a.npy', 'at least 10 samples', lambda: np.save('a.npy', _latents(12))),
  ('a.npy', 'at least 10 samples', lambda: np.save('a.npy', _latents(1))),
  ('a.npz', 'nothing that runs', lambda: _write('a.npz', b'PK')),
  (
    'a.npz',
    'would grow',
    lambda: np.savez_compressed('a.npz', latents=_latents(9999)),
  ),
  ('a.pkl', 'nothing that runs', lambda: _write('a.pkl', b'cos\nabort\n(tR.')),
  (
    'a.pkl',
    "must hold {'latents'",
    lambda: _write('a.pkl', pickle.dumps([1])),
  ),
]
WORKDIRS = [
  ('config.json', '{"broken', 'not readable'),
  ('config.json', '{"name": "a web site"}', 'not of Chimera'),
  ('latents.npy', 'x', 'no config.json'),
  ('checkpoints/7', 'x', 'no config.json'),
]


def _npy():
  np.save('whole.npy', _latents())
  return pathlib.Path('whole.npy').read_bytes()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
  # config_flags would run the next config file in the last one's module.
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)
  monkeypatch.setattr(main, '_set_up_logging', lambda debug: None)
  _compiled.clear()


def _is_one_line(capfd, argv, complaint):
  assert main.main(['chimera', *argv]) == 2
  out, err = capfd.readouterr()
  # Warnings of the log may stand before it.
  errors = [line for line in err.splitlines() if not line.startswith('W')]
  assert len(errors) == 1
  assert errors[0].startswith('Error: ')
  assert complaint in errors[0]
  assert out == ''
  assert _compiled == []


def test_there_are_sixty_and_more():
  assert len(FLAGS) + len(FILES) + len(WORKDIRS) >= 60


@pytest.mark.parametrize(('argv', 'complaint'), FLAGS)
def test_a_bad_flag_or_value_is_one_line(capfd, argv, complaint):
  _is_one_line(capfd, argv, complaint)
  assert os.listdir() == []


@pytest.mark.parametrize(('source', 'complaint', 'make'), FILES)
def test_bad_data_are_one_line_and_leave_no_workdir(
  capfd, source, complaint, make
):
  make()
  argv = (f'--config.data.source={source}', '--workdir=w')
  _is_one_line(capfd, argv, complaint)
  assert not os.path.exists('w')


def test_notes_of_photographs_bind_a_workdir_to_no_config():
  config = main.parse(['chimera'])[1].config
  with preflight.claim_workdir(config, 'w'):
    _workdir('optics/planned.jsonl', '')
  config.data.image_size = 32
  with preflight.claim_workdir(config, 'w'):
    pathlib.Path('w/optics/optics.json').write_text('{}')
  config.data.image_size = 64
  with (
    pytest.raises(ValueError, match=r'data\.image_size'),
    preflight.claim_workdir(config, 'w'),
  ):
    pass


def test_a_cosine_that_is_to_be_longer_is_one_line(capfd):
  cosine = '--config.train.schedule=cosine'
  config = main.parse(['chimera', cosine])[1].config
  with preflight.claim_workdir(config, 'w'):
    _workdir('checkpoints/1000', '')
  before = pathlib.Path('w', 'config.json').read_bytes()
  argv = (cosine, '--config.train.cycles=2000', '--workdir=w')
  _is_one_line(capfd, argv, 'train.cycles (1000 there, 2000 now): give another')
  assert pathlib.Path('w', 'config.json').read_bytes() == before


@pytest.mark.parametrize(
  ('count', 'complaint'),
  [
    (2, 'at least 10 samples to train on, got 1 of f: give more images'),
    (
      30,
      '2 of 22 whole crops, got train.batch_size = 8: give --config.train.ba'
      'tch_size=2, more images, or --config.data.crop=random',
    ),
  ],
)
def test_too_few_whole_images_are_one_line_and_leave_no_workdir(
  capfd, count, complaint
):
  _photographs(count)
  argv = ('--config.data.source=f', '--config.data.crop=whole', '--workdir=w')
  _is_one_line(capfd, argv, complaint)
  assert not os.path.exists('w')


@pytest.mark.parametrize(('name', 'text', 'complaint'), WORKDIRS)
def test_a_bad_workdir_is_one_line_and_left_alone(capfd, name, text, complaint):
  _workdir(name, text)
  _is_one_line(capfd, ('--workdir=w',), complaint)
  assert pathlib.Path('w', name).read_text() == text
  assert len(list(pathlib.Path('w').iterdir())) == 1
