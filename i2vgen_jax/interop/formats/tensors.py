"""Named arrays of a weight file, read one at a time."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from i2vgen_jax.errors import InputError

_WEIGHT_DTYPES = tuple(map(jnp.dtype, ("float32", "bfloat16", "float16")))


@dataclasses.dataclass(frozen=True)
class Tensors:
  """A flat dict of arrays whose shapes are known before any is read.

  Attributes:
    where: the file or folder, for messages.
    shapes: shape of every tensor, by key.
    dtypes: NumPy dtype of every tensor; bfloat16 is that of ml_dtypes.
    read: key -> array; each call reads the file again.
  """

  where: str
  shapes: Mapping[str, tuple[int, ...]]
  dtypes: Mapping[str, np.dtype]
  read: Callable[[str], np.ndarray]

  def read_checked(self, key: str) -> np.ndarray:
    """One array in C order; ValueError if its shape or dtype is not as listed.

    Writers use this, so that a file always agrees with its header.
    """
    array = self.read(key)
    listed = (self.shapes[key], self.dtypes[key])
    if (array.shape, array.dtype) != listed:
      raise ValueError(f"{key} is {array.shape} {array.dtype}, not {listed}")
    return np.asarray(array, order="C")

  def checked(self, dtype: np.dtype | None = None) -> "Tensors":
    """The same tensors; reading one that cannot be a weight is refused.

    Integers, NaN and infinity raise InputError.

    Args:
      dtype: dtype to convert to, in which the values must be finite too; None
        keeps what is stored.
    """
    dtypes = self.dtypes if dtype is None else dict.fromkeys(self.dtypes, dtype)

    def read(key: str) -> np.ndarray:
      array = self.read(key)
      if array.dtype.kind in "iub":
        raise InputError(
          f"{key!r} is {array.dtype} and weights are floating point, in "
          f"{self.where}; use weights that are not quantised"
        )
      # Values out of range become infinite.
      with np.errstate(over="ignore"):
        array = array.astype(dtypes[key], copy=False)
      count = array.size - np.count_nonzero(np.isfinite(array))
      if count:
        raise InputError(
          f"{count} of {array.size} values of {key!r} are NaN or infinite as "
          f"{array.dtype}, in {self.where}; use intact weights or another dtype"
        )
      return array

    return dataclasses.replace(self, dtypes=dtypes, read=read)

  def under(self, prefix: str, without: tuple[str, ...] = ()) -> "Tensors":
    """The tensors whose key starts with `prefix`, which is removed.

    Args:
      prefix: start of the keys.
      without: what the rest of a key must not start with.
    """
    rest = [k.removeprefix(prefix) for k in self.shapes if k.startswith(prefix)]
    names = [name for name in rest if not name.startswith(without)]
    return Tensors(
      self.where,
      {name: self.shapes[prefix + name] for name in names},
      {name: self.dtypes[prefix + name] for name in names},
      lambda name: self.read(prefix + name),
    )


def weight_dtype(dtype: Any) -> np.dtype | None:
  """The NumPy dtype of weights; None stays None.

  Raises:
    InputError: weights cannot have this dtype.
  """
  if dtype is None:
    return None
  try:
    known = jnp.dtype(dtype)
  except TypeError:
    known = None
  if known not in _WEIGHT_DTYPES:
    names = ", ".join(map(str, _WEIGHT_DTYPES))
    raise InputError(f"weights cannot have dtype {dtype!r}; use {names}")
  return known
