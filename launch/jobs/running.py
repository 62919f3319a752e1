"""Prints a recipe, or follows it until the job has ended."""

import contextlib
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from i2vgen_jax.errors import InputError, writing
from launch.jobs.job import Command, Job, Recipe, Step
from launch.progress import note

_TOOLS = {
  "gcloud": "see https://cloud.google.com/sdk/docs/install",
  "git": "see https://git-scm.com",
  "kubectl": "see https://kubernetes.io/docs/tasks/tools",
  "sbatch": "use a login node of the Slurm cluster",
  "sky": "see https://docs.skypilot.co; it needs its own environment",
}
# Failures in a row after which a job that cannot be reached is given up.
_PATIENCE = 20


def show(job: Job, recipe: Recipe, plan: Command | None) -> None:
  """Prints the files and the commands of a recipe."""
  for name, text in recipe.files.items():
    print(f"# file: {job.upload / name}")
    print(text)
  create = [step.create for step in recipe.steps]
  delete = [step.delete for step in reversed(recipe.steps)]
  sections = {
    "before": [plan] if plan else [],
    "copy code and data": recipe.stage,
    "start": create,
    "until the end": [*recipe.states, *([recipe.logs] if recipe.logs else [])],
    "delete": delete if recipe.states else [],
    "delete if interrupted": [] if recipe.states else delete,
  }
  for title, commands in sections.items():
    if commands:
      print(f"# commands: {title}", *map(shlex.join, commands), sep="\n")


def prepare(job: Job, recipe: Recipe) -> None:
  """Writes the files of a recipe.

  Raises:
    InputError: the folder cannot be written, or a program is missing.
  """
  creates = [step.create for step in recipe.steps]
  for program in {command[0] for command in (*recipe.stage, *creates)}:
    if shutil.which(program) is None:
      raise InputError(
        f"{program} is not on the PATH; {_TOOLS[program]}; --dry-run works "
        "without it"
      )
  with writing(job.folder, "start it in another folder"):
    shutil.rmtree(job.folder, ignore_errors=True)
    (job.folder / "logs").mkdir(parents=True)
    for name, text in recipe.files.items():
      path = job.upload / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)


def run(job: Job, recipe: Recipe, poll: float) -> None:
  """Starts a job, shows its logs, starts it again, and deletes its machines.

  The files were written by `prepare`.

  Args:
    job: what is trained.
    recipe: how.
    poll: seconds between two looks at its state.

  Raises:
    InputError: a command or the job fails.
  """
  for command in recipe.stage:
    call(command)
  logs = _Logs(job.folder / "logs")
  for _ in range(job.restarts + 1):
    with contextlib.ExitStack() as created:
      for step in recipe.steps:
        note(shlex.join(step.create))
        try:
          if recipe.states:
            call(step.create)
          else:
            _attend(step.create, logs, poll)
        except KeyboardInterrupt:
          _delete(step)
          raise
        if recipe.states:
          created.callback(_delete, step)
      if not recipe.states or _finished(job, recipe, logs, poll):
        return
    note(f"{job.name} was preempted; starting it again")
  raise InputError(
    f"{job.name} was preempted {job.restarts + 1} times; start it again, or "
    "raise --restarts"
  )


def call(command: Command) -> str:
  """What a command prints.

  Raises:
    InputError: it fails; the message has the last line of its stderr.
  """
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    raise InputError(f"{command[0]} failed: {said[-1]}; {shlex.join(command)}")
  return done.stdout


def _attend(command: Command, logs: "_Logs", poll: float) -> None:
  """Waits for a command that ends with the job."""
  with subprocess.Popen(command) as process:
    while process.poll() is None:
      time.sleep(poll)
      logs.show()
  if process.returncode:
    raise InputError(
      f"{command[0]} ended with status {process.returncode}, as above; "
      f"{shlex.join(command)}"
    )


def _finished(job: Job, recipe: Recipe, logs: "_Logs", poll: float) -> bool:
  """Waits for the end; false if the machines were preempted before."""
  before, failures = None, 0
  while True:
    try:
      words = {w for command in recipe.states for w in call(command).split()}
      if recipe.logs:
        call(recipe.logs)
      failures = 0
    except InputError as e:
      # A network may fail for a while, and the job goes on.
      failures += 1
      if failures == _PATIENCE:
        raise
      note(f"cannot reach {job.name}: {e}")
      words = before or set()
    logs.show()
    if words != before:
      note(f"{job.name}: {' '.join(sorted(words)) or 'waiting'}")
      before = words
    if words & recipe.done:
      return True
    if words & recipe.failed:
      raise InputError(
        f"{job.name} failed; the logs of its hosts are in {logs.folder}"
      )
    if words & recipe.lost:
      return False
    time.sleep(poll)


def _delete(step: Step) -> None:
  note(shlex.join(step.delete))
  try:
    call(step.delete)
  except InputError as e:
    note(f"could not delete, do it by hand: {e}")


class _Logs:
  """Prints what is added to the files of a folder.

  Attributes:
    folder: of the files, one of each host.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    # The first line of each file, and how many bytes were printed.
    self._shown: dict[Path, tuple[bytes, int]] = {}

  def show(self) -> None:
    """Prints the lines that are new since the last call."""
    for path in sorted(self.folder.iterdir()):
      for line in self._new_lines(path):
        print(f"{path.stem}: {line}", flush=True)

  def _new_lines(self, path: Path) -> Iterator[str]:
    with path.open("rb") as file:
      first = file.readline()
      if not first.endswith(b"\n"):
        return
      known, shown = self._shown.get(path, (first, 0))
      # Another first line is of a host that replaced one of the same name.
      shown = shown if first == known else 0
      file.seek(shown)
      for line in file:
        # The rest of an unfinished line comes with the next call.
        if not line.endswith(b"\n"):
          break
        shown += len(line)
        yield line.decode(errors="replace").rstrip()
    self._shown[path] = (first, shown)
