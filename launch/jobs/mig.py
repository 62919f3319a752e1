"""Managed instance groups of Compute Engine, one for a slice.

https://cloud.google.com/compute/docs/tpus/create-tpu-mig-multi-host-slice
"""

from collections.abc import Sequence
from pathlib import Path

from i2vgen_jax.errors import InputError
from launch.jobs import hosts
from launch.jobs.job import Job, Recipe, Step
from launch.jobs.tpus import IMAGE_PROJECT


def recipe(
  job: Job,
  bucket: str,
  project: str,
  zone: str,
  data: Sequence[Path],
  service_account: str | None,
) -> Recipe:
  """Starts a job on a managed instance group with a workload policy.

  Raises:
    InputError: managed instance groups do not have the TPU type.
  """
  generation = job.tpu.generation
  if generation.image_family is None:
    raise InputError(
      f"managed instance groups have no {job.tpu.name}; use i2vgen launch "
      "queued or gke"
    )
  hosts.check_workdir(job)
  compute = ("gcloud", "compute")
  of = f"--project={project}"
  region = f"--region={zone.rpartition('-')[0]}"
  policies = (*compute, "resource-policies")
  policy = Step(
    create=(
      *(*policies, "create", "workload-policy", job.name, of, region),
      "--type=HIGH_THROUGHPUT",
      f"--accelerator-topology={job.tpu.topology}",
    ),
    delete=(*policies, "delete", job.name, of, region, "--quiet"),
  )
  spot = ("--provisioning-model=SPOT", "--instance-termination-action=STOP")
  templates = (*compute, "instance-templates")
  template = Step(
    create=(
      *(*templates, "create", job.name, of),
      f"--machine-type={generation.machine}",
      f"--image-family={generation.image_family}",
      f"--image-project={IMAGE_PROJECT}",
      "--boot-disk-size=100GB",
      "--maintenance-policy=TERMINATE",
      "--scopes=cloud-platform",
      f"--metadata-from-file=startup-script={job.upload / 'boot.sh'}",
      *(spot if job.spot else ()),
      *((f"--service-account={service_account}",) if service_account else ()),
    ),
    delete=(*templates, "delete", job.name, of, "--quiet"),
  )
  groups = (*compute, "instance-groups", "managed")
  at = (of, f"--zone={zone}")
  path = f"projects/{project}/regions/{region.partition('=')[2]}"
  # A host alone has no topology to keep.
  has_policy = job.tpu.hosts > 1
  by = f"--workload-policy={path}/resourcePolicies/{job.name}"
  group = Step(
    create=(
      *(*groups, "create", job.name, *at),
      f"--template={job.name}",
      f"--size={job.tpu.hosts}",
      *((by,) if has_policy else ()),
    ),
    delete=(*groups, "delete", job.name, *at, "--quiet"),
  )
  state = (
    *(*groups, "list-instances", job.name, *at),
    "--format=value(instanceStatus)",
  )
  return Recipe(
    files={
      **hosts.files(job),
      "boot.sh": hosts.boot_script(job, bucket, project),
    },
    stage=hosts.stage(job, bucket, data),
    steps=(*((policy,) if has_policy else ()), template, group),
    states=(state, hosts.outcome(job, bucket)),
    done=frozenset({"finished"}),
    failed=frozenset({"failed"}),
    lost=frozenset({"STOPPING", "STOPPED", "TERMINATED", "SUSPENDED"}),
    logs=hosts.fetch_logs(job, bucket),
  )
