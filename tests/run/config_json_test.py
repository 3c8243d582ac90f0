"""What a workdir holds of its config, held to the rules, whoever reads it."""

import json

import hypothesis
from hypothesis import strategies as st
import pytest

from chimera import main
from chimera.run import config_json, default_config, rules
from chimera.system import provenance
from configs import chimera as chimera_config
from tests import sweep, written

CONFIG = chimera_config.get_config()
TREE = json.loads(CONFIG.to_json())
GROUPS = [name for name, value in TREE.items() if isinstance(value, dict)]


def _write(home, tree):
  (home / 'config.json').write_text(json.dumps(tree))
  return str(home)


def _copy():
  return json.loads(json.dumps(TREE))


def _set(tree, key, value):
  *groups, leaf = key.split('.')
  for group in groups:
    tree = tree[group]
  tree[leaf] = value


def test_what_train_wrote_is_read_as_it_was(tmp_path):
  read = config_json.read(_write(tmp_path, TREE))
  assert read == config_json.keys(TREE)
  assert config_json.tree(read) == TREE
  assert config_json.tree({}) == {}


def test_a_number_in_a_list_may_be_spelled_as_a_whole_one():
  digests = set()
  for actions in ((0.8, 1, 1.2), (0.8, 1.0, 1.2), [0.8, 1, 1.2]):
    config = default_config.get_config()
    with config.ignore_type():
      config.q.actions = actions
    config_json.make_floats(config)
    digests.add(provenance.digest(json.loads(config.to_json())))
  assert len(digests) == 1


def test_blocks_that_no_clone_has_and_keys_of_nobody_do_not_matter(tmp_path):
  tree = _copy() | {'clone_names': ['structural'], 'of_tomorrow': {'a': [{}]}}
  tree['specialists']['perceptual'] = 'gone'
  read = config_json.read(_write(tmp_path, tree))
  assert 'specialists.structural.bins' in read
  assert not [k for k in read if 'perceptual' in k or 'tomorrow' in k]


def test_an_older_config_has_what_was_in_force_then(tmp_path):
  tree = _copy()
  del tree['model']['quantizer'], tree['model']['levels']
  read = config_json.read(_write(tmp_path, tree))
  assert read['model.quantizer'] == 'vq'
  assert set(read) == set(config_json.keys(TREE))
  # But not what there always was.
  del tree['train']['batch_size']
  with pytest.raises(ValueError, match=r'it lacks train\.batch_size\. Put it'):
    config_json.read(_write(tmp_path, tree))


def _readers(workdir):
  """Each command that goes by what a workdir holds."""
  return {
    'doctor': ['doctor', f'--workdir={workdir}'],
    'mission-control': ['mission-control', f'--workdir={workdir}'],
    'evaluate': ['evaluate', f'--workdir={workdir}'],
    'export': ['export', f'--workdir={workdir}'],
    'train': ['train', f'--workdir={workdir}'],
    'init_from': ['train', f'--config.init_from={workdir}', '--workdir=new'],
  }


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
  """A workdir with a history and a checkpoint, and what each reader says."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(main, '_set_up_logging', lambda debug: None)
  for name in ('train', 'evaluate', 'export'):
    monkeypatch.setitem(main.COMMANDS, name, lambda job: None)
  workdir = tmp_path / 'run'
  written.write(workdir)
  (workdir / 'checkpoints' / '100').mkdir(parents=True)

  def say():
    lines = {}
    for name, argv in _readers('run').items():
      assert main.main(['chimera', *argv]) == 2, name
      lines[name] = capfd.readouterr().err
      assert lines[name].startswith('Error: '), name
      assert lines[name].count('\n') == 1, lines[name]
      assert not (tmp_path / 'new').exists()
    return lines

  return workdir, say


BROKEN = [
  (
    'not UTF-8',
    b'\xff\xfe{"clone_names": []}\xff',
    'config.json is not readable',
  ),
  ('empty', b'', 'config.json is not readable'),
  ('cut short', json.dumps(TREE).encode()[:-9], 'config.json is not readable'),
  ('nested too deep', b'[' * 10**5, 'config.json is not readable'),
  ('in groups', b'{"a":' * 600 + b'1' + b'}' * 600, 'config.json is not'),
  ('too many groups', b'{"a":' * 960 + b'1' + b'}' * 960, 'config.json is not'),
  ('a list', b'[1, 2]', 'it holds a list'),
  ('null', b'null', 'it holds a NoneType'),
  ('of others', b'{"name": "a web site"}', 'config.json is not of Chimera'),
]


@pytest.mark.parametrize(
  ('data', 'complaint'), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN]
)
def test_a_file_that_is_none_is_one_line_for_every_reader(run, data, complaint):
  workdir, say = run
  (workdir / 'config.json').write_bytes(data)
  for name, line in say().items():
    assert complaint in line, name


def test_a_huge_file_is_not_read(tmp_path):
  with open(tmp_path / 'config.json', 'wb') as f:
    f.truncate(1 << 40)
  with pytest.raises(ValueError, match=r'config\.json is not readable .* more'):
    config_json.read(tmp_path)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('train.batch_size', '8'),
    ('train.batch_size', 8.5),
    ('data.image_size', None),
    ('optics.cell', 0),
    ('model.width', [64]),
    ('q.actions', 'many'),
    ('specialists.structural.bins', [0, '1']),
    ('specialists.structural.pid.target', 7),
    ('specialists.adversarial', None),
    ('train', 3),
    ('q', [[[]]]),
    ('clone_names', ['perceptual', {'a': 1}]),
  ],
)
def test_a_value_that_is_none_is_one_line_that_names_it(run, key, value):
  workdir, say = run
  tree = _copy()
  _set(tree, key, value)
  _write(workdir, tree)
  leaf = key.rpartition('.')[2]
  for name, line in say().items():
    assert leaf in line, name
    # train holds it against its own config.
    assert 'config.json' in line or name == 'train', name


@pytest.mark.parametrize('group', GROUPS)
def test_a_group_that_is_missing_is_one_line(tmp_path, group):
  tree = _copy()
  del tree[group]
  with pytest.raises(ValueError, match=rf'config\.json .* lacks {group}\.'):
    config_json.read(_write(tmp_path, tree))


_JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=5,
)


@sweep.of(ci=150, long=5000)
@hypothesis.given(
  st.sampled_from([*config_json.keys(TREE), *GROUPS, 'specialists.structural']),
  _JSON,
)
def test_any_value_anywhere_is_as_its_rule_wants_it_or_named(
  tmp_path_factory, key, value
):
  home = tmp_path_factory.getbasetemp() / 'any'
  home.mkdir(exist_ok=True)
  tree = _copy()
  _set(tree, key, value)
  complaint, read = None, {}
  try:
    read = config_json.read(_write(home, tree))
  except ValueError as e:
    complaint = str(e)
  if complaint is not None:
    assert '\n' not in complaint
    assert str(home / 'config.json') in complaint
    return
  known = rules.of_clones(read['clone_names'])
  assert read.keys() == known.keys()
  for k, rule in known.items():
    assert rule.holds(config_json.as_python(read[k])), k
