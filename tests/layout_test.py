"""The map of the design document's section 3, and the house rules, kept."""

import ast
import graphlib
import os
import pathlib
import re

import ml_collections
import pytest

from chimera.run import config_json
from configs import chimera as chimera_config

ROOT = pathlib.Path(__file__).parent.parent
# From the bottom up: a package imports from those before it, and within itself.
ORDER = (
  *('system', 'data', 'school', 'agents', 'meld', 'clones', 'optics'),
  *('evaluation', 'tokenizer', 'step', 'run', 'monitor', 'train', 'doctor'),
  *('benchmarks', 'benchmark', 'ledger', 'main'),
)
MODULES = {
  '.'.join(path.relative_to(ROOT / 'chimera').with_suffix('').parts): path
  for path in sorted((ROOT / 'chimera').rglob('*.py'))
  if path.stem != '__init__'
}
TESTS = sorted((ROOT / 'tests').rglob('*.py'))


def _parse(path):
  return ast.parse(path.read_text())


def _without_type_checking(tree):
  """Imports for hints only are no imports."""
  for node in ast.walk(tree):
    if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
      node.body = [ast.Pass()]
  return tree


def imports(tree):
  """Dotted names, without `chimera.`, of what a module of ours imports."""
  for node in ast.walk(_without_type_checking(tree)):
    if isinstance(node, ast.ImportFrom) and node.module:
      package, _, inner = node.module.partition('.')
      if package == 'chimera':
        for alias in node.names:
          yield f'{inner}.{alias.name}' if inner else alias.name
    elif isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.startswith('chimera.'):
          yield alias.name.removeprefix('chimera.')


@pytest.mark.parametrize('name', MODULES)
def test_a_package_imports_only_from_those_below_it(name):
  home = name.partition('.')[0]
  for other in imports(_parse(MODULES[name])):
    there = other.partition('.')[0]
    assert there == home or ORDER.index(there) < ORDER.index(home), other


def test_no_imports_run_in_a_circle():
  needs = {name: set(imports(_parse(path))) for name, path in MODULES.items()}
  assert list(graphlib.TopologicalSorter(needs).static_order())


@pytest.mark.parametrize('name', MODULES)
def test_modules_are_imported_and_not_names(name):
  for node in ast.walk(_parse(MODULES[name])):
    if isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'relative import'
  for other in imports(_parse(MODULES[name])):
    assert other in MODULES, other


@pytest.mark.parametrize('name', MODULES)
def test_every_module_has_its_test(name):
  test = ROOT / 'tests' / f'{name.replace(".", "/")}_test.py'
  assert test.exists()


def test_pmap_is_written_on_one_line():
  lines = [
    (name, node.lineno)
    for name, path in MODULES.items()
    for node in ast.walk(_parse(path))
    if 'pmap' in (getattr(node, 'attr', ''), getattr(node, 'id', ''))
  ]
  assert [name for name, _ in lines] == ['step']


def test_the_top_level_holds_nothing_else():
  there = {name for name in os.listdir(ROOT) if not name.startswith('.')}
  assert there - {'runs', '__pycache__'} == {
    'WORKSPACE.md',
    'README.md',
    'LICENSE',
    'CITATION.cff',
    'chimera',
    'configs',
    'tests',
    'launch',
    'requirements.txt',
    'pyproject.toml',
  }


def test_the_pillars_are_folders_and_no_drawer_holds_odds_and_ends():
  folders = {name.partition('.')[0] for name in MODULES if '.' in name}
  assert folders == set(ORDER) - {n for n in MODULES if '.' not in n}
  stems = {name.rpartition('.')[2] for name in MODULES} | folders
  assert not {'utils', 'util', 'common', 'helpers', 'misc'} & stems


@pytest.mark.parametrize('name', MODULES)
def test_no_file_outgrows_its_one_line(name):
  assert len(MODULES[name].read_text().splitlines()) <= 450


@pytest.mark.parametrize('name', MODULES)
def test_the_house_rules_hold(name):
  text = MODULES[name].read_text()
  tree = ast.parse(text)
  assert not re.search(r'config\.get\(', text)
  for node in ast.walk(tree):
    if isinstance(node, ast.ExceptHandler):
      caught = ast.unparse(node.type) if node.type else 'everything'
      assert caught not in ('everything', 'Exception', 'BaseException')
    if isinstance(node, ast.Call):
      assert ast.unparse(node.func) != 'print', f'print in line {node.lineno}'
  assert ast.get_docstring(tree), 'no docstring'


@pytest.mark.parametrize('path', TESTS, ids=lambda p: p.stem)
def test_no_test_is_skipped(path):
  for node in ast.walk(_parse(path)):
    if isinstance(node, ast.Attribute) and path.stem != 'platforms_test':
      # There it is for want of a package index.
      assert node.attr not in ('skip', 'skipif', 'xfail', 'importorskip')


def _terms():
  """terms.TERMS, without importing it."""
  for node in _parse(MODULES['clones.terms']).body:
    if isinstance(node, ast.Assign) and node.targets[0].id == 'TERMS':
      return ast.literal_eval(node.value)
  raise AssertionError('terms.TERMS is gone')


def reads(tree, terms):
  """(dotted key, line) of what a module reads of a config.

  A config is what is named `config` or `_config`, and `c` in a function that
  says `c = config`; what a function calls a block of `config.specialists` is
  that block. A key in brackets that is no literal stands for every loss term,
  for every text in the same function, and for every specialist. `_made(m.Spec,
  part)` reads the keys of that part which are fields of the Spec.
  """
  found = []
  made_from = {
    alias.asname or alias.name: f'{node.module}.{alias.name}'
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
  }

  def fields(spec):
    """Names of the fields of `module.Spec`."""
    module = made_from[spec.value.id].removeprefix('chimera.')
    for node in _parse(MODULES[module]).body:
      if isinstance(node, ast.ClassDef) and node.name == spec.attr:
        return [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
    raise AssertionError(ast.unparse(spec))

  def chain(node, roots):
    """The names behind a config, outermost last; None if it is none."""
    if isinstance(node, ast.Name):
      return roots.get(node.id)
    if isinstance(node, ast.Attribute):
      if node.attr in ('config', '_config') and not (
        isinstance(node.value, ast.Name) and node.value.id in ('jax', 'tf')
      ):
        return []
      before = chain(node.value, roots)
      return None if before is None else [*before, node.attr]
    if isinstance(node, ast.Subscript):
      before = chain(node.value, roots)
      key = node.slice
      if before is None:
        return None
      if isinstance(key, ast.Constant) and isinstance(key.value, str):
        return [*before, key.value]
      return [*before, None]
    return None

  def visit(node, function, roots):
    if isinstance(node, ast.FunctionDef):
      function = node
      for n in ast.walk(node):
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name):
          names = chain(n.value, roots)
          if names == [] or (names and names[:2] == ['specialists', None]):
            roots = roots | {n.targets[0].id: names}
    if isinstance(node, ast.Call):
      for keyword in node.keywords:  # f(**config.model) may read all of it
        if keyword.arg is None and (names := chain(keyword.value, roots)):
          leaves = [key.rpartition('.')[2] for key in KEYS]
          found.append(([*names, None], leaves, node.lineno))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == '_made':
      spec, part = node.args
      for part_of in ast.walk(part):
        if names := chain(part_of, roots):
          found.append(([*names, None], fields(spec), node.lineno))
    names = chain(node, roots)
    if names:
      texts = [*terms] + [
        n.value
        for n in ast.walk(function or tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
      ]
      found.append((names, texts, node.lineno))
    if names is not None and not isinstance(node, ast.Subscript):
      return
    for child in ast.iter_child_nodes(node):
      if names is not None and child is getattr(node, 'value', None):
        continue
      visit(child, function, roots)

  visit(tree, None, {'config': []})
  return found


CONFIG = chimera_config.get_config()
KEYS = config_json.keys(CONFIG)
SPECIALIST = CONFIG.clone_names[0]
METHODS = set(dir(ml_collections.ConfigDict))


def _is_known(names):
  """Whether it leads to a key, a group, or a method of one."""
  while names and (names[-1] is None or names[-1] in METHODS):
    names = names[:-1]
  if names[:2] == ['specialists', None]:
    names = ['specialists', SPECIALIST, *names[2:]]
  if None in names:
    return True
  key = '.'.join(names)
  return not key or key in KEYS or any(k.startswith(f'{key}.') for k in KEYS)


def _read_keys(names, texts):
  """The keys that one chain reads."""
  if names[:2] == ['specialists', None] and names[2:]:
    return {
      key
      for name in CONFIG.clone_names
      for key in _read_keys(['specialists', name, *names[2:]], texts)
    }
  if None not in names:
    return {'.'.join(names[: i + 1]) for i in range(len(names))}
  group = '.'.join(names[: names.index(None)])
  return {group} | {f'{group}.{text}' for text in texts}


@pytest.mark.parametrize('name', MODULES)
def test_no_code_reads_a_key_that_is_not_there(name):
  for names, _, line in reads(_parse(MODULES[name]), _terms()):
    dotted = '.'.join(map(str, names))
    assert _is_known(names), f'{name}.py:{line} reads config.{dotted}'


def test_every_key_of_the_config_is_read():
  read = set()
  for name, path in MODULES.items():
    # Its rules name every key, but that is not to use it.
    if name != 'run.preflight':
      for names, texts, _ in reads(_parse(path), _terms()):
        read |= _read_keys(names, texts)
  assert sorted(KEYS.keys() - read) == []


def test_the_reader_of_keys_sees_what_people_write():
  tree = ast.parse("""
def f(config, crops):
  a = config.train.cycles + self._config.school.mix
  b = [config.loss[t] for t in terms.TERMS]
  e = {k: config.optics[k] for k in ('cell', 'width')}
  g = [c.size for c in crops]
  jax.config.update('x', 1)
def h(config):
  c = config
  block = c.specialists[name]
  f = block['pid'].derivative, [block.emphasis[t] for t in terms.TERMS]
  return c.specialists[name].q.low, c['eval'].preview, state_lib.config.model
""")
  found = reads(tree, ('l1', 'vq'))
  read = {key for names, texts, _ in found for key in _read_keys(names, texts)}
  assert read >= {
    'train.cycles',
    'school.mix',
    'loss.l1',
    'loss.vq',
    'optics.cell',
    'optics.width',
    'specialists.structural.q.low',
    'specialists.structural.pid.derivative',
    'specialists.latent_purity.emphasis.vq',
    'eval.preview',
    'model',
  }
  assert 'size' not in read
  assert 'update' not in read
  assert 'specialists.structural.bins' not in read
  assert all(_is_known(names) for names, _, _ in found)
  for text in ('train.batch_sise[0]', 'specialists[name].q.lowest'):
    bad = reads(ast.parse(f'x = config.{text}'), ())
    assert [_is_known(names) for names, _, _ in bad] == [False]
