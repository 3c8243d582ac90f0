"""Notes of long work: whole lines are believed, and no others."""

import json
import zlib

import pytest

from chimera.system import journal

WORK = {'of': 'tests', 'version': 1}
ENTRIES = [['a', 1], {'b': [2.5, None]}, 'c\udce9\n']


def _write(path, work=WORK, entries=ENTRIES):
  with journal.Journal(path, work) as notes:
    for entry in entries:
      notes.add(entry)
    return notes.entries


def _read(path, work=WORK):
  with journal.Journal(path, work) as notes:
    return notes.entries


def test_what_was_added_is_there_when_it_is_opened_again(tmp_path):
  path = tmp_path / 'notes'
  assert _write(path) == []
  assert _read(path) == ENTRIES
  _write(path, entries=['more'])
  assert _read(path) == [*ENTRIES, 'more']


def test_a_line_is_its_checksum_and_json(tmp_path):
  _write(tmp_path / 'notes')
  lines = (tmp_path / 'notes').read_bytes().splitlines()
  for line, value in zip(lines, [WORK, *ENTRIES], strict=True):
    assert json.loads(line[9:]) == value
    assert int(line[:8], 16) == zlib.crc32(line[9:])


def test_what_is_added_is_on_the_way_to_the_disk_at_once(tmp_path):
  with journal.Journal(tmp_path / 'notes', WORK) as notes:
    notes.add('a')
    assert list(journal._lines(tmp_path / 'notes'))[-1][0] == 'a'


def test_notes_of_another_work_are_dropped(tmp_path):
  path = tmp_path / 'notes'
  _write(path)
  assert _read(path, {**WORK, 'version': 2}) == []
  assert _read(path, {**WORK, 'version': 2}) == []
  assert _read(path) == []


def test_wherever_the_file_is_cut_the_lines_before_are_believed(tmp_path):
  path = tmp_path / 'notes'
  _write(path)
  data = path.read_bytes()
  ends = [i + 1 for i, x in enumerate(data) if x == ord('\n')]
  assert len(ends) == 4
  for cut in range(len(data)):
    path.write_bytes(data[:cut])
    whole = max(sum(end <= cut for end in ends) - 1, 0)
    assert _read(path) == ENTRIES[:whole], cut
    # What comes next follows the last whole line.
    _write(path, entries=['next'])
    assert _read(path) == [*ENTRIES[:whole], 'next']


def test_a_flipped_bit_ends_what_is_believed(tmp_path):
  path = tmp_path / 'notes'
  _write(path)
  data = path.read_bytes()
  ends = [i + 1 for i, x in enumerate(data) if x == ord('\n')]
  for at in range(len(data)):
    spoilt = bytearray(data)
    spoilt[at] ^= 4
    path.write_bytes(spoilt)
    whole = max(sum(end <= at for end in ends) - 1, 0)
    assert _read(path) == ENTRIES[:whole], at


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
  path = tmp_path / 'notes'

  class Full:
    def write(self, data):
      return len(data) - 1

    def close(self):
      pass

  with journal.Journal(path, WORK) as notes:
    notes._file.close()
    notes._file = Full()
    with pytest.raises(OSError, match='No space') as e:
      notes.add('a')
  assert e.value.filename == str(path)
