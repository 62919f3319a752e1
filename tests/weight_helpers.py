"""Helpers of the tests of weight files: arrays in memory, and refusals."""

import numpy as np
import pytest
import torch
from flax import traverse_util

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.interop.mapping import compare, materialise, to_flax


def tensors_of(arrays, where="memory"):
  """Tensors from arrays that are in memory."""
  return Tensors(
    where=where,
    shapes={key: tuple(x.shape) for key, x in arrays.items()},
    dtypes={key: x.dtype for key, x in arrays.items()},
    read=lambda key: np.asarray(arrays[key]),
  )


def load(arrays, table, abstract_params):
  """Our parameters from the arrays of a file, in their dtypes."""
  tensors = arrays if isinstance(arrays, Tensors) else tensors_of(arrays)
  return materialise(to_flax(tensors, table, abstract_params))


def check_fit(arrays, table, abstract_params):
  """Raises unless a file and a network agree."""
  compare(tensors_of(arrays), table, abstract_params).check()


def leaves_of(params):
  """Our parameters, keyed by path."""
  flat = traverse_util.flatten_dict(params, sep="/")
  return tensors_of({path: np.asarray(leaf) for path, leaf in flat.items()})


def arrays_of(tensors):
  """All arrays, by key."""
  return {key: tensors.read(key) for key in tensors.shapes}


def save_torch(path, arrays, **extra):
  """A file as VGen writes it."""
  state = {key: torch.from_numpy(x) for key, x in arrays.items()}
  torch.save({"state_dict": state, **extra}, path)


def unreadable(shapes, where="file.pth"):
  """Tensors of these shapes; reading one fails."""

  def read(key):
    raise AssertionError(f"{key} was read")

  return Tensors(
    where, dict(shapes), dict.fromkeys(shapes, np.dtype("f")), read
  )


def numbered(count, size):
  """Tensors "0", "1", ... that are made when they are read."""
  shapes = {str(i): (size,) for i in range(count)}
  dtypes = dict.fromkeys(shapes, np.dtype(np.float32))
  return Tensors(
    "memory", shapes, dtypes, lambda key: np.full(size, int(key), np.float32)
  )


def assert_refused(call, match):
  """The call raises an InputError of one line, which it returns."""
  with pytest.raises(InputError, match=match) as caught:
    call()
  line = str(caught.value)
  assert "\n" not in line
  assert "\033" not in line
  return line
