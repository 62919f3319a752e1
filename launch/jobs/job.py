"""A training as every backend sees it, and what a launch does."""

import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from i2vgen_jax.errors import InputError
from launch.jobs.tpus import Slice

# A program and its arguments.
Command = tuple[str, ...]

# A name of Kubernetes (RFC 1123) and of Compute Engine, which begins with a
# letter. Backends add up to 20 characters to it; 63 are allowed.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Job:
  """What is trained, and on what.

  Attributes:
    name: of everything that is created.
    tpu: type of each slice.
    train: arguments of `i2vgen train`.
    folder: local folder of the rendered files and the logs.
    slices: number of slices, which are connected by the data centre's network.
    spot: whether the machines may be preempted at any time, at a lower price.
    secrets: environment variables whose values hosts get from elsewhere.
    restarts: how often the training is started again after it was preempted or
      failed.
  """

  name: str
  tpu: Slice
  train: tuple[str, ...]
  folder: Path
  slices: int = 1
  spot: bool = False
  secrets: tuple[str, ...] = ()
  restarts: int = 10

  def __post_init__(self):
    if not _NAME.fullmatch(self.name):
      raise InputError(
        f"the name {self.name!r} is unusable; use at most 40 lower-case "
        "letters, digits and hyphens, beginning with a letter"
      )
    for secret in self.secrets:
      _check_secret(secret, self.train)
    if not (self.flag("config") and self.flag("workdir")):
      raise InputError(
        "launch needs the arguments of i2vgen train after --: "
        "-- --config=FILE:NAME --workdir=DIR"
      )

  @property
  def upload(self) -> Path:
    """Local folder whose files go to the hosts."""
    return self.folder / "upload"

  def flag(self, name: str) -> str | None:
    """The value of --name=VALUE among the arguments of `i2vgen train`."""
    values = (arg.partition("=") for arg in self.train)
    return next((v for flag, _, v in values if flag == f"--{name}"), None)

  @property
  def command(self) -> str:
    """Shell words of the training."""
    return f"i2vgen train {shlex.join(self.train)}"

  @property
  def environment(self) -> str:
    """Shell lines that set the compiler flags."""
    generation = self.tpu.generation
    flags = shlex.quote(" ".join(generation.flags))
    return f"# {generation.flags_from}\nexport LIBTPU_INIT_ARGS={flags}"


@dataclasses.dataclass(frozen=True)
class Step:
  """Creates something, and deletes it again."""

  create: Command
  delete: Command


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that a launch does, in order.

  Attributes:
    files: contents of the files in `Job.upload`, by name.
    stage: commands that copy code and data to where hosts find them.
    steps: what is created; deleted in reverse order.
    states: commands that print the state of the job as words. Without any, the
      command of the last step waits for the end of the job itself.
    done: words of a job that has finished.
    failed: words of a job that cannot go on.
    lost: words of machines that were preempted; they are deleted and created
      again.
    logs: command that brings the logs of the hosts into `Job.folder`/logs.
  """

  files: dict[str, str]
  stage: tuple[Command, ...]
  steps: tuple[Step, ...]
  states: tuple[Command, ...] = ()
  done: frozenset[str] = frozenset()
  failed: frozenset[str] = frozenset()
  lost: frozenset[str] = frozenset()
  logs: Command | None = None


def _check_secret(name: str, train: Sequence[str]) -> None:
  if not _VARIABLE.fullmatch(name):
    raise InputError(
      "what follows --secret is not the name of an environment variable, such "
      "as HF_TOKEN; give the name, never the value"
    )
  value = os.environ.get(name)
  if value and any(value in arg for arg in train):
    raise InputError(
      f"an argument of i2vgen train holds the value of {name}, which would be "
      "written to files; let the program read it from the environment"
    )
