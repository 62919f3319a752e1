"""Two processes of four devices against one process of eight."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import two_processes

from i2vgen_jax import sharding
from i2vgen_jax.training.checkpoint import Checkpoints, load_params

WORKER = Path(two_processes.__file__)
ROOT = WORKER.parents[2]


def free_address():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return f"localhost:{s.getsockname()[1]}"


@contextlib.contextmanager
def two_running(workdir, num_steps, layout):
  """Both processes, started; killed if they outlive the test."""
  address = free_address()
  env = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    # The device count is set per process.
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
  }
  arguments = [str(workdir), str(num_steps), *map(str, layout)]
  processes = [
    subprocess.Popen(
      [sys.executable, WORKER, address, "2", str(i), *arguments],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  try:
    yield processes
  finally:
    for p in processes:
      p.kill()


def finish(processes):
  """What each printed to its clean end."""
  printed = [p.communicate(timeout=600)[0] for p in processes]
  for p, text in zip(processes, printed, strict=True):
    assert p.returncode == 0, text
  return printed


def assert_close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5), a, b
  )


# In the first the processes read different rows; in the second the frames of
# each clip span both, so that both read all rows.
@pytest.mark.parametrize("layout", [(2, 2, 2), (1, 1, 8)], ids=str)
def test_same_weights_as_one_process(tmp_path, layout, monkeypatch):
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
  two, one = tmp_path / "two", tmp_path / "one"
  with two_running(two, 2, layout) as processes:
    printed = finish(processes)
  assert "step 2/2" in printed[0]
  assert "step" not in printed[1]
  assert (two / "samples" / "step_00000002.png").exists()

  # Saved after step 2 as well.
  straight = two_processes.run(one, layout, num_steps=3)
  for name in ("params", "ema_params"):
    assert_close(
      load_params(two, name=name), load_params(one, step=2, name=name)
    )
  if layout == (2, 2, 2):
    resumed = two_processes.run(two, layout, num_steps=3)
    assert int(resumed.step) == 3
    assert_close(resumed.params, straight.params)


def test_sigterm_to_one_stops_both_at_the_same_step(tmp_path):
  with two_running(tmp_path, 10**6, (2, 2, 2)) as processes:
    for line in processes[0].stdout:
      if line.startswith("step 3/"):
        break
    processes[1].send_signal(signal.SIGTERM)
    printed = finish(processes)
  (stopped,) = re.findall(r"stopped at step (\d+)", printed[0])
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    assert checkpoints.latest_step() == int(stopped)
