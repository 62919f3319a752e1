"""A call that hangs, crashes or exhausts memory does not end the build."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipelines.footage.fetch import local_file
from data_pipelines.running.guard import guarded
from i2vgen_jax.errors import InputError

LONG = 60.0


def fetch(location):
  with local_file(location, seconds=LONG):
    pass


def test_results_and_errors_are_returned():
  assert guarded(divmod, 17, 5, seconds=LONG) == (3, 2)
  with pytest.raises(
    InputError, match=r"ZeroDivisionError: .*guard\.py"
  ) as raised:
    guarded(divmod, 1, 0, seconds=LONG)
  assert raised.value.reason == "failed"
  assert guarded(divmod, 1, 1, seconds=LONG) == (1, 0)


class Stubborn(Exception):
  """Cannot be pickled, like many exceptions of C libraries."""

  def __init__(self, first, second):
    super().__init__(first)
    self.lock = threading.Lock()


def fail():
  raise Stubborn("two\nlines", 2)


def leave():
  raise SystemExit(3)


def test_an_unexpected_exception_becomes_one_line():
  with pytest.raises(InputError, match="Stubborn: two lines") as raised:
    guarded(fail, seconds=LONG)
  assert raised.value.reason == "failed"
  with pytest.raises(InputError, match="status 3") as raised:
    guarded(leave, seconds=LONG)
  assert raised.value.reason == "crashed"


PARENT = """
import os, time
from data_pipelines.running.guard import guarded
print(guarded(os.getpid, seconds=60), flush=True)
guarded(time.sleep, 600, seconds=600)
"""


def test_a_child_ends_with_its_parent_during_a_call():
  parent = subprocess.Popen(
    [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
  )
  child = int(parent.stdout.readline())
  time.sleep(0.5)
  parent.kill()
  parent.wait()
  for _ in range(100):
    state = Path(f"/proc/{child}/stat")
    if not state.exists() or state.read_text().split()[2] == "Z":
      return
    time.sleep(0.1)
  os.kill(child, signal.SIGKILL)
  raise AssertionError("the child outlived its parent")


def test_the_reason_survives_the_process_boundary(tmp_path):
  with pytest.raises(InputError, match="cannot fetch") as raised:
    guarded(fetch, "nowhere://a", seconds=LONG)
  assert raised.value.reason == "missing"


def test_a_stalled_call_is_killed_and_the_next_one_works():
  start = time.monotonic()
  with pytest.raises(InputError, match="timed out after") as raised:
    guarded(time.sleep, LONG, seconds=0.5)
  assert raised.value.reason == "stalled"
  assert time.monotonic() - start < LONG / 2
  assert guarded(abs, -3, seconds=LONG) == 3


def test_a_crash_is_reported_and_the_next_call_works():
  with pytest.raises(InputError, match="status 7") as raised:
    guarded(os._exit, 7, seconds=LONG)
  assert raised.value.reason == "crashed"
  assert guarded(abs, -3, seconds=LONG) == 3


def die_once(path):
  if not path.exists():
    path.touch()
    os.kill(os.getpid(), signal.SIGTERM)
  return "alive"


def test_a_child_that_is_killed_once_is_retried(tmp_path):
  assert guarded(die_once, tmp_path / "died", seconds=LONG) == "alive"


def test_memory_is_limited():
  with pytest.raises(InputError, match="GiB of memory") as raised:
    guarded(bytes, 1 << 36, seconds=LONG)
  assert raised.value.reason == "too-large"


def test_each_thread_keeps_its_own_child():
  found = {}

  def work(name):
    found[name] = [guarded(os.getpid, seconds=LONG) for _ in range(2)]

  threads = [threading.Thread(target=work, args=[n]) for n in "ab"]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found["a"][0] == found["a"][1] != found["b"][0]
  assert os.getpid() not in found["a"]
