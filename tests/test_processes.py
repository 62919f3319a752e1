"""Arguments with which a process joins a job."""

import subprocess
import sys

import jax
import pytest

from i2vgen_jax import processes
from i2vgen_jax.errors import InputError


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("host:1", None, None), "--num-processes and --process-id missing"),
    ((None, 2, 0), "--coordinator missing"),
    (("host:1", 2, 2), "--process-id=2 of 2 processes"),
    (("host:1", 2, -1), "numbered from 0 to 1"),
  ],
)
def test_incomplete_or_impossible_arguments_are_refused(arguments, message):
  with pytest.raises(InputError, match=message):
    processes.join(*arguments)


def test_a_process_without_a_job_is_alone():
  check = (
    "import jax; from i2vgen_jax import processes; processes.join(); "
    "assert jax.process_count() == 1 and processes.is_first(); "
    "processes.wait_for_all('nothing')"
  )
  subprocess.run([sys.executable, "-c", check], check=True)


def test_joining_after_the_first_use_of_jax_is_refused():
  jax.devices()
  with pytest.raises(InputError, match="must be called before"):
    processes.join()


def test_processes_that_do_not_answer_are_named(monkeypatch):
  def fail(*_):
    raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out\nmore")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  with pytest.raises(InputError, match="Barrier timed out; check that all"):
    processes.join("localhost:1", 2, 0)
