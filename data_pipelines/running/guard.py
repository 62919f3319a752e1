"""Function calls in a child process, with limits on time and memory.

Damaged files make decoders hang, crash or allocate all the memory there is.
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

# Bytes of address space of a child process.
MAX_MEMORY = 8 << 30
# Linux: prctl's option for the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1

_HERE = threading.local()


def guarded(fn: Callable, *args: Any, seconds: float | int) -> Any:
  """`fn(*args)`, called in a child process that this thread keeps.

  Args:
    fn: a function that can be pickled, like its arguments and its result.
    args: arguments of the function.
    seconds: time limit, after which the child is killed.

  Raises:
    InputError: the call timed out, killed the child twice, raised InputError
      itself, or raised anything else (reason "failed").
  """
  try:
    return _child().call(fn, args, seconds)
  except InputError as e:
    if e.reason != "crashed":
      raise
  # The child may have been killed from outside, for example when memory ran
  # out. Only a second death is the fault of the call.
  return _child().call(fn, args, seconds)


def _child() -> "_Child":
  child = getattr(_HERE, "child", None)
  if child is None or child.process.poll() is not None:
    child = _HERE.child = _Child()
  return child


class _Child:
  """A process that executes calls one after another."""

  def __init__(self):
    ours, theirs = connection.Pipe()
    # It imports what this process can import. There is one child per core, so
    # OpenCV needs no threads of its own.
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    self.process = subprocess.Popen(
      [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
      pass_fds=[theirs.fileno()],
      env=os.environ | path | {"OPENCV_FOR_THREADS_NUM": "1"},
      stdin=subprocess.DEVNULL,
      # Ctrl-C reaches the build only, which then ends its children.
      start_new_session=True,
    )
    theirs.close()
    self._pipe = ours

  def call(self, fn: Callable, args: tuple, seconds: float | int) -> Any:
    try:
      self._pipe.send((fn, args))
      if not self._pipe.poll(seconds):
        raise InputError(f"timed out after {seconds:g} seconds", "stalled")
      outcome = self._pipe.recv()
    except (EOFError, ConnectionError) as e:
      status = self.process.wait()
      text = f"the process died twice, with status {status}"
      raise InputError(text, "crashed") from e
    except BaseException:
      self.process.kill()
      self.process.wait()
      raise
    if isinstance(outcome, InputError):
      raise outcome
    return outcome


def _serve(pipe: connection.Connection) -> None:
  """Executes calls until the parent closes the pipe."""
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      fn, args = pipe.recv()
      pipe.send(_outcome(fn, args))


def _outcome(fn: Callable, args: tuple) -> Any:
  """The result of a call, or the InputError that its caller gets."""
  try:
    return fn(*args)
  except InputError as e:
    return e
  except MemoryError:
    text = f"needs more than {MAX_MEMORY >> 30} GiB of memory"
    return InputError(text, "too-large")
  except Exception as e:
    # As text, because not every exception can be pickled.
    text = " ".join(f"{type(e).__name__}: {e}".split())
    place = traceback.extract_tb(e.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return InputError(f"{text} ({where})", "failed")


def die_with(parent: int) -> None:
  """Makes this process end when the thread that started it ends.

  Args:
    parent: process id of that thread.
  """
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:
    sys.exit()


if __name__ == "__main__":
  die_with(int(sys.argv[2]))
  resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
  _serve(connection.Connection(int(sys.argv[1])))
