"""Managed jobs of SkyPilot, on one slice of TPU virtual machines.

https://docs.skypilot.co/en/latest/reference/yaml-spec.html
"""

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from i2vgen_jax.errors import InputError
from launch.jobs import hosts
from launch.jobs.job import Job, Recipe, Step


def recipe(job: Job, bucket: str, data: Sequence[Path], zone: str) -> Recipe:
  """Starts a managed job, which SkyPilot restarts.

  Raises:
    InputError: SkyPilot does not have the TPU type.
  """
  generation = job.tpu.generation
  if generation.cloud_tpu is None:
    raise InputError(
      f"SkyPilot has no {job.tpu.name}; use i2vgen launch mig or gke"
    )
  hosts.check_workdir(job)
  _, _, size = job.tpu.name.partition("-")
  task = {
    "name": job.name,
    "resources": {
      "infra": f"gcp/{zone.rpartition('-')[0]}/{zone}",
      "accelerators": f"tpu-{generation.cloud_tpu}-{size}",
      "accelerator_args": {"runtime_version": generation.runtime},
      "use_spot": job.spot,
      "job_recovery": {
        "max_restarts_on_errors": job.restarts,
        # Of a training that was stopped before its end.
        "recover_on_exit_codes": [os.EX_TEMPFAIL],
      },
    },
    "file_mounts": {"/bucket": {"source": f"gs://{bucket}", "mode": "MOUNT"}},
    "run": f"bash /bucket/launch/{job.name}/run.sh",
  }
  if job.secrets:
    # SkyPilot takes the values from the environment of `sky jobs launch`.
    task["secrets"] = dict.fromkeys(job.secrets)
  file = str(job.upload / "task.yaml")
  given = (word for name in job.secrets for word in ("--secret", name))
  return Recipe(
    files={
      **hosts.files(job),
      "task.yaml": yaml.safe_dump(task, sort_keys=False),
    },
    stage=hosts.stage(job, bucket, data),
    steps=(
      Step(
        create=("sky", "jobs", "launch", "--yes", *given, file),
        delete=("sky", "jobs", "cancel", "--yes", f"--name={job.name}"),
      ),
    ),
  )
