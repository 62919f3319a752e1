"""Programs for two TPU slices, between which the network is slow."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from i2vgen_jax import sharding
from i2vgen_jax.errors import InputError
from launch.planning import chips


@pytest.fixture(scope="module")
def devices():
  chips.devices("v5e:2x2")  # Loads libtpu, which needs no TPU from then on.
  return topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x2", num_slices=2
  ).devices


def test_only_gradients_cross_slices(devices):
  mesh = sharding.make_mesh(fsdp=4, devices=devices)
  places = [{d.slice_index for d in row.flat} for row in mesh.devices]
  assert places == [{0}, {1}]
  split = NamedSharding(mesh, PartitionSpec("fsdp"))
  kernel = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=split)
  rows = sharding.rows_sharding(mesh)
  x = jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=rows)

  def loss(kernel, x):
    return jnp.square(x @ kernel).mean()

  step = jax.jit(jax.grad(loss), out_shardings=split)
  text = step.lower(kernel, x).compile().as_text()
  # Both slices run the program that has the numbers of the first.
  groups = set(re.findall(r"replica_groups=({{.*?}})", text))
  assert groups == {"{{0,1,2,3}}"}
  # The one exchange of slices: each device sends its part of the gradient.
  sent = re.findall(r"= \(f32\[([\d,]+)\].* send\(", text)
  assert [math.prod(map(int, shape.split(","))) for shape in sent] == [2**18]
  assert '_xla_megascale_transfer_type="ALL_REDUCE"' in text


def test_weights_that_would_span_slices_are_refused(devices):
  with pytest.raises(InputError, match="2 slices of 4 devices"):
    sharding.make_mesh(fsdp=8, devices=devices)
