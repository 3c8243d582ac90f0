"""What is printed: whatever becomes of it, the work is done."""

import os
import pathlib
import subprocess
import sys
import threading

import pytest

from chimera.system import streams

_WORK = """
import pathlib, sys
from absl import logging
import rich.console
from chimera.system import streams
with streams.spoken():
  for i in range(3):
    print(sys.argv[1], flush=True)
    rich.console.Console().print('a table')
    logging.warning('said %d', i)
  open('made.txt', 'w').write('made')
  sys.stderr.write('the end\\n')
sys.exit(7)
"""


def _run(tmp_path, redirect, *, word='a word', program=_WORK, **environment):
  (tmp_path / 'work.py').write_text(program)
  done = subprocess.run(
    ['bash', '-c', f'"$0" work.py "$1" {redirect}', sys.executable, word],
    env={
      **os.environ,
      'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
      **environment,
    },
    cwd=tmp_path,
    capture_output=True,
    text=True,
    errors='surrogateescape',
  )
  assert (tmp_path / 'made.txt').read_text() == 'made'
  return done


@pytest.mark.parametrize(
  'redirect',
  [
    *('>&-', '2>&-', '>&- 2>&-', '<&- >&- 2>&-'),
    *('> /dev/full', '2> /dev/full', '&> /dev/full'),
  ],
)
def test_work_goes_on_where_a_stream_is_closed_or_full(tmp_path, redirect):
  done = _run(tmp_path, redirect)
  assert done.returncode == 7
  assert 'Traceback' not in done.stderr + done.stdout
  assert 'Exception ignored' not in done.stderr


@pytest.mark.parametrize('which', ['', '2>&1'])
def test_work_goes_on_where_a_pipe_is_left(tmp_path, which):
  done = _run(tmp_path, f'{which} | head -1; exit ${{PIPESTATUS[0]}}')
  assert done.returncode == 7
  assert 'Traceback' not in done.stderr + done.stdout
  assert 'Exception ignored' not in done.stderr
  if not which:
    assert done.stderr.count('stdout is lost, the work goes on') == 1
    assert done.stderr.endswith('the end\n')


@pytest.mark.parametrize(
  ('word', 'said'),
  [
    ('фото', '\\u0444\\u043e\\u0442\\u043e'),
    (os.fsdecode(b'\xff'), '\\udcff'),
    ('é', '\\xe9'),
  ],
)
def test_what_an_encoding_lacks_is_said_in_escapes(tmp_path, word, said):
  done = _run(tmp_path, '', word=word, PYTHONIOENCODING='ascii')
  assert done.returncode == 7
  assert done.stdout.splitlines()[0] == said


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
  program = _WORK.replace(
    "  open('made.txt', 'w').write('made')",
    """
  f = open('made.txt', 'w')
  os.write(2, b'as C++ does')
  f.write('made')
  f.close()""",
  )
  assert program != _WORK
  _run(tmp_path, '2>&-', program=f'import os\n{program}')


def test_afterwards_the_streams_are_those_from_before(capsys):
  before = sys.stdout, sys.stderr
  with streams.spoken():
    print('within')
    assert sys.stdout is not before[0]
  assert (sys.stdout, sys.stderr) == before
  assert capsys.readouterr().out == 'within\n'


def test_what_was_logged_to_stderr_before_is_not_said_twice(tmp_path):
  program = _WORK.replace(
    'with streams.spoken():',
    """logging.info('before')
with streams.spoken():
  logging.use_absl_handler()""",
  )
  done = _run(tmp_path, '', program=program)
  assert done.stderr.count('said 1') == 1


# TIFFs whose packed pixels have a wrong checksum; and Python's own words while
# libtiff has descriptor 2.
_ODD = """
import io, os, sys, threading
from absl import flags, logging
from PIL import Image
from chimera.data import images
from chimera.system import streams
flags.FLAGS.mark_as_parsed()
logging.use_absl_handler()
logging.set_verbosity(logging.INFO)
buffer = io.BytesIO()
Image.new('RGB', (8, 8)).save(buffer, 'TIFF', compression='tiff_adobe_deflate')
odd = bytearray(buffer.getvalue())
odd[odd.find(b'x\\x9c') + 4] ^= 255
for i in range(3):
  open(f'{i}.tif', 'wb').write(odd)
def see(i):
  try:
    images.load_photograph(f'{i}.tif')
  except ValueError:
    return
  raise SystemExit('it was read')
with streams.spoken():
  for i in range(3): see(i)
  with streams.muffled():
    with streams.muffled():
      os.write(2, b'as C does\\n')
    os.write(2, b'and again\\n')
    sys.stderr.write('a bar\\n')
    logging.warning('a warning')
  os.write(2, b'an abort\\n')
sys.stderr.write('outside\\n')
see(0)
open('made.txt', 'w').write('made')
sys.exit(7)
"""


def test_what_libtiff_says_is_counted_and_not_shown(tmp_path):
  done = _run(tmp_path, '', program=_ODD)
  assert done.returncode == 7
  said = [line.rpartition('] ')[2] for line in done.stderr.splitlines()]
  assert said[0].startswith('An image library says "ZIPDecode: Decoding error')
  assert said[0].endswith('". More of that is counted, not shown.')
  assert said[1:-1] == [
    *('a bar', 'a warning', 'an abort'),
    # Those of two files, and C's two.
    '4 more line(s) of image libraries were not shown.',
    'outside',
  ]
  # Where nothing is spoken, libtiff speaks for itself.
  assert said[-1].startswith('ZIPDecode: Decoding error')


def test_what_has_no_file_to_go_to_is_not_shown_either(tmp_path):
  program = f'import tempfile\ntempfile.tempdir = "/nowhere"\n{_ODD}'
  done = _run(tmp_path, '', program=program)
  assert done.returncode == 7
  said = [line.rpartition('] ')[2] for line in done.stderr.splitlines()]
  assert said[:-1] == ['a bar', 'a warning', 'an abort', 'outside']


def test_threads_share_the_muffle_and_all_of_it_ends(capfd):
  go = threading.Barrier(4)

  def speak():
    go.wait()
    for _ in range(200):
      with streams.muffled():
        os.write(2, b'x\n')

  with streams.spoken():
    threads = [threading.Thread(target=speak) for _ in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    os.write(2, b'heard\n')
  assert capfd.readouterr().err == 'heard\n'
