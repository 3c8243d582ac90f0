"""The benchmarks of tokenizing say their figures."""

import re

from tests import tiny
from tests.benchmarks import command


def test_the_tokens_benchmark_says_the_share_of_bare_encode(tmp_path):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer')
  result = command.run(
    'tokens', f'--tokenizer={folder}', '--count=70', '--rounds=1'
  )
  assert result.returncode == 0, result.stderr
  assert re.search(r'tokenize \d+ images/s, \d+\.\d+ of bare', result.stdout)
  assert re.search(r'median \d', result.stdout)


def test_the_door_benchmark_says_its_share_of_encode(tmp_path):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer')
  result = command.run(
    'door', f'--tokenizer={folder}', '--batch=2', '--rounds=1'
  )
  assert result.returncode == 0, result.stderr
  said = re.findall(r'for 2 images: \d+\.\d+ % of encode', result.stdout)
  assert len(said) == 2
