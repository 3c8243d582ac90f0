"""The curves of a run: which are drawn, where, and in whose color."""

import itertools
import math
import re
from xml.etree import ElementTree

from matplotlib import figure
import pytest

from chimera.monitor import curves, history
from chimera.run import audition

COLORS = curves.palette(('one', 'two'))
BASE = {c: {'l1': 1.0, 'vq': 0.5, 'adv': 0.0} for c in COLORS}
FIGURES = {'path_l1': 0.125, 'path_l1_bin_3': 0.1, 'path_l1_bin_4': 0.2}
LAMBDAS = 'Lambdas against their base'


def rows(cycles=(2, 4, 6), **values):
  tags = {k.replace('__', '/'): v for k, v in values.items()}
  seen = [history.Row(c, 0.0, {'one': tags, 'two': {}}, {}) for c in cycles]
  return [*seen, history.Row(6, 0.0, {}, {'eval/path_l1': 0.1})]


def draw(seen, figures=FIGURES, colors=COLORS):
  """Each picture is drawn when it comes to it."""
  return curves.draw(seen, {'master': figures}, colors, BASE)


def picture(title, seen, figures=FIGURES, colors=COLORS):
  return next(svg for t, svg in draw(seen, figures, colors) if t == title)


@pytest.fixture(scope='module')
def pictures():
  return list(draw(rows()))


def texts(svg):
  """Matplotlib draws letters as shapes and names them in a comment."""
  return re.findall('<!-- (.*?) -->', svg.decode())


def lines(svg, color):
  """[(x, y), ...] of each unbroken line, in points from the top left."""
  found = []
  for path in ElementTree.fromstring(svg).findall('.//{*}path'):
    style = path.get('style', '')
    if path.get('clip-path') and f'stroke: {color.lower()}' in style:
      for part in path.get('d', '').split('M')[1:]:
        pairs = [pair.split() for pair in part.split('L')]
        found.append([(float(x), float(y)) for x, y in pairs])
  return found


def points(svg, color):
  uses = ElementTree.fromstring(svg).findall('.//{*}use')
  return sum(f'fill: {color.lower()}' in use.get('style', '') for use in uses)


def test_the_clones_keep_their_colors_and_differ():
  names = ('perceptual', 'structural', 'adversarial', 'latent_purity')
  colors = curves.palette(names)
  assert list(colors) == list(names)
  assert len(set(colors.values())) == len(names)
  assert colors == curves.palette(names)
  assert len({*curves.palette(tuple('abcdefghijkl')).values()}) == 12


@pytest.mark.parametrize('count', [2, 3, 5, 8])
def test_any_number_of_clones_is_drawn(count):
  names = [f'clone {i}' for i in range(count)]
  seen = [
    history.Row(
      c, 0.0, {n: {'loss/base': float(c + i)} for i, n in enumerate(names)}, {}
    )
    for c in (1, 2)
  ]
  seen.append(history.Row(2, 0.0, {}, {'eval/path_l1': 0.1}))
  colors = curves.palette(names)
  svg = picture('Losses', seen, colors=colors)
  assert sum(len(lines(svg, c)) for c in colors.values()) == count


def test_each_figure_is_drawn_once_under_its_title(pictures):
  assert [title for title, _ in pictures] == [
    'Losses',
    'Loss terms, unweighted',
    LAMBDAS,
    'Learning rates and the agents that trim them',
    'Critics',
    'Held out',
    'Held out, by bin: L1 of path_params',
    'Held out, by bin, at the last evaluation',
  ]
  for title, svg in pictures:
    assert ElementTree.fromstring(svg).tag.endswith('}svg')
    assert texts(svg)[-1] == title


def test_no_picture_tells_when_it_was_drawn(pictures):
  for _, svg in pictures:
    assert b'<dc:date>' not in svg


def test_a_lambda_is_drawn_in_multiples_of_its_base():
  svg = picture(LAMBDAS, rows(lambda__l1=1.0, lambda__vq=1.0))
  l1, vq = lines(svg, COLORS['one'])
  mark_l1, mark_vq = lines(svg, '#888888')
  # At its base it lies on the mark; at twice its base above it.
  assert {y for _, y in l1} == {y for _, y in mark_l1}
  assert max(y for _, y in vq) < min(y for _, y in mark_vq)


def test_a_term_that_is_off_has_no_lambda():
  seen = rows(lambda__l1=1.0, lambda__vq=1.0, lambda__adv=0.0)
  assert 'adv' in texts(picture('Loss terms, unweighted', seen))
  assert 'adv' not in texts(picture(LAMBDAS, seen))


def test_what_is_not_finite_is_a_gap_in_its_curve():
  seen = rows((2, 4, 6, 8, 10))
  for row, value in zip(seen, (1.0, 2.0, float('nan'), 4.0, 5.0)):
    row.clones['one'] = {'loss/base': value, 'loss/total': float('inf')}
  svg = picture('Losses', seen)
  assert [len(line) for line in lines(svg, COLORS['one'])] == [2, 2]
  assert points(svg, COLORS['one']) == 4


@pytest.mark.parametrize(('count', 'marked'), [(30, 30), (31, 0)])
def test_the_points_of_a_curve_are_marked_where_they_are_few(count, marked):
  svg = picture('Losses', rows(range(1, count + 1), loss__base=1.0))
  assert points(svg, COLORS['one']) == marked


def test_who_has_no_values_has_no_curve():
  svg = picture('Losses', rows(loss__base=1.0))
  assert len(lines(svg, COLORS['one'])) == 1
  assert lines(svg, COLORS['two']) == []


def test_only_bins_that_were_evaluated_have_a_panel(pictures):
  svg = dict(pictures)['Held out, by bin: L1 of path_params']
  assert [text for text in texts(svg) if text.startswith('bin')] == [
    'bin 3',
    'bin 4',
  ]


def test_where_there_are_photographs_the_bins_are_judged_by_psnr():
  figures = {**FIGURES, 'psnr': 20.0, 'psnr_bin_0': 21.0}
  assert picture('Held out, by bin: PSNR (dB)', rows(), figures)


def test_the_last_evaluation_goes_from_easy_to_hard(pictures):
  svg = dict(pictures)['Held out, by bin, at the last evaluation']
  (((x3, y3), (x4, y4)),) = lines(svg, curves.MASTER)
  assert x3 < x4
  assert y3 > y4  # 0.1 lies below 0.2


def test_the_audition_is_drawn_over_the_logarithm_of_the_rate():
  rates, losses = [1e-3, 1e-2, 1e-1], [3.0, 1.0, 2.0]
  held = audition.Audition(rates, losses, 3e-2)
  title, svg = curves.draw_audition(held)
  assert title == 'The audition'
  assert 'the rate of the run, 0.03: higher, for it is longer' in texts(svg)
  (a, top), (b, low), (c, middle) = max(lines(svg, curves.MASTER), key=len)
  assert b - a == pytest.approx(c - b, abs=0.1)
  assert low - top == pytest.approx(2 * (low - middle), abs=0.1)


def test_a_rate_whose_loss_is_not_finite_leaves_a_gap():
  held = audition.Audition([1e-3, 1e-2, 1e-1, 1.0], [3.0, 1.0, 2.0, None], 3e-2)
  _, svg = curves.draw_audition(held)
  assert points(svg, curves.MASTER) == 3


def test_an_audition_in_which_nobody_learned_says_so():
  held = audition.Audition([1e-3, 1e-2], [None, None], 3e-2)
  _, svg = curves.draw_audition(held)
  assert 'the rate of the run, 0.03, as given: none learned' in texts(svg)


@pytest.mark.parametrize('most', [2.4e-5, 3.1e-4, 1.2e-3, 0.9, 24.5, 99999.0])
@pytest.mark.parametrize('least', [0.0, -1.0])
def test_no_number_is_cut_off_or_lies_in_another_panel(
  monkeypatch, most, least
):
  drawn = []
  save = figure.Figure.savefig
  monkeypatch.setattr(
    figure.Figure,
    'savefig',
    lambda self, *args, **how: drawn.append(self) or save(self, *args, **how),
  )
  x = [0, 50_000]
  panels = {f'panel {i}': [(x, [least * most, most], '#000')] for i in range(7)}
  curves._picture('Seven', panels, columns=5)
  (picture,) = drawn
  boxes = [ax.get_tightbbox() for ax in picture.axes]
  whole = picture.bbox
  for box in boxes:
    assert box.x0 >= whole.x0
    assert box.x1 <= whole.x1
    assert box.y0 >= whole.y0
  for one, other in itertools.combinations(boxes, 2):
    assert not one.overlaps(other)


def test_each_clone_is_drawn_against_its_own_base():
  base = {'one': {'l1': 2.0}, 'two': {'l1': 4.0}}
  tags = {'one': {'lambda/l1': 2.0}, 'two': {'lambda/l1': 4.0}}
  seen = [history.Row(c, 0.0, tags, {}) for c in (2, 4)]
  drawn = curves.draw(seen, {'master': FIGURES}, COLORS, base)
  svg = next(svg for title, svg in drawn if title == LAMBDAS)
  [one], [two] = (lines(svg, COLORS[c]) for c in COLORS)
  assert one == two


def test_without_a_history_there_are_the_pictures_of_the_figures():
  drawn = [title for title, _ in draw([])]
  assert 'Held out' not in drawn
  assert drawn[-1] == 'Held out, by bin, at the last evaluation'
  drawn = [title for title, _ in draw([], {'path_l1': 0.125})]
  assert not [title for title in drawn if title.startswith('Held out')]


REGRETS = {
  'control': {'tuned': [0.0, 0.0], 'rate*3': [2.0, math.inf]},
  'default': {'rare': [math.inf], 'tuned': [-0.25, 0.75]},
}


def test_regrets_have_a_point_a_method_and_condition():
  there = ['tuned', 'rate*3', 'rare']
  assert curves.points(REGRETS, there) == {
    'control': [(-0.1, 0.0, 0.0, 0.0), (0.9, 1000.0, 200.0, 1000.0)],
    'default': [(0.1, 25.0, -25.0, 75.0), (2.1, 1000.0, 1000.0, 1000.0)],
  }
  drawn = texts(curves.draw_regrets(REGRETS, there))
  assert {*there, *REGRETS} <= {*drawn}


def test_any_number_of_methods_stand_with_their_condition():
  found = {f'method {i}': {'a': [0.1], 'b': [0.2]} for i in range(16)}
  shown = curves.points(found, ['a', 'b'])
  assert max(of[0][0] for of in shown.values()) < 0.5
  assert min(of[1][0] for of in shown.values()) > 0.5
  assert {*found} <= {*texts(curves.draw_regrets(found, ['a', 'b']))}
