"""Torch's flat dict of arrays to our tree of parameters, and back.

Strict both ways: every key must be used, every parameter filled, every shape
right, or one error says all that is wrong. Nothing is dropped silently.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.table import Row, Table
from i2vgen_jax.types import Params

_SHOWN = 4


def from_torch(
  tensors: Mapping[str, np.ndarray], table: Table, abstract_params: Params
) -> Params:
  """Parameters in the shapes and dtypes of `abstract_params`.

  Args:
    tensors: the state dict, as numpy arrays.
    table: of the network and of the form that the state dict has.
    abstract_params: a tree of anything with shape and dtype, as `eval_shape`
      of the model's `init` gives.

  Returns:
    Nested dict of numpy arrays.

  Raises:
    InputError: keys are missing or unexpected, or shapes differ.
  """
  leaves = traverse_util.flatten_dict(abstract_params, sep="/")
  rows = _rows_by_path(table, leaves)
  keys = {row: _present(row, tensors) for row in rows.values()}
  known = table.ignored | set(keys.values())
  _refuse(
    missing={row.keys[0] for row, key in keys.items() if key not in tensors},
    unexpected=[key for key in tensors if key not in known],
    shapes=_wrong_shapes(keys, tensors, leaves),
  )
  params = {}
  for path, leaf in leaves.items():
    part = _slice(tensors[keys[rows[path]]], rows[path])
    params[path] = np.asarray(rows[path].layout.to_flax(part), leaf.dtype)
  return traverse_util.unflatten_dict(params, sep="/")


def to_torch(params: Params, table: Table) -> dict[str, np.ndarray]:
  """The state dict of `params`, under the first spelling of each key.

  Raises:
    ValueError: the table and the tree are not of the same network.
  """
  leaves = traverse_util.flatten_dict(params, sep="/")
  parts: dict[str, list[tuple[int, np.ndarray]]] = {}
  for path, row in _rows_by_path(table, leaves).items():
    array = row.layout.to_torch(np.asarray(jax.device_get(leaves[path])))
    parts.setdefault(row.keys[0], []).append((row.part[0], array))
  return {
    key: np.concatenate([x for _, x in sorted(some, key=lambda p: p[0])])
    for key, some in parts.items()
  }


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


def _present(row: Row, tensors: Mapping[str, np.ndarray]) -> str:
  """The spelling in use, or the first one if there is none."""
  return next((key for key in row.keys if key in tensors), row.keys[0])


def _slice(tensor: np.ndarray, row: Row) -> np.ndarray:
  index, count = row.part
  return tensor if count == 1 else np.split(tensor, count)[index]


def _torch_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape that torch gives the whole tensor of which the row is a part."""
  first, *rest = row.layout.to_torch(np.broadcast_to(0.0, shape)).shape
  return (first * row.part[1], *rest)


def _wrong_shapes(
  keys: Mapping[Row, str],
  tensors: Mapping[str, np.ndarray],
  leaves: Mapping[str, Any],
) -> list[str]:
  wrong = []
  for row, key in keys.items():
    expected = _torch_shape(row, tuple(leaves[row.path].shape))
    if key in tensors and tuple(tensors[key].shape) != expected:
      found = tuple(tensors[key].shape)
      wrong.append(f"{key} is {found} and should be {expected}")
  return list(dict.fromkeys(wrong))


def _refuse(**problems: Iterable[str]) -> None:
  """Raises one error for all kinds of problems that have entries."""
  found = {kind: sorted(some) for kind, some in problems.items() if some}
  if found:
    text = "; ".join(
      f"{len(some)} {'wrong ' * (kind == 'shapes')}{kind}: {_few(some)}"
      for kind, some in found.items()
    )
    raise InputError(
      f"weights do not fit the network, {text}; "
      "use weights of this variant and size"
    )


def _few(names: list[str]) -> str:
  more = len(names) - _SHOWN
  return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
