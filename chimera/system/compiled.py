"""What XLA compiled once, kept for the user's next run.

JAX's persistent cache, on by default. An entry that cannot be read (a full
disk, a kill in mid-write) JAX reports at every start and never writes anew.
Here its report removes the entry, before JAX comes to write it.
https://docs.jax.dev/en/latest/persistent_compilation_cache.html
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re
from typing import Any
import warnings

from absl import logging

_VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
_BROKEN = 'Error reading persistent compilation cache entry'
# The name of the program; entries are named NAME-KEY-cache.
_ENTRY = re.compile(rf"{_BROKEN} for '([^']+)'")


def default_folder() -> pathlib.Path:
  """`~/.cache/chimera/compiled`, or where $XDG_CACHE_HOME has it.

  Raises:
    OSError: nobody knows where a home is: no $HOME, and a user without a name.
  """
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  if home.startswith('~'):
    raise FileNotFoundError('there is no home: set HOME or XDG_CACHE_HOME')
  return pathlib.Path(home, 'chimera', 'compiled')


def sooner() -> dict[str, Any]:
  """`compiler_options` of a program that runs but once.

  LLVM takes most of the time that a CPU's programs take, and most of that is
  spared, with the same bits as a result. JAX_DISABLE_MOST_OPTIMIZATIONS spares
  more.
  """
  import jax  # which `kept` must come before

  is_cpu = jax.default_backend() == 'cpu'
  if not is_cpu or jax.config.read('jax_disable_most_optimizations'):
    return {}
  return {'xla_backend_optimization_level': 1}


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Keeps what is compiled, if entered before JAX is imported.

  $JAX_COMPILATION_CACHE_DIR names another folder; where it is empty, nothing
  is kept. A folder that cannot be written is one warning, and nothing is kept.
  """
  folder = os.environ.get(_VARIABLE)
  if folder is None:
    try:
      folder = str(default_folder())
      # Whoever writes there has his code run by JAX: nobody else may.
      os.makedirs(folder, mode=0o700, exist_ok=True)
      if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f'{folder} cannot be written')
    except OSError as e:
      logging.warning('What is compiled is not kept: %s.', e)
      folder = ''
    os.environ[_VARIABLE] = folder
  with warnings.catch_warnings():
    warnings.filterwarnings('always', message=_BROKEN)
    others = warnings.showwarning

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
      entry = _ENTRY.match(str(message))
      if not (folder and entry and _remove(pathlib.Path(folder), entry[1])):
        others(message, *args, **kwargs)

    warnings.showwarning = show
    yield


def _remove(folder: pathlib.Path, name: str) -> bool:
  """Removes the entries of a program, of which one is broken, and says so.

  False where there are none.
  """
  entry = re.compile(rf'{re.escape(name)}(-[0-9a-f]+)?-cache')
  paths = [p for p in folder.glob('*-cache') if entry.fullmatch(p.name)]
  if not paths:
    return False
  try:
    for path in paths:
      path.unlink(missing_ok=True)
  except OSError as e:
    logging.log_first_n(
      logging.WARNING,
      'A broken entry of the compilation cache cannot be removed, and what it '
      'held is compiled at every start: %s.',
      1,
      e,
    )
    return True
  logging.warning(
    'A broken entry of the compilation cache was removed from %s: %s is '
    'compiled and kept anew.',
    folder,
    name,
  )
  return True
