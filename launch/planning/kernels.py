"""Times of Pallas kernels on a TPU that is not here.

The compiler gives no cycles for a Pallas kernel, but on request it writes the
schedule of its instruction bundles, of which a core runs one in a cycle. Each
kernel is compiled alone, in a process that was started with that request:

    python -m launch.planning.kernels FOLDER TOPOLOGY

compiles every FOLDER/*.kernel, an exported function, and writes the number of
bundles of each to FOLDER/bundles.json.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export
from jax.extend.core import JaxprEqn
from jax.sharding import SingleDeviceSharding

from i2vgen_jax.errors import InputError
from i2vgen_jax.flops import equations, flops_of
from launch.planning import chips

_BUNDLES = re.compile(r"total scheduled bundles:\s*(\d+)")
_SCHEDULES = "*schedule-analysis_final_bundles.txt"
_RESULT = "bundles.json"
# Of the program of a kernel alone; its name is not part of the program.
_UNCHECKED = [export.DisabledSafetyCheck.custom_call("tpu_custom_call")]


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A Pallas kernel as it is called.

  Attributes:
    program: the exported call.
    steps: number of steps of its grid.
    traffic: bytes of its operands and results.
    parallel: number of parts of the grid that cores may share.
    products: for each matrix product of a step, [m k] by [k n], how often it is
      computed, m, k and n.
  """

  program: bytes
  steps: int
  traffic: int
  parallel: int = 1
  products: tuple[tuple[int, int, int, int], ...] = ()

  @property
  def key(self) -> str:
    """Name for equal calls."""
    return hashlib.sha256(self.program).hexdigest()

  def seconds(self, bundles: int, chip: chips.Chip) -> float:
    """Time of one call: the longest of its bundles, products and traffic.

    A schedule may start products faster than the matrix unit can compute them.
    """
    cores = min(chip.cores, self.parallel)
    busy = bundles * self.steps / chip.clock / cores
    work = sum(
      2
      * times
      * _whole(k, chip)
      * min(m * _whole(n, chip), _whole(m, chip) * n)
      for times, m, k, n in self.products
    )
    return max(
      busy,
      work * self.steps / (chip.peak * cores / chip.cores),
      self.traffic / chip.bandwidth,
    )


def _whole(size: int, chip: chips.Chip) -> int:
  """A side of a matrix with what fills up the matrix unit."""
  return -(-size // chip.matrix_unit) * chip.matrix_unit


def kernel_of(equation: JaxprEqn) -> Kernel:
  """The kernel of an equation `pallas_call`."""

  def call(*args: jax.Array) -> list[jax.Array]:
    return equation.primitive.bind(*args, **equation.params)

  shapes = [
    jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars
  ]
  # The call is that of one device, whichever mesh the program has.
  with jax.set_mesh(jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])):
    exported = export.export(
      jax.jit(call), platforms=["tpu"], disabled_checks=_UNCHECKED
    )(*shapes)
  arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
  mapping = equation.params["grid_mapping"]
  return Kernel(
    program=bytes(exported.serialize()),
    steps=math.prod(mapping.grid),
    parallel=_parallel(mapping, equation.params["compiler_params"]),
    traffic=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
    products=tuple(
      (times, *_sides(each))
      for each, times, _ in equations(equation.params["jaxpr"])
      if each.primitive.name == "dot_general"
    ),
  )


def _parallel(mapping: Any, params: Any) -> int:
  """Number of parts of a grid: the axes of `jax.vmap` and those said to be."""
  # A kernel without parameters has no parallel axes.
  named = getattr(params, "dimension_semantics", None)
  semantics = iter(named or itertools.repeat("arbitrary"))
  return math.prod(
    size
    for axis, size in enumerate(mapping.grid)
    if axis in mapping.vmapped_dims or next(semantics) == "parallel"
  )


def _sides(equation: JaxprEqn) -> tuple[int, int, int]:
  """m, k and n of a matrix product [m k] by [k n]."""
  contracted, _ = equation.params["dimension_numbers"]
  a, b = (
    [size for i, size in enumerate(v.aval.shape) if i not in axes]
    for v, axes in zip(equation.invars, contracted, strict=True)
  )
  k = flops_of(equation) // 2 // math.prod(a + b)
  return math.prod(a), k, math.prod(b)


def count_bundles(
  kernels: Sequence[Kernel], topology: str, progress: Callable[[int], None]
) -> dict[str, int]:
  """Number of bundles of each kernel, by its key.

  Args:
    kernels: calls of kernels; equal ones are compiled once.
    topology: what to compile for.
    progress: called with the number of kernels that are compiled.

  Raises:
    InputError: a kernel cannot be compiled for the topology.
  """
  programs = {kernel.key: kernel.program for kernel in kernels}
  if not programs:
    return {}
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for key, program in programs.items():
      (folder / f"{key}.kernel").write_bytes(program)
    command = [sys.executable, "-m", __name__, name, topology]
    flags = f"--xla_jf_dump_to={name}/dump --xla_jf_dump_llo_text=true"
    child = subprocess.Popen(
      command,
      env=os.environ | {"LIBTPU_INIT_ARGS": flags},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for done, _ in enumerate(child.stdout, 1):
      progress(done)
    _, errors = child.communicate()
    if child.returncode:
      line = errors.strip().splitlines()[-1] if errors.strip() else "no message"
      raise InputError(f"a kernel cannot be compiled for {topology}: {line}")
    return json.loads((folder / _RESULT).read_text())


def main(folder: Path, topology: str) -> None:
  """Compiles the kernels of a folder; a line for each that is done."""
  jax.config.update("jax_platforms", "cpu")
  place = SingleDeviceSharding(chips.devices(topology)[0])
  bundles = {}
  for path in sorted(folder.glob("*.kernel")):
    program = export.deserialize(bytearray(path.read_bytes()))
    args = [
      jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
      for x in program.in_avals
    ]
    jax.jit(program.call).lower(*args).compile()
    # The program around it has schedules too, which are shorter.
    schedules = [*(folder / "dump").glob(_SCHEDULES)]
    bundles[path.stem] = max(
      int(_BUNDLES.search(schedule.read_text())[1]) for schedule in schedules
    )
    for left in (folder / "dump").iterdir():
      left.unlink()
    print(path.stem, flush=True)
  (folder / _RESULT).write_text(json.dumps(bundles))


if __name__ == "__main__":
  main(Path(sys.argv[1]), sys.argv[2])
