"""Calls in a process of their own, which a stall or a crash cannot outlive.

Files of strangers make decoders hang, crash and ask for all memory there is.
"""

import contextlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from data_pipelines.quarantine import Unusable

# Of address space: what one file may ask for.
MAX_MEMORY = 8 << 30

_HERE = threading.local()


def guarded(fn: Callable[..., Any], *args: Any, seconds: float | int) -> Any:
  """`fn(*args)`, done by a child process that this thread keeps.

  Args:
    fn: a function that can be pickled, as its arguments and its result.
    args: what it gets.
    seconds: after which the child is killed.

  Raises:
    Unusable: it stalled, or the child died.
    Exception: whatever `fn` raises.
  """
  child = getattr(_HERE, "child", None)
  if child is None or not child.alive:
    child = _HERE.child = _Child()
  return child.call(fn, args, seconds)


class _Child:
  """A process that does one call after the other."""

  def __init__(self):
    ours, theirs = connection.Pipe()
    self._process = subprocess.Popen(
      [sys.executable, "-m", __name__, str(theirs.fileno())],
      pass_fds=[theirs.fileno()],
      # It imports what we can; workers are many, and one thread each is best.
      env=os.environ
      | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OPENCV_FOR_THREADS_NUM": "1",
      },
      stdin=subprocess.DEVNULL,
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
        raise Unusable("stalled", f"no end after {seconds:g} seconds")
      result, error = self._pipe.recv()
    except (EOFError, ConnectionError) as e:
      code = self._process.wait()
      raise Unusable("crashed", f"the decoder died with status {code}") from e
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
    return None, Unusable("too-large", text)
  except Exception as error:
    return None, error


if __name__ == "__main__":
  resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
  _serve(connection.Connection(int(sys.argv[1])))
