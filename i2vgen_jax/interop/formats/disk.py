"""Bytes from the middle of a file; files that appear whole or not at all."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from i2vgen_jax.errors import InputError


def read_at(
  path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
  """An array [*shape] whose bytes, in C order, start at the offset.

  Raises:
    InputError: the file has gone, or became shorter.
  """
  array = np.empty(math.prod(shape), dtype)
  try:
    with path.open("rb", buffering=0) as file:
      file.seek(offset)
      rest = memoryview(array.view(np.uint8))
      # One call may return less: Linux stops at 2 GiB.
      while rest and (count := file.readinto(rest)):
        rest = rest[count:]
  except OSError as e:
    raise InputError(f"cannot read {path}: {e.strerror}; copy it anew") from e
  if rest:
    raise InputError(f"{path} became shorter while it was read; try again")
  return array.reshape(shape)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A file under a temporary name, which takes the path's place at the end.

  Raises:
    InputError: it cannot be written; what was at the path is still there.
  """
  partial = path.with_name(f".{path.name}.partial")
  try:
    with partial.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  except OSError as e:
    raise InputError(
      f"cannot write {path}: {e.strerror or e}; choose another place"
    ) from e
  finally:
    with contextlib.suppress(OSError):
      partial.unlink()
