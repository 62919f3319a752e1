"""Queued resources of the Cloud TPU API, which is in maintenance."""

from collections.abc import Sequence
from pathlib import Path

from i2vgen_jax.errors import InputError
from launch.jobs import hosts
from launch.jobs.job import Job, Recipe, Step


def recipe(
  job: Job,
  bucket: str,
  project: str,
  zone: str,
  data: Sequence[Path],
  service_account: str | None,
) -> Recipe:
  """Starts a job on a queued resource.

  Raises:
    InputError: the Cloud TPU API does not have the TPU type.
  """
  generation = job.tpu.generation
  if generation.cloud_tpu is None:
    raise InputError(
      f"the Cloud TPU API has no {job.tpu.name}; use i2vgen launch mig or gke"
    )
  hosts.check_workdir(job)
  _, _, size = job.tpu.name.partition("-")
  at = (f"--project={project}", f"--zone={zone}")
  queued = ("gcloud", "compute", "tpus", "queued-resources")
  nodes = (f"--node-id={job.name}",)
  if job.slices > 1:
    nodes = (f"--node-count={job.slices}", f"--node-prefix={job.name}")
  create = (
    *(*queued, "create", job.name, *at, *nodes),
    f"--accelerator-type={generation.cloud_tpu}-{size}",
    f"--runtime-version={generation.runtime}",
    f"--metadata-from-file=startup-script={job.upload / 'boot.sh'}",
    *(("--spot",) if job.spot else ()),
    *((f"--service-account={service_account}",) if service_account else ()),
  )
  # --force deletes the machines as well.
  delete = (*queued, "delete", job.name, *at, "--force", "--quiet")
  state = (*queued, "describe", job.name, *at, "--format=value(state.state)")
  return Recipe(
    files={
      **hosts.files(job),
      "boot.sh": hosts.boot_script(job, bucket, project),
    },
    stage=hosts.stage(job, bucket, data),
    steps=(Step(create, delete),),
    states=(state, hosts.outcome(job, bucket)),
    done=frozenset({"finished"}),
    failed=frozenset({"failed", "FAILED"}),
    lost=frozenset({"SUSPENDING", "SUSPENDED"}),
    logs=hosts.fetch_logs(job, bucket),
  )
