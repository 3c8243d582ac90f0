"""The last table of a run."""

import io
import subprocess
import sys

import rich.console

from chimera.evaluation import metrics
from chimera.monitor import summary as summary_lib

CLONES = [
  {
    'name': name,
    'bins': bins,
    'samples': 30,
    'g_loss': 0.51234,
    'critic_loss': -0.25,
    'dominant': dominant,
    'dominance': ratio,
    'learning_rate': 1.25e-3,
  }
  for name, bins, dominant, ratio in (
    ('perceptual', (9,), 'ssim', 3.0),
    ('structural', (0, 1, 2, 3), 'l1', 2.0),
    ('adversarial', (4, 5, 6), 'adv', 4.5),
    ('latent_purity', (8, 7), 'varentropy', 5.0),
  )
]
MASTER = {
  'psnr': 24.5678,
  'ssim': 0.81,
  'ms_ssim': 0.9,
  'pixel_l1': 0.05,
  'edge': 0.125,
  'spectrum': 0.25,
  'rfd-random': 0.0123456,
  'rfid': 23.456,
  'path_l1': 0.07,
  'codes_used': 1024.0,
  'perplexity': 444.25,
  'psnr_bin_0': 31.0,
  'psnr_bin_9': 18.5,
  'psnr_worst_bin': 18.5,
  'path_l1_bin_0': 0.02,
  'path_l1_bin_9': 0.125,
  'path_l1_worst_bin': 0.125,
}
FIGURES = {
  name: MASTER for name in ('master', 'ema', *(row['name'] for row in CLONES))
}
PROTOCOL = {'split': 'held out by photograph', 'count': 256, 'commit': '12ab+'}


def _render(renderable, width=80):
  console = rich.console.Console(file=io.StringIO(), width=width)
  console.print(renderable)
  return console.file.getvalue()


def test_importing_it_imports_no_jax():
  program = (
    'import sys; from chimera.monitor import summary; '
    'sys.exit("tensorflow" in sys.modules or "jax" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def _rows(text):
  """The cells of each line by its first one, those met last."""
  return {
    line.split()[0]: line.split() for line in text.splitlines() if line.strip()
  }


def test_the_table_names_every_student_with_its_figures():
  text = _render(summary_lib.summary(CLONES, {'master': MASTER}, PROTOCOL))
  rows = _rows(text)
  assert rows['perceptual'][1:] == (
    ['9', '30', '0.5123', '-0.2500', 'ssim', 'x3.00', '1.25e-03']
  )
  assert rows['structural'][1] == '0-3'
  assert rows['latent_purity'][1] == '7-8'


def test_every_tokenizer_has_a_row_of_held_out_figures():
  rows = _rows(_render(summary_lib.summary([], FIGURES, PROTOCOL)))
  for name in FIGURES:
    assert rows[name][1:] == (
      ['24.57', '0.8100', '0.9000', '0.0500', '0.1250', '0.2500', '0.0123']
      + ['23.46', '1024', '444.2']
    )


def test_the_bins_of_the_master_and_its_worst_have_a_row_each():
  rows = _rows(_render(summary_lib.summary([], FIGURES, PROTOCOL)))
  assert rows['all'] == ['all', '24.57', '0.0700']
  assert rows['0'] == ['0', '31.00', '0.0200']
  assert rows['9'] == ['9', '18.50', '0.1250']
  assert rows['worst'] == ['worst', '18.50', '0.1250']
  assert '5' not in rows


def test_the_protocol_is_printed_below_the_figures():
  text = _render(summary_lib.summary([], FIGURES, PROTOCOL))
  lines = [line.strip() for line in text.splitlines()]
  assert [line for line in lines if line][-4:] == [
    'Protocol',
    'split: held out by photograph',
    'count: 256',
    'commit: 12ab+',
  ]


def test_the_tables_fit_80_columns_and_cut_nothing_short():
  clones = [{**CLONES[3], 'dominant': 'color_covariance', 'samples': 1000000}]
  summary = summary_lib.summary(clones, FIGURES, PROTOCOL)
  text = _render(summary, width=200)
  assert max(map(len, map(str.rstrip, text.splitlines()))) <= 80
  assert '…' not in _render(summary, width=80)


def test_any_number_of_clones_has_a_row_each():
  clones = [{**CLONES[i % 4], 'name': f'clone_{i}'} for i in range(8)]
  figures = {name: MASTER for name in ('master', *(c['name'] for c in clones))}
  text = _render(summary_lib.summary(clones, figures, PROTOCOL))
  assert all(text.count(f'clone_{i} ') == 2 for i in range(8))


def test_figures_that_find_no_room_stand_in_a_further_table(monkeypatch):
  more = metrics.Metric('eval/gradient_l1', 'Gradient L1', 'table')
  monkeypatch.setattr(metrics, 'TABLE', (*metrics.TABLE, more))
  figures = {name: {**of, 'gradient_l1': 0.25} for name, of in FIGURES.items()}
  text = _render(summary_lib.summary([], figures, PROTOCOL))
  assert '…' not in text
  first, second = text.split('Held out, further')
  assert '24.57' in first
  assert 'Gradient' not in first
  assert all(_rows(second)[name] == [name, '0.2500'] for name in FIGURES)


def test_an_evaluation_has_no_table_of_clones():
  text = _render(summary_lib.summary([], FIGURES, PROTOCOL))
  assert 'student' not in text
  assert '24.57' in text


def test_the_table_without_pixels_shows_what_there_is():
  master = {
    'path_l1': 0.1,
    'path_l1_bin_3': 0.1,
    'path_l1_worst_bin': 0.1,
    'perplexity': float('nan'),
  }
  figures = {'master': master}
  text = _render(summary_lib.summary(CLONES, figures, PROTOCOL))
  assert 'PSNR' not in text
  assert 'L1 path' in text
  assert 'nan' in text


def test_a_narrow_terminal_still_gets_the_whole_table(capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '30')
  summary_lib.show(summary_lib.summary(CLONES, FIGURES, PROTOCOL))
  assert 'latent_purity' in capsys.readouterr().out


def test_long_names_are_folded_and_no_number_is_cut():
  clones = [{**row, 'name': 40 * letter} for row, letter in zip(CLONES, 'abcd')]
  figures = {row['name']: MASTER for row in clones} | {'master': MASTER}
  text = _render(summary_lib.summary(clones, figures, PROTOCOL), width=80)
  assert '…' not in text
  assert max(map(len, map(str.rstrip, text.splitlines()))) <= 80
  assert text.count('1.25e-03') == 4
  assert text.count('b') >= 80
