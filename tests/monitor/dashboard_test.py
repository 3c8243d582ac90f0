"""The dashboard: what it says, and that it fits."""

import math
import types

import pytest
import rich.cells

from chimera.clones import specialists
from chimera.monitor import dashboard, history
from tests import seen

SIZES = ((160, 48), (120, 40), (80, 24))


def _nan(rows):
  return [
    row._replace(
      clones={c: dict.fromkeys(v, math.nan) for c, v in row.clones.items()},
      master=dict.fromkeys(row.master, math.nan),
    )
    for row in rows
  ]


@pytest.mark.parametrize(
  ('width', 'height'), [*SIZES, (200, 60), (60, 14), (20, 3)]
)
@pytest.mark.parametrize(
  'rows',
  [
    [],
    seen.rows(),
    _nan(seen.rows()),
    [history.Row(50, 0.0, {'perceptual': {'loss/total': 1.0}}, {})],
  ],
  ids=['no rows', 'rows', 'nan', 'tags missing'],
)
@pytest.mark.parametrize(
  'pictures', [None, seen.pictures()], ids=['blind', 'sees']
)
def test_it_fits_the_terminal(rows, pictures, width, height):
  lines = seen.lines(seen.snapshot(rows, pictures), width, height)
  assert len(lines) == height
  assert {rich.cells.cell_len(line) for line in lines} == {width}


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_every_size_says_the_essential(width, height):
  text = '\n'.join(
    seen.lines(seen.snapshot(seen.rows(), seen.pictures()), width, height)
  )
  for name in seen.CONFIG['clone_names']:
    assert name in text
  for words, count in (
    ('0.750', 4),  # g-loss
    ('-1.50', 4),  # critic
    ('λ ssim', 4),
    ('x2.00', 4),
    ('lr 1.25e-03', 4),
    ('x1.05', 4),  # the fourth action
    ('reward +1.5', 4),
    ('explores 20 %', 4),
    ('improving', 4),
    ('20.00', 1),
    ('21.50', 1),
    ('467 of 1024', 1),
    ('279.0', 1),
    ('drift 0.62 0.62 0.62 0.62', 1),
    ('dropped 0', 1),
    ('2 cycles/s  64 images/s', 1),
    ('200 of 1000  20 %  6m40s left', 1),
    ('▀▀▀▀▀▀▀▀', 1),
  ):
    assert text.count(words) >= count, words
  if height >= 40:
    assert all(text.count(f' {term} ') >= 4 for term in seen.TERMS)


@pytest.mark.parametrize(('width', 'height'), SIZES)
def test_no_word_or_number_is_cut_however_long(width, height):
  row = seen.row(
    1000,
    perf__cycles_per_sec=12345.678,
    perf__images_per_sec=395061.7,
    codebook__used=1024.0,
    codebook__perplexity=1023.9,
    meld__dropped=1234.0,
  )
  for name in seen.CONFIG['clone_names']:
    base = specialists.base_weights(seen.CONFIG, name)['color_covariance']
    row.clones[name] |= {
      'lambda/color_covariance': 3 * base,
      'pid/error/color_covariance': -5.0,
      'pid/integral/color_covariance': -1.1,
      'pid/derivative/color_covariance': 5.0,
      'loss/total': 12345.678,
      'critic/loss': -12345.678,
      'agent/reward': -10.96,
      'agent/state': 4.0,
      'meld/drift': -0.123,
    }
  lines = seen.lines(seen.snapshot([row], now=0.0), width, height)
  text = '\n'.join(line + ' ' for line in lines)
  for words, count in (
    ('1.2e+04', 4),
    ('-1.2e+04', 4),
    ('color_covariance ', 4),
    ('x3.00 ', 4),
    ('reward -11 ', 4),
    ('rapidly improving ', 4),
    ('-0.12 -0.12 -0.12 -0.12 ', 1),
    ('1024 of 1024 ', 1),
    ('perplexity', 1),
    ('1023.9 ', 1),
    ('dropped 1234 ', 1),
    ('cycles/s  3.95e+05 images/s ', 1),
  ):
    assert text.count(words) >= count, words


def _of(count):
  """A snapshot of so many specialists, each with a learning rate of its own."""
  snapshot = seen.snapshot(seen.rows(), seen.pictures())
  return snapshot._replace(
    students=tuple(
      snapshot.students[i % 4]._replace(
        name=f'student_{i}', learning_rate=(i + 1) * 1e-3
      )
      for i in range(count)
    )
  )


@pytest.mark.parametrize('count', [1, 2, 3, 5, 8])
@pytest.mark.parametrize(
  ('width', 'height'),
  [*SIZES, (200, 60), (130, 64), (72, 50), (60, 18), (20, 3)],
)
def test_any_number_of_specialists_fits(count, width, height):
  lines = seen.lines(_of(count), width, height)
  assert len(lines) == height
  assert {rich.cells.cell_len(line) for line in lines} == {width}
  if height > 3:
    text = '\n'.join(lines)
    for i in range(count):
      assert f'lr {(i + 1) * 1e-3:.2e}' in text
    assert width < 80 or f'student_{count - 1}' in text
    drift = ' '.join(['drift', *['0.62'] * count])
    for words in ('21.50', '467 of 1024', drift, 'images/s', '6m40s left'):
      assert words in text, words


def test_columns_wrap_where_the_terminal_is_too_narrow_for_one_row():
  lines = seen.lines(_of(8), 120, 40)
  heads = [line for line in lines if 'student_' in line]
  assert [line.split('student_')[1][0] for line in heads] == ['0', '4']
  assert [line.count('student_') for line in heads] == [4, 4]
  wide = seen.lines(_of(8), 160, 40)
  assert [line.count('student_') for line in wide if 'student_' in line] == [8]
  five = seen.lines(_of(5), 80, 40)
  assert [n for n in (s.count('student_') for s in five) if n] == [3, 2]
  tall = seen.lines(_of(8), 130, 64)
  assert sum(line.count('color_covariance') for line in tall) == 8


def test_a_sparkline_goes_from_the_least_to_the_greatest():
  assert dashboard.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == '▁▂▃▄▅▆▇█'
  assert dashboard.sparkline([9, 0, 8, 4], 3) == '▁█▅'
  assert dashboard.sparkline([3, 3], 5) == '▁▁'
  assert dashboard.sparkline([1, math.nan, math.inf, 2], 5) == '▁!!█'
  assert dashboard.sparkline([-1, 0, 1, 5], 4, reach=1) == '▁▅██'
  assert dashboard.sparkline([], 5) == ''
  assert dashboard.sparkline([1], 0) == ''


def test_a_run_is_not_over_before_its_last_cycle():
  for cycle, expected in (
    (996, '996 of 1000  99 %'),
    (1000, '1000 of 1000  100 %'),
  ):
    at = types.SimpleNamespace(cycle=cycle, cycles=1000, left=12.0)
    text = ''.join(segment.text for segment in dashboard._progress(at, 80))
    assert expected in text
