"""Two processes of four devices against one process of eight."""

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
from i2vgen_jax.training import metrics
from i2vgen_jax.training.checkpoint import Checkpoints, load_params

WORKER = Path(two_processes.__file__)
ROOT = WORKER.parents[2]


def free_address():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return f"localhost:{s.getsockname()[1]}"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """The folder of three runs by two processes, and what each printed.

  The third run goes on until the second process alone gets SIGTERM.
  """
  folder = tmp_path_factory.mktemp("two")
  env = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    # The device count is set per process.
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
  }
  address = free_address()
  processes = [
    subprocess.Popen(
      [sys.executable, WORKER, address, "2", str(i), folder],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  try:
    lines = []
    for line in processes[0].stdout:
      lines.append(line)
      if line.startswith("step 3/"):
        break
    processes[1].send_signal(signal.SIGTERM)
    printed = [p.communicate(timeout=600)[0] for p in processes]
    printed[0] = "".join(lines) + printed[0]
    for p, text in zip(processes, printed, strict=True):
      assert p.returncode == 0, text
  finally:
    for p in processes:
      p.kill()
  return folder, printed


def assert_close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5), a, b
  )


@pytest.fixture
def restored(monkeypatch):
  """Undoes what `two_processes.run` sets."""
  for module, name in (
    (sharding, "MIN_SHARDED_SIZE"),
    (metrics, "_summary_writer"),
  ):
    monkeypatch.setattr(module, name, getattr(module, name))


@pytest.mark.parametrize("layout", two_processes.LAYOUTS, ids=str)
def test_same_weights_as_one_process(two, tmp_path, layout, restored):
  folder, printed = two
  workdir = folder / str(layout)
  first, second = (text.split(two_processes.ENDLESS)[0] for text in printed)
  assert first.count("step 2/2") == 2
  assert "step" not in second
  assert (workdir / "samples" / "step_00000002.png").exists()

  # It saves after step 2 as well.
  straight = two_processes.run(tmp_path, layout, num_steps=3)
  for name in ("params", "ema_params"):
    assert_close(
      load_params(workdir, name=name), load_params(tmp_path, step=2, name=name)
    )
  if layout == (2, 2, 2):
    resumed = two_processes.run(workdir, layout, num_steps=3)
    assert int(resumed.step) == 3
    assert_close(resumed.params, straight.params)


def test_sigterm_to_one_process_stops_both_at_the_same_step(two):
  folder, printed = two
  (stopped,) = re.findall(r"stopped and saved at step (\d+)", printed[0])
  with Checkpoints(folder / "endless", keep=1) as checkpoints:
    assert checkpoints.latest_step() == int(stopped)
