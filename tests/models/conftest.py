"""Fixtures of the tests of single networks."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

# For model_testing.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def random_params():
  """Random parameters of a module, which keep activations near 1.

  They are drawn by numpy, because compiling `init` takes long.
  """

  def fill(module, *args, **kwargs):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
      x = rng.normal(size=leaf.shape).astype(leaf.dtype)
      if path[-1].key == "kernel":
        return x * np.prod(leaf.shape[:-1], dtype=leaf.dtype) ** -0.5
      return 0.2 * x + (path[-1].key == "scale")

    abstract = jax.eval_shape(
      lambda: module.init(jax.random.key(0), *args, **kwargs)
    )
    return jax.tree_util.tree_map_with_path(draw, abstract["params"])

  return fill
