"""Numbered tasks, run one after another or by Apache Beam.

Each task fills a folder of its own, which appears when it is complete. A task
may therefore run twice, on any machine and in any order.
"""

import dataclasses
import difflib
import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from i2vgen_jax.errors import InputError
from i2vgen_jax.files import replacing_folder

Task = Callable[[int], None]
# (task, its numbers)
Runner = Callable[[Task, Sequence[int]], None]
# (what is counted, done, total)
Progress = Callable[[str, int, int], None]

_WATCH_SECONDS = 1.0


def in_order(task: Task, numbers: Sequence[int]) -> None:
  """Runs tasks in this process, one after another."""
  for number in numbers:
    task(number)


@dataclasses.dataclass(frozen=True)
class FolderTasks:
  """Tasks that each fill the folder `<prefix>-<number>`.

  Attributes:
    prefix: path of the folders without their number.
    count: number of tasks.
    fill: writes the result of a task, by number, into an empty folder.
  """

  prefix: Path
  count: int
  fill: Callable[[int, Path], None]

  def folder(self, number: int) -> Path:
    """Folder with the result of a task; it exists when the task is done."""
    return self.prefix.with_name(f"{self.prefix.name}-{number:06d}")

  def __call__(self, number: int) -> None:
    """Runs a task unless it is done."""
    if not self.folder(number).exists():
      with replacing_folder(self.folder(number)) as folder:
        self.fill(number, folder)

  def run(
    self, run: Runner, name: str, progress: Progress | None
  ) -> list[Path]:
    """Runs the tasks that are not done yet.

    Args:
      run: runner of the tasks.
      name: what the tasks are called in `progress`.
      progress: called every second, from another thread, and at the end.

    Returns:
      The folders of all tasks.
    """
    progress = progress or (lambda *_: None)
    folders = [self.folder(number) for number in range(self.count)]
    missing = [n for n, folder in enumerate(folders) if not folder.exists()]
    stopped = threading.Event()

    def watch() -> None:
      left = missing
      while not stopped.wait(_WATCH_SECONDS):
        left = [number for number in left if not folders[number].exists()]
        progress(name, self.count - len(left), self.count)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
      run(self, missing)
    finally:
      stopped.set()
      watcher.join()
    progress(name, self.count, self.count)
    return folders


# The message of a task's InputError within the message of Beam.
_TASK_ERROR = re.compile(r"\bInputError: (.*?)(?: \[while running |$)", re.M)


def beam_runner(flags: Sequence[str]) -> Runner:
  """Creates a runner that executes tasks with Apache Beam.

  Args:
    flags: Beam's pipeline options, such as `--runner=FlinkRunner`. The default
      is its local runner with a thread per core. Every worker must see the
      files under the same paths.

  Returns:
    A runner that raises InputError when the pipeline fails.

  Raises:
    InputError: Beam does not know one of the flags, or its value.
  """
  logging.getLogger().addFilter(_is_wanted)
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions
  from apache_beam.runners.worker import sdk_worker

  _check_flags(flags)
  # They print and log the traceback of every failed task, which `run` reports.
  for name in "common", "worker":
    logging.getLogger(f"apache_beam.runners.{name}").setLevel(logging.CRITICAL)
  sdk_worker.print = lambda *_, **__: None
  if not any(flag.startswith(("--runner", "--direct_")) for flag in flags):
    cores = f"--direct_num_workers={os.cpu_count()}"
    flags = [*flags, "--direct_running_mode=multi_threading", cores]

  def run(task: Task, numbers: Sequence[int]) -> None:
    if not numbers:
      return
    try:
      with beam.Pipeline(**_pipeline(PipelineOptions(flags))) as pipeline:
        created = pipeline | beam.Create(list(numbers)) | beam.Reshuffle()
        _ = created | beam.Map(task)
    except Exception as e:  # Runners raise any kind of exception.
      advice = "run the same command again, which keeps what is done"
      if known := _TASK_ERROR.search(str(e)):
        raise InputError(f"{known[1]}, or fix the cause and {advice}") from e
      lines = str(e).strip().splitlines() or [type(e).__name__]
      if len(lines) > 1:
        logging.error("%s", e)
      raise InputError(
        f"the Beam pipeline failed: {lines[-1]}; fix the cause and {advice}"
      ) from e

  return run


def _check_flags(flags: Sequence[str]) -> None:
  """Raises InputError for flags that Beam would ignore or cannot parse."""
  from apache_beam.options import pipeline_options as beam

  def refuse(message: str) -> NoReturn:
    raise InputError(
      f"unusable arguments for Beam after --: {message}; its pipeline options"
      " are listed in the documentation of the runner"
    )

  parser = beam._BeamArgumentParser(allow_abbrev=False)
  parser.error = refuse
  for options in beam.PipelineOptions.__subclasses__():
    options._add_argparse_args(parser)
  _, unknown = parser.parse_known_args(list(flags))
  if unknown:
    known = [flag for a in parser._actions for flag in a.option_strings]
    near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
    hint = f", did you mean {near[0]}?" if near else ""
    refuse(f"unknown {' '.join(unknown)}{hint}")


def _is_wanted(record: logging.LogRecord) -> bool:
  """Whether a record is not about the packages for Google Cloud."""
  return "apitools" not in record.getMessage()


def _pipeline(options) -> dict[str, Any]:
  """Arguments of a pipeline; local worker processes end with this process."""
  from apache_beam.options.pipeline_options import DirectOptions
  from apache_beam.runners.portability.fn_api_runner import FnApiRunner
  from apache_beam.transforms.environments import SubprocessSDKEnvironment

  direct = options.view_as(DirectOptions)
  if direct.direct_running_mode != "multi_processing":
    return {"options": options}
  # The multi_processing mode would start workers with Beam's own command.
  direct.direct_running_mode = "in_memory"
  python = shlex.quote(sys.executable)
  command = f"exec {python} -m data_pipelines.running.beam_worker {os.getpid()}"
  environment = SubprocessSDKEnvironment.from_command_string(command)
  return {"options": options, "runner": FnApiRunner(environment)}
