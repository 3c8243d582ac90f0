"""Several hosts as one: they hear what the first one says, and end alike.

JAX joins their devices (https://docs.jax.dev/en/latest/multi_process.html). It
ends a process with a stack of C++ where another one is not there; so the hosts
meet by themselves before it is started, and a process that knows nothing of JAX
stands before each and says in one line what became of it.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any, NamedTuple

import numpy as np

from chimera.system import preemption

_PATIENCE = 120  # seconds that a cluster's own ways of meeting may take
_HEARTBEAT = 30  # seconds of silence after which JAX gives a host up
_PART = 1 << 24  # bytes that are told at a time
_GUARDED = 'CHIMERA_GUARDED'
# What JAX's coordination service, gloo and glog write past every stream.
_NOISE = re.compile(
  r'\[Gloo\]|[IWEF]\d{4} \d\d:|\*\*\* Check failure|    @ +0x|RPC: /xla|'
  r'Additional GRPC|:UNKNOWN:|WARNING: All log messages before absl'
)
# How collectives and the coordination service say that nobody answers.
_SILENCE = re.compile(
  '[Gg]loo|NCCL|[Cc]onnection|UNAVAILABLE|DEADLINE|coordinat'
)
GONE = (
  'Another host is gone: the same command on all hosts goes on from the last '
  'checkpoint.'
)
GONE_CODE = 134  # that of an abort: launch/until_done.sh starts again


class GoneError(RuntimeError):
  """Another host does not answer."""


class Place(NamedTuple):
  """Which host this is."""

  coordinator: str  # the address of the first one, 'name:port'
  count: int
  number: int  # from 0, the first

  def check(self) -> None:
    """Raises ValueError where that cannot be."""
    if self.count < 1:
      raise ValueError(f'--hosts must be at least 1, got {self.count}.')
    if not 0 <= self.number < self.count:
      raise ValueError(
        f'--host must be 0 to {self.count - 1} of --hosts={self.count}, got '
        f'{self.number}.'
      )
    _, _, port = self.coordinator.rpartition(':')
    if not (port.isdecimal() and 0 < int(port) < 65536):
      raise ValueError(
        '--coordinator must be the address of the first host and a free port '
        f'there, as in 10.0.0.1:1234, got {self.coordinator!r}.'
      )


def find(coordinator: str, count: int, number: int) -> Place | None:
  """What the flags say, or the cluster; None where this host is alone.

  Slurm and Open MPI 4 are asked where no flag is given and they started several
  processes; a Cloud TPU by coordinator = 'auto'.

  Raises:
    ValueError: the flags do not fit each other.
  """
  given = coordinator not in ('', 'auto'), count != 0, number != -1
  if any(given):
    if not all(given):
      raise ValueError(
        '--coordinator, --hosts and --host go together, got '
        f'--coordinator={coordinator!r}, --hosts={count}, --host={number}.'
      )
    place = Place(coordinator, count, number)
    place.check()
    return place if count > 1 else None
  # In a step of one task a shell may run, of a job that has more.
  slurm = 'SLURM_NTASKS'
  if os.environ.get('SLURM_STEP_NUM_TASKS') == '1':
    slurm = 'SLURM_STEP_NUM_TASKS'
  tasks = (os.environ.get(k, '1') for k in (slurm, _OPEN_MPI))
  if coordinator != 'auto' and all(n in ('', '1') for n in tasks):
    return None
  # Of Slurm's batch step, which is alone, nothing is to be joined.
  if coordinator != 'auto' and not {'SLURM_STEP_ID', _OPEN_MPI} & {*os.environ}:
    return None
  from jax._src import clusters

  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, None, _PATIENCE
  )
  if None in found[:3]:
    raise ValueError(
      'No cluster is known here: give --coordinator=ADDRESS:PORT, --hosts and '
      '--host.'
    )
  place = Place(*found[:3])
  return place if place.count > 1 else None


_OPEN_MPI = 'OMPI_COMM_WORLD_SIZE'


class Team:
  """The hosts, once JAX has joined them. The first one tells, others hear."""

  def __init__(self, place: Place):
    import jax

    self.count, self.number = place.count, place.number
    # Its handler would take SIGTERM from ours.
    jax.config.update('jax_enable_preemption_service', False)
    jax.distributed.initialize(
      *place,
      initialization_timeout=60,
      heartbeat_timeout_seconds=_HEARTBEAT,
      shutdown_timeout_seconds=10,
      cluster_detection_method='deactivate',
    )
    self._is_telling = False
    # What a signal told one of the others to do.
    self.signum: int | None = None

  @property
  def is_first(self) -> bool:
    return self.number == 0

  def tell(self, order: str, what: Any = None) -> None:
    """The first host's: an order to all others, with what belongs to it."""
    if not self.is_first:
      return
    body = pickle.dumps((order, what))
    with self._telling():
      self._exchange(len(body), 0)
      for i in range(0, len(body), _PART):
        self._share(body[i : i + _PART])

  def hear(self, signum: int | None) -> tuple[str, Any]:
    """The others': the next order; the first is told of a signal."""
    size = self._exchange(0, signum or 0)
    parts = [
      self._share(bytes(min(_PART, size - i))) for i in range(0, size, _PART)
    ]
    return pickle.loads(b''.join(parts))

  def gather(self, tree: Any) -> Any:
    """All hosts' rows of host arrays, which are alike in shape, in order."""
    import jax

    leaves, form = jax.tree.flatten(tree)
    leaves = [np.ascontiguousarray(x) for x in leaves]
    body = b''.join(x.tobytes() for x in leaves)
    with self._telling():
      parts = [
        self._all(np.frombuffer(body[i : i + _PART], np.uint8))
        for i in range(0, len(body), _PART)
      ]
    bodies, at, found = np.concatenate(parts, axis=1), 0, []
    for x in leaves:
      rows = np.ascontiguousarray(bodies[:, at : at + x.nbytes])
      found.append(rows.view(x.dtype).reshape(-1, *x.shape[1:]))
      at += x.nbytes
    return jax.tree.unflatten(form, found)

  def share_rows(self, rows: np.ndarray | None) -> np.ndarray:
    """The first host's array, a part at a time; elsewhere as a file without a
    name, which goes with the process."""
    if self.is_first:
      shape, dtype = rows.shape, rows.dtype
      self.tell('rows', (shape, dtype))
    else:
      _, (shape, dtype) = self.hear(None)
      with tempfile.TemporaryFile() as f:
        rows = np.memmap(f, dtype, 'w+', shape=shape)
    step = max(1, _PART // max(1, int(np.prod(shape[1:])) * dtype.itemsize))
    with self._telling():
      for i in range(0, shape[0], step):
        part = rows[i : i + step]
        body = self._share(np.ascontiguousarray(part).tobytes())
        if not self.is_first:
          rows[i : i + step] = np.frombuffer(body, dtype).reshape(part.shape)
    return rows

  def _exchange(self, size: int, signum: int) -> int:
    """What the first one is about to say; who was told to end is noted."""
    # JAX would make 32 bits of 64.
    said = self._all(np.array([*divmod(size, 2**31), signum], np.int32))
    told = [int(n) for n in said[:, 2] if n]
    self.signum = self.signum or (told[0] if told else None)
    return int(said[0, 0]) * 2**31 + int(said[0, 1])

  def _all(self, x: np.ndarray) -> np.ndarray:
    """Each host's array, as rows."""
    from jax.experimental import multihost_utils

    with self.answering():
      return np.asarray(multihost_utils.process_allgather(x))

  def _share(self, part: bytes) -> bytes:
    """The first host's, of as many bytes as each gives."""
    from jax.experimental import multihost_utils

    with self.answering():
      shared = multihost_utils.broadcast_one_to_all(
        np.frombuffer(part, np.uint8)
      )
    return np.asarray(shared).tobytes()

  def __enter__(self) -> 'Team':
    return self

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    """How the first host's work ended the others are told."""
    # In the middle of something else they would not understand it: they see
    # that this one is gone.
    if self._is_telling:
      return
    line, code = '', 0
    if isinstance(error, preemption.Stopped):
      line, code = str(error), 128 + error.signum
    elif isinstance(error, KeyboardInterrupt):
      line, code = 'Interrupted: the same command goes on from here.', 130
    elif error is not None:
      said = ' '.join(str(error).split())
      line, code = f'Error on the first host: {said}', 2
    self.tell('end', (line, code))

  @contextlib.contextmanager
  def _telling(self) -> Iterator[None]:
    self._is_telling = True
    yield
    self._is_telling = False

  @contextlib.contextmanager
  def answering(self) -> Iterator[None]:
    """What is done with others: where one is gone, GoneError."""
    import jax

    try:
      yield
    # Either, by what JAX was at.
    except (jax.errors.JaxRuntimeError, ValueError) as e:
      if not _SILENCE.search(str(e)):
        raise
      self._is_telling = True
      raise GoneError(GONE) from e


def is_guarded() -> bool:
  """Whether this process is the one that a guard started."""
  return _GUARDED in os.environ


def guard(argv: Sequence[str], place: Place) -> int:
  """Has a process of its own do the work, and says how it ended.

  Signals are passed on. Where JAX ends it for want of another host, that is a
  line and GONE_CODE.
  """
  end = [*argv, '--'].index('--')
  flags = (
    f'--{k}={v}' for k, v in zip(('coordinator', 'hosts', 'host'), place)
  )
  worker = subprocess.Popen(
    [sys.executable, '-m', 'chimera.main', *argv[:end], *flags, *argv[end:]],
    stdin=subprocess.PIPE,  # which ends with this process
    stderr=subprocess.PIPE,
    env={**os.environ, _GUARDED: '1'},
  )
  for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(signum) is not signal.SIG_IGN:
      signal.signal(signum, lambda n, _: worker.send_signal(n))
  assert worker.stderr
  for line in worker.stderr:
    if not _NOISE.match(said := line.decode(errors='replace')):
      sys.stderr.write(said)
      sys.stderr.flush()
  code = worker.wait()
  if code == -signal.SIGABRT:  # as JAX ends a process
    sys.stderr.write(f'Error: {GONE}\n')
    return GONE_CODE
  return code if code >= 0 else 128 - code


def end_with_the_guard() -> None:
  """In the process that it started: where the guard is killed, so is this."""

  def wait() -> None:
    while os.read(0, 1024):
      pass
    os._exit(128 + signal.SIGKILL)

  threading.Thread(target=wait, daemon=True).start()
