"""Where figures come from: the commit of the code, the digest of the config."""

import functools
import hashlib
import pathlib
import subprocess
from typing import Any

from chimera.system import disk

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PARTS = ('chimera', 'configs')


@functools.cache
def commit(root: pathlib.Path = _ROOT) -> str:
  """The code that is running, as well as its place can tell.

  In a git checkout the commit, 12 digits, with a + behind it where the code
  differs from it; elsewhere 'files ' and 12 digits of its files' SHA-256.
  """
  if (root / '.git').exists() and (
    head := _git(root, 'rev-parse', '--short=12', 'HEAD')
  ):
    dirty = _git(root, 'status', '--porcelain', '--', *_PARTS)
    return f'{head}{"+" if dirty else ""}'
  seen = hashlib.sha256()
  paths = (p for part in _PARTS for p in root.glob(f'{part}/**/*.py'))
  for path in sorted(paths):
    seen.update(f'{path.relative_to(root).as_posix()}\0'.encode())
    seen.update(bytes.fromhex(disk.digest(path)))
  return f'files {seen.hexdigest()[:12]}'


def digest(config: dict[str, Any]) -> str:
  """Of a config as JSON holds it: 16 digits of the SHA-256 of its sorted text,
  `json.dumps(config, sort_keys=True)`."""
  return disk.seal(config)[:16]


def file_digest(path: str) -> str:
  """A file's name and 12 digits of its SHA-256."""
  return f'{pathlib.Path(path).name} {disk.digest(path)[:12]}'


def _git(root: pathlib.Path, *words: str) -> str:
  """What git says; nothing where it is not there or refuses."""
  try:
    command = ('git', '-C', str(root), *words)
    done = subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=20
    )
  except (OSError, subprocess.SubprocessError):
    return ''
  return done.stdout.strip()
