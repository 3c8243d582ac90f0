"""One process a folder, by a lock that the kernel lets go of.

`flock` is held on `{folder}/.lock` as long as a command runs; kill -9 and a
crash let it go as well. On NFS it holds between hosts only where the mount
says so (`local_lock=none`, Linux 2.6.12 and later).
https://man7.org/linux/man-pages/man2/flock.2.html
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
import pathlib

from absl import logging

_NAME = '.lock'
# As Lustre says that is mounted without flock.
_WITHOUT_LOCKS = errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK


@contextlib.contextmanager
def hold(folder: str | os.PathLike, flag: str = '--workdir') -> Iterator[None]:
  """Holds a folder, which `flag` named, for this process alone.

  It is made where it is missing, and removed if nothing is put into it then. A
  ValueError names the process that holds it.
  """
  path = pathlib.Path(folder, _NAME)
  was_there = path.parent.exists()
  path.parent.mkdir(parents=True, exist_ok=True)
  file = _acquire(path, flag)
  try:
    yield
  finally:
    # Before it is let go of: what another process makes now is its own.
    if _is_at(path, file):
      path.unlink(missing_ok=True)
    os.close(file)
    if not was_there:
      with contextlib.suppress(OSError):
        path.parent.rmdir()


def _acquire(path: pathlib.Path, flag: str) -> int:
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with contextlib.ExitStack() as opened:
      opened.callback(os.close, file)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as e:
        if e.errno in _WITHOUT_LOCKS:
          logging.warning(
            '%s cannot be locked (%s): see that one process at a time uses it.',
            *(path.parent, e.strerror),
          )
          opened.pop_all()
          return file
        if not isinstance(e, BlockingIOError):
          raise
        pid = os.read(file, 20).decode('ascii', 'replace').strip()
        raise ValueError(
          f'{path.parent} must be used by one process at a time, but process '
          f'{pid or "(unknown)"} is at work in it: wait for it to end, or give '
          f'another {flag}.'
        ) from e
      # The last holder may have removed it between our two calls.
      if _is_at(path, file):
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        opened.pop_all()
        return file


def _is_at(path: pathlib.Path, file: int) -> bool:
  """Whether the open file is the one at the path: somebody may remove it."""
  try:
    return os.path.samestat(os.fstat(file), path.stat())
  except FileNotFoundError:
    return False
