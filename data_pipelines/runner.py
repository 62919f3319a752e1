"""Numbered tasks, one after the other or by Apache Beam.

A task writes its result under its final name when it is whole, and does
nothing when that is there: it may be run twice, anywhere, in any order.
"""

from collections.abc import Callable, Sequence

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
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
      _ = (
        pipeline
        | beam.Create(list(numbers))
        | beam.Reshuffle()
        | beam.Map(task)
      )

  return run
