"""Two processes of four devices against one process of eight."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import two_processes

from i2vgen_jax import sharding
from i2vgen_jax.training.checkpoint import load_params

WORKER = Path(two_processes.__file__)
ROOT = WORKER.parents[2]


def free_address():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return f"localhost:{s.getsockname()[1]}"


def run_in_two(workdir, layout):
  """Both to their end; what they printed."""
  address = free_address()
  env = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    # The device count is set per process.
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
  }
  processes = [
    subprocess.Popen(
      [sys.executable, WORKER, address, "2", str(i), workdir, *layout],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  try:
    printed = [p.communicate(timeout=300)[0] for p in processes]
  finally:
    for p in processes:
      p.kill()
  for p, text in zip(processes, printed, strict=True):
    assert p.returncode == 0, text
  return printed


# In the first the processes read different rows; in the second the frames of
# each clip span both, so that both read all rows.
@pytest.mark.parametrize("layout", [(2, 2, 2), (1, 1, 8)], ids=str)
def test_same_weights_and_a_run_that_one_process_resumes(
  tmp_path, layout, monkeypatch
):
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 1)
  two, one = tmp_path / "two", tmp_path / "one"
  printed = run_in_two(two, tuple(map(str, layout)))
  assert "step 2/2" in printed[0]
  assert "step" not in printed[1]
  assert (two / "samples" / "step_00000002.png").exists()

  two_processes.run(one, layout, num_steps=2)
  for name in ("params", "ema_params"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
      load_params(two, name=name),
      load_params(one, name=name),
    )

  resumed = two_processes.run(two, layout, num_steps=3)
  straight = two_processes.run(one, layout, num_steps=3)
  assert int(resumed.step) == 3
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
    resumed.params,
    straight.params,
  )
