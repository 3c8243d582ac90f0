import os

from chimera.data import skipped


def test_a_dozen_is_listed_and_ten_of_them_are_said(tmp_path, warnings):
  skipped.tell({f'/a/{i}.png': f'reason {i}' for i in range(12)}, tmp_path)
  (line,) = warnings
  assert line.startswith('Skipped 12 image(s): /a/0.png: reason 0; /a/1.png: ')
  assert line.endswith(
    f'/a/9.png: reason 9; and 2 more. See {tmp_path}/skipped.csv.'
  )
  lines = (tmp_path / 'skipped.csv').read_text().splitlines()
  assert lines[0] == 'source,reason'
  assert lines[1:] == [f'/a/{i}.png,reason {i}' for i in range(12)]


def test_names_of_any_bytes_and_reasons_with_commas_are_kept(
  tmp_path, warnings
):
  name = os.fsdecode(b'/a/\xff"\n.png')
  skipped.tell({name: 'no image, or none whole'}, tmp_path)
  data = (tmp_path / 'skipped.csv').read_bytes()
  assert data == (
    b'source,reason\n"/a/\xff""\n.png","no image, or none whole"\n'
  )
  assert len(warnings) == 1


def test_no_list_is_left_where_nothing_was_skipped(tmp_path, warnings):
  skipped.tell({'/a/0.png': 'it is empty'}, tmp_path)
  skipped.tell({}, tmp_path)
  assert not list(tmp_path.iterdir())
  assert len(warnings) == 1
