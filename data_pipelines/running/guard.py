"""Calls in a process of their own, which a stall or a crash cannot outlive.

Files of strangers make decoders hang, crash and ask for all memory there is.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from i2vgen_jax.errors import InputError

# Of address space: what one file may ask for.
MAX_MEMORY = 8 << 30
# Of Linux's prctl: the signal that a process gets when its parent is gone.
_PR_SET_PDEATHSIG = 1

_HERE = threading.local()


def guarded(fn: Callable[..., Any], *args: Any, seconds: float | int) -> Any:
  """`fn(*args)`, done by a child process that this thread keeps.

  Args:
    fn: a function that can be pickled, as its arguments and its result.
    args: what it gets.
    seconds: after which the child is killed.

  Raises:
    InputError: it stalled, the child died twice, or `fn` raised what is no
      InputError.
    InputError: what `fn` raises.
  """
  try:
    return _child().call(fn, args, seconds)
  except _Died:
    # Who ends a build, or needs memory, may end a child first: only what
    # happens again is the file's own fault.
    pass
  try:
    return _child().call(fn, args, seconds)
  except _Died as error:
    raise InputError(str(error), "crashed") from error


class _Died(Exception):
  """A child is gone amid a call."""


def _child() -> "_Child":
  child = getattr(_HERE, "child", None)
  if child is None or not child.alive:
    child = _HERE.child = _Child()
  return child


class _Child:
  """A process that does one call after the other."""

  def __init__(self):
    ours, theirs = connection.Pipe()
    self._process = subprocess.Popen(
      [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
      pass_fds=[theirs.fileno()],
      # It imports what we can; workers are many, and one thread each is best.
      env=os.environ
      | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OPENCV_FOR_THREADS_NUM": "1",
      },
      stdin=subprocess.DEVNULL,
      # Ctrl-C is for the build, which then ends its children.
      start_new_session=True,
    )
    theirs.close()
    self._pipe = ours

  @property
  def alive(self) -> bool:
    return self._process.poll() is None

  def call(
    self, fn: Callable[..., Any], args: tuple, seconds: float | int
  ) -> Any:
    try:
      self._pipe.send((fn, args))
      if not self._pipe.poll(seconds):
        raise InputError(f"no end after {seconds:g} seconds", "stalled")
      result, error = self._pipe.recv()
    except (EOFError, ConnectionError) as e:
      code = self._process.wait()
      raise _Died(f"the decoder died with status {code}, twice") from e
    except BaseException:
      self._process.kill()
      self._process.wait()
      raise
    if error is not None:
      raise error
    return result


def _serve(pipe: connection.Connection) -> None:
  """Answers until the parent is gone."""
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      fn, args = pipe.recv()
      pipe.send(_answer(fn, args))


def _answer(fn: Callable[..., Any], args: tuple) -> tuple[Any, Any]:
  """The result, or what was raised."""
  try:
    return fn(*args), None
  except MemoryError:
    text = f"needs more than {MAX_MEMORY >> 30} GiB of memory"
    return None, InputError(text, "too-large")
  except InputError as error:
    return None, error
  except Exception as error:
    # Said here, as not every exception survives the way between processes.
    said = " ".join(f"{type(error).__name__}: {error}".split())
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return None, InputError(f"{said} ({where})", "failed")


def die_with(parent: int) -> None:
  """Ends this process when the thread that started it ends, even amid a call.

  Args:
    parent: id of the process of that thread.
  """
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:
    sys.exit()


if __name__ == "__main__":
  die_with(int(sys.argv[2]))
  resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
  _serve(connection.Connection(int(sys.argv[1])))
