"""Torch's flat dict of arrays to our parameters, and back, one at a time.

Both sides are `Tensors`: ours are keyed by the path of a parameter, its names
joined by "/". Nothing is read until it is asked for, so that a model passes
from file to file, or to a mesh, without a second copy of it in memory.

Strict both ways: every key must be used, every parameter filled, every shape
right, or one error says all that is wrong. Nothing is dropped silently.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from flax import traverse_util

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.interop.keys.table import Row, Table
from i2vgen_jax.types import Params

_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of every key of a file, and of every parameter.

  Attributes:
    where: the file.
    mapped: torch key -> our paths.
    missing: keys that parameters need and the file lacks.
    unexpected: keys that no parameter needs.
    ignored: keys that are known to hold no weights.
    wrong_shapes: key -> (found, expected).
  """

  where: str
  mapped: dict[str, tuple[str, ...]]
  missing: tuple[str, ...]
  unexpected: tuple[str, ...]
  ignored: tuple[str, ...]
  wrong_shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

  def lines(self) -> Iterator[str]:
    """Every key with its fate."""
    for key, paths in sorted(self.mapped.items()):
      yield f"mapped      {key} -> {', '.join(paths)}"
    for key in self.ignored:
      yield f"ignored     {key}"
    for key, (found, expected) in sorted(self.wrong_shapes.items()):
      yield f"wrong shape {key}: {found}, expected {expected}"
    for key in self.missing:
      yield f"missing     {key}"
    for key in self.unexpected:
      yield f"unexpected  {key}"

  def check(self) -> None:
    """Raises one InputError for all that is wrong, if anything is."""
    shapes = [
      f"{key} is {found} and should be {expected}"
      for key, (found, expected) in sorted(self.wrong_shapes.items())
    ]
    problems = {
      "missing": self.missing,
      "unexpected": self.unexpected,
      "wrong shapes": shapes,
    }
    text = "; ".join(
      f"{len(some)} {kind}: {_few(some)}"
      for kind, some in problems.items()
      if some
    )
    if text:
      raise InputError(
        f"weights do not fit the network, in {self.where}, {text}; "
        "use weights of this variant and size"
      )


def compare(tensors: Tensors, table: Table, abstract_params: Params) -> Report:
  """Lays the keys of a file beside the parameters of a network.

  Args:
    tensors: of the file.
    table: of the network and of the form that the file has.
    abstract_params: a tree of anything with shape and dtype, as `eval_shape`
      of the model's `init` gives.
  """
  leaves = traverse_util.flatten_dict(abstract_params, sep="/")
  rows = _rows_by_path(table, leaves)
  mapped: dict[str, tuple[str, ...]] = {}
  missing, wrong = [], {}
  for path, row in rows.items():
    key = _present(row, tensors)
    if key not in tensors.shapes:
      missing.append(key)
      continue
    expected = _torch_shape(row, tuple(leaves[path].shape))
    if tensors.shapes[key] != expected:
      wrong[key] = (tensors.shapes[key], expected)
    else:
      mapped[key] = (*mapped.get(key, ()), path)
  rest = tensors.shapes.keys() - mapped.keys() - wrong.keys()
  return Report(
    where=tensors.where,
    mapped=mapped,
    missing=tuple(sorted(set(missing))),
    unexpected=tuple(sorted(rest - table.ignored)),
    ignored=tuple(sorted(rest & table.ignored)),
    wrong_shapes=wrong,
  )


def to_flax(tensors: Tensors, table: Table, abstract_params: Params) -> Tensors:
  """Our parameters, keyed by path, in the dtypes of the file.

  Raises:
    InputError: keys are missing or unexpected, or shapes differ.
  """
  compare(tensors, table, abstract_params).check()
  leaves = traverse_util.flatten_dict(abstract_params, sep="/")
  rows = _rows_by_path(table, leaves)

  def read(path: str) -> np.ndarray:
    row = rows[path]
    index, count = row.part
    whole = tensors.read(_present(row, tensors))
    return row.layout.to_flax(np.split(whole, count)[index])

  return Tensors(
    where=tensors.where,
    shapes={path: tuple(leaf.shape) for path, leaf in leaves.items()},
    dtypes={p: tensors.dtypes[_present(r, tensors)] for p, r in rows.items()},
    read=read,
  )


def to_torch(leaves: Tensors, table: Table) -> Tensors:
  """The state dict, under the first spelling of each key.

  Args:
    leaves: our parameters, keyed by path.
    table: of the network and of the form to write.

  Raises:
    ValueError: the table and the parameters are not of the same network.
  """
  parts: dict[str, list[Row]] = {}
  for row in _rows_by_path(table, leaves.shapes).values():
    parts.setdefault(row.keys[0], []).append(row)
  for rows in parts.values():
    rows.sort(key=lambda row: row.part)

  def read(key: str) -> np.ndarray:
    arrays = [row.layout.to_torch(leaves.read(row.path)) for row in parts[key]]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

  first = {key: rows[0] for key, rows in parts.items()}
  return Tensors(
    where=leaves.where,
    shapes={
      k: _torch_shape(r, leaves.shapes[r.path]) for k, r in first.items()
    },
    dtypes={key: leaves.dtypes[row.path] for key, row in first.items()},
    read=read,
  )


def materialise(
  leaves: Tensors,
  put: Callable[[str, np.ndarray], Any] = lambda path, array: array,
) -> Params:
  """Reads every leaf into the nested dict that flax knows.

  Args:
    leaves: our parameters, keyed by path.
    put: (path, array) -> what to keep of it, as `jax.device_put` with the
      path's sharding; each array is let go before the next is read.
  """
  return traverse_util.unflatten_dict(
    {path: put(path, leaves.read_checked(path)) for path in leaves.shapes},
    sep="/",
  )


def with_gain(leaves: Tensors, unet: Any, gain: float) -> Tensors:
  """The weights of a U-Net as one with another `concat_gain` has them.

  The factor on the extra channels moves into the first convolution: exact for
  powers of two, as the public gains are.

  Args:
    leaves: our parameters, keyed by path.
    unet: the module that they belong to.
    gain: of the other.
  """
  factor = unet.concat_gain / gain
  if unet.local_image != "concat" or factor == 1:
    return leaves
  scale = np.ones((2 * unet.latent_channels, 1), np.float32)
  scale[unet.latent_channels :] = factor

  def read(path: str) -> np.ndarray:
    array = leaves.read(path)
    if path != "conv_in/kernel":
      return array
    return array * scale.astype(array.dtype)

  return dataclasses.replace(leaves, read=read)


def _rows_by_path(table: Table, leaves: Iterable[str]) -> dict[str, Row]:
  """Rows by path; a table that does not fit the tree is our own mistake."""
  rows = {row.path: row for row in table.rows}
  twice = [p for p, n in Counter(r.path for r in table.rows).items() if n > 1]
  differ = sorted(set(rows) ^ set(leaves))
  if twice or differ:
    raise ValueError(
      f"table and parameters are not of one network: {_few(twice + differ)}"
    )
  return rows


def _present(row: Row, tensors: Tensors) -> str:
  """The spelling in use, or the first one if there is none."""
  return next((key for key in row.keys if key in tensors.shapes), row.keys[0])


def _torch_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape that torch gives the whole tensor of which the row is a part."""
  first, *rest = row.layout.to_torch(np.broadcast_to(0.0, shape)).shape
  return (first * row.part[1], *rest)


def _few(names: Iterable[str]) -> str:
  names = list(names)
  more = len(names) - _SHOWN
  return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
