"""Devices of a TPU that is not there."""

import pytest

from i2vgen_jax import sharding
from launch.planning import chips


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def mesh():
  return sharding.make_mesh(devices=chips.devices("v5e:1x1"))
