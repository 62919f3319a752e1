"""Whole networks in memory, as torch's flat dicts and as our parameters."""

import numpy as np
from flax import traverse_util

from i2vgen_jax.interop.convert import materialise, to_flax
from i2vgen_jax.interop.formats.tensors import Tensors


def from_torch(tensors, table, abstract_params):
  """Our parameters, numpy arrays in the dtypes of the file."""
  return materialise(to_flax(tensors, table, abstract_params))


def leaves_of(params):
  """Our parameters, keyed by path."""
  flat = traverse_util.flatten_dict(params, sep="/")
  return Tensors.of({path: np.asarray(leaf) for path, leaf in flat.items()})


def arrays_of(tensors):
  """All of them, by key."""
  return {key: tensors.read(key) for key in tensors.shapes}
