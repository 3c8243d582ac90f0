"""Files of any name that a file system takes: in, to tokens, and drawn."""

import csv
import os
import pathlib
import tarfile
import tempfile
from unittest import mock

import hypothesis
from hypothesis import strategies as st
import numpy as np
from PIL import Image

from chimera.data import crops as crops_lib
from chimera.data import folders
from chimera.tokenizer import pictures, store, tokens
from configs import chimera as chimera_config
from tests import sweep
from tests.sweeps import gray

SUFFIX = b'.png'
# What shells, globs, CSV, printf, archives and we ourselves give a meaning.
PARTS = (
  *(b'skimage:', b'.zip!', b'.tar!', b'-', b'--', b'*', b'**', b'[1]', b'?'),
  *(b'\\', b'\r', b'\n', b'"', b"'", b',', b'=1+1', b'%s', b'{0}', b'$HOME'),
  *(b' ', b'~', b'..', b'\xff', b'\xed\xa0\x80', 'ф'.encode(), b'\x7f\x1b[2J'),
  *(b'.png', b'tokens-00000.npy', b'.lock', b'seal', b'!', b'#', b';', b'|'),
)


def _is_name(name):
  # What begins with a dot is hidden.
  if name[:1] == b'.':
    return False
  return 0 < len(name) <= 255 - len(SUFFIX) and not {0, ord('/')} & set(name)


NAMES = st.one_of(
  st.binary(min_size=1, max_size=255 - len(SUFFIX)),
  st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(b''.join),
  # As long as one can be, and different in the end.
  st.binary(min_size=1, max_size=2).map(lambda end: end.rjust(251, b'x')),
).filter(_is_name)


def _png(shade):
  return gray.png(np.full((2, 2), shade // 16))


def _shades(home):
  """The shade of each row, by its file's name as bytes."""
  found, meta = store.load(home)
  assert [s['first'] for s in meta['sources']] == list(range(len(found)))
  assert (found == found[:, :1, :1]).all()
  files = [os.fsencode(s['file']) for s in meta['sources']]
  return dict(zip(files, (16 * found[:, 0, 0]).tolist(), strict=True))


@sweep.of(ci=60, long=500)
@hypothesis.given(
  st.lists(NAMES, min_size=2, max_size=5, unique=True), NAMES, NAMES
)
def test_any_file_is_tokenized_under_its_name(names, folder, broken):
  names = [name + SUFFIX for name in names]
  names[-1] = os.path.join(folder, names[-1])
  broken = broken + SUFFIX
  hypothesis.assume(broken not in names and folder not in (*names, broken))
  with (
    tempfile.TemporaryDirectory() as place,
    mock.patch.object(tokens, 'open_tokenizer', return_value=gray.Tokenizer()),
  ):
    home = os.fsencode(place)
    mine, out, drawn = (os.path.join(place, name) for name in ('m', 'o', 'd'))
    os.makedirs(os.path.join(home, b'm', folder))
    shades = {name: 16 * i for i, name in enumerate(names)}
    for name, shade in shades.items():
      pathlib.Path(os.fsdecode(os.path.join(home, b'm', name))).write_bytes(
        _png(shade)
      )
    bad = pathlib.Path(os.fsdecode(os.path.join(home, b'm', broken)))
    bad.write_bytes(b'no picture')

    sources = folders.list_sources(mine, 'FOLDER')
    assert {os.path.relpath(os.fsencode(s), home) for s in sources} == {
      os.path.join(b'm', name) for name in (*names, broken)
    }
    config = chimera_config.get_config()
    config.tokens.shard = 2
    config.tokens.batch_size = 2
    tokens.tokenize(mine, 'none', out, config)
    assert _shades(out) == shades
    with open(
      os.path.join(out, 'skipped.csv'),
      encoding='utf-8',
      errors='surrogateescape',
      newline='',
    ) as f:
      listed = [os.fsencode(row[0]) for row in csv.reader(f)]
    assert listed == [b'source', broken]

    # An archive of them gives the same.
    archive = os.path.join(place, 'a.tar')
    with tarfile.open(archive, 'w') as f:
      f.add(mine, arcname='')
    tokens.tokenize(archive, 'none', out, config)
    assert _shades(out) == shades

    # One is another picture now, and one is mended.
    shades |= {names[0]: 240, broken: 224}
    changed = os.fsdecode(os.path.join(home, b'm', names[0]))
    pathlib.Path(changed).write_bytes(_png(240))
    bad.write_bytes(_png(224))
    tokens.tokenize(mine, 'none', out, config)
    assert _shades(out) == shades
    assert 'skipped.csv' not in os.listdir(out)

    pictures.detokenize(out, 'none', drawn)
    seen = [
      np.unique(np.asarray(Image.open(os.path.join(where, file)))).tolist()
      for where, _, files in os.walk(os.fsencode(drawn))
      for file in files
    ]
    assert sorted(seen) == sorted([shade] for shade in shades.values())

    crops = [crops_lib.Crop(source, 0, 1, 2) for source in sources]
    manifest = os.path.join(place, 'manifest.csv')
    crops_lib.write_manifest(manifest, crops, np.arange(len(crops)))
    again, scores = crops_lib.read_manifest(manifest)
    assert again == crops
    assert scores.tolist() == list(range(len(crops)))
