"""Runners of tasks, here and by Beam."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.running.runner import beam_runner, in_order


def square(folder, number):
  (folder / str(number)).write_text(str(number**2))


@pytest.mark.parametrize("make", [lambda: in_order, lambda: beam_runner([])])
def test_every_task_is_run(tmp_path, make):
  make()(functools.partial(square, tmp_path), [3, 0, 5])
  done = {path.name: path.read_text() for path in tmp_path.iterdir()}
  assert done == {"3": "9", "0": "0", "5": "25"}


def test_no_tasks(tmp_path):
  beam_runner([])(functools.partial(square, tmp_path), [])
  assert not list(tmp_path.iterdir())


def test_a_failed_task_is_an_error(tmp_path):
  with pytest.raises(Exception, match="absent"):
    beam_runner([])(functools.partial(square, tmp_path / "absent"), [1])


SLEEP = """
import functools, os, pathlib, sys, time
from data_pipelines.running.runner import beam_runner

def sleep(folder, number):
  import os, pathlib, time
  (pathlib.Path(folder) / str(os.getpid())).touch()
  time.sleep(600)

if __name__ == "__main__":
  flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
  beam_runner(flags)(functools.partial(sleep, sys.argv[1]), list(range(20)))
"""


def lives(pid):
  status = Path(f"/proc/{pid}/stat")
  return status.exists() and status.read_text().split()[2] != "Z"


def within(seconds, condition):
  for _ in range(seconds * 10):
    if condition():
      return True
    time.sleep(0.1)
  return False


@pytest.mark.slow
def test_worker_processes_end_with_the_build(tmp_path):
  (tmp_path / "sleep.py").write_text(SLEEP)
  build = subprocess.Popen(
    [sys.executable, tmp_path / "sleep.py", tmp_path],
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
  )

  def workers():
    return [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()]

  assert within(120, workers)
  build.send_signal(signal.SIGKILL)
  build.wait()
  assert within(20, lambda: not any(map(lives, workers())))
