"""What the tests of single networks share."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_params():
  """Parameters of a module, none at its initial value.

  Activations stay near 1; drawn by numpy because `init` compiles for long.
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
