"""Shared by the tests of weight files and key tables."""

import re
import resource

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def state_shapes():
  """Shapes of the state dict of the torch module that `build` makes."""

  def shapes(build) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
      return {k: tuple(x.shape) for k, x in build().state_dict().items()}

  return shapes


@pytest.fixture(scope="session")
def draw_arrays():
  """Random arrays of the given shapes."""

  def draw(shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}

  return draw


@pytest.fixture(scope="session")
def hollow_arrays():
  """Arrays of the given shapes that use no memory."""

  def hollow(shapes) -> dict[str, np.ndarray]:
    return {k: np.broadcast_to(np.int8(0), s) for k, s in shapes.items()}

  return hollow


@pytest.fixture(scope="session")
def rename():
  """The arrays with keys after all substitutions (pattern, replacement)."""

  def renamed(arrays, rules) -> dict[str, np.ndarray]:
    result = {}
    for key, array in arrays.items():
      for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
      assert key not in result
      result[key] = array
    return result

  return renamed


@pytest.fixture(scope="session")
def assert_same():
  """Two flat or nested dicts of arrays are equal."""

  def same(a, b) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
      if isinstance(value, dict):
        same(value, b[key])
      else:
        assert value.dtype == b[key].dtype
        np.testing.assert_array_equal(value, b[key])

  return same


@pytest.fixture
def small_disk():
  """Files of this process cannot grow beyond a megabyte."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)
