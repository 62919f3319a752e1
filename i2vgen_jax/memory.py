"""Whether a compiled program fits in the memory that is free."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from i2vgen_jax.errors import InputError


def check_fits(
  program: jax.stages.Compiled, args: Any, advice: Callable[[float], str]
) -> None:
  """Compares what a program allocates with the memory that is free.

  On a CPU the operating system would otherwise hand out memory that it does not
  have, and end the process.

  Args:
    program: what is about to run on the default device.
    args: its arguments; those in host memory are copied to the device.
    advice: share of the needed memory that is free -> what would fit.

  Raises:
    InputError: arguments, results and temporary arrays do not fit.
  """
  sizes = program.memory_analysis()
  device = jax.local_devices()[0]
  free = free_bytes(device)
  if sizes is None or free is None:
    return
  needed = sizes.temp_size_in_bytes + sizes.output_size_in_bytes
  if device.platform != "cpu":
    leaves = jax.tree.leaves(args)
    needed += sum(x.nbytes for x in leaves if isinstance(x, np.ndarray))
  if needed > free:
    raise InputError(
      f"not enough memory: {_gigabytes(needed)} needed beside the weights, "
      f"{_gigabytes(free)} free; {advice(free / needed)}"
    )


def free_bytes(device: jax.Device) -> int | None:
  """Free memory of a device; None if that is unknown."""
  if stats := device.memory_stats():
    return stats["bytes_limit"] - stats["bytes_in_use"]
  table = Path("/proc/meminfo")
  if device.platform != "cpu" or not table.is_file():
    return None
  available = re.search(r"MemAvailable:\s*(\d+) kB", table.read_text())
  return int(available[1]) * 1024 if available else None


def _gigabytes(count: int) -> str:
  return f"{count / 2**30:.1f} GB"
