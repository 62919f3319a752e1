"""Topologies by name."""

import pytest

from i2vgen_jax.errors import InputError
from launch.planning import chips


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=chips.CHIPS)
def test_the_smallest_topology_of_each_chip_exists(chip):
  devices = chips.devices(f"{chip.name}:{chip.smallest}")
  assert len(devices) in (4, 8)


def test_one_chip_is_a_topology():
  assert len(chips.devices("v5e:1x1")) == 1


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v9:2x2", "no topology 'v9:2x2'; the smallest of each chip are v4:2x2x1"),
    ("v5e", "no topology 'v5e'"),
    ("v5e:3x5", "libtpu has no topology 'v5e:3x5'; the smallest .* v5e:2x2"),
  ],
)
def test_unknown_topologies_are_refused(name, message):
  with pytest.raises(InputError, match=message):
    chips.devices(name)


def test_a_missing_libtpu_is_named(monkeypatch):
  def missing(**_):
    raise NotImplementedError("JAX TPU support not installed; see the docs")

  monkeypatch.setattr(chips.topologies, "get_topology_desc", missing)
  with pytest.raises(InputError, match=r"pip install 'i2vgen-jax\[plan\]'"):
    chips.devices("v5e:2x2")
