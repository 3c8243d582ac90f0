"""What can be wrong with a run, and by what it shows: a check each.

Each check looks at a case and yields findings. The thresholds stand in
README.md; none of them is near to what the three reference runs do.
"""

from collections.abc import Iterator
import math

import numpy as np

from chimera.clones import terms
from chimera.doctor import case as case_lib
from chimera.doctor import readings

CONSTANT = 'Images that show nothing'
COPIES = 'The same images over and over'
FEW = 'Too few photographs'
BINS = 'Bins that do not differ'
RADIUS = 'A radius without meaning'
LESSONS = 'Lessons too small'
OUTLIERS = 'Samples that nobody learns'
RATE = 'Learning rate too high'
LOSS = 'A loss that does not fall'
COLLAPSED = 'Collapsed codebook'
UNREACHABLE = 'PID targets out of reach'
SATURATED = 'Saturated PID'
AGENT = 'Dead Q-agent'
CRITIC = 'Exploding critic'
OVERFIT = 'Learned by heart'
WORSE = 'Worse than the reference'

# Log cycles in which a trim that stays at its bound is pinned there.
_PINNED = 6
_WRONG_RATE = 3.0  # factor from the reference's that is suspect
_FAR = math.log(10.0)  # error of a term that no weight will fix
_MOST = 4.99  # error at which the PID counts no further
_STUCK = 'A weight at its limit is a constant: nothing is controlled any more.'
_NEARER = (
  '--config.specialists.NAME.pid.target.TERM nearer to that of the other '
  'clones (adv: to what loss/adv_share comes to)'
)


def _data(case: case_lib.Case) -> Iterator[case_lib.Finding]:
  """What is trained on; where it shows nothing, the rest says nothing."""
  figures = case.figures
  if not figures:
    return
  if figures['flat'] > 0.5:
    yield case_lib.Finding(
      CONSTANT,
      f'{figures["flat"]:.0%} of the training crops are one flat color; the '
      f'reference has {case.shown("flat", ".1%")}.',
      'There is nothing to learn from them, and nothing for the School to sort '
      'by.',
      'point --config.data.source at photographs that hold pictures (were '
      'they read or exported wrongly?), and give another --workdir.',
    )
    return
  if figures.get('copies', 0) > 0.1:
    yield case_lib.Finding(
      COPIES,
      f'{figures["copies"]:.0%} of the photographs are copies of others, in '
      'other files; the reference has none.',
      'There is less to learn than it seems; what is held out is less, too: '
      'copies stay on one side of the split.',
      'take the copies out of --config.data.source, or add other photographs.',
    )
  elif figures['identical'] > 0.05:
    yield case_lib.Finding(
      COPIES,
      f'{figures["identical"]:.0%} of the training samples are exact copies of '
      f'others; in the reference {case.shown("identical", ".1%")} are.',
      'They are learned by heart.',
      'take the copies out of --config.data.source; where the photographs are '
      'hardly larger than a crop, lower --config.data.train_count.',
    )
  if figures.get('photographs', math.inf) < 8:
    yield case_lib.Finding(
      FEW,
      f'All crops come from {figures["photographs"]} photograph(s); the '
      f'reference has {case.shown("photographs", ".0f")}.',
      'A tokenizer for other images cannot be learned from so few.',
      'more photographs in --config.data.source.',
    )
  if case.run.settings['school.enabled']:
    yield from _school(case)


def _school(case: case_lib.Case) -> Iterator[case_lib.Finding]:
  """Whether the bins mean something and hold enough."""
  figures, s = case.figures, case.run.settings
  if figures['spread'] < 0.05:
    yield case_lib.Finding(
      BINS,
      'Complexity goes from the 10th to the 90th percentile by '
      f'{figures["spread"]:.1%} of its median; in the reference by '
      f'{case.shown("spread", ".0%")}.',
      'The ten bins then hold the same, and so do the lessons.',
      'more varied images in --config.data.source, or another '
      '--config.school.metric.',
    )
  elif figures.get('correlation', 1.0) < 0.5:
    yield case_lib.Finding(
      RADIUS,
      'Complexity follows the gradient magnitude of the images by a rank '
      f'correlation of {figures["correlation"]:.2f}; 0.5 is the least, the '
      f'reference shows {case.shown("correlation", ".2f")}.',
      'Easy and hard then mean nothing, and the School sorts by chance.',
      '--config.optics.radius=local and --config.school.metric=mean_radius, '
      'in another --workdir.',
    )
  lesson, batch = figures['lesson'], s['train.batch_size']
  if lesson < 4 * batch or figures['repeats'] > 300:
    yield case_lib.Finding(
      LESSONS,
      f'The smallest lesson has {lesson} samples for batches of {batch}, each '
      f'drawn {figures["repeats"]:.0f} times in the run; the reference has '
      f'{case.shown("lesson", ".0f")}, drawn {case.shown("repeats", ".0f")} '
      'times.',
      'Its clone learns them by heart and pulls the master along.',
      'raise --config.data.train_count (with more photographs), give the clone '
      'more bins by --config.specialists.NAME.bins, or raise '
      '--config.school.mix.',
    )
  if figures.get('outliers', 0.0) > 0.01:
    yield case_lib.Finding(
      OUTLIERS,
      f'{figures["outliers"]:.1%} of the samples are far beyond the error of '
      'all others; a few in a thousand always are.',
      'They are noise or broken files, which nobody can learn, or of a kind of '
      'which there are too few to be learned.',
      'look at the Outliers in report.html, and take such files from '
      '--config.data.source, or add more that are like them.',
    )


def _loss(case: case_lib.Case) -> Iterator[case_lib.Finding]:
  """Whether it is finite, falls, and stays down."""
  s = case.run.settings
  base = case.curves['base_loss'].values
  base = base[np.isfinite(base)]
  dropped = _most(case.run.of_master('meld/dropped'))
  signs = []
  if not np.isfinite(case.run.of_clones('loss/base')).all():
    signs.append('the loss of a clone is not a number')
  if not np.isfinite(case.curves['held_out_l1'].values[-1:]).all():
    signs.append('the last held-out L1 is not a number')
  if dropped > case.run.cycles / 500:  # a few are what the quarantine is for
    signs.append(f'a clone was sick and left out {dropped:.0f} time(s)')
  fallen, late = case.late('fallen'), case.late('base_loss')
  if case.long and len(base) >= case_lib.ROWS:
    if fallen > 0.85 and not s['init_from']:  # which was low at first
      signs.append(
        f'late in the run the loss is {fallen:.0%} of what it was at first'
      )
    if late > 1.4 * (least := np.min(_smooth(base))):
      signs.append(f'the loss rose from {least:.3g} to {late:.3g}')
  if not signs:
    return
  rate, (lowest, highest) = case.run.rate, case.usual('rate')
  name, why = LOSS, 'What does not come down is not learned.'
  key = '--config.train.learning_rate'
  if case.run.is_auditioned:  # else it would be found again
    key = f'--config.train.audition=False {key}'
  if rate >= _WRONG_RATE * highest:
    name = RATE
    why = 'Steps that are too long leap over what they should descend into.'
    turn = f'{key}={highest:g}, in another --workdir.'
  elif rate <= lowest / _WRONG_RATE and not dropped > 0:
    turn = f'{key}={rate * 4:.2g}, or more --config.train.cycles.'
  else:
    turn = (
      f'{key}={rate / 4:.2g}, a longer --config.train.warmup; then the weights '
      'in --config.loss.'
    )
  yield case_lib.Finding(
    name,
    f'{_sentence(signs)}; the reference comes down to '
    f'{case.shown("fallen", ".0%")}, and leaves out none. The learning rate is '
    f'{rate:.2g}, the reference learns at {case.shown("rate")}.',
    why,
    turn,
  )


def _slower(run: readings.Run) -> str:
  """How to lower the learning rate; where one is found, it must be given."""
  found = '--config.train.audition=False and ' * run.is_auditioned
  return f'{found}a lower --config.train.learning_rate'


def _codebook(case: case_lib.Case) -> Iterator[case_lib.Finding]:
  """Whether its codes are in use."""
  share, codes = case.late('perplexity'), case.run.codes
  peak = _most(_smooth(case.curves['perplexity'].values))
  shrunk = case.long and share < 0.4 * peak
  small = share * codes <= 2 or (case.long and share <= 0.1)
  if math.isnan(share) or not (small or shrunk):
    return
  fell = f', after {peak * codes:.0f} at its best' if shrunk else ''
  s, known = case.run.settings, case.reference.settings
  turns = []
  weights = ['loss.varentropy']
  slower = _slower(case.run)
  fewer = f'{slower}, or fewer --config.model.levels'
  if terms.kind_of(case.run.model) == 'vq':  # its codebook is learned
    weights = ['loss.vq', 'loss.commitment', *weights]
    fewer = (
      f'lower --config.loss.vq and --config.loss.commitment, {slower}, or '
      'fewer --config.model.codes'
    )
    if not s['model.revive_after']:
      cycles = known['model.revive_after']
      turns.append(f'--config.model.revive_after={cycles} (it is 0: never)')
  for key in weights:
    if s[key] > _WRONG_RATE * known[key]:
      turns.append(f'--config.{key}={known[key]:g} (it is {s[key]:g})')
  yield case_lib.Finding(
    COLLAPSED,
    f'The lessons use {share * codes:.1f} codes of {codes} (perplexity, '
    f'{share:.1%}){fell}; the reference keeps '
    f'{case.shown("perplexity", ".0%")}.',
    'Images that become the same few codes cannot be told apart again.',
    f'{_sentence(turns or [fewer])}.',
  )


def _pid(case: case_lib.Case) -> Iterator[case_lib.Finding]:
  """Whether the controllers still control."""
  run, s = case.run, case.run.settings
  if not (s['pid.enabled'] and s['pid.limit'] and case.long):
    return
  half = run.after(0.5)
  # How long each term of each clone stood at the upper and the lower limit.
  held_MxK = readings.saturation(run)[half].mean(0)
  error_MxK = np.median(run.of_terms('pid/error')[half], axis=0)
  weighed_K = np.array([s[f'loss.{t}'] > 0 for t in run.terms])
  stuck_MxK = (np.abs(held_MxK) >= 0.8) & weighed_K
  # A target that is met by far holds its weight down, but it is met.
  far_MxK = stuck_MxK & (error_MxK >= _FAR)
  usual = case.shown('saturated', '.0%')
  if far_MxK.any():
    i, k = np.unravel_index(np.argmax(error_MxK * far_MxK), far_MxK.shape)
    term = run.terms[k]
    # The adversarial share is to be no less than its target.
    side = 'below' if term == 'adv' else 'above'
    target = s[f'specialists.{run.clones[i]}.pid.target.{term}']
    more = 'and more ' if error_MxK[i, k] > _MOST else ''
    times = math.exp(min(error_MxK[i, k], 99))  # of a file that is broken
    yield case_lib.Finding(
      UNREACHABLE,
      f'{far_MxK.sum()} of {far_MxK.size} loss weights stand at their upper '
      'limit with a loss more than ten times from its target: '
      f'{_terms(run, far_MxK)}. The farthest is {term} of {run.clones[i]}, '
      f'{times:.0f} times {more}{side} what its target of {target:g} asks '
      f'for. In the reference {usual} of the weights are at a limit, and none '
      'so far off.',
      _STUCK,
      f'bring {_NEARER}.',
    )
  stuck_M = stuck_MxK.sum(1) / max(weighed_K.sum(), 1)
  if not far_MxK.any() and stuck_M.max() > 0.6:
    yield case_lib.Finding(
      SATURATED,
      f'{stuck_MxK.sum()} of {stuck_MxK.size} loss weights stand at their '
      f'limit for the second half of the run: {_terms(run, stuck_MxK)}; in '
      f'the reference {usual} do.',
      _STUCK,
      f'bring {_NEARER}, or widen --config.pid.limit.',
    )


def _agents(case: case_lib.Case) -> Iterator[case_lib.Finding]:
  """Whether the Q-learners still learn."""
  run, s = case.run, case.run.settings
  if not s['q.enabled'] or not case.long:
    return
  half = run.after(0.5)
  signs, pinned, idle = [], [], False
  cautious = s['q.caution'] > 0  # then it may well leave the rate alone
  for i, name in enumerate(run.clones):
    low, high = (s[f'specialists.{name}.q.{k}'] for k in ('low', 'high'))
    if low == high:
      continue
    lr_scale = run.of_clones('agent/trim')[half, i]
    reward = run.of_clones('agent/reward')[:, i]
    action = run.of_clones('agent/action')[:, i]
    pinned.append('')
    for bound, word in ((low, 'least'), (high, 'greatest')):
      at_bound = np.abs(lr_scale / bound - 1) < 0.01
      if len(at_bound) >= _PINNED and at_bound.all():
        pinned[-1] = word
    if np.ptp(reward[1:]) < 1e-6:
      signs.append(f'the reward of {name} is always {reward[-1]:.3g}')
      idle |= reward[-1] == 0
    elif len(action) >= 2 * _PINNED and np.ptp(action) == 0 and not cautious:
      signs.append(f'{name} always takes action {action[-1]:.0f}')
      idle = True
  # One that rests there has found its place; all of them ask for more.
  if bound := pinned[0] if len({*pinned}) == 1 else '':
    signs.insert(0, f'all clones keep their {bound} trim')
  if not signs:
    return
  trims = [case.usual(k) for k in case.reference.bands if 'trim_' in k]
  turns = ['where the loss does not fall, fix that first']
  if bound == 'least':
    turns.append(_slower(case.run))
  if bound == 'greatest':
    turns.append(
      'raise --config.train.learning_rate or --config.specialists.NAME.q.high'
    )
  if idle:
    turns.append(
      'lower --config.q.every and --config.q.window, raise --config.q.epsilon'
    )
  yield case_lib.Finding(
    AGENT,
    f'{_sentence(signs)}; in the reference trims come to rest between '
    f'{min(map(min, trims)):.2g} and {max(map(max, trims)):.2g}, rewards and '
    'actions vary.',
    'Who is always told the same, or stands at a bound, has nothing to choose: '
    'the learning rate follows its schedule alone.',
    f'{"; ".join(turns)}; or switch it off by --config.q.enabled=False.',
  )


def _critic(case: case_lib.Case) -> Iterator[case_lib.Finding]:
  """Whether it is still a slope of about 1."""
  run = case.run
  penalty, share = case.late('penalty'), case.late('adv_share')
  # A critic of slope 1 tells real from made by no more than their distance,
  # and that is of the order of the L1 times the root of their size.
  reach = math.sqrt(math.prod(run.shape)) * run.of_clones('loss/l1')
  ratio = np.abs(run.of_clones('critic/wasserstein')) / np.maximum(reach, 1e-6)
  beyond = float(np.median(ratio[run.after(case_lib.LATE)].max(1)))
  signs = []
  if not np.isfinite(run.of_clones('critic/loss')).all():
    signs.append('the critic of a clone is not a number')
  if case.long and penalty > 0.5:
    signs.append(
      f'its slope is off by {math.sqrt(penalty):.2g} (root of critic/penalty), '
      'where it should be 1'
    )
  if case.long and beyond > 3:
    signs.append(
      f'it tells images apart by {beyond:.0f} times what they differ by'
    )
  if signs:
    yield case_lib.Finding(
      CRITIC,
      f'{_sentence(signs)}; the reference shows a penalty of '
      f'{case.shown("penalty")}.',
      'Its gradient then drowns what the other losses say.',
      'lower --config.critic.learning_rate or raise --config.critic.penalty.',
    )
  elif case.long and share > 0.5:
    yield case_lib.Finding(
      CRITIC,
      f"The critic has {share:.0%} of a clone's gradient; the reference "
      f'{case.shown("adv_share", ".0%")}.',
      'It drowns what the other losses say.',
      'lower --config.loss.adv and --config.specialists.NAME.pid.target.adv.',
    )


def _held_out(case: case_lib.Case) -> Iterator[case_lib.Finding]:
  """Whether held-out samples come out as training ones do."""
  held_out, gap = (case.curves[k].values for k in ('held_out_l1', 'gap'))
  known = np.isfinite(held_out)
  if not case.long or not known.any():
    return
  least, last, times = held_out[known].min(), held_out[known][-1], gap[-1]
  signs = []
  if times > 1.75:
    signs.append(f'held-out samples have {times:.2f} times the training L1')
  if last > 1.15 * least:
    signs.append(f'the held-out L1 rose from {least:.3g} to {last:.3g}')
  if signs:
    yield case_lib.Finding(
      OVERFIT,
      f'{_sentence(signs)}; the reference comes to {case.shown("gap")} times, '
      'and falls.',
      'What is learned holds for the training images alone.',
      'more photographs in --config.data.source (and --config.data.'
      'train_count), fewer --config.train.cycles, a smaller '
      '--config.model.width.',
    )


def against(case: case_lib.Case) -> Iterator[case_lib.Finding]:
  """The default run is held against the curves themselves."""
  if case.differences or not case.long:
    return
  signs = []
  for name, label, factor in (
    ('base_loss', 'loss', 1.15),
    ('held_out_l1', 'held-out L1', 1.1),
    ('perplexity', 'perplexity', 0.8),
  ):
    cycles, values = case.curves[name]
    band = case.reference.bands[name]
    late = cycles > case_lib.LATE * case.run.cycles
    late &= cycles >= band.cycles[0]
    if not late.any():
      continue
    edge = band.high if factor > 1 else band.low
    usual = np.interp(cycles[late], band.cycles, edge)
    ratio = float(np.median(values[late] / usual))
    if not (ratio < factor if factor > 1 else ratio > factor):
      side = 'highest' if factor > 1 else 'lowest'
      signs.append(f'the {label} is {ratio:.2f} times the {side} reference')
  if signs:
    yield case_lib.Finding(
      WORSE,
      f'{_sentence(signs)}, at the same cycles and by the same config.',
      'Nothing else stands out: the code, the machine or JAX may differ.',
      'none; compare with the three reference runs by '
      '`python -m chimera.ledger`.',
    )


CHECKS = (_data, _loss, _codebook, _pid, _agents, _critic, _held_out)


def _terms(run: readings.Run, chosen_MxK: np.ndarray) -> str:
  """'l1, vq of perceptual; all of structural'."""
  names = [
    'all' if row.all() else ', '.join(np.array(run.terms)[row])
    for row in chosen_MxK
  ]
  if len(set(names)) == 1:
    return f'{names[0]} of every clone'
  return '; '.join(f'{a} of {b}' for a, b in zip(names, run.clones) if a)


def _most(values: np.ndarray) -> float:
  """The greatest that is a number."""
  return float(max(values[np.isfinite(values)], default=math.nan))


def _smooth(values: np.ndarray) -> np.ndarray:
  """Running median of three; of fewer there is none."""
  return np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)


def _sentence(parts: list[str]) -> str:
  text = ', '.join(parts)
  return text[0].upper() + text[1:]
