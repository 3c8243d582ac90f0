"""The ablation ledger: methods compared at equal images seen, seed by seed.

  python -m chimera.ledger --train=DIR --held_out=DIR --home=DIR
      --methods control@1 default@1 default@2 --seeds 0 1 2

Each METHOD[@SCALE] is trained once a seed, its learning rate SCALE times what
its config says. All methods of one seed stand on the same optics, latents and
curriculum. `home/ledger.jsonl` holds a line a run: what it was and its held-out
figures; what stands there is not run again. The protocol: tune on one held-out
folder, report on another.
"""

import argparse
import ast
from collections.abc import Iterator, Sequence
import itertools
import json
import math
import os
import pathlib
import statistics
from typing import Any

import ml_collections
import rich.console
import rich.table
from scipy import stats

from chimera.evaluation import metrics
from chimera.run import default_config, preflight
from chimera.system import cpus, provenance

# name -> (variant, what is changed in it).
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
  'control': ('control', {}),
  'default': ('', {}),
  'wsd': ('', {'train.schedule': 'wsd'}),
  'local': ('', {'meld.optimizer_state': 'local'}),
  'seed': ('seed', {}),
  'seed_shared_v': ('seed', {'meld.optimizer_state': 'shared_v'}),
  'no_school': ('', {'school.enabled': False}),
  'no_pid': ('', {'pid.enabled': False}),
  'no_q': ('', {'q.enabled': False}),
  'no_meld': ('', {'meld.enabled': False}),
  'control_pid': ('control', {'pid.enabled': True}),
}


def create_config(
  method: str, seed: int, overrides: dict[str, Any]
) -> ml_collections.ConfigDict:
  """The config of METHOD[@SCALE] with a seed.

  Raises:
    ValueError: there is no such method.
  """
  name, _, scale = method.partition('@')
  if name not in METHODS:
    raise ValueError(
      f'A method must be one of {", ".join(METHODS)}, got {name}: fix '
      '--methods.'
    )
  variant, changes = METHODS[name]
  config = default_config.get_config(variant)
  config.basename = 'ledger'
  with config.ignore_type():
    config.update_from_flattened_dict({**overrides, **changes, 'seed': seed})
  config.train.learning_rate *= float(scale or 1)
  config.train.dashboard = False
  preflight.check_config(config)
  return config


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
) -> Iterator[dict[str, Any]]:
  """Trains what the ledger lacks; yields each line, old or new.

  Seeds in the outer loop: a ledger that was cut off compares as far as it got.
  """
  import jax

  from chimera import train
  from chimera.optics import stage_1 as stage_1_lib
  from chimera.run import init_from

  home.mkdir(parents=True, exist_ok=True)
  path = home / 'ledger.jsonl'
  done = {(r['method'], r['seed'], r['config']): r for r in read(path)}
  for seed, method in itertools.product(seeds, methods):
    config = create_config(method, seed, overrides)
    line = {'method': method, 'seed': seed, 'config': digest(config)}
    key = tuple(line.values())
    if key not in done:
      stage_1 = home / f'stage_1_seed_{seed}'
      stage_1.mkdir(exist_ok=True)
      data = stage_1_lib.prepare(config, str(stage_1), init_from.load_optics)
      workdir = home / f'{method}_seed_{seed}_{line["config"]}'
      workdir.mkdir(exist_ok=True)
      figures = train.train(config, str(workdir), data)
      if not figures:  # it was trained, but cut off before its line
        figures = train.evaluate_workdir(config, str(workdir), data)
      done[key] = line | {'figures': figures}
      with open(path, 'a') as f:
        f.write(json.dumps(done[key]) + '\n')
      # JAX would keep some 400 MB of every step that it compiled.
      jax.clear_caches()
    yield done[key]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
  """Mean of a - b and the half width of its 95 % interval (Student's t)."""
  mean = statistics.mean(x - y for x, y in zip(a, b, strict=True))
  if len(a) < 2:
    return mean, math.nan
  low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
  return mean, float(high - low) / 2


def tabulate(lines: Sequence[dict[str, Any]], group: str) -> rich.table.Table:
  """Mean over seeds and its spread (standard deviation), a row a method;
  below it the paired difference from the first row and its 95 % interval.
  """
  table = rich.table.Table(title=f'{group}, held out', title_justify='left')
  table.add_column('method (seeds)')
  by_method: dict[str, dict[int, dict[str, float]]] = {}
  for line in lines:
    by_method.setdefault(line['method'], {})[line['seed']] = line['figures']
  known, columns = lines[0]['figures'], {}
  for m in metrics.shown('ledger'):
    if (key := f'{group}/{m.name}') in known:
      columns[key] = m.form
      table.add_column(m.head, justify='right')
  reference = next(iter(by_method))
  for method, by_seed in by_method.items():
    cells, differences = [], []
    for key, form in columns.items():
      values = [figures[key] for figures in by_seed.values()]
      spread = statistics.stdev(values) if len(values) > 1 else math.nan
      cells.append(f'{statistics.mean(values):{form}} ± {spread:{form}}')
      common = [s for s in by_seed if s in by_method[reference]]
      mean, half = paired(
        [by_seed[s][key] for s in common],
        [by_method[reference][s][key] for s in common],
      )
      differences.append(f'{mean:+{form}} ± {half:{form}}')
    table.add_row(f'{method} ({len(by_seed)})', *cells)
    if method != reference:
      table.add_row(f'  less {reference}', *differences, style='dim')
  return table


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m chimera.ledger')
  parser.add_argument('--train', default='photos', help='a folder of images')
  parser.add_argument('--held_out', default='', help='a folder of others')
  parser.add_argument('--home', default='runs/ledger', type=pathlib.Path)
  parser.add_argument('--methods', nargs='+', default=['control', 'default'])
  parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
  parser.add_argument('--cycles', type=int, default=1000)
  parser.add_argument('--set', nargs='*', default=[], metavar='KEY=VALUE')
  args = parser.parse_args()
  source = args.train if args.train == 'photos' else os.path.abspath(args.train)
  overrides = {
    'data.source': source,
    'data.held_out_source': args.held_out and os.path.abspath(args.held_out),
    'train.cycles': args.cycles,
    'train.eval_every': args.cycles,
    'train.checkpoint_every': args.cycles,
  }
  for change in args.set:
    key, _, value = change.partition('=')
    overrides[key] = ast.literal_eval(value)
  cpus.split(len(default_config.get_config().clone_names))
  lines = list(run(args.home, args.methods, args.seeds, overrides))
  console = rich.console.Console()
  console.width = max(console.width, 150)
  for group in ('ema', 'master'):
    console.print(tabulate(lines, group))


if __name__ == '__main__':
  main()
