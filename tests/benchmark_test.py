"""The benchmark runs, says its figures, and refuses what it does not know."""

import pathlib
import re
import subprocess
import sys

from tests import tiny


def run(*args):
  return subprocess.run(
    [sys.executable, '-m', 'chimera.benchmark', *args],
    capture_output=True,
    text=True,
    check=False,
    cwd=pathlib.Path(__file__).parents[1],
  )


def test_the_curriculum_benchmark_prints_its_speed_and_its_peak():
  result = run('curriculum', '--samples=2000', '--rounds=1')
  assert result.returncode == 0, result.stderr
  assert re.search(r'speed against the bare mean: \d', result.stdout)
  assert re.search(r'\d+ MB', result.stdout)


def test_the_tokens_benchmark_says_the_share_of_bare_encode(tmp_path):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer')
  result = run('tokens', f'--tokenizer={folder}', '--count=70', '--rounds=1')
  assert result.returncode == 0, result.stderr
  assert re.search(r'tokenize \d+ images/s, \d+\.\d+ of bare', result.stdout)
  assert re.search(r'median \d', result.stdout)


def test_the_door_benchmark_says_its_share_of_encode(tmp_path):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer')
  result = run('door', f'--tokenizer={folder}', '--batch=2', '--rounds=1')
  assert result.returncode == 0, result.stderr
  said = re.findall(r'for 2 images: \d+\.\d+ % of encode', result.stdout)
  assert len(said) == 2


def test_an_unknown_benchmark_exits_with_2():
  result = run('nothing')
  assert result.returncode == 2
  assert 'curriculum' in result.stderr
