"""Workdirs of any name that a file system takes: all of them hold a run."""

import json
import os
import pathlib
import tempfile

import hypothesis
from hypothesis import strategies as st
import numpy as np

from chimera.monitor import history, live, writers
from chimera.run import steps as steps_lib
from chimera.system import disk, lock
from tests import seen, sweep

# What somebody or something takes for a pattern, a place, a flag or a markup.
_PIECES = (
  *(
    b'[',
    b']',
    b'*',
    b'**',
    b'?',
    b'!',
    b'\\',
    b'{',
    b'}',
    b'~',
    b'$HOME',
    b'%',
  ),
  *(
    b' ',
    b'\n',
    b'\r',
    b'\t',
    b'\x1b[31m',
    b'\xff',
    b"'",
    b'"',
    b'[bold]',
    b'-',
  ),
  *(
    b'--',
    b'=',
    b':',
    b'gs:',
    b'file:',
    b'#',
    b'&',
    b'|',
    b';',
    b'<',
    b'>',
    b'.',
  ),
  *('фото'.encode(), '\u202e'.encode(), '日本'.encode(), b'a', b'run', b'1'),
)
NAMES = (
  st.one_of(
    st.binary(min_size=1, max_size=60),
    st.lists(st.sampled_from(_PIECES), min_size=1, max_size=6).map(b''.join),
  )
  .map(lambda data: data.translate(None, b'/\0'))
  .filter(lambda data: data not in (b'', b'.', b'..'))
)


@sweep.of(ci=15, long=500)
@hypothesis.given(NAMES)
def test_a_workdir_of_any_name_holds_a_run(data):
  tree = {'x': np.arange(6, dtype=np.float32).reshape(2, 3)}
  with tempfile.TemporaryDirectory() as home:
    workdir = os.path.join(home, os.fsdecode(data))
    with lock.hold(workdir):
      steps = steps_lib.Steps(os.path.join(workdir, 'checkpoints'), keep=1)
      steps.save(1, tree, {'name': workdir})
      step, there, extra = steps.restore(tree)
      assert (step, extra) == (1, {'name': workdir})
      np.testing.assert_array_equal(there['x'], tree['x'])
      disk.write_sealed(os.path.join(workdir, 'a.json'), {'name': workdir})
      history.History(workdir).append(50, {}, {'x': 1.0})
      look = live.Look(workdir, json.loads(json.dumps(seen.CONFIG)))
      assert look(0.0).cycle == 50
    assert disk.read_sealed(pathlib.Path(workdir, 'a.json'))['name'] == workdir
    assert sorted(os.listdir(workdir)) == [
      'a.json',
      'checkpoints',
      'history.jsonl',
    ]


@sweep.of(ci=5, long=100)
@hypothesis.given(NAMES)
def test_tensorboard_is_written_into_a_workdir_of_any_name(data):
  with tempfile.TemporaryDirectory() as home:
    workdir = os.path.join(home, os.fsdecode(data))
    os.mkdir(workdir)
    with writers.Writers(workdir, ['one']) as writing:
      writing.write(1, [{'x': 1.0}], {'x': 1.0})
    for folder in (workdir, os.path.join(workdir, 'one')):
      assert any('tfevents' in name for name in os.listdir(folder))
