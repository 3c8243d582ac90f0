"""report.html: whole, of itself alone, and true to what it is made from."""

import base64
import io
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from chimera.clones import models
from chimera.data import crops as crops_lib
from chimera.data import fingerprints
from chimera.evaluation import evaluate, sheets
from chimera.monitor import curves, history, report
from tests import tiny

NAMES = ('perceptual', 'structural', 'a <b>', 'latent_purity')
BASE = {'l1': 1.0, 'vq': 0.5, 'adv': 0.0}
ROWS = [
  {
    'name': name,
    'bins': (i,),
    'samples': 12,
    'g_loss': 0.51234,
    'critic_loss': -0.25,
    'dominant': 'l1',
    'dominance': 2.0,
    'learning_rate': 1.25e-3,
  }
  for i, name in enumerate(NAMES)
]
BASES = {row['name']: BASE for row in ROWS}
SECTIONS = (
  'Summary',
  'Curves',
  'Contact sheets',
  'Codebook',
  'Curriculum',
  'Protocol',
)


@pytest.fixture(scope='module')
def subject():
  bins, paths = tiny.bins_and_paths()
  tokenizer = models.create_tokenizer(
    width=8, blocks=1, downsample=2, codes=10, code_dim=4
  )
  params = jax.jit(tokenizer.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))[
    'params'
  ]
  counts_V = np.array([0, 5, 0, 1, 9, 2, 3, 4, 0, 1])
  scores_N = paths[..., 2].mean((1, 2))
  return report.Subject(
    *(tokenizer, params, None, counts_V, paths, [], scores_N, bins),
    outliers=np.array([bins[9][-1], bins[0][0]]),
  )


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """What a run leaves of itself; one loss of one clone was not finite."""
  home = tmp_path_factory.mktemp('run') / os.fsdecode(b'r\xff <i>[1]')
  home.mkdir()
  log = history.History(str(home))
  for cycle in (2, 4, 6):
    values = {
      **{f'{group}/{t}': 1.0 for group in ('loss', 'lambda') for t in BASE},
      **{'loss/base': float('nan'), 'loss/total': float('inf')},
      **{'agent/lr': 1e-3, 'agent/trim': 1.0, 'agent/reward': 0.0},
      **{'critic/wasserstein': 0.1, 'critic/penalty': 0.2},
    }
    log.append(cycle, {name: values for name in NAMES}, {'x': 1.0})
  log.append(6, {}, {'eval/path_l1': 0.1, 'eval/codes_used': 7.0})
  log.append(8, {}, {'eval/path_l1': 7.0})  # of a longer run, before
  figures = {'path_l1': 0.125, 'path_l1_bin_3': 0.1, 'codes_used': 7.0}
  evaluation = {
    f'{name}/{k}': v
    for name in ('master', 'ema', *NAMES)
    for k, v in figures.items()
  }
  protocol = {'split': 'by photograph', 'count': 5, 'seed': 0}
  protocol |= {'cycles': 6, 'images_seen': 96}
  (home / 'evaluation.json').write_text(
    json.dumps({**evaluation, 'protocol': protocol})
  )
  (home / 'previews').mkdir()
  (home / 'previews' / 'best.png').touch()  # not ours
  sheet = sheets.Sheet(8, 2, 20, 50, ('original', 'master'), (0,))
  tiles = np.zeros((2, 1, 8, 8, 3), np.uint8)
  for cycle in range(1, 10):
    sheets.save(
      home / 'previews' / f'{cycle:07d}.png',
      sheets.compose(tiles, sheet),
      sheet,
    )
  return home


@pytest.fixture(scope='module')
def page(workdir, subject):
  path = report.write(workdir, subject, ROWS, base=BASES, image_size=8, chunk=4)
  with open(path, encoding='utf-8') as f:
    return f.read()


def test_the_report_needs_nothing_but_itself(page):
  assert 'http://' not in page
  assert 'https://' not in page
  assert '<script' not in page
  sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
  assert len(sources) > 20
  assert all(source.startswith('data:image/') for source in sources)


def test_every_section_is_there(page):
  assert tuple(re.findall(r'<h2>([^<]*)</h2>', page)) == SECTIONS


def test_outliers_are_shown_behind_the_bins(page):
  strips = dict(
    re.findall(r'alt="([^"]*)" src="data:image/png;base64,([^"]*)"', page)
  )
  bins = [f'Samples of bin {b}' for b in range(10)]
  assert list(strips)[-11:] == [*bins, 'Outliers']
  hardest, easiest, found = (
    np.array(Image.open(io.BytesIO(base64.b64decode(strips[name]))))
    for name in (bins[9], bins[0], 'Outliers')
  )
  assert found.shape == hardest.shape
  side = (found.shape[1] + 2) // 10
  first, second = np.split(found[:, : 2 * side], 2, axis=1)
  np.testing.assert_array_equal(first[:, :-2], hardest[:, 2 - side :])
  np.testing.assert_array_equal(second, easiest[:, :side])
  assert (found[:, 2 * side :] == 255).all()
  assert '<b>Outliers</b><small>2 samples' in page


def test_every_picture_is_whole(page):
  found = re.findall(r'src="data:([^;]*);base64,([^"]*)"', page)
  for kind, text in found:
    data = base64.b64decode(text, validate=True)
    if kind == 'image/png':
      Image.open(io.BytesIO(data)).verify()
    else:
      assert b'</svg>' in data


def test_the_curves_are_there_by_their_titles(page):
  titles = re.findall(r'alt="([^"]*)" src="data:image/svg', page)
  assert len(titles) == 8
  assert titles[0] == 'Losses'
  assert 'Held out, by bin: L1 of path_params' in titles


def test_the_figures_are_those_of_the_evaluation(page):
  assert '<b>0.1250</b><span>L1 path</span>' in page
  assert '<td>1.25e-03</td>' in page
  assert '6 cycles, 96 images seen' in page


@pytest.mark.parametrize('count', [2, 3, 5, 8])
def test_any_number_of_clones_has_a_row_in_its_color(count):
  rows = [{**ROWS[0], 'name': f'clone {i}'} for i in range(count)]
  colors = curves.palette([row['name'] for row in rows])
  clones, *_ = report._summary(rows, {'master': {'path_l1': 0.5}}, colors)
  assert clones.count('<tr>') == count + 1
  for row in rows:
    assert f'background:{colors[row["name"]]}"></span>{row["name"]}<' in clones


def test_names_are_escaped(page):
  assert 'a &lt;b&gt;' in page
  assert 'a <b>' not in page
  assert '<title>Chimera: ' in page
  assert 'r\\udcff &lt;i&gt;[1]</title>' in page


def test_of_many_sheets_a_few_are_shown_the_last_one_first(page):
  # Those of cycles 7 to 9 are of a longer run.
  assert '6 of 6 evaluations' in page
  cycles = re.findall(r'<figcaption>Cycle (\d+)<', page)
  assert (cycles[0], cycles[-1], len(cycles)) == ('6', '1', 6)


def test_used_and_unused_codes_are_all_the_codes(page):
  counts = re.findall(r'<figcaption>(\d+) codes (used|unused)', page)
  assert counts == [('7', 'used'), ('3', 'unused')]


def test_there_is_a_patch_for_each_code(subject):
  tokenizer, params = subject.tokenizer, subject.params
  codes = np.arange(9, -1, -1)
  patches = report.codebook(tokenizer, params, None, codes, chunk=4)
  # Two tokens a side, of two cells each.
  assert patches.shape == (10, 4, 4, 3)
  for code in (0, 9):
    tokens = jnp.full((1, 6, 6), code)
    x = tokenizer.apply({'params': params}, tokens, method='detokenize')
    expected = np.rint((np.asarray(x)[0, 4:8, 4:8] + 1) * 127.5)
    np.testing.assert_allclose(patches[9 - code], expected, atol=1)


def test_of_many_codes_the_most_used_are_drawn(subject, monkeypatch):
  monkeypatch.setattr(report, '_CODES', 3)
  counts = np.array([0, 5, 0, 0, 7, 0, 0, 0, 1, 2])
  drawn = []
  monkeypatch.setattr(
    report,
    'codebook',
    lambda *a, **_: drawn.append(a[3]) or np.zeros((3, 4, 4, 3), np.uint8),
  )
  page = ''.join(report._codebook(subject._replace(counts_V=counts), 4))
  assert drawn[0].tolist() == [4, 1, 9]
  assert '4 codes used on the held-out samples, 3 of them here' in page
  assert 'unused' not in page


def test_what_is_missing_raises_what_training_catches(tmp_path, subject):
  with pytest.raises(report.FAILURES):
    report.write(tmp_path, subject, ROWS, base=BASES, image_size=8, chunk=4)
  assert not (tmp_path / 'report.html').exists()


def test_a_photograph_that_was_replaced_is_not_shown_as_a_sample(
  tmp_path, subject, monkeypatch
):
  files = [str(tmp_path / f'{i}.bmp') for i in range(3)]
  for i, file in enumerate(files):
    Image.new('L', (8, 8), 10 * i).save(file)
  subject = subject._replace(
    crops=[crops_lib.Crop(file, 0, 0, 8) for file in files],
    eyes=evaluate.Eyes(None, None),
  )
  taken = fingerprints.look_again({}, {file: file for file in files})
  (tmp_path / 'optics').mkdir()
  fingerprints.write(tmp_path / 'optics' / 'sources.json', taken)
  monkeypatch.setattr(evaluate, 'draw', lambda x, eyes: 'drawn')
  Image.new('L', (8, 8), 200).save(files[2])
  for ids_X, what in (([0, 1], 'the photographs'), ([0, 2], 'as the optics')):
    pictures, said = report._samples(tmp_path, subject, ids_X, 8)
    assert said.startswith(what)
    if what == 'as the optics':
      assert pictures == 'drawn'
    else:
      assert pictures[:, 0, 0, 0].tolist() == [0, 10]
