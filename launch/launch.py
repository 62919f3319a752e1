"""`i2vgen launch`: a training on TPUs that are not here."""

import dataclasses
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tyro.conf import UseAppendAction

from i2vgen_jax.errors import InputError
from i2vgen_jax.files import read_json
from launch import arguments
from launch.arguments import Count, Seconds, Times, Word
from launch.jobs import gke, mig, queued, running, skypilot, slurm, tpus
from launch.jobs.hosts import CLONE
from launch.jobs.job import Command, Job, Recipe
from launch.progress import note


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Common:
  """What all backends take.

  Attributes:
    tpu: Type of TPU, such as v5e-64, v5p-128, v6e-256 or tpu7x-128.
    name: Name of the job: lower-case letters, digits and hyphens. The folder
      launched/NAME has the rendered files and the logs.
    secret: Environment variable whose value hosts take from Secret Manager, a
      Kubernetes secret, or the environment of this shell; may be repeated.
    restarts: How often the job is started again after it was preempted.
    poll: Time between two looks at the state of the job.
    no_plan: Start without planning memory by `i2vgen plan`.
    dry_run: Print all files and commands, and run none.
  """

  # Of backends that have no such flag.
  slices: ClassVar[int] = 1
  spot: ClassVar[bool] = False

  tpu: str
  name: str
  secret: UseAppendAction[tuple[str, ...]] = ()
  restarts: Times = 10
  poll: Seconds = 30.0
  no_plan: bool = False
  dry_run: bool = False

  def job(self, train: Sequence[str]) -> Job:
    """The job with the arguments of `i2vgen train`."""
    return Job(
      name=self.name,
      tpu=tpus.find(self.tpu),
      train=tuple(train),
      folder=Path("launched") / self.name,
      slices=self.slices,
      spot=self.spot,
      secrets=self.secret,
      restarts=self.restarts,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cloud(_Common):
  """What backends on Google Cloud take.

  Attributes:
    bucket: Bucket for code, data and runs, without gs://; hosts see it as
      /bucket.
    data: Folder to copy to the bucket, which hosts see as /bucket/data/FOLDER;
      may be repeated.
    spot: Use machines that may be preempted, which cost less.
  """

  bucket: Word
  data: UseAppendAction[tuple[Path, ...]] = ()
  spot: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queued(_Cloud):
  """Queued resources of the Cloud TPU API: v5e, v5p, v6e.

  Attributes:
    project: Project of Google Cloud.
    zone: Zone with the TPUs, such as us-central1-a.
    slices: Number of slices.
    service_account: Account of the machines; that of Compute Engine by default.
  """

  project: Word
  zone: Word
  slices: Count = 1
  service_account: str | None = None

  def recipe(self, job: Job) -> Recipe:
    place = (self.bucket, self.project, self.zone)
    return queued.recipe(job, *place, self.data, self.service_account)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mig(_Cloud):
  """A managed instance group of Compute Engine: v5p, v6e, tpu7x.

  Attributes:
    project: Project of Google Cloud.
    zone: Zone with the TPUs, such as us-central1-a.
    service_account: Account of the machines; that of Compute Engine by default.
  """

  project: Word
  zone: Word
  service_account: str | None = None

  def recipe(self, job: Job) -> Recipe:
    place = (self.bucket, self.project, self.zone)
    return mig.recipe(job, *place, self.data, self.service_account)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gke(_Cloud):
  """A JobSet on the GKE cluster of kubectl's current context.

  Attributes:
    slices: Number of slices, each with a node pool of its own.
    image: Container image with bash, curl and tar.
    namespace: Namespace of the JobSet.
    queue: Kueue's local queue.
    service_account: Kubernetes account that may use the bucket.
  """

  slices: Count = 1
  image: str = "python:3.12"
  namespace: Word = "default"
  queue: Word | None = None
  service_account: str | None = None

  def recipe(self, job: Job) -> Recipe:
    place = (self.image, self.namespace, self.queue, self.service_account)
    return gke.recipe(job, self.bucket, self.data, *place)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skypilot(_Cloud):
  """A managed job of SkyPilot: v5e, v5p, v6e.

  Attributes:
    zone: Zone with the TPUs, such as us-central1-a.
  """

  zone: Word

  def recipe(self, job: Job) -> Recipe:
    return skypilot.recipe(job, self.bucket, self.data, self.zone)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm(_Common):
  """A Slurm job, in a clone that all nodes see; one node for each TPU host.

  Attributes:
    slices: Number of slices.
    partition: Partition of Slurm; its default partition by default.
  """

  slices: Count = 1
  partition: Word | None = None

  def recipe(self, job: Job) -> Recipe:
    return slurm.recipe(job, self.partition)


_ABOUT = """\
Starts `i2vgen train` on TPUs that are not here, and ends what it started.

    i2vgen launch queued --tpu v5e-64 --name base --spot --bucket BUCKET \\
        --project PROJECT --zone us-central1-a --data data/clips -- \\
        --config=configs/i2vgen_xl.py:base --workdir=/bucket/runs/base \\
        --config.mesh.fsdp=64 \\
        --config.data.video_dirs="('/bucket/data/clips/text_video/1.0.0',)"

Arguments after -- are those of i2vgen train. Plans the memory, copies code
(the last commit) and data, starts all hosts, shows their logs, starts them
again when they are preempted, and deletes them at the end or on Ctrl-C.
docs/launch.md describes the backends.
"""


def main(argv: list[str]) -> None:
  """Launches a training.

  Raises:
    InputError: an argument is unusable, the plan does not fit, a program is
      missing, or a command or the job fails.
  """
  dashes = argv.index("--") if "--" in argv else len(argv)
  kinds = Queued | Mig | Gke | Skypilot | Slurm
  args = arguments.parse(kinds, argv[:dashes], "i2vgen launch", _ABOUT)
  job = args.job(argv[dashes + 1 :])
  recipe = args.recipe(job)
  # A plan is of one slice.
  plan = None if args.no_plan or job.slices > 1 else _plan(job)
  if args.dry_run:
    running.show(job, recipe, plan)
    return
  running.prepare(job, recipe)
  if plan is not None:
    _check_plan(job, plan)
  changed = ("git", "-C", str(CLONE), "status", "--porcelain", "-uno")
  if recipe.stage and running.call(changed):
    note("changes that are not committed are left out")
  # As Ctrl-C: what was created is deleted.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  running.run(job, recipe, args.poll)


def _plan(job: Job) -> Command:
  """The command that plans the training on one slice."""
  shared = {"config": "config", "config.train.batch_size": "batch-size"}
  given = [(new, job.flag(old)) for old, new in shared.items()]
  axes = (arg.partition("=")[::2] for arg in job.train)
  axis = "--config.mesh."
  mesh = [f"{k.removeprefix(axis)}={v}" for k, v in axes if k.startswith(axis)]
  given.append(("mesh", ",".join(mesh)))
  numbers = re.findall(r"\d+", job.flag("config.data.size") or "")
  given.append(("size", "x".join(reversed(numbers))))
  topology = f"{job.tpu.generation.name}:{job.tpu.topology}"
  return (
    *(sys.executable, "-m", "launch.cli", "plan", f"--topology={topology}"),
    *(f"--{name}={value}" for name, value in given if value),
    f"--json={_figures(job)}",
  )


def _check_plan(job: Job, command: Command) -> None:
  """Raises InputError unless the training fits."""
  try:
    print(running.call(command), end="")
  except InputError as e:
    raise InputError(f"{e}; --no-plan starts without a plan") from e
  planned = read_json(_figures(job))
  if planned["fitting"] != planned["run"]:
    raise InputError(
      f"the training does not fit on {job.tpu.name}, as printed above; use a "
      "larger slice or a smaller batch, or start it with --no-plan"
    )


def _figures(job: Job) -> Path:
  return job.folder / "plan.json"
