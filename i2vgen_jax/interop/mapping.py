"""Maps the flat dict of a torch file to our parameters, and back.

Both sides are `Tensors`; ours are keyed by the path of a parameter, its names
joined by "/". Nothing is read until it is requested, so that a model passes
from file to file, or to a mesh, without a second copy in memory.

The mapping is strict: every key must be used, every parameter filled and every
shape right, or one error lists all problems.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from flax import traverse_util

from i2vgen_jax import trees
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.interop.keys.table import Row, Table
from i2vgen_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Report(trees.Differences):
  """What happened to each key of a file, and to each parameter.

  Attributes:
    where: the file.
    mapped: torch key -> our paths.
    ignored: keys that are known to hold no weights.
  """

  where: str
  mapped: dict[str, tuple[str, ...]]
  ignored: tuple[str, ...]

  def lines(self) -> Iterator[str]:
    """One line for each key."""
    for key, paths in sorted(self.mapped.items()):
      yield f"mapped      {key} -> {', '.join(paths)}"
    for key in self.ignored:
      yield f"ignored     {key}"
    for key, (found, expected) in self.wrong_shapes.items():
      yield f"wrong shape {key}: {found}, expected {expected}"
    for key in self.missing:
      yield f"missing     {key}"
    for key in self.unexpected:
      yield f"unexpected  {key}"

  def check(self) -> None:
    """Raises one InputError with all problems, if there are any."""
    if text := str(self):
      raise InputError(
        f"weights do not fit the network, in {self.where}, {text}; "
        "use weights of this variant and size"
      )


def compare(tensors: Tensors, table: Table, abstract_params: Params) -> Report:
  """Compares the keys of a file with the parameters of a network.

  Args:
    tensors: content of the file.
    table: table of the network for the form of the file.
    abstract_params: tree of anything with a shape.
  """
  shapes = trees.shapes_of(abstract_params)
  expected, paths = {}, collections.defaultdict(tuple)
  for path, row in _rows_by_path(table, shapes).items():
    key = row.key_in(tensors.shapes)
    expected[key] = row.torch_shape(shapes[path])
    paths[key] += (path,)
  ignored = table.ignored & tensors.shapes.keys() - expected.keys()
  used = {k: s for k, s in tensors.shapes.items() if k not in ignored}
  differences = trees.compare_shapes(used, expected)
  unfit = {*differences.missing, *differences.wrong_shapes}
  return Report(
    **vars(differences),
    where=tensors.where,
    mapped={key: some for key, some in paths.items() if key not in unfit},
    ignored=tuple(sorted(ignored)),
  )


def to_flax(tensors: Tensors, table: Table, abstract_params: Params) -> Tensors:
  """Our parameters, keyed by path, in the dtypes of the file.

  Raises:
    InputError: keys are missing or unexpected, or shapes differ.
  """
  compare(tensors, table, abstract_params).check()
  keys = {row.path: row.key_in(tensors.shapes) for row in table.rows}
  rows = {row.path: row for row in table.rows}

  def read(path: str) -> np.ndarray:
    index, count = rows[path].part
    parts = np.split(tensors.read(keys[path]), count)
    return rows[path].layout.to_flax(parts[index])

  return Tensors(
    where=tensors.where,
    shapes=trees.shapes_of(abstract_params),
    dtypes={path: tensors.dtypes[key] for path, key in keys.items()},
    read=read,
  )


def to_torch(leaves: Tensors, table: Table) -> Tensors:
  """The state dict, with the first spelling of each key.

  Args:
    leaves: our parameters, keyed by path.
    table: table of the network for the form to write.

  Raises:
    ValueError: table and parameters are not of the same network.
  """
  rows: dict[str, list[Row]] = collections.defaultdict(list)
  for row in _rows_by_path(table, leaves.shapes).values():
    rows[row.keys[0]].append(row)
  first = {key: some[0] for key, some in rows.items()}

  def read(key: str) -> np.ndarray:
    parts = sorted(rows[key], key=lambda row: row.part)
    arrays = [row.layout.to_torch(leaves.read(row.path)) for row in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

  return Tensors(
    where=leaves.where,
    shapes={k: r.torch_shape(leaves.shapes[r.path]) for k, r in first.items()},
    dtypes={k: leaves.dtypes[r.path] for k, r in first.items()},
    read=read,
  )


def materialise(
  leaves: Tensors,
  put: Callable[[str, np.ndarray], Any] = lambda path, array: array,
) -> Params:
  """Reads every leaf into the nested dict of Flax.

  Args:
    leaves: our parameters, keyed by path.
    put: (path, array) -> leaf, for example `jax.device_put` with the path's
      sharding; each array is released before the next is read.
  """
  return traverse_util.unflatten_dict(
    {path: put(path, leaves.read_checked(path)) for path in leaves.shapes},
    sep="/",
  )


def _rows_by_path(table: Table, leaves: Iterable[str]) -> dict[str, Row]:
  """Rows by path. A table that does not fit the tree is a programming error."""
  counts = collections.Counter(row.path for row in table.rows)
  counts.subtract([*leaves])
  if wrong := sorted(path for path, count in counts.items() if count):
    raise ValueError(
      f"table and parameters are not of one network: {trees.few(wrong)}"
    )
  return {row.path: row for row in table.rows}
