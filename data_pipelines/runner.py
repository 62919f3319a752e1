"""Numbered tasks, one after the other or by Apache Beam.

A task writes its result under its final name when it is whole, and does
nothing when that is there: it may be run twice, anywhere, in any order.
"""

from collections.abc import Callable, Sequence

from i2vgen_jax.errors import InputError

Task = Callable[[int], None]
# (task, its numbers)
Runner = Callable[[Task, Sequence[int]], None]


def in_order(task: Task, numbers: Sequence[int]) -> None:
  """Here and now."""
  for number in numbers:
    task(number)


def beam_runner(flags: Sequence[str]) -> Runner:
  """A runner that gives the tasks to Beam.

  Args:
    flags: of Beam's pipeline options, such as `--runner=FlinkRunner`. By
      default its local runner, with a thread per core. Every worker must see
      the files under the same paths.

  Returns:
    A runner that raises InputError when the pipeline fails.
  """
  import os

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
      with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
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
