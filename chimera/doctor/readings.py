"""A run read from its files: its curves, and what is known of its data.

Nothing here needs JAX.
"""

import hashlib
import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from chimera.clones import terms
from chimera.data import arrays, fingerprints
from chimera.data import crops as crops_lib
from chimera.evaluation import metrics
from chimera.monitor import history
from chimera.run import config_json

# The master's figures that are compared, by the names of their curves.
HELD_OUT = {
  'held_out_l1': metrics.BY_TAG['eval/path_l1'],
  'held_out_psnr': metrics.BY_TAG['eval/psnr'],
}
# What a clone has in the row of a log cycle.
_LOGGED = {'loss/base', 'pid/error/l1'}
# Rows around a cycle by which a noisy quantity is judged.
_NEAR = 3
_AT_LIMIT = 1e-3  # of log weight
# Most samples that are looked into.
_PROBED = 4096
# Greatest deviation, or gradient, of a picture that shows nothing.
_FLAT = 2e-3


class Run(NamedTuple):
  """A run as its workdir tells of it."""

  workdir: str
  settings: dict[str, Any]  # its config, flat: {'train.cycles': 1000, ...}
  clones: tuple[str, ...]  # names
  rows: list[history.Row]  # of training
  exams: list[history.Row]  # of evaluation
  shape: tuple[int, ...]  # (H, W, C) of a sample

  @property
  def cycles(self) -> int:
    """Done so far."""
    return self.rows[-1].cycle

  @property
  def terms(self) -> tuple[str, ...]:
    """Names of the loss terms that the PID weighs."""
    tags = self.rows[-1].clones[self.clones[0]]
    return tuple(t for t in terms.TERMS if f'pid/error/{t}' in tags)

  @property
  def codes(self) -> int:
    """The most codes that one cycle's lessons can use."""
    h, w = (n // self.settings['model.downsample'] for n in self.shape[:2])
    batch = self.settings['train.batch_size'] * len(self.clones)
    return max(1, min(terms.codes_of(self.model), h * w * batch))

  @property
  def is_auditioned(self) -> bool:
    """Whether its learning rate was found."""
    return self.settings['train.audition'] and not self.settings['init_from']

  @property
  def rate(self) -> float:
    """The learning rate before its trims: as seen, where one was found."""
    given = self.settings['train.learning_rate']
    if not self.is_auditioned:
      return given
    seen = self.of_clones('agent/lr') / self.of_clones('agent/trim')
    return float(np.max(seen, initial=0.0, where=np.isfinite(seen))) or given

  @property
  def model(self) -> dict[str, Any]:
    """Its config.model."""
    return {
      k.removeprefix('model.'): v
      for k, v in self.settings.items()
      if k.startswith('model.')
    }

  def after(self, share: float) -> np.ndarray:
    """Which rows come after a share of what was done."""
    return np.array([row.cycle for row in self.rows]) > share * self.cycles

  def of_clones(self, tag: str) -> np.ndarray:
    """A tag of every clone in every training row, (rows, clones)."""
    return np.array(
      [
        [row.clones[name].get(tag, math.nan) for name in self.clones]
        for row in self.rows
      ]
    )

  def of_terms(self, group: str) -> np.ndarray:
    """group/term of every loss term, (rows, clones, terms)."""
    return np.stack([self.of_clones(f'{group}/{t}') for t in self.terms], -1)

  def of_master(self, tag: str) -> np.ndarray:
    """A tag of the master in every training row, (rows,)."""
    return np.array([row.master.get(tag, math.nan) for row in self.rows])


class Curve(NamedTuple):
  """A quantity by cycle."""

  cycles: np.ndarray
  values: np.ndarray


def read_run(workdir: str) -> Run:
  """Reads a run from its workdir.

  Raises:
    ValueError: there is no run, a file of it is broken, or it has not come to
      its first log cycle.
  """
  home = pathlib.Path(workdir)
  for name, what in (
    (config_json.NAME, 'fix --workdir'),
    (history.NAME, 'it has not begun to train yet'),
  ):
    if not (home / name).is_file():
      raise ValueError(f'A run has its {name}, got none in {workdir}: {what}.')
  settings = dict(sorted(config_json.read(workdir).items()))
  clones = tuple(settings['clone_names'])
  rows = history.read(workdir, settings['train.cycles'])
  taught = [
    row
    for row in rows
    if all(row.clones.get(name, {}).keys() >= _LOGGED for name in clones)
  ]
  if not taught:
    raise ValueError(
      f'{home / history.NAME} must have the row of a log cycle, got none: '
      'train on, or fix --workdir.'
    )
  side = settings['data.image_size'] // settings['optics.cell']
  shape = side, side, 3
  if (home / 'latents.npy').is_file():
    shape = arrays.read_latents(home / 'latents.npy').shape[1:]
  exams = [row for row in rows if 'eval/path_l1' in row.master]
  return Run(workdir, settings, clones, taught, exams, shape)


def figures(run: Run) -> dict[str, float]:
  """What is known of the data, in one number each; {} where they are gone.

  gradient: its median magnitude. correlation: Spearman's, of it with
  complexity. spread: of complexity, from the 10th to the 90th percentile over
  the median. flat: share of the samples that show nothing. identical: share
  that are copies of others. photographs: how many are trained on. copies: near
  copies as a share of the files, held-out ones too. lesson: samples in the
  smallest lesson. repeats: times that one of its samples is drawn from it in
  the whole run. outliers: share that the School found beyond all others, when
  last told.

  Raises:
    ValueError: a file of them is broken.
  """
  home = pathlib.Path(run.workdir)
  names = 'manifest.csv', 'optics/crops.csv', 'latents.npy'
  if not all((home / name).is_file() for name in names):
    return {}
  crops, scores_N = crops_lib.read_manifest(home / 'manifest.csv')
  _, gradients_N = crops_lib.read_manifest(home / 'optics/crops.csv')
  paths = arrays.read_latents(home / 'latents.npy')
  counts = [len(crops), len(gradients_N), len(paths)]
  if len({*counts}) > 1:
    raise ValueError(
      f'{", ".join(names)} in {run.workdir} must be of equally many samples, '
      f'got {", ".join(map(str, counts))}: make them anew in another --workdir.'
    )
  evenly = np.linspace(0, len(paths) - 1, _PROBED).astype(int)
  some = paths[np.unique(evenly)]
  low, median, high = np.percentile(scores_N, (10, 50, 90))
  found = {
    'spread': float((high - low) / max(median, 1e-12)),
    'identical': identical(paths, scores_N),
    # The same at every place of the grid.
    'flat': float(np.mean(some.std((1, 2)).max(-1) < _FLAT)),
  }
  if np.isfinite(gradients_N).all():  # there are images
    found['gradient'] = float(np.median(gradients_N))
    found['flat'] = float(np.mean(gradients_N < _FLAT))
    found['photographs'] = len({crop.source for crop in crops})
    found |= _copies(home / 'optics')
    if np.ptp(gradients_N) > 0 and np.ptp(scores_N) > 0:
      from scipy import stats  # half a second

      rank = stats.spearmanr(scores_N, gradients_N).statistic
      found['correlation'] = float(rank)
  s = run.settings
  if s['school.enabled']:
    bins = min(len(s[f'specialists.{name}.bins']) for name in run.clones)
    found['lesson'] = len(scores_N) * bins // 10
    drawn = s['train.cycles'] * s['train.batch_size'] * (1 - s['school.mix'])
    found['repeats'] = drawn / max(found['lesson'], 1)
    if run.rows:
      last = run.rows[-1].master.get('school/outliers', 0.0)
      found['outliers'] = last / len(scores_N)
  return found


def identical(paths_NxHxWxC: np.ndarray, scores_N: np.ndarray) -> float:
  """Share of the samples that are copies; of very many, as some tell.

  Of equal ones the first is none.

  Equal samples have equal scores: by these, whole groups are looked into.
  """
  rounded_N = np.round(scores_N / max(np.median(scores_N), 1e-12), 5)
  _, group_N, counts = np.unique(
    rounded_N, return_inverse=True, return_counts=True
  )
  by_chance = np.random.default_rng(0).permutation(len(counts))
  rows = np.argsort(by_chance[group_N], kind='stable')
  rows = rows[counts[group_N[rows]] > 1]
  some = np.sort(rows[:_PROBED])
  different = {
    hashlib.sha256(paths_NxHxWxC[i].tobytes()).digest() for i in some
  }
  share = 1 - len(different) / max(len(some), 1)
  return share * len(rows) / len(scores_N)


def _copies(optics: pathlib.Path) -> dict[str, float]:
  """As stage 1 counted them; {} where it did not yet."""
  try:
    near = json.loads((optics / 'optics.json').read_text())['figures']['copies']
  except (OSError, ValueError, LookupError, TypeError):
    return {}
  files = len(fingerprints.read(optics / 'sources.json'))
  return {'copies': near / files} if files else {}


def curves(run: Run) -> dict[str, Curve]:
  """The quantities by which runs are compared.

  base_loss: by the base weights, mean of the clones. fallen: base_loss over
  what it was at the first log cycle. perplexity, used: of the codebook in the
  cycle's lessons, as a share of the codes that could be used. saturated: share
  of the loss weights at the PID's limit. wasserstein, penalty, adv_share: of
  the clone of the greatest. trim_NAME: of the learning rate. held_out_l1,
  held_out_psnr: the master's. gap: held_out_l1 over the clones' training L1.
  """
  cycles = np.array([row.cycle for row in run.rows])
  base_loss = run.of_clones('loss/base').mean(1)
  trims = run.of_clones('agent/trim').T
  found = {
    'base_loss': base_loss,
    'fallen': base_loss / base_loss[0],
    'perplexity': run.of_master('codebook/perplexity') / run.codes,
    'used': run.of_master('codebook/used') / run.codes,
    'saturated': np.abs(saturation(run)).mean((1, 2)),
    'wasserstein': np.abs(run.of_clones('critic/wasserstein')).max(1),
    'penalty': run.of_clones('critic/penalty').max(1),
    'adv_share': run.of_clones('loss/adv_share').max(1),
    **{f'trim_{name}': trim for name, trim in zip(run.clones, trims)},
  }
  known = {k: Curve(cycles, v) for k, v in found.items()}
  for name, metric in HELD_OUT.items():
    at, values = history.series(run.exams, metric.tag)
    known[name] = Curve(np.array(at), np.array(values))
  at, held_out = known['held_out_l1']
  l1 = run.of_clones('loss/l1').mean(1)
  before = [l1[cycles <= cycle][-_NEAR:] for cycle in at]
  training = [np.median(x) if len(x) else math.nan for x in before]
  known['gap'] = Curve(at, held_out / np.array(training))
  return known


def saturation(run: Run) -> np.ndarray:
  """+1 or -1 where a PID holds a weight at its limit, (rows, clones, terms).

  Kp e + I, the present and the grudge, are at the limit; the derivative comes
  and goes.
  """
  limit = run.settings['pid.limit']
  gains_Mx1 = np.array(
    [[run.settings[f'specialists.{n}.pid.proportional']] for n in run.clones]
  )
  wanted = gains_Mx1 * run.of_terms('pid/error') + run.of_terms('pid/integral')
  if not run.settings['pid.enabled'] or not limit:
    return np.zeros(wanted.shape)
  return np.sign(wanted) * (np.abs(wanted) >= limit - _AT_LIMIT)
