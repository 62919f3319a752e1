"""Safetensors files, one or several shards with an index."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from i2vgen_jax import files
from i2vgen_jax.errors import InputError, reading
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
_SAME_DOWNLOAD = "use shards and index of one download"


def read(path: Path) -> Tensors:
  """The tensors of one file.

  Raises:
    InputError: the file is missing, truncated, or not a safetensors file.
  """
  with _reading(path):
    # Unlike a memory map, "pread" leaves no page of the file resident.
    file = safe_open(path, framework="numpy", backend="pread")
  keys = file.keys()
  entries = {key: file.get_slice(key) for key in keys}
  for key, entry in entries.items():
    if entry.get_dtype() not in DTYPES:
      raise InputError(
        f"{key!r} has dtype {entry.get_dtype()!r}, in {path}; use a file of "
        f"{', '.join(DTYPES)}"
      )

  def read(key: str) -> np.ndarray:
    with _reading(path):
      return file.get_tensor(key)

  return Tensors(
    where=str(path),
    shapes={key: tuple(entry.get_shape()) for key, entry in entries.items()},
    dtypes={key: DTYPES[entry.get_dtype()] for key, entry in entries.items()},
    read=read,
  )


def read_index(path: Path, read: Callable[[Path], Tensors] = read) -> Tensors:
  """The tensors of all shards that a `*.index.json` names.

  Args:
    path: index file.
    read: opens one shard.

  Raises:
    InputError: it is not an index, or index and shards do not agree.
  """
  shard_of = _weight_map(path)
  shards = {name: read(_shard(path, name)) for name in set(shard_of.values())}
  for key, name in shard_of.items():
    if key not in shards[name].shapes:
      raise InputError(
        f"{key!r} is in the index {path} and not in shard {name}; "
        f"{_SAME_DOWNLOAD}"
      )
  for name, shard in shards.items():
    if extra := sorted(shard.shapes.keys() - shard_of.keys()):
      raise InputError(
        f"{extra[0]!r} is in shard {name} and not in the index {path}; "
        f"{_SAME_DOWNLOAD}"
      )
  return Tensors(
    where=str(path),
    shapes={key: shards[name].shapes[key] for key, name in shard_of.items()},
    dtypes={key: shards[name].dtypes[key] for key, name in shard_of.items()},
    read=lambda key: shards[shard_of[key]].read(key),
  )


def has_all_shards(path: Path) -> bool:
  """Whether all shards of an index exist; True for any other file."""
  if path.suffix != ".json":
    return True
  return all((path.parent / n).is_file() for n in _weight_map(path).values())


def write(
  path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> None:
  """Writes one file, reading one tensor at a time.

  The library's own writer needs all tensors in memory at once, which for a
  U-Net are 5.7 GB.

  Args:
    path: file to write; it is replaced only once everything is written.
    tensors: see `DTYPES` for the dtypes they may have.
    metadata: texts to store beside them.

  Raises:
    InputError: the file cannot be written.
    ValueError: a dtype that the format lacks, or an array whose shape or
      dtype is not as `tensors` lists it.
  """
  names = {dtype: name for name, dtype in DTYPES.items()}
  unknown = {str(d) for d in tensors.dtypes.values() if d not in names}
  if unknown:
    raise ValueError(f"safetensors has no dtype {', '.join(sorted(unknown))}")
  # The widest first, so that each tensor is aligned to its width.
  keys = sorted(tensors.shapes, key=lambda k: (-tensors.dtypes[k].itemsize, k))
  header: dict[str, object] = {}
  if metadata:
    header["__metadata__"] = dict(metadata)
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
  with files.replacing(path) as temporary, temporary.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for key in keys:
      file.write(tensors.read_checked(key).reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
  with reading(path, "download it again"):
    try:
      yield
    except SafetensorError as e:
      raise ValueError(f"truncated or not a safetensors file: {e}") from e


def _weight_map(path: Path) -> dict[str, str]:
  names = files.read_json(path, advice="download it again").get("weight_map")
  if not isinstance(names, dict) or not all(
    isinstance(name, str) for name in names.values()
  ):
    raise InputError(
      f"{path} is not an index of shards: it has no `weight_map` of file "
      "names; give the weight file itself"
    )
  return names


def _shard(path: Path, name: str) -> Path:
  """The path of a shard. Links are not resolved: the Hub's cache uses them."""
  if Path(name).is_absolute() or ".." in Path(name).parts:
    raise InputError(
      f"shard {name!r} lies outside of the folder of {path}; nothing was "
      "read, use an index that you trust"
    )
  shard = path.parent / name
  if not os.path.isfile(shard):  # Unlike Path.is_file, it never raises.
    raise InputError(f"no shard {name!r}, which {path} names; copy it there")
  return shard
