"""Contestants of a benchmark, each in a process of its own.

So the memory of one is free for the next, and one that needs too much stops
none of the others.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import resource
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import torch

from launch.benchmarks.table import row
from launch.progress import note


@dataclasses.dataclass(frozen=True)
class Figures:
  """What a contestant took.

  Attributes:
    seconds: by name of the column, times to compare.
    memory: peak memory, with its unit and place.
  """

  seconds: Mapping[str, float]
  memory: str


def process() -> concurrent.futures.ProcessPoolExecutor:
  """A process for one contestant, which shares no state with this one."""
  context = multiprocessing.get_context("spawn")
  return concurrent.futures.ProcessPoolExecutor(1, context)


def lines(
  contestants: Mapping[str, Callable[..., Figures]], *args: Any
) -> Iterator[str]:
  """A table, row by row; speeds are those of the last column.

  Args:
    contestants: functions that can be pickled, by name; the first is the peer
      whose speed is 1.
    *args: arguments of each function.
  """
  peer = None
  for name, measure in contestants.items():
    note(f"{name} ...")
    try:
      with process() as pool:
        figures = pool.submit(measure, *args).result()
    except Exception as e:  # Too little memory, above all: it is a result.
      text = str(e).strip() or type(e).__name__
      yield row(name, f"failed: {text.splitlines()[0]}")
      continue
    *_, last = figures.seconds.values()
    if peer is None:
      peer = last
      yield row("", *figures.seconds, "peak memory", "speed")
    times = [f"{t:.3f} s" for t in figures.seconds.values()]
    yield row(name, *times, figures.memory, f"{peer / last:.2f}")


def device_name() -> str:
  """The device that the contestants use."""
  if torch.cuda.is_available():
    return torch.cuda.get_device_name()
  return "this CPU"


def torch_device() -> torch.device:
  return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_memory_of_torch() -> str:
  if torch.cuda.is_available():
    return _gib(torch.cuda.max_memory_allocated())
  return _of_host()


def peak_memory_of_jax() -> str:
  stats = jax.devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return _gib(stats["peak_bytes_in_use"])
  return _of_host()


def _of_host() -> str:
  """Of this process, in kilobytes as Linux counts."""
  return _gib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10)


def _gib(size: int) -> str:
  return f"{size / 2**30:.2f} GiB"
