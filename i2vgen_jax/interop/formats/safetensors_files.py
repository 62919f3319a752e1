"""Safetensors files."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
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


def read_metadata(path: Path) -> dict[str, str]:
  """The texts that are stored beside the tensors of one file.

  Raises:
    InputError: as `read`.
  """
  with _reading(path):
    return safe_open(path, framework="numpy").metadata() or {}


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
  # The widest first, so that each tensor is aligned to its width.
  keys = sorted(tensors.shapes, key=lambda k: (-tensors.dtypes[k].itemsize, k))
  header = {"__metadata__": dict(metadata)} if metadata else {}
  end = 0
  for key in keys:
    dtype, shape = tensors.dtypes[key], tensors.shapes[key]
    if dtype not in names:
      raise ValueError(f"safetensors has no dtype {dtype}, which {key!r} has")
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
