"""The ablation ledger: methods compared at equal images seen, seed by seed.

  python -m chimera.ledger --train=DIR --held_out=DIR --home=DIR
      --methods control@1 default@1 default@2 --seeds 0 1 2

Each METHOD[@SCALE] is trained once a seed, its learning rate SCALE times what
its config says. All methods of one seed stand on the same optics, latents and
curriculum, and see as many images: an audition's count as a method's own.
`home/ledger.jsonl` holds a line a run: what it was and its held-out figures;
what stands there is not run again. The protocol: tune on one held-out folder,
report on another.

  python -m chimera.ledger robust --train=DIR --held_out=DIR --home=DIR

holds methods against CONDITIONS, in which something is set wrong or the data
are spoilt, and prints their regret: by how much the held-out L1 of a method in
a condition is above that of the tuned `control`, a seed at a time, at its best
SCALE. In data of its own, or another batch, that is the best control there.
`--picture=FILE.svg` draws it.
"""

import argparse
import ast
from collections.abc import Iterator, Mapping, Sequence
import itertools
import json
import math
import os
import pathlib
import statistics
from typing import Any

from absl import logging
import ml_collections
import numpy as np
import rich.console
import rich.table
from scipy import stats

from chimera.benchmarks import conditions as conditions_lib
from chimera.evaluation import metrics
from chimera.run import config_json, default_config, preflight
from chimera.system import cpus, disk, lock, memory, provenance

# name -> (variant, what is changed in it).
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
  'control': ('control', {}),
  'default': ('', {}),
  'cosine': ('', {'train.schedule': 'cosine'}),
  'no_audition': ('', {'train.audition': False}),
  'local': ('', {'meld.optimizer_state': 'local'}),
  'seed': ('seed', {}),
  'seed_shared_v': ('seed', {'meld.optimizer_state': 'shared_v'}),
  'no_school': ('', {'school.enabled': False}),
  'no_pid': ('', {'pid.enabled': False}),
  'no_bounds': ('', {'pid.bounded': False}),
  'no_q': ('', {'q.enabled': False}),
  'no_meld': ('', {'meld.enabled': False}),
  'control_pid': ('control', {'pid.enabled': True}),
}
# `control` with another optimizer in a plain learner: benchmarks/rivals.py.
RIVALS = ('adam', 'prodigy', 'dadapt_adamw', 'mechanize', 'schedule_free_adamw')
METHODS |= {name: ('control', {}) for name in RIVALS}

TUNED, CONDITIONS = conditions_lib.TUNED, conditions_lib.CONDITIONS
_LEAST_CYCLES = 100  # as many are an audition's


def create_config(
  method: str,
  seed: int,
  overrides: dict[str, Any],
  condition: str = TUNED,
) -> ml_collections.ConfigDict:
  """The config of METHOD[@SCALE] with a seed.

  Its cycles are fewer by those of its audition.

  Raises:
    ValueError: there is no such method, scale or setting, or it cannot be.
  """
  name = method.partition('@')[0]
  if name not in METHODS:
    raise ValueError(
      f'A method must be one of {", ".join(METHODS)}, got {name}: fix '
      '--methods.'
    )
  # JAX, which must not be imported before the CPU is split.
  from chimera.run import audition

  variant, changes = METHODS[name]
  wrong = CONDITIONS[condition]
  config = default_config.get_config(variant)
  ships = config_json.keys(default_config.get_config())
  own = {k: v for k, v in config_json.keys(config).items() if v != ships[k]}
  own |= {**changes, 'seed': seed}
  for key in own.keys() & overrides.keys():
    if overrides[key] != own[key]:
      raise ValueError(
        f'{method} would be another method with {key}={overrides[key]!r}, in '
        f'which it is {own[key]!r}: fix --set, or --seeds.'
      )
  config.basename = 'ledger'
  if unknown := [*(overrides.keys() - config_json.keys(config).keys())]:
    raise ValueError(f'There is no setting {unknown[0]}: fix --set.')
  with config.ignore_type():
    config.update_from_flattened_dict({**overrides, **changes, 'seed': seed})
    values = config_json.keys(config)
    times = {k: values[k] * n for k, n in wrong.times.items()}
    config.update_from_flattened_dict({**times, **wrong.put})
  config.train.learning_rate *= _scale(method)
  if config.train.audition:
    config.train.cycles -= audition.cycles(config)
  config.train.dashboard = False
  preflight.check_config(config)
  return config


def _scale(method: str) -> float:
  try:
    scale = float(method.partition('@')[2] or 1)
  except ValueError:
    scale = math.nan
  if not 0 < scale < math.inf:
    raise ValueError(
      f'A SCALE must be a number above 0, got {method}: fix --methods.'
    )
  return scale


def digest(config: ml_collections.ConfigDict) -> str:
  """Of all that the run's outcome depends on."""
  tree = json.loads(config.to_json())
  del tree['train']['dashboard']
  return provenance.digest(tree)


def run(
  home: pathlib.Path,
  methods: Sequence[str],
  seeds: Sequence[int],
  overrides: dict[str, Any],
  conditions: Sequence[str] = (TUNED,),
) -> Iterator[dict[str, Any]]:
  """Trains what the ledger lacks; yields each line, old or new.

  Seeds in the outer loop, then conditions: a ledger that was cut off compares
  as far as it got.
  """
  import jax

  from chimera import train
  from chimera.benchmarks import rivals
  from chimera.optics import stage_1 as stage_1_lib
  from chimera.run import engine, init_from
  from chimera.school import curriculum

  home.mkdir(parents=True, exist_ok=True)
  path = home / 'ledger.jsonl'
  names = 'method', 'seed', 'config', 'condition'
  done = {tuple(r[name] for name in names): r for r in read(path)}
  for seed, of, method in itertools.product(seeds, conditions, methods):
    config = create_config(method, seed, overrides, of)
    line = {'method': method, 'seed': seed, 'config': digest(config)}
    line['condition'] = of
    key = tuple(line.values())
    if key not in done:
      stage_1 = home / f'stage_1_seed_{seed}'
      stage_1.mkdir(exist_ok=True)
      data = stage_1_lib.prepare(config, str(stage_1), init_from.load_optics)
      if spoil := CONDITIONS[of].data:
        # Judged by what is natural, bins and all.
        natural_N = curriculum.score(
          data.paths_NxHxWxC, metric=config.school.metric
        )
        data = spoil(data, seed)._replace(judges_N=natural_N)
      of_method = f'{method}_{of}'.replace('/', '_per_')
      workdir = home / f'{of_method}_seed_{seed}_{line["config"]}'
      workdir.mkdir(exist_ok=True)
      name = method.partition('@')[0]
      try:
        if name in RIVALS:
          bins = train.prepare_curriculum(config, str(workdir), data)
          devices = engine.choose_devices(
            0, len(config.clone_names), config.train.batch_size
          )
          figures = rivals.train(
            name, config, data, bins, devices, str(stage_1)
          )
        else:
          figures = train.train(config, str(workdir), data)
        if not figures:  # it was trained, but cut off before its line
          figures = train.evaluate_workdir(config, str(workdir), data)
      except FloatingPointError as e:
        logging.warning('%s of seed %d in %s: %s', method, seed, of, e)
        figures = {}
      done[key] = line | {'commit': provenance.commit(), 'figures': figures}
      # A line that is torn would take the next one with it.
      torn = path.exists() and not path.read_bytes().endswith(b'\n')
      with open(path, 'a') as f:
        f.write('\n' * torn + json.dumps(done[key]) + '\n')
      # JAX would keep some 400 MB of every step that it compiled.
      jax.clear_caches()
    elif (then := done[key].get('commit')) != provenance.commit():
      names = method, seed, of, then or 'unknown'
      logging.warning('%s of seed %d in %s is of commit %s.', *names)
    yield done[key]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """All whole lines; what is torn is trained anew."""
  found = []
  for text in path.read_text().splitlines() if path.exists() else ():
    try:
      found.append({'condition': TUNED, **json.loads(text)})
    except (ValueError, TypeError):
      logging.warning('A line of %s is torn: %s', path, text[:60])
  return found


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
  """Mean of a - b and the half width of its 95 % interval (Student's t)."""
  mean = statistics.mean(x - y for x, y in zip(a, b, strict=True))
  if len(a) < 2:
    return mean, math.nan
  low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
  return mean, float(high - low) / 2


def tabulate(lines: Sequence[dict[str, Any]], group: str) -> rich.table.Table:
  """Mean over seeds and its spread (standard deviation), a row a method;
  below it the paired difference from the first row and its 95 % interval. NaN
  where a run had no such figure, or was lost.
  """
  table = rich.table.Table(title=f'{group}, held out', title_justify='left')
  table.add_column('method (seeds)')
  by_method: dict[str, dict[int, dict[str, float]]] = {}
  for line in lines:
    by_method.setdefault(line['method'], {})[line['seed']] = line['figures']
  known, columns = set().union(*(line['figures'] for line in lines)), {}
  for m in metrics.shown('ledger'):
    if (key := f'{group}/{m.name}') in known:
      columns[key] = m.form
      table.add_column(m.head, justify='right')
  reference = next(iter(by_method))
  for method, by_seed in by_method.items():
    cells, differences = [], []
    for key, form in columns.items():
      values = [figures.get(key, math.nan) for figures in by_seed.values()]
      spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
      cells.append(f'{statistics.mean(values):{form}} ± {spread:{form}}')
      common = [s for s in by_seed if s in by_method[reference]]
      mean, half = paired(
        [by_seed[s].get(key, math.nan) for s in common],
        [by_method[reference][s].get(key, math.nan) for s in common],
      )
      differences.append(f'{mean:+{form}} ± {half:{form}}')
    table.add_row(f'{method} ({len(by_seed)})', *cells)
    if method != reference:
      table.add_row(f'  less {reference}', *differences, style='dim')
  return table


def regrets(
  lines: Sequence[dict[str, Any]], figure: str
) -> dict[str, dict[str, list[float]]]:
  """{method: {condition: a share a seed}} above the control; less is better.

  Where the control of a seed is not there yet, that seed is left out.
  """
  controls: dict[tuple[str, int], float] = {}
  for line in lines:
    of, value = line['condition'], line['figures'].get(figure, math.nan)
    name = line['method'].partition('@')[0]
    is_judge = CONDITIONS[of].has_its_own or of == TUNED
    if name == 'control' and is_judge and math.isfinite(value):
      key = of, line['seed']
      controls[key] = min(value, controls.get(key, math.inf))
  found: dict[str, dict[str, list[float]]] = {}
  for line in lines:
    of = line['condition']
    judge = of if CONDITIONS[of].has_its_own else TUNED
    if control := controls.get((judge, line['seed'])):
      # A loss that is no number is as bad as can be.
      share = line['figures'].get(figure, math.inf) / control - 1
      share = share if math.isfinite(share) else math.inf
      by_condition = found.setdefault(line['method'], {})
      by_condition.setdefault(of, []).append(share)
  return found


def _there(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
  return [c for c in CONDITIONS if any(c in of for of in found.values())]


def tabulate_regrets(
  lines: Sequence[dict[str, Any]], figure: str
) -> rich.table.Table:
  """A row a condition: percent, mean over seeds and spread; worst and mean."""
  title = f'{figure}, held out: percent above the tuned control'
  table = rich.table.Table('condition', title=title, title_justify='left')
  found = regrets(lines, figure)
  for method in found:
    table.add_column(method, justify='right')
  for condition in (there := _there(found)):
    cells = []
    for of in found.values():
      shares = of.get(condition, [])
      cells.append(f'{100 * statistics.mean(shares):+.1f}' if shares else '')
      if len(shares) > 1 and all(map(math.isfinite, shares)):
        cells[-1] += f' ± {100 * statistics.stdev(shares):.1f}'
    table.add_row(condition, *cells, end_section=condition == there[-1])
  for name, whole in (('worst', max), ('mean', statistics.mean)):
    of_all = [whole(map(statistics.mean, of.values())) for of in found.values()]
    table.add_row(name, *(f'{100 * x:+.1f}' for x in of_all))
  return table


def _change(text: str) -> tuple[str, Any]:
  key, sign, value = text.partition('=')
  if not sign:
    raise argparse.ArgumentTypeError(f'must be KEY=VALUE, got {text!r}.')
  try:
    return key, ast.literal_eval(value)
  except (SyntaxError, ValueError):  # a text without quotation marks
    return key, value


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m chimera.ledger')
  parser.add_argument(
    'table', nargs='?', choices=['methods', 'robust'], default='methods'
  )
  parser.add_argument('--conditions', nargs='+', choices=list(CONDITIONS))
  parser.add_argument('--train', default='photos', help='a folder of images')
  parser.add_argument('--held_out', default='', help='a folder of others')
  parser.add_argument('--home', default='runs/ledger', type=pathlib.Path)
  parser.add_argument('--methods', nargs='+', default=['control', 'default'])
  parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
  parser.add_argument('--cycles', type=int, default=1000)
  parser.add_argument(
    '--set',
    action='extend',
    nargs='*',
    default=[],
    type=_change,
    metavar='KEY=VALUE',
  )
  parser.add_argument('--picture', type=pathlib.Path, metavar='FILE.svg')
  args = parser.parse_args()
  if args.cycles <= _LEAST_CYCLES:
    parser.error(f'--cycles must be above {_LEAST_CYCLES}, got {args.cycles}.')
  picture = args.picture
  for flag, given in ('--picture', picture), ('--conditions', args.conditions):
    if given and args.table != 'robust':
      parser.error(f'{flag} is of `robust`, got the table of methods.')
  if picture and (picture.is_dir() or not picture.parent.is_dir()):
    parser.error(f'--picture must be a file in a folder there is: {picture}.')
  conditions = [TUNED]
  if args.table == 'robust':
    conditions = args.conditions or list(CONDITIONS)
    own = all(CONDITIONS[of].has_its_own for of in conditions)
    if not own and TUNED not in conditions:
      parser.error(f'--conditions needs {TUNED}, which the others are held to.')
    if not any(m.partition('@')[0] == 'control' for m in args.methods):
      parser.error('--methods needs control, which the others are held to.')
  for flag, folder in (('--train', args.train), ('--held_out', args.held_out)):
    if folder not in ('', 'photos') and not os.path.exists(folder):
      parser.error(f'{flag} must be a folder of images, got {folder!r}.')
  source = args.train if args.train == 'photos' else os.path.abspath(args.train)
  overrides = {
    'data.source': source,
    'data.held_out_source': args.held_out and os.path.abspath(args.held_out),
    'train.cycles': args.cycles,
    'train.eval_every': args.cycles,
    'train.checkpoint_every': args.cycles,
  }
  overrides |= dict(args.set)
  memory.keep_freed()
  cpus.split(len(default_config.get_config().clone_names))
  try:
    asked = args.methods, args.seeds
    for of, method, seed in itertools.product(conditions, *asked):
      create_config(method, seed, overrides, of)
    with lock.hold(args.home, '--home'):
      lines = list(run(args.home, *asked, overrides, conditions))
  except (OSError, ValueError) as e:
    parser.error(str(e).replace('--workdir', '--home'))
  except RuntimeError as e:
    from chimera.run import engine

    if (line := engine.explain(e)) is None:
      raise
    parser.error(line)
  except KeyboardInterrupt:
    parser.exit(130, 'Interrupted: the same command goes on from here.\n')
  console = rich.console.Console()
  console.width = max(console.width, 150)
  if args.table == 'robust':
    for figure in ('master/path_l1', 'master/pixel_l1'):
      console.print(tabulate_regrets(lines, figure))
    if picture:
      from chimera.monitor import curves

      found = regrets(lines, 'master/path_l1')
      disk.write(picture, curves.draw_regrets(found, _there(found)))
    return
  for group in ('ema', 'master'):
    console.print(tabulate(lines, group))


if __name__ == '__main__':
  main()
