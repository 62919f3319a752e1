"""Named arrays of a weight file, read one at a time."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from i2vgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tensors:
  """A flat dict of arrays whose shapes are known before any is read.

  Attributes:
    where: the file or folder, for messages.
    shapes: of every tensor, by key.
    dtypes: numpy's, bfloat16 being that of ml_dtypes.
    read: key -> array; each call reads the file again.
  """

  where: str
  shapes: Mapping[str, tuple[int, ...]]
  dtypes: Mapping[str, np.dtype]
  read: Callable[[str], np.ndarray]

  @classmethod
  def of(
    cls, arrays: Mapping[str, np.ndarray], where: str = "memory"
  ) -> "Tensors":
    """Arrays that are in memory already."""
    return cls(
      where=where,
      shapes={key: tuple(x.shape) for key, x in arrays.items()},
      dtypes={key: x.dtype for key, x in arrays.items()},
      read=lambda key: np.asarray(arrays[key]),
    )

  def read_checked(self, key: str) -> np.ndarray:
    """One of them, in C order; ValueError if it is not as it was told."""
    array = self.read(key)
    told = (self.shapes[key], self.dtypes[key])
    if (array.shape, array.dtype) != told:
      raise ValueError(f"{key} is {array.shape} {array.dtype}, not {told}")
    return np.asarray(array, order="C")

  def cast(self, dtype: np.dtype) -> "Tensors":
    """The same, those of floating point in another type."""
    dtypes = {
      key: dtype if jnp.issubdtype(d, jnp.floating) else d
      for key, d in self.dtypes.items()
    }

    def read(key: str) -> np.ndarray:
      # What is too large becomes infinity; who minds says so himself.
      with np.errstate(over="ignore"):
        return self.read(key).astype(dtypes[key], copy=False)

    return dataclasses.replace(self, dtypes=dtypes, read=read)

  def under(self, prefix: str) -> "Tensors":
    """Those whose key starts with the prefix, which is taken away."""

    def cut(some: Mapping) -> dict:
      return {
        key.removeprefix(prefix): value
        for key, value in some.items()
        if key.startswith(prefix)
      }

    return Tensors(
      self.where,
      cut(self.shapes),
      cut(self.dtypes),
      lambda key: self.read(prefix + key),
    )


def weight_dtype(dtype: Any) -> np.dtype | None:
  """Numpy's name for a dtype that weights may have; None stays None.

  Raises:
    InputError: any other.
  """
  if dtype is None:
    return None
  try:
    known = jnp.dtype(dtype)
  except TypeError:
    known = None
  if known not in _WEIGHT_DTYPES:
    names = ", ".join(str(d) for d in _WEIGHT_DTYPES)
    raise InputError(f"dtype {dtype!r} is none of weights; use {names}")
  return known


_WEIGHT_DTYPES = tuple(map(jnp.dtype, ("float32", "bfloat16", "float16")))
