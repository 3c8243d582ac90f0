"""TensorBoard: what is on the disk read back, and writers that fail."""

import ctypes
import gc
import glob
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from chimera.clones import state as state_lib
from chimera.clones import terms
from chimera.evaluation import metrics
from chimera.monitor import observers, writers
from tests import tiny

NAN = float('nan')


class _Mallinfo(ctypes.Structure):
  """struct mallinfo2 of malloc.h."""

  _fields_ = [
    (name, ctypes.c_size_t)
    for name in (
      'arena',
      'ordblks',
      'smblks',
      'hblks',
      'hblkhd',
      'usmblks',
      'fsmblks',
      'uordblks',
      'fordblks',
      'keepcost',
    )
  ]


def _run(folder):
  run = event_accumulator.EventAccumulator(
    str(folder), size_guidance={event_accumulator.TENSORS: 0}
  )
  run.Reload()
  return run


def _arrays(folder, tag):
  return [
    (e.step, tensor_util.make_ndarray(e.tensor_proto))
    for e in _run(folder).Tensors(tag)
  ]


def _scalars(folder):
  """{tag: [(step, value)]} of the one run in a folder."""
  return {
    tag: [(step, float(x)) for step, x in _arrays(folder, tag)]
    for tag in _run(folder).Tags()['tensors']
  }


def test_every_clone_is_a_run_of_its_own_and_the_master_is_the_workdirs(
  tmp_path,
):
  with writers.Writers(str(tmp_path), ('a', 'b')) as board:
    board.write(5, [{'loss/l1': 1.0}, {'loss/l1': 2.0}], {'eval/psnr': 20.0})
    board.write(10, [{'loss/l1': 3.0}, {}], {})
  assert _scalars(tmp_path / 'a') == {'loss/l1': [(5, 1.0), (10, 3.0)]}
  assert _scalars(tmp_path / 'b') == {'loss/l1': [(5, 2.0)]}
  assert len(glob.glob(f'{tmp_path}/events.out.tfevents.*')) == 1
  assert _scalars(tmp_path)['eval/psnr'] == [(5, 20.0)]


def test_numbers_leave_nothing_in_memory(tmp_path):
  libc = ctypes.CDLL(None)
  libc.mallinfo2.restype = _Mallinfo
  used = []
  with writers.Writers(str(tmp_path), ()) as board:
    for step in range(50):
      board.write(step, [], {f'x/{i}': step + i / 100 for i in range(100)})
      if step in (9, 49):
        board._master._pool.join()
        gc.collect()
        used.append(libc.mallinfo2().uordblks)
  # 4,000 Python numbers would leave 2 MB.
  assert used[1] - used[0] < 0.25e6


def test_pictures_of_one_tag_lie_in_every_run(tmp_path):
  picture = np.zeros((4, 6, 3), np.uint8)
  with writers.Writers(str(tmp_path), ('a',)) as board:
    board.images(7, [{'x': picture}], {'x': picture, 'sheet': picture})
  # A picture is stored as width, height and its PNG.
  for folder, tag in ((tmp_path / 'a', 'x'), (tmp_path, 'sheet')):
    [(step, stored)] = _arrays(folder, tag)
    assert (step, stored[0], stored[1]) == (7, b'6', b'4')


def test_the_layout_names_every_tag_that_training_writes(tmp_path):
  with writers.Writers(str(tmp_path), ()) as board:
    board.introduce({}, {}, terms.TERMS)
  [(_, stored)] = _arrays(tmp_path, 'custom_scalars__config__')
  layout = layout_pb2.Layout.FromString(stored.item())
  patterns = [
    tag
    for category in layout.category
    for chart in category.chart
    for tag in chart.multiline.tag
  ]
  seen = tiny.metrics()
  spec = state_lib.create_spec(tiny.get_config())
  tags = {
    *observers.clone_scalars(seen, 0, spec.terms),
    *observers.master_scalars(seen, 1.0, spec),
    *(m.tag for m in metrics.FIGURES),
    *(m.bin(9).tag for m in metrics.FIGURES if m.by_bin is not None),
  }
  assert len(tags) > 70
  for tag in tags:
    assert any(re.match(p, tag) for p in patterns), tag
  assert len(patterns) == len(set(patterns))
  assert layout.category[0].title == 'Mission Control'
  assert not layout.category[0].closed


def test_every_chart_of_a_category_has_its_own_title():
  for category in writers.layout(terms.TERMS).category:
    titles = [chart.title for chart in category.chart]
    assert len(set(titles)) == len(titles)


def test_the_config_and_the_protocol_are_text(tmp_path):
  with writers.Writers(str(tmp_path), ()) as board:
    board.introduce({}, {'protocol': {'split': 'by photograph'}}, ())
  [(_, stored)] = _arrays(tmp_path, 'protocol')
  assert b'"split": "by photograph"' in np.ravel(stored)[0]


def test_hparams_are_the_scalars_of_the_config(tmp_path):
  from tensorboard.plugins.hparams import plugin_data_pb2

  values = {'seed': 3, 'meld.enabled': True, 'q.low': (1, 2), 'x.y': 'mass'}
  with writers.Writers(str(tmp_path), ()) as board:
    board.introduce(values, {}, ())
  metadata = _run(tmp_path).SummaryMetadata('_hparams_/session_start_info')
  data = plugin_data_pb2.HParamsPluginData.FromString(
    metadata.plugin_data.content
  )
  written = data.session_start_info.hparams
  assert set(written) == {'seed', 'meld.enabled', 'x.y'}
  assert written['seed'].number_value == 3
  assert written['meld.enabled'].bool_value


def test_a_nan_is_written_and_stops_nothing(tmp_path, warnings):
  with writers.Writers(str(tmp_path), ()) as board:
    board.write(1, [], {'loss/l1': NAN, 'loss/vq': float('inf')})
    board.write(2, [], {'loss/l1': 1.0})
  (_, first), second = _scalars(tmp_path)['loss/l1']
  assert first != first
  assert second == (2, 1.0)
  assert warnings == []


def test_a_histogram_is_of_what_is_finite(tmp_path, warnings):
  with writers.Writers(str(tmp_path), ()) as board:
    board.histograms(1, {'all': np.array([NAN, NAN]), 'one': np.zeros(0)})
    board.histograms(2, {'some': np.array([1.0, NAN, 2.0, float('inf')])})
  [(step, buckets)] = _arrays(tmp_path, 'some')
  # Rows of left edge, right edge, count.
  assert step == 2
  assert (buckets[0, 0], buckets[-1, 1], buckets[:, 2].sum()) == (1, 2, 2)
  assert warnings == []


@pytest.mark.parametrize('error', [OSError, RuntimeError, KeyError])
def test_a_writer_that_raises_is_switched_off_with_one_warning(
  tmp_path, monkeypatch, warnings, error
):
  from clu import metric_writers

  def write_scalars(self, step, scalars):
    raise error('No space left on device')

  monkeypatch.setattr(
    metric_writers.SummaryWriter, 'write_scalars', write_scalars
  )
  with writers.Writers(str(tmp_path), ('a', 'b')) as board:
    for step in range(5):
      board.write(step, [{'loss/l1': 1.0}, {}], {})
  [line] = warnings
  assert 'a is written no longer' in line
  assert 'No space left on device' in line


def test_the_others_go_on_where_one_is_switched_off(tmp_path, warnings):
  # A file where the folder of a run should be: modes are nothing to root.
  (tmp_path / 'a').write_text('in the way')
  with writers.Writers(str(tmp_path), ('a', 'b')) as board:
    for step in (1, 2):
      board.write(step, [{'x': 1.0}, {'x': 2.0}], {'y': 3.0})
      board.images(step, [{'p': np.zeros((2, 2, 3), np.uint8)}, {}], {})
  assert warnings == [
    'TensorBoard: a is written no longer, training goes on: Not a directory'
  ]
  assert _scalars(tmp_path / 'b') == {'x': [(1, 2.0), (2, 2.0)]}
  assert _scalars(tmp_path)['y'] == [(1, 3.0), (2, 3.0)]


def test_where_no_run_can_be_written_each_costs_one_warning(
  tmp_path, monkeypatch, warnings
):
  from clu import metric_writers

  def refuse(folder):
    raise PermissionError(f'Read-only: {folder}')

  monkeypatch.setattr(metric_writers, 'SummaryWriter', refuse)
  with writers.Writers(str(tmp_path), ('a', 'b')) as board:
    board.introduce({'seed': 0}, {'config': {}}, ('l1',))
    for step in (1, 2):
      board.write(step, [{'x': 1.0}, {'x': NAN}], {'y': 3.0})
      board.histograms(step, {'h': np.array([NAN])})
  names = [line.split(': ')[1].split(' is ')[0] for line in warnings]
  assert sorted(names) == ['a', 'b', 'the master']


@pytest.mark.parametrize(
  ('tensorflow', 'why'),
  [
    ('', "No module named 'tensorflow'"),
    (
      'raise TypeError("Descriptors cannot\\nbe created")',
      'Descriptors cannot',
    ),
    ('import nothing_of_that_name', "No module named 'nothing_of_that_name'"),
  ],
)
def test_without_tensorflow_one_line_says_so_and_nothing_is_written(
  tmp_path, tensorflow, why
):
  module = tmp_path / 'modules' / 'tensorflow.py'
  module.parent.mkdir()
  module.write_text(tensorflow or f'raise ModuleNotFoundError({why!r})')
  program = f"""
import sys
sys.path.insert(0, {str(module.parent)!r})
from chimera.monitor import writers
with writers.Writers({str(tmp_path / 'run')!r}, ('a', 'b')) as board:
  board.introduce({{'seed': 0}}, {{'config': {{}}}}, ('l1',))
  for step in range(3):
    board.write(step, [{{'x': 1.0}}] * 2, {{'y': 3.0}})
"""
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  # absl's own line is of a program without flags.
  [line] = (x for x in done.stderr.splitlines() if 'before flag' not in x)
  assert f'No TensorBoard, for TensorFlow cannot be imported ({why}' in line
  assert not (tmp_path / 'run').exists()


def test_tensorflow_takes_no_accelerator(tmp_path):
  # As the GPU's build has it: what it sees before, and what is left to it.
  program = f"""
from unittest import mock
import tensorflow as tf
see = tf.config.set_visible_devices
with mock.patch.object(tf.config, 'set_visible_devices', wraps=see) as told:
  from chimera.monitor import writers
  with writers.Writers({str(tmp_path)!r}, ('a',)) as board:
    board.write(1, [{{'x': 1.0}}], {{'y': 1.0}})
print(told.call_args_list == [mock.call([], 'GPU')], end=' ')
print(tf.config.get_visible_devices('GPU'), end='')
"""
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout == 'True []'
  assert _scalars(tmp_path / 'a') == {'x': [(1, 1.0)]}


def test_a_missing_clone_is_refused(tmp_path):
  with (
    writers.Writers(str(tmp_path), ('a', 'b')) as board,
    pytest.raises(ValueError, match='shorter'),
  ):
    board.write(1, [{'loss/l1': 1.0}], {})


def test_the_writers_leave_stderr_clean(tmp_path):
  program = (
    'from chimera.monitor import writers\n'
    f'with writers.Writers({str(tmp_path)!r}, ("a",)) as w:\n'
    '  w.introduce({"seed": 0}, {"config": {"seed": 0}}, ("l1",))\n'
    '  w.write(1, [{"x": 1.0}], {"y": 1.0})'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    check=True,
    cwd=os.getcwd(),
  )
  assert done.stderr == ''


def test_tensorflow_is_imported_with_the_first_that_is_written(tmp_path):
  program = (
    'import sys; from chimera.monitor import writers\n'
    f'with writers.Writers({str(tmp_path)!r}, ("a",)): pass\n'
    'sys.exit("tensorflow" in sys.modules or "jax" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', program], check=True)
  assert not list(tmp_path.iterdir())
