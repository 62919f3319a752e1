"""How JAX says that another process of the job is gone."""

import os
import subprocess
import sys

import jax
import pytest

from i2vgen_jax.training import supervision

LOST = (
  "UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error\n"
  "[127.0.0.1]:44729: Connection reset by peer",
  "UNAVAILABLE: Failed to send RPC to coordination service.",
  "DEADLINE_EXCEEDED: Barrier timed out.",
)
ALONE = "RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."


@pytest.fixture(autouse=True)
def two_processes(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)

  def leave(status):
    raise SystemExit(status)

  monkeypatch.setattr(os, "_exit", leave)


def fail(message):
  with supervision.ending_with_others():
    raise jax.errors.JaxRuntimeError(message)


@pytest.mark.parametrize("message", LOST)
def test_the_process_ends_with_one_line(message, capsys):
  with pytest.raises(SystemExit) as end:
    fail(message)
  assert end.value.code == 75
  (line,) = capsys.readouterr().err.splitlines()
  assert "process 0 lost another process of the job: " in line
  assert " ".join(message.split()) in line
  assert line.endswith("; the same command resumes the run")


def test_other_errors_stay(monkeypatch):
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE"):
    fail(ALONE)
  # Not another process: there is none.
  monkeypatch.setattr(jax, "process_count", lambda: 1)
  with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"):
    fail(LOST[0])


ABORTED = """
import ctypes, threading
import jax
from i2vgen_jax.training import supervision

jax.process_count = lambda: 2
with supervision.ending_with_others():
  threading.Thread(target=ctypes.CDLL(None).abort).start()
  while True:  # As Python code that keeps its lock.
    pass
"""


def test_an_abort_of_jax_ends_the_process_with_one_line():
  done = subprocess.run(
    [sys.executable, "-c", ABORTED], capture_output=True, text=True
  )
  assert done.returncode == 75
  (line,) = done.stderr.splitlines()
  assert "process 0 was aborted by JAX for the reason above" in line
  assert line.endswith("; the same command resumes the run")
