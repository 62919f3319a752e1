"""How a run ends before its last step: by a signal, in a hang, left alone."""

import contextlib
import ctypes
import faulthandler
import os
import re
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from i2vgen_jax.training.laps import Laps
from i2vgen_jax.training.metrics import say

# How XLA's collectives on CPUs and JAX's coordination service say that they did
# not get an answer.
_LOST = re.compile(r"Gloo|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED")


class StopSignal(contextlib.AbstractContextManager):
  """Records SIGTERM in place of ending the process; Ctrl-C becomes SIGTERM.

  A second Ctrl-C ends the process at once, not by an exception, which a
  callback of JAX could swallow.

  Several processes may each get the signal at another step; there the runtime
  of JAX catches SIGTERM and agrees on one step, so it is left alone.
  """

  def __init__(self):
    self.caught = False
    self._interrupted = False
    self._before: dict[signal.Signals, Any] = {}

  def _terminate(self, *_: Any) -> None:
    self.caught = True

  def _interrupt(self, *_: Any) -> None:
    if self._interrupted:
      os._exit(130)
    self._interrupted = True
    say("stops and saves after this step; Ctrl-C again ends the run at once")
    os.kill(os.getpid(), signal.SIGTERM)

  def __enter__(self) -> "StopSignal":
    handlers = {signal.SIGINT: self._interrupt}
    if jax.process_count() == 1:
      handlers[signal.SIGTERM] = self._terminate
    self._before = {s: signal.signal(s, h) for s, h in handlers.items()}
    return self

  def __exit__(self, *_: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)


class Watchdog(contextlib.AbstractContextManager):
  """Ends a process that hangs, so that its supervisor starts it again.

  Data that do not come and a host that does not answer have no other end. The
  stacks of all threads are printed, and the exit status is 75 (`EX_TEMPFAIL`).
  """

  def __init__(self, timeout: float | int, laps: Laps):
    """
    Args:
      timeout: seconds that a lap may take; 0 is never.
      laps: ends a lap with each step, checkpoint and evaluation.
    """
    self._timeout, self._laps = timeout, laps
    self._stopped = threading.Event()

  def __enter__(self) -> "Watchdog":
    if self._timeout:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def _watch(self) -> None:
    while (left := self._laps.since + self._timeout - time.monotonic()) > 0:
      if self._stopped.wait(left):
        return
    _say_end(
      f"made no progress for {self._timeout:g} s (train.stall_timeout): its "
      "data or another process of the job hangs; the stacks of its threads "
      "follow"
    )
    faulthandler.dump_traceback(sys.__stderr__)
    os._exit(os.EX_TEMPFAIL)

  def __exit__(self, *_: Any) -> None:
    self._stopped.set()


@contextlib.contextmanager
def ending_with_others() -> Iterator[None]:
  """Ends the process if JAX reports that another one of the job is gone.

  The supervisor starts all of them again. The exit status is 75
  (`EX_TEMPFAIL`), and nothing else is waited for: Orbax and the exit of JAX
  would wait for the lost process until their timeouts.
  """
  if jax.process_count() == 1:
    yield
    return
  # JAX's coordination service raises no error, but aborts the process
  # from a thread of its own, where Python's handlers of signals do not run.
  set_handler = ctypes.CDLL(None).signal
  set_handler.restype = ctypes.c_void_p
  before = set_handler(signal.SIGABRT, _end_aborted)
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if not _LOST.search(str(e)):
      raise
    reason = textwrap.shorten(str(e), 200, placeholder="...")
    _say_end(f"lost another process of the job: {reason}")
    os._exit(os.EX_TEMPFAIL)
  finally:
    set_handler(signal.SIGABRT, ctypes.c_void_p(before))


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _end_aborted(_: int) -> None:
  _say_end(
    "was aborted by JAX for the reason above, as a rule because another "
    "process of the job is gone"
  )
  os._exit(os.EX_TEMPFAIL)


def _say_end(reason: str) -> None:
  print(
    f"i2vgen: error: process {jax.process_index()} {reason}; the same command "
    "resumes the run",
    file=sys.stderr,
    flush=True,
  )
