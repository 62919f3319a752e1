"""`i2vgen train` as a job of several processes, and two jobs on one folder."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import cascade_standin
import jax
import numpy as np
import pytest

from data_pipelines.procedural.build import build_procedural
from i2vgen_jax import interop

REPOSITORY = cascade_standin.CONFIGS.parents[1]
CONFIG = f"--config={cascade_standin.CONFIGS}:tiny"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shards") / "train"
  build_procedural(folder, 8, "train", size=(48, 32))
  return folder / "text_video" / "1.0.0"


@pytest.fixture
def start(weights, shards, tmp_path):
  """Starts a process of a training of two steps."""
  started = []

  def start(workdir, *argv, devices=8):
    command = [
      *(sys.executable, "-m", "launch.cli", "train", CONFIG),
      f"--workdir={tmp_path / workdir}",
      f"--config.frozen={weights}",
      f"--config.data.video_dirs=('{shards}',)",
      "--config.data.size=(32, 32)",
      "--config.unet.block_channels=(8,)",
      "--config.unet.head_dim=8",
      "--config.unet.input_heads=1",
      "--config.unet.context_dim=16",
      "--config.sampling.size=(32, 32)",
      "--config.sampling.num_steps=1",
      "--config.train.num_steps=2",
      "--config.train.warmup_steps=0",
      "--config.train.log_every=1",
      "--config.train.sample_every=0",
      *argv,
    ]
    env = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(REPOSITORY),
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
      " --xla_backend_optimization_level=0",
    }
    process = subprocess.Popen(
      command,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()


def start_job(start, workdir, count, *argv):
  """Starts all processes of a job on eight devices."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  return [
    start(
      workdir,
      *argv,
      f"--coordinator={address}",
      f"--num-processes={count}",
      f"--process-id={number}",
      devices=8 // count,
    )
    for number in range(count)
  ]


def finish(processes):
  printed = [p.communicate(timeout=500)[0] for p in processes]
  for process, text in zip(processes, printed, strict=True):
    assert process.returncode == 0, text
  return printed


def losses(workdir: Path):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {(row := json.loads(line))["step"]: row["loss"] for line in lines}


def exported(workdir: Path):
  stored = interop.open_weights(workdir / "export" / "base").one("unet")
  return stored.load().params


def test_a_job_of_two_processes_equals_one_process(
  start, run, refused, tmp_path
):
  finish([start("one")])
  mesh = "--config.mesh.fsdp=2"
  first, second = finish(start_job(start, "two", 2, mesh))
  assert "step 2/2" in first and "step 2/2" not in second
  expected = losses(tmp_path / "one")
  assert expected.keys() == {1, 2}
  assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-4)
  one, two = exported(tmp_path / "one"), exported(tmp_path / "two")
  np.testing.assert_allclose(
    two["conv_in"]["kernel"], one["conv_in"]["kernel"], atol=2e-3
  )
  # The same weights can be exported at any time.
  shutil.rmtree(tmp_path / "one" / "export")
  status, lines = run("export", tmp_path / "one")
  assert status == 0
  assert any("wrote base to" in line for line in lines)
  jax.tree.map(np.testing.assert_array_equal, exported(tmp_path / "one"), one)
  assert "no checkpoint of step 7" in refused(
    "export", tmp_path / "one", "--step", 7
  )


def test_a_workdir_has_one_training_at_a_time(start, tmp_path):
  endless = start("run", "--config.train.num_steps=1000000")
  for line in endless.stdout:
    if line.startswith("step 1/"):
      break
  other = start("run")
  text = other.communicate(timeout=500)[0]
  assert other.returncode == 2
  assert f"{tmp_path / 'run'} is in use by another process" in text
  endless.kill()
  endless.wait()
  # The lock ends with its process.
  finish([start("run", "--config.train.num_steps=3")])


def test_a_run_is_not_resumed_with_other_data(start, tmp_path):
  finish([start("run")])
  longer = "--config.train.num_steps=3"
  other = start("run", longer, "--config.train.seed=1")
  text = other.communicate(timeout=500)[0]
  assert other.returncode == 2
  assert "was trained with train.seed=0, now it is 1" in text
  assert "--allow=train.seed" in text
  finish([start("run", longer, "--config.train.seed=1", "--allow=train.seed")])
  assert losses(tmp_path / "run").keys() == {1, 2, 3}


@pytest.mark.slow
def test_a_job_that_loses_a_process_ends_and_resumes_exactly(start, tmp_path):
  options = (
    "--config.train.num_steps=30",
    "--config.train.checkpoint_every=2",
    "--config.train.stall_timeout=60",
  )
  finish(start_job(start, "whole", 2, *options))
  first, second = start_job(start, "killed", 2, *options)
  for line in first.stdout:
    if line.startswith("step 5/"):
      break
  second.kill()
  text = first.communicate(timeout=300)[0]
  assert first.returncode == os.EX_TEMPFAIL, text
  assert "i2vgen: error: process 0" in text and "resumes the run" in text
  finish(start_job(start, "killed", 2, *options))
  assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
  jax.tree.map(
    np.testing.assert_array_equal,
    exported(tmp_path / "killed"),
    exported(tmp_path / "whole"),
  )
