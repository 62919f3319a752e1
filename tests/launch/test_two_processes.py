"""`i2vgen train` in its own processes: jobs of several, kills, refusals."""

import bisect
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
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


@pytest.fixture(scope="module")
def start(weights, shards):
  """Starts a process of a training of four steps."""
  started = []

  def start(workdir, *argv, devices=8):
    command = [
      *(sys.executable, "-m", "launch.cli", "train", CONFIG),
      f"--workdir={workdir}",
      f"--config.frozen={weights}",
      f"--config.data.video_dirs=('{shards}',)",
      *cascade_standin.SMALL_TRAINING,
      "--config.sampling.num_steps=1",
      "--config.train.num_steps=4",
      "--config.train.checkpoint_every=2",
      "--config.train.decay=constant",
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


def wait_for_line(process, beginning):
  for line in process.stdout:
    if line.startswith(beginning):
      return line
  raise AssertionError(f"the process ended without a line {beginning!r}")


def losses(workdir: Path):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {(row := json.loads(line))["step"]: row["loss"] for line in lines}


def exported(workdir: Path):
  stored = interop.open_weights(workdir / "export" / "base").one("unet")
  return stored.load().params


def assert_same_runs(a: Path, b: Path):
  """Losses and averaged weights are equal bit for bit."""
  assert losses(a) == losses(b)
  jax.tree.map(np.testing.assert_array_equal, exported(a), exported(b))


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
  """The workdir of one process of eight devices, in which a profile is due."""
  workdir = tmp_path_factory.mktemp("alone")
  (workdir / "profile").touch()
  finish([start(workdir)])
  return workdir


@pytest.fixture(scope="module")
def pair(start, tmp_path_factory):
  """The workdir of two processes of four devices, and what they printed."""
  workdir = tmp_path_factory.mktemp("pair")
  return workdir, finish(start_job(start, workdir, 2))


def assert_close_runs(a: Path, b: Path):
  assert losses(a).keys() == {1, 2, 3, 4}
  assert losses(a) == pytest.approx(losses(b), rel=1e-4)
  # Of all elements: Adam's steps are as long for a gradient of rounding errors.
  kernels = [exported(x)["conv_in"]["kernel"].astype(float) for x in (a, b)]
  difference, size = map(np.linalg.norm, (np.subtract(*kernels), kernels[1]))
  assert difference < 0.01 * size


def test_a_job_of_two_processes_equals_one_process(alone, pair):
  workdir, (first, second) = pair
  assert "step 4/4" in first and "step 4/4" not in second
  assert_close_runs(workdir, alone)


@pytest.mark.slow
def test_a_job_of_four_processes_equals_one_process(start, alone, tmp_path):
  mesh = ("--config.mesh.fsdp=2", "--config.mesh.frames=2")
  finish(start_job(start, tmp_path, 4, *mesh))
  assert_close_runs(tmp_path, alone)


def test_a_profile_is_written_on_request(alone):
  (folder,) = alone.glob("profile*")
  assert folder.name == "profile_00000001"
  assert [*folder.rglob("*.xplane.pb")]


def test_weights_can_be_exported_at_any_time(alone, run, refused):
  expected = exported(alone)
  shutil.rmtree(alone / "export")
  status, lines = run("export", alone)
  assert status == 0
  assert any("wrote base to" in line for line in lines)
  jax.tree.map(np.testing.assert_array_equal, exported(alone), expected)
  assert "no checkpoint of step 7" in refused("export", alone, "--step", 7)


def test_a_workdir_has_one_training_at_a_time(start, tmp_path):
  endless = start(tmp_path, "--config.train.num_steps=1000000")
  wait_for_line(endless, "step 1/")
  other = start(tmp_path)
  text = other.communicate(timeout=500)[0]
  assert other.returncode == 2
  assert f"{tmp_path} is in use by another process" in text
  endless.kill()
  endless.wait()
  # The lock ends with its process.
  finish([start(tmp_path, "--config.train.num_steps=5")])


def test_a_run_is_not_resumed_with_other_data(start, tmp_path):
  finish([start(tmp_path)])
  longer = "--config.train.num_steps=5"
  other = start(tmp_path, longer, "--config.train.seed=1")
  text = other.communicate(timeout=500)[0]
  assert other.returncode == 2
  assert "was trained with --config.train.seed=0, now it is 1" in text
  assert "--allow=train.seed" in text
  finish(
    [start(tmp_path, longer, "--config.train.seed=1", "--allow=train.seed")]
  )
  assert losses(tmp_path).keys() == {1, 2, 3, 4, 5}


# The first one holds the coordination service.
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.slow
def test_a_job_that_loses_a_process_ends_and_resumes_exactly(
  lost, start, pair, tmp_path
):
  endless = "--config.train.num_steps=1000000"
  job = start_job(start, tmp_path, 2, endless)
  wait_for_line(job[0], "step 3/")
  job[lost].kill()
  left = 1 - lost
  # Much less than train.stall_timeout.
  text = job[left].communicate(timeout=60)[0]
  assert job[left].returncode == os.EX_TEMPFAIL, text
  assert "Traceback" not in text
  last = text.splitlines()[-1]
  assert f"i2vgen: error: process {left} " in last
  assert "another process of the job" in last
  assert "the same command resumes the run" in last
  finish(start_job(start, tmp_path, 2))
  assert_same_runs(tmp_path, pair[0])


@pytest.mark.slow
def test_ten_kills_change_nothing(start, tmp_path):
  options = ("--config.train.checkpoint_every=1", "--config.train.num_steps=40")
  said = re.compile(r"(?:training from )?step (\d+)")
  begun, whole = time.monotonic(), start(tmp_path / "whole", *options)
  # Seconds until the process was started, and until steps 0, 1 and so on.
  times = [0.0]
  times += [time.monotonic() - begun for x in whole.stdout if said.match(x)]
  assert whole.wait() == 0 and len(times) == 42
  # Not to its very end, as the run that is killed may be somewhat faster.
  tenth = 0.095 * (time.monotonic() - begun)

  # In each tenth: in the start, in steps and saves, in the export.
  moments = [tenth * (k + random.random()) for k in range(10)]
  saving = 0
  for moment in moments:
    process = start(tmp_path / "killed", *options)
    place = bisect.bisect(times, moment) - 1
    if place:
      lines = map(said.match, process.stdout)
      assert any(line and int(line[1]) >= place - 1 for line in lines)
    time.sleep(moment - times[place])
    assert process.poll() is None
    process.kill()
    process.wait()
    saves = [*tmp_path.glob("killed/checkpoints/*.orbax-checkpoint-tmp*")]
    print(f"killed at {moment:.2f} s, {len(saves)} saves were going on")
    saving += len(saves)
  assert saving
  finish([start(tmp_path / "killed", *options)])
  assert losses(tmp_path / "killed").keys() == set(range(1, 41))
  assert_same_runs(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_the_devices_may_change_between_resumes(start, tmp_path):
  finish([start(tmp_path / "whole", "--config.train.num_steps=8")])

  def options(num_steps, **mesh):
    layout = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    return f"--config.train.num_steps={num_steps}", *layout

  changed = tmp_path / "changed"
  finish([start(changed, *options(2, fsdp=2))])
  finish([start(changed, *options(4, fsdp=4), devices=4)])
  finish(start_job(start, changed, 2, *options(6, frames=4)))
  finish([start(changed, *options(8, data=4, fsdp=2))])
  # Noise depends on the example, so other examples have other losses.
  expected = losses(tmp_path / "whole")
  assert expected.keys() == set(range(1, 9))
  assert losses(changed) == pytest.approx(expected, rel=1e-4)
