"""Numbered tasks, one after the other or by Apache Beam.

A task writes its result under its final name when it is whole, and does
nothing when that is there: it may be run twice, anywhere, in any order.
"""

import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from i2vgen_jax.errors import InputError

Task = Callable[[int], None]
# (task, its numbers)
Runner = Callable[[Task, Sequence[int]], None]
# (what is counted, done, total)
Progress = Callable[[str, int, int], None]

_WATCH_SECONDS = 1.0


def in_order(task: Task, numbers: Sequence[int]) -> None:
  """Here and now."""
  for number in numbers:
    task(number)


def run_missing(
  run: Runner,
  task: Task,
  is_done: Callable[[int], bool],
  count: int,
  what: str,
  progress: Progress | None,
) -> None:
  """Runs the tasks without a result, and counts the results that appear.

  Args:
    run: how.
    task: see above.
    is_done: whether the result of a task is there.
    count: tasks in all, with and without a result.
    what: name of the tasks, for `progress`.
    progress: called now and then from a thread of its own.
  """
  missing = [number for number in range(count) if not is_done(number)]
  over = threading.Event()

  def watch() -> None:
    left = missing
    while not over.wait(_WATCH_SECONDS):
      left = [number for number in left if not is_done(number)]
      progress(what, count - len(left), count)

  watcher = threading.Thread(target=watch, daemon=True)
  if progress:
    watcher.start()
  try:
    run(task, missing)
  finally:
    over.set()
  if progress:
    watcher.join()
    progress(what, count, count)


def beam_runner(flags: Sequence[str]) -> Runner:
  """A runner that gives the tasks to Beam.

  Args:
    flags: of Beam's pipeline options, such as `--runner=FlinkRunner`. By
      default its local runner, with a thread per core. Every worker must see
      the files under the same paths.

  Returns:
    A runner that raises InputError when the pipeline fails.
  """
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions

  given = " ".join(flags)
  flags = list(flags)
  if "--runner" not in given and "--direct_" not in given:
    flags += ["--direct_running_mode=multi_threading"]
    flags += [f"--direct_num_workers={os.cpu_count()}"]

  def run(task: Task, numbers: Sequence[int]) -> None:
    if not numbers:
      return
    try:
      with beam.Pipeline(**_local_or_not(PipelineOptions(flags))) as pipeline:
        _ = (
          pipeline
          | beam.Create(list(numbers))
          | beam.Reshuffle()
          | beam.Map(task)
        )
    except Exception as error:  # Runners raise what they like.
      said = str(error).strip().splitlines() or [type(error).__name__]
      raise InputError(
        f"the Beam pipeline failed: {said[-1]}; what is done stays, the same"
        " command goes on from there"
      ) from error

  return run


def _local_or_not(options) -> dict[str, Any]:
  """What a pipeline gets; processes of the local runner end with this one."""
  from apache_beam.options.pipeline_options import DirectOptions
  from apache_beam.runners.portability.fn_api_runner import FnApiRunner
  from apache_beam.transforms.environments import SubprocessSDKEnvironment

  direct = options.view_as(DirectOptions)
  if direct.direct_running_mode != "multi_processing":
    return {"options": options}
  # The mode would bring Beam's own command with it.
  direct.direct_running_mode = "in_memory"
  python = shlex.quote(sys.executable)
  command = f"exec {python} -m data_pipelines.running.beam_worker {os.getpid()}"
  environment = SubprocessSDKEnvironment.from_command_string(command)
  return {"options": options, "runner": FnApiRunner(environment)}
