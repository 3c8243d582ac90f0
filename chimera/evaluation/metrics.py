"""The one table of metrics: what each is called, and where it is shown.

TensorBoard's layout, the dashboard, the report, the last table, the ledger and
the doctor are this table, filtered, in its order. A training metric is emitted
under its tag by `step.train_step`; a held-out figure whose row names a function
is measured by it on every held-out sample. Nothing here imports JAX.
"""

from collections.abc import Callable, Mapping
import functools
from typing import NamedTuple

import numpy as np

HIGHER, LOWER = 'higher', 'lower'
HELD_OUT = 'eval/'  # begins the tags of held-out figures
TERM = '/{term}'  # ends the tags of what there is one of for each loss term
# All metrics are in TensorBoard; its overview is one page, of twelve charts.
# 'table' is the last one of a run; the last three are curves of the report.
PLACES = (
  *('overview', 'dashboard', 'table', 'report', 'card', 'ledger'),
  *('losses', 'agents', 'critics'),
)
# {tokenizer: {figure: value}}
Figures = Mapping[str, Mapping[str, float]]


class Metric(NamedTuple):
  """One row."""

  tag: str  # 'group/name', as TensorBoard and history.jsonl have it
  title: str  # in full; metrics of one title share a chart of TensorBoard
  shown: str = ''  # words of PLACES
  # For the head of a column, a soft hyphen where a word may be broken.
  short: str = ''  # '' is `title`
  # The function of `clones.perceptual` that measures it, of two batches of
  # images, (B,).
  by: str = ''  # '' where it is found in another way
  form: str = '.4f'  # of its value, in print
  unit: str = ''  # '' is none
  # Words of PLACES, where its worst bin is shown.
  by_bin: str | None = None  # None where it is not taken bin by bin
  better: str = ''  # HIGHER or LOWER; '' is neither
  of_master: bool = False  # one for all clones, in the row of the master

  @property
  def name(self) -> str:
    """What a held-out figure is called, as in evaluation.json."""
    return self.tag.removeprefix(HELD_OUT)

  @property
  def is_of_paths(self) -> bool:
    """Whether it compares path_params, not pixels."""
    return self.name.startswith('path_')

  @property
  def label(self) -> str:
    return f'{self.title} ({self.unit})' if self.unit else self.title

  @property
  def head(self) -> str:
    """Of a column, in one line."""
    return self._titled().replace('\xad', '')

  @property
  def narrow_head(self) -> str:
    """The same in lines as short as may be."""
    lines = self._titled().replace('-', '-\n').replace('\xad', '-\n')
    return lines.replace(' ', '\n')

  def _titled(self) -> str:
    return self._replace(title=self.short or self.title).label

  @property
  def best_of(self) -> Callable[..., float]:
    return max if self.better == HIGHER else min

  @property
  def worst_of(self) -> Callable[..., float]:
    """Of a list; what is no number is the worst."""
    return np.min if self.better == HIGHER else np.max

  def bin(self, b: int) -> 'Metric':
    """The figure over the samples of bin b alone."""
    return self._replace(
      tag=f'{self.tag}_bin_{b}', title=f'bin {b}', unit='', by_bin=None
    )

  def of_term(self, term: str) -> 'Metric':
    """The one of a loss term."""
    return self._replace(tag=self.tag.format(term=term), title=term)

  def worst_bin(self) -> 'Metric':
    """The figure of whichever bin it is worst in."""
    return self._replace(
      tag=f'{self.tag}_worst_bin',
      title=f'{self.title}, worst bin',
      short=f'{self.short or self.title}, worst bin',
      shown=self.by_bin,
      by='',
      by_bin=None,
    )


_up = functools.partial(Metric, better=HIGHER)
_down = functools.partial(Metric, better=LOWER)
_ALL = 'overview dashboard table report card ledger'
_CODES = 'Codebook: codes used and perplexity'
# fmt: off
_ROWS = (
  # tag, title, shown, short, by
  _down('loss/base', 'Loss, every clone by the base weights',
        'overview losses'),
  _down('loss/total', 'Loss, each clone by its own lambdas', 'overview losses'),
  Metric('agent/lr', 'Learning rate', 'overview agents', form='.2e'),
  Metric('agent/trim', 'Q-agent: trim of the learning rate', 'agents'),
  _up('agent/reward', 'Q-agent: reward', 'overview agents', form='+.1f'),
  Metric('critic/wasserstein', 'Critic: Wasserstein estimate',
         'overview critics'),
  Metric('critic/loss', 'Critic: loss', 'overview'),
  _down('critic/penalty', 'Critic: gradient penalty', 'overview critics'),
  Metric('loss/adv_share', 'Adversarial share, without its ramp', 'critics'),
  Metric('loss/vq_share', 'Commitment: share of the gradient'),
  Metric('school/fence', 'School: error, over the usual one, of an outlier',
         of_master=True),
  _down('school/outliers', 'School: outliers', form='.0f', of_master=True),
  _up('codebook/used', _CODES, 'overview', form='.0f', of_master=True),
  _up('codebook/perplexity', _CODES, 'overview', form='.1f', of_master=True),
  Metric('agent/state', 'Q-agent: state', form='.0f'),
  Metric('agent/action', 'Q-agent: action', form='.0f'),
  Metric('agent/epsilon', 'Q-agent: exploration'),
  Metric('grads/rms', 'Gradients: RMS', form='.2e'),
  Metric('meld/drift', 'Meld: cosine of own and mean step'),
  _down('meld/dropped', 'Meld: cycles left out', form='.0f'),
  _up('perf/cycles_per_sec', 'Cycles/s', form='.3g', of_master=True),
  _up('perf/images_per_sec', 'Images/s', form='.3g', of_master=True),
  _down('perf/compile_seconds', 'Compilation (s)', form='.0f', of_master=True),
  Metric('lambda/{term}', 'Lambdas'),
  _down('loss/{term}', 'Loss terms'),
  Metric('pid/error/{term}', 'PID: proportional error'),
  Metric('pid/integral/{term}', 'PID: integral'),
  Metric('pid/derivative/{term}', 'PID: derivative'),
  _up('eval/psnr', 'PSNR', _ALL, 'PSNR', 'psnr', '.2f', 'dB', 'report'),
  _up('eval/ssim', 'SSIM', _ALL, 'SSIM', 'similarity', by_bin=''),
  _up('eval/ms_ssim', 'Multi-scale SSIM', 'table report card',
      'MS-SSIM', 'ms_ssim'),
  _down('eval/pixel_l1', 'L1 of pixels', 'dashboard table report card',
        'L1 pixels', 'l1', by_bin=''),
  _down('eval/edge', 'Edge distance', 'table report ledger', 'edge', 'edge'),
  _down('eval/spectrum', 'Spectrum distance', 'table report',
        'spec\xadtrum', 'spectrum'),
  _down('eval/rfd-random', 'Frechet distance, random features',
        'table report card', 'rfd-random', form='.3g'),
  _down('eval/rfid', 'Frechet distance, Inception (rFID)',
        'table report', 'rFID', form='.2f'),
  _down('eval/features', 'Perceptual distance, features of yours',
        'table report', 'features'),
  _up('eval/optics_psnr', 'PSNR of the optics alone', form='.2f', unit='dB'),
  _up('eval/path_psnr', 'PSNR of path_params', 'dashboard table report ledger',
      'PSNR path', 'psnr', '.2f', 'dB'),
  _up('eval/path_ssim', 'SSIM of path_params', 'dashboard table',
      'SSIM path', 'similarity'),
  _down('eval/path_l1', 'L1 of path_params', _ALL,
        'L1 path', 'l1', by_bin='overview report ledger'),
  _down('eval/path_edge', 'Edge distance of path_params', 'table ledger',
        'edge path', 'edge'),
  _down('eval/path_spectrum', 'Spectrum distance of path_params', 'table',
        'spectrum path', 'spectrum'),
  _up('eval/codes_used', 'Codes used', 'table report card', form='.0f'),
  _up('eval/perplexity', 'Perplexity', 'table report card ledger',
      'perp\xadlexity', form='.1f'),
)
# fmt: on
TABLE = tuple(
  one
  for row in _ROWS
  for one in ((row,) if row.by_bin is None else (row, row.worst_bin()))
)
BY_TAG = {metric.tag: metric for metric in TABLE}
FIGURES = tuple(m for m in TABLE if m.tag.startswith(HELD_OUT))


def shown(place: str) -> list[Metric]:
  """The rows of a place, in their order."""
  return [m for m in TABLE if place in m.shown.split()]
