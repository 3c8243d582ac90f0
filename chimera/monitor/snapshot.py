"""What is known of a run: a snapshot, made of its history and its config.

Plain data, for the dashboard to draw. Nothing here imports JAX, so that another
process can watch at once.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
import operator
from typing import Any, NamedTuple

from chimera.clones import specialists
from chimera.clones import terms as terms_lib
from chimera.evaluation import metrics
from chimera.monitor import history, summary
from chimera.school import curriculum
from chimera.system import progress

# agents.TRENDS and what the zones of its trim are called; agents.EASE. They
# stand here too, for that module imports JAX.
TRENDS = ('rapidly improving', 'improving', 'stagnated', 'worsening')
ZONES = ('low', 'as set', 'high')
EASE = 0.25

_SERIES = 64  # values of a sparkline that are kept
_RATES = 20  # log cycles of which the time left is made
_TURN = 3.0  # seconds that each tokenizer's pictures stay


class Weight(NamedTuple):
  """One lambda."""

  term: str  # of the loss
  ratio: float | None  # what it is over what it is at rest


class Student(NamedTuple):
  """One column. A figure that is not known is None."""

  name: str  # of the clone
  bins: str  # its lessons
  mission: tuple[str, ...]  # loss terms that it weighs more than others do
  g_loss: tuple[float, ...]  # the newest values, the last one last
  critic: tuple[float, ...]  # likewise, of the critic's loss
  weights: tuple[Weight, ...]  # the lambda row
  dominant: Weight | None  # the one that stands highest over its base
  pid: tuple[float, float, float] | None  # its P, I and D, each in log weight
  learning_rate: float | None  # now
  lr_scale: float | None  # the Q-agent's part in it
  trend: str  # the Q-agent's state, in words; what it does where it has none
  zone: str  # of its trim, in words
  action: float | None  # the last multiplier
  reward: float | None  # of the last action that was judged
  epsilon: float | None  # chance that it explores
  drift: float | None  # cosine of its step with the mean step


class Figure(NamedTuple):
  """A figure of the held-out samples: so far, and at its best."""

  metric: metrics.Metric
  values: tuple[float, ...]
  best: float | None
  best_cycle: int | None


class Tile(NamedTuple):
  """A square picture, hashable: its pixels a side and their bytes, RGB."""

  side: int
  rgb: bytes


class Pictures(NamedTuple):
  """A preview sheet, cut up."""

  cycle: int  # of the evaluation
  originals: tuple[Tile, ...]  # from easy to hard
  # likewise what each tokenizer makes of them
  by_name: dict[str, tuple[Tile, ...]]


class Snapshot(NamedTuple):
  """All that the dashboard shows."""

  title: str  # names the run
  note: str  # what it is doing, or when it was last heard of
  cycle: int  # done
  cycles: int  # to do
  students: tuple[Student, ...]  # the columns
  limit: float  # of the PID: greatest |log(lambda / base)|
  kind: str  # what the figures compare
  figures: tuple[Figure, ...]  # of the master, held out
  master: dict[str, float]  # the newest value of each of its tags
  codes: int  # that there are
  perplexity: tuple[float, ...]  # the newest values
  left: float | None  # seconds
  pictures: Pictures | None  # of the last evaluation
  turn: int  # counts up; says whose pictures are shown


def snapshot_of(
  rows: Sequence[history.Row],
  config: Mapping[str, Any],
  pictures: Pictures | None,
  now: float,
  *,
  title: str,
  note: str = '',
) -> Snapshot:
  """What a run's history comes to at a time.

  `config` is as config.json holds it; without a `note` of what the run is doing
  the rows tell of that.
  """
  cycle = rows[-1].cycle if rows else 0
  cycles = config['train']['cycles']
  rate = steady_rate(rows)
  left = None
  if rate:
    # The clock runs on for one log cycle, and then waits for the next row.
    passed = min(max(now - rows[-1].time, 0.0), _stretch(rows) / rate)
    left = max(0.0, (cycles - cycle) / rate - passed)
  seen = any('eval/path_l1' in row.master for row in rows)
  blind = seen and not any('eval/psnr' in row.master for row in rows)
  shown = [m for m in metrics.shown('dashboard') if m.is_of_paths == blind]
  return Snapshot(
    title=title,
    note=note or _heard(rows, cycles, now),
    cycle=cycle,
    cycles=cycles,
    students=tuple(_student(rows, config, n) for n in config['clone_names']),
    limit=config['pid']['limit'],
    kind='path_params' if blind else 'pixels',
    figures=tuple(_held_out(rows, m) for m in shown),
    master=history.latest(_recent(rows)),
    codes=terms_lib.codes_of(config['model']),
    perplexity=_newest(rows, 'codebook/perplexity'),
    left=left,
    pictures=pictures,
    turn=int(now / _TURN),
  )


def steady_rate(rows: Sequence[history.Row]) -> float | None:
  """Cycles a second of the last log cycles, evaluations included.

  A stretch that holds a compilation counts without it, and only where there is
  no other.
  """
  logged = _logged(rows[-2 * _RATES :])
  rates = [
    rate
    for row in logged[-_RATES:]
    if 'perf/compile_seconds' not in row.master
    and 0 < (rate := row.master.get('perf/cycles_per_sec', 0)) < math.inf
  ]
  if rates:
    return len(rates) / sum(1 / rate for rate in rates)
  if not logged or logged[-1].master.get('perf/cycles_per_sec', 0) <= 0:
    return None
  cycles = _stretch(rows)
  seconds = cycles / logged[-1].master['perf/cycles_per_sec']
  compiling = logged[-1].master.get('perf/compile_seconds', 0)
  return cycles / max(seconds - compiling, 1e-3)


def _stretch(rows: Sequence[history.Row]) -> int:
  """Cycles from the last log cycle but one to the last."""
  before, last = [0, 0, *(row.cycle for row in _logged(rows))][-2:]
  return last - before


def _logged(rows: Sequence[history.Row]) -> list[history.Row]:
  """Those of log cycles, not of evaluations."""
  return [row for row in rows if 'perf/cycles_per_sec' in row.master]


def _recent(rows: Sequence[history.Row]) -> Sequence[history.Row]:
  """The last log cycles, and the evaluations among them and since."""
  logged = 0
  for i in reversed(range(len(rows))):
    logged += 'perf/cycles_per_sec' in rows[i].master
    if logged == _RATES:
      return rows[i:]
  return rows


def compile_seconds(rows: Iterable[history.Row]) -> float | None:
  """How long the step took to compile when it last was."""
  _, seconds = history.series(rows, 'perf/compile_seconds')
  return seconds[-1] if seconds else None


def _heard(rows: Sequence[history.Row], cycles: int, now: float) -> str:
  if not rows:
    return 'waiting for the first log cycle'
  judged = any(tag.startswith('eval/') for tag in rows[-1].master)
  if judged and rows[-1].cycle >= cycles:
    return 'finished'
  ago = progress.format_seconds(max(0.0, now - rows[-1].time))
  return f'last heard of {ago} ago'


def _newest(
  rows: Sequence[history.Row], tag: str, clone: str | None = None
) -> tuple[float, ...]:
  return tuple(history.series(rows[-2 * _SERIES :], tag, clone)[1][-_SERIES:])


def _held_out(rows: Sequence[history.Row], metric: metrics.Metric) -> Figure:
  cycles, values = history.series(rows, metric.tag)
  finite = [(v, c) for v, c in zip(values, cycles) if math.isfinite(v)]
  best = metric.best_of(
    finite, key=operator.itemgetter(0), default=(None, None)
  )
  return Figure(metric, tuple(values[-_SERIES:]), *best)


def _student(
  rows: Sequence[history.Row], config: Mapping[str, Any], name: str
) -> Student:
  # An evaluation's row holds the figures of the clones alone.
  seen = history.latest(_recent(rows), name)
  block = config['specialists'][name]
  emphasis = block['emphasis']
  terms = terms_lib.of(terms_lib.kind_of(config['model']))
  mission = [t for t in emphasis if t in terms and emphasis[t] > 1]
  if not config['loss']['emphasis']:
    mission = []
  is_taught = config['school']['enabled']
  lesson = block['bins'] if is_taught else range(curriculum.BINS)
  bases = specialists.base_weights(config, name)
  lambdas = {t: seen.get(f'lambda/{t}') for t in bases if t in terms}
  weights = tuple(
    Weight(t, None if value is None or bases[t] <= 0 else value / bases[t])
    for t, value in lambdas.items()
  )
  known = [w for w in weights if w.ratio and math.isfinite(w.ratio)]
  dominant = max(known, key=lambda w: w.ratio, default=None)
  pid = None
  if dominant and config['pid']['enabled']:
    pid = _pid_of(seen, block['pid'], dominant.term)
  trend, zone, action, reward = _agent(seen, config)
  return Student(
    name=name,
    bins=summary.format_bins(lesson),
    mission=tuple(sorted(mission, key=lambda t: -emphasis[t])),
    g_loss=_newest(rows, 'loss/total', name),
    critic=_newest(rows, 'critic/loss', name),
    weights=weights,
    dominant=dominant,
    pid=pid,
    learning_rate=seen.get('agent/lr'),
    lr_scale=seen.get('agent/trim'),
    trend=trend,
    zone=zone,
    action=action,
    reward=reward,
    epsilon=seen.get('agent/epsilon') if config['q']['enabled'] else None,
    drift=seen.get('meld/drift'),
  )


def _pid_of(
  seen: Mapping[str, float], gains: Mapping[str, Any], term: str
) -> tuple[float, float, float]:
  """P, I, D as `agents.pid_observe` adds them up."""
  error, integral, derivative = (
    seen.get(f'pid/{part}/{term}', math.nan)
    for part in ('error', 'integral', 'derivative')
  )
  kick = derivative if derivative > 0 else EASE * derivative
  return gains['proportional'] * error, integral, gains['derivative'] * kick


def _agent(
  seen: Mapping[str, float], config: Mapping[str, Any]
) -> tuple[str, str, float | None, float | None]:
  """The Q-agent's trend, zone, action and reward."""
  if not config['q']['enabled']:
    return 'off: the schedule', '', None, None
  state, action, epsilon = (
    seen.get(f'agent/{tag}', math.nan) for tag in ('state', 'action', 'epsilon')
  )
  actions = config['q']['actions']
  states = len(TRENDS) * len(ZONES)
  # Nor where it is NaN.
  if not (0 <= state < states and 0 <= action < len(actions)):
    return '-', '', None, None
  # Exploration falls with each decision: at its first value there was none.
  first, last = (config['q'][key] for key in ('epsilon', 'epsilon_end'))
  if first != last and math.isclose(epsilon, first, rel_tol=1e-5):
    return 'watching first', '', None, None
  zone, trend = divmod(int(state), len(TRENDS))
  return (
    TRENDS[trend],
    ZONES[zone],
    actions[int(action)],
    seen.get('agent/reward'),
  )
