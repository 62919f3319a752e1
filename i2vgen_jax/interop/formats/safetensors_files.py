"""Weights as safetensors: one file or many, read and written by the tensor.

A file is 8 bytes with the length of the header, the header (JSON: for every
key its dtype, shape and place), then the bytes of the tensors, without holes.
Reading it ourselves leaves nothing in memory that nobody asked for.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats.disk import read_at, replacing
from i2vgen_jax.interop.formats.tensors import Tensors

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(jnp.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
# The limit of the safetensors library, against headers that fill the memory.
_LONGEST_HEADER = 100_000_000


class _Field(NamedTuple):
  dtype: np.dtype
  shape: tuple[int, ...]
  begin: int
  end: int


def read(path: Path) -> Tensors:
  """The tensors of one file.

  Raises:
    InputError: the file is missing, truncated, or no safetensors file.
  """
  header, start = _header(path)
  header.pop("__metadata__", None)
  fields = {key: _field(path, key, entry) for key, entry in header.items()}
  _check_places(path, fields.values(), path.stat().st_size - start)

  def read(key: str) -> np.ndarray:
    dtype, shape, begin, _ = fields[key]
    return read_at(path, start + begin, dtype, shape)

  return Tensors(
    where=str(path),
    shapes={key: field.shape for key, field in fields.items()},
    dtypes={key: field.dtype for key, field in fields.items()},
    read=read,
  )


def read_index(path: Path, read: Callable[[Path], Tensors] = read) -> Tensors:
  """The tensors of all shards that a `*.index.json` names.

  Args:
    path: of the index.
    read: opens one shard.

  Raises:
    InputError: no index, or index and shards do not fit each other.
  """
  names = _weight_map(path)
  shards = {
    name: read(_shard(path, name)) for name in sorted(set(names.values()))
  }
  for key, name in names.items():
    if key not in shards[name].shapes:
      raise InputError(
        f"{key!r} should be in {name} and is not, by {path}; use shards and "
        "index of one download"
      )
  for name, shard in shards.items():
    for key in shard.shapes:
      if key not in names:
        raise InputError(
          f"{key!r} of {name} is not in the index {path}; use shards and "
          "index of one download"
        )
  return Tensors(
    where=str(path),
    shapes={key: shards[name].shapes[key] for key, name in names.items()},
    dtypes={key: shards[name].dtypes[key] for key, name in names.items()},
    read=lambda key: shards[names[key]].read(key),
  )


def is_whole(path: Path) -> bool:
  """Whether all shards are there, if it is an index; else True."""
  if path.suffix != ".json":
    return True
  names = set(_weight_map(path).values())
  return all((path.parent / name).is_file() for name in names)


def write(
  path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> None:
  """Writes one file, reading one tensor at a time.

  Args:
    path: of the file, which is replaced only once all is written.
    tensors: see `DTYPES` for what they may be.
    metadata: texts to carry beside them.

  Raises:
    InputError: no room, or no file can be made there.
    ValueError: a dtype that the format lacks, or an array that is not of the
      shape and dtype that `tensors` tells.
  """
  names = {dtype: name for name, dtype in DTYPES.items()}
  unknown = {str(d) for d in tensors.dtypes.values() if d not in names}
  if unknown:
    raise ValueError(f"safetensors has no dtype {', '.join(sorted(unknown))}")
  # The widest first, so that each tensor starts at a multiple of its width.
  keys = sorted(tensors.shapes, key=lambda k: (-tensors.dtypes[k].itemsize, k))
  header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
  end = 0
  for key in keys:
    dtype, shape = tensors.dtypes[key], tensors.shapes[key]
    begin, end = end, end + dtype.itemsize * math.prod(shape)
    header[key] = {
      "dtype": names[dtype],
      "shape": list(shape),
      "data_offsets": [begin, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with replacing(path) as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for key in keys:
      file.write(tensors.read_checked(key).reshape(-1).view(np.uint8).data)


def _header(path: Path) -> tuple[dict[str, Any], int]:
  """The JSON of the header, and where the bytes of the tensors start."""
  try:
    with path.open("rb") as file:
      size = os.fstat(file.fileno()).st_size
      length = int.from_bytes(file.read(8), "little")
      text = file.read(length) if length <= _LONGEST_HEADER else b""
  except OSError as e:
    raise InputError(f"cannot read {path}: {e.strerror}; name another") from e
  if not 2 <= length <= size - 8 or len(text) < length:
    raise _broken(path, f"it tells a header of {length} bytes and has {size}")
  return _json_dict(path, text), 8 + length


def _json_dict(path: Path, text: bytes) -> dict[str, Any]:
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    value = None
  if not isinstance(value, dict):
    raise _broken(path, "its JSON is damaged")
  return value


def _field(path: Path, key: str, entry: Any) -> _Field:
  """One entry of the header, checked by itself."""
  try:
    dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
  except (KeyError, TypeError, ValueError) as e:
    raise _broken(path, f"the header's entry for {key!r} is damaged") from e
  if dtype is None:
    raise InputError(
      f"{key!r} is of dtype {entry['dtype']!r}, in {path}; use a file of "
      f"{', '.join(DTYPES)}"
    )
  if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
    raise _broken(path, f"shape or place of {key!r} is no list of counts")
  if end - begin != math.prod(shape) * dtype.itemsize:
    raise _broken(
      path, f"{key!r} has {end - begin} bytes, too few or many for {shape}"
    )
  return _Field(dtype, shape, begin, end)


def _check_places(path: Path, fields: Iterable[_Field], size: int) -> None:
  """Tensors fill the `size` bytes after the header without hole or overlap."""
  place = 0
  for field in sorted(fields, key=lambda field: (field.begin, field.end)):
    if field.begin != place:
      raise _broken(path, f"tensors overlap or leave a hole at byte {place}")
    place = field.end
  if place != size:
    raise _broken(path, f"tensors need {place} bytes and have {size}")


def _weight_map(path: Path) -> dict[str, str]:
  try:
    text = path.read_bytes()
  except OSError as e:
    raise InputError(f"cannot read {path}: {e.strerror}; name another") from e
  names = _json_dict(path, text).get("weight_map")
  if not isinstance(names, dict) or not all(
    isinstance(name, str) for name in names.values()
  ):
    raise InputError(
      f"no index of shards: {path} has no `weight_map` of file names; name "
      "the weights themselves"
    )
  return names


def _shard(path: Path, name: str) -> Path:
  """Where a shard is; by its name, as the Hub's cache is made of links."""
  if Path(name).is_absolute() or ".." in Path(name).parts:
    raise InputError(
      f"shard {name!r} lies outside of the folder of {path}; nothing was "
      "read, use an index that you trust"
    )
  shard = path.parent / name
  if not os.path.isfile(shard):  # Unlike Path's, it never raises.
    raise InputError(f"no shard {name!r}, which {path} names; copy it there")
  return shard


def _broken(path: Path, what: str) -> InputError:
  return InputError(
    f"{path} is truncated or no safetensors file: {what}; copy it anew"
  )
