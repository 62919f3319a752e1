"""What a run keeps on its devices: the file parameters.txt, and its sums."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from i2vgen_jax.files import replacing
from i2vgen_jax.training.state import TrainState

NAME = "parameters.txt"


class _Size(NamedTuple):
  """Of a tree: its arrays, their elements, and bytes in all and per device."""

  arrays: int
  elements: int
  in_all: int
  on_each: int


def _size(tree: Any) -> _Size:
  sizes = [(0, 0, 0, 0)]
  for x in jax.tree.leaves(tree):
    held = np.prod(x.sharding.shard_shape(x.shape), dtype=int)
    width = x.dtype.itemsize
    sizes.append((1, x.size, x.size * width, int(held) * width))
  return _Size(*map(sum, zip(*sizes, strict=True)))


def write(
  workdir: Path, state: TrainState, frozen: Mapping[str, Any]
) -> list[str]:
  """Writes sizes by module, and the place of each parameter.

  Args:
    workdir: folder of the run.
    state: arrays or their abstract shapes, with shardings.
    frozen: weights of the frozen networks, by name.

  Returns:
    Lines that sum it up.

  Raises:
    InputError: the file cannot be written.
  """
  from clu import parameter_overview

  parts = {
    "parameters": state.params,
    "their average": state.ema_params,
    "optimizer": state.opt_state,
    "frozen networks": frozen,
  }
  sizes = {name: _size(tree) for name, tree in parts.items()}
  total = _size(list(parts.values()))
  modules = {name: _size(tree) for name, tree in state.params.items()}
  modules |= {f"frozen {name}": _size(tree) for name, tree in frozen.items()}
  title = f"{'':28}{'arrays':>8}{'elements':>16}{'MiB':>12}{'MiB a device':>14}"
  lines = [title, *map(_row, sizes, sizes.values()), _row("total", total), ""]
  lines += [title, *map(_row, modules, modules.values()), ""]
  places = parameter_overview.get_parameter_overview(
    state.params, include_stats="sharding"
  )
  with replacing(workdir / NAME) as temporary:
    temporary.write_text("\n".join([*lines, places, ""]), "utf-8")
  held = ", ".join(
    f"{name} {size.on_each / 2**20:,.1f}" for name, size in sizes.items()
  )
  count = sizes["parameters"]
  return [
    f"{count.elements:,} parameters in {count.arrays:,} arrays; "
    f"{workdir / NAME} lists them",
    f"MiB on each device: {total.on_each / 2**20:,.1f} ({held})",
  ]


def _row(name: str, size: _Size) -> str:
  in_all, on_each = size.in_all / 2**20, size.on_each / 2**20
  return (
    f"{name:28}{size.arrays:8,}{size.elements:16,}{in_all:12,.1f}"
    f"{on_each:14,.1f}"
  )
