"""A workdir that was edited, cut or flipped: read, or one line."""

import contextlib
import io
import json
import math
import shutil

import hypothesis
from hypothesis import strategies as st
import pytest

from chimera import main
from tests import sweep, written

FILES = (
  *('config.json', 'history.jsonl', 'latents.npy', 'manifest.csv'),
  'optics/crops.csv',
)
_JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.sampled_from([10**400, 2**63, -1, 0, math.nan, math.inf, 1e308])
  | st.floats()
  | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=4,
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of 20 log cycles, and what it trained on."""
  home = tmp_path_factory.mktemp('whole') / 'run'
  written.write(home, data__source='/gone')
  written.write_data(home, **written.varied(60))
  return home


def _looks(home):
  """The doctor and Mission Control: their code, or one line and 2."""
  for command in ('doctor', 'mission-control'):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      code = main.main(['chimera', command, f'--workdir={home}'])
    assert code in (0, 1, 2)
    if code == 2:
      assert err.getvalue().startswith('Error: ')
      assert err.getvalue().count('\n') == 1
      assert str(home) in err.getvalue()
    else:
      assert out.getvalue()


@pytest.fixture
def spoilt(whole, tmp_path, monkeypatch):
  """A file of a copy that is put back for each example."""
  monkeypatch.setattr(main, '_set_up_logging', lambda debug: None)
  shutil.copytree(whole, tmp_path / 'run')

  def write(name, data):
    for file in FILES:
      shutil.copyfile(whole / file, tmp_path / 'run' / file)
    (tmp_path / 'run' / name).write_bytes(data)
    return tmp_path / 'run'

  return write


@sweep.of(ci=40, long=3000)
@hypothesis.given(
  name=st.sampled_from(FILES),
  at=st.floats(0, 1, exclude_max=True),
  byte=st.integers(0, 255),
  cuts=st.booleans(),
)
def test_bytes_that_are_others_or_gone(whole, spoilt, name, at, byte, cuts):
  data = bytearray((whole / name).read_bytes())
  i = int(at * len(data))
  data[i:] = b'' if cuts else bytes([byte]) + data[i + 1 :]
  _looks(spoilt(name, data))


def _places(tree, path=()):
  """Where in a tree of JSON something stands."""
  yield path
  for key, value in tree.items() if isinstance(tree, dict) else ():
    yield from _places(value, (*path, key))


@sweep.of(ci=40, long=3000)
@hypothesis.given(data=st.data(), value=_JSON, every=st.booleans())
def test_figures_that_are_none(whole, spoilt, data, value, every):
  lines = (whole / 'history.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  at = data.draw(st.integers(0, len(rows) - 1))
  place = data.draw(st.sampled_from(list(_places(rows[at]))[1:]))
  for row in rows if every else rows[at : at + 1]:
    *groups, leaf = place
    for group in groups:
      row = row.get(group, {})
    row[leaf] = value
  text = ''.join(f'{json.dumps(row)}\n' for row in rows)
  _looks(spoilt('history.jsonl', text.encode()))
