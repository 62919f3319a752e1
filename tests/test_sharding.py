"""The mesh, where arrays go on it, and who reads which rows."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from i2vgen_jax import sharding
from i2vgen_jax.errors import InputError
from i2vgen_jax.models import build
from i2vgen_jax.training.state import create_state
from i2vgen_jax.types import Batch
from i2vgen_jax.variants import VARIANTS


def numbered_batch(size, num_frames):
  """Every pixel of row i, frame j is 10 i + j."""
  frames = 10 * np.arange(size)[:, None] + np.arange(num_frames)
  frames = np.broadcast_to(
    frames[..., None, None, None], (size, num_frames, 2, 2, 3)
  )
  return Batch(
    frames=frames.astype(np.uint8),
    clip_images=np.zeros((size, 2, 2, 3), np.float32),
    token_ids=np.zeros((size, 3), np.int32),
    fps=np.arange(size, dtype=np.float32),
    index=np.arange(size, dtype=np.int32),
  )


class TestMesh:
  def test_data_axis_uses_the_remaining_devices(self):
    mesh = sharding.make_mesh(fsdp=2, frames=2)
    assert dict(mesh.shape) == {
      "data": 2,
      "fsdp": 2,
      "fsdp_rest": 1,
      "frames": 2,
    }

  def test_every_device_once(self):
    mesh = sharding.make_mesh(data=2, frames=4)
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))

  @pytest.mark.parametrize(
    ("layout", "near"),
    [
      ({"data": 3}, "data=8 fsdp=1 frames=1"),
      ({"fsdp": 3}, "data=8 fsdp=1 frames=1"),
      ({"frames": 12}, "data=2 fsdp=1 frames=4"),
      ({"data": 1, "fsdp": 4, "frames": 4}, "data=1 fsdp=2 frames=4"),
      ({"fsdp": 0}, "data=8 fsdp=1 frames=1"),
      ({"data": -2, "fsdp": -4}, "data=8 fsdp=1 frames=1"),
    ],
  )
  def test_error_of_a_misfit_names_devices_and_a_valid_layout(
    self, layout, near
  ):
    with pytest.raises(InputError, match="8 devices") as error:
      sharding.make_mesh(**layout)
    assert near in str(error.value)
    words = near.replace("=", " ").split()
    sharding.make_mesh(
      **dict(zip(words[::2], map(int, words[1::2]), strict=True))
    )


class TestSlices:
  """Two slices of four devices, whose numbers alternate."""

  @pytest.fixture(autouse=True)
  def two_slices(self, monkeypatch):
    devices = jax.devices()
    slices = [devices[::2], devices[1::2]]
    monkeypatch.setattr(sharding, "_slices", lambda _: slices)

  @pytest.mark.parametrize(
    "layout",
    [{"fsdp": 4}, {"frames": 4}, {"fsdp": 2, "frames": 2}, {"data": 8}, {}],
    ids=str,
  )
  def test_weights_and_frames_stay_inside_of_a_slice(self, layout):
    mesh = sharding.make_mesh(**layout)
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    assert sorted(ids.flat) == list(range(8))
    first, second = np.split(ids, 2)
    assert not (first % 2).any() and (second % 2).all()

  @pytest.mark.parametrize(
    ("layout", "near"),
    [
      ({"fsdp": 8}, "data=2 fsdp=4 frames=1"),
      ({"fsdp": 2, "frames": 4}, "data=2 fsdp=1 frames=4"),
      ({"data": 3, "fsdp": 2}, "data=4 fsdp=2 frames=1"),
    ],
    ids=str,
  )
  def test_other_layouts_are_refused_with_a_near_one(self, layout, near):
    with pytest.raises(InputError, match="2 slices of 4 devices") as error:
      sharding.make_mesh(**layout)
    assert near in str(error.value)


class TestParamShardings:
  def shards(self, tree, **layout):
    mesh = sharding.make_mesh(**layout)
    placed = sharding.param_shardings(tree, mesh)
    return jax.tree.map(lambda x, s: s.shard_shape(x.shape), tree, placed)

  def test_large_kernels_split_along_their_largest_divisible_axis(self):
    shape = jax.ShapeDtypeStruct
    tree = {
      "conv": {"kernel": shape((3, 3, 320, 640), jnp.float32)},
      # 1001 is larger and does not divide by 4.
      "dense": {"kernel": shape((512, 1001), jnp.float32)},
      "odd": {"kernel": shape((333, 333), jnp.float32)},
      "tokens": {"embedding": shape((49408, 64), jnp.float32)},
      "norm": {"scale": shape((2**17,), jnp.float32)},
      "small": {"kernel": shape((16, 16), jnp.float32)},
    }
    assert self.shards(tree, data=2, fsdp=4) == {
      "conv": {"kernel": (3, 3, 320, 160)},
      "dense": {"kernel": (128, 1001)},
      "odd": {"kernel": (333, 333)},
      "tokens": {"embedding": (12352, 64)},
      "norm": {"scale": (2**17,)},
      "small": {"kernel": (16, 16)},
    }

  def test_two_axes_are_split_where_one_does_not_divide(self, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_WIDTH", 4)
    shape = jax.ShapeDtypeStruct
    tree = {
      "square": {"kernel": shape((260, 260), jnp.float32)},
      "tall": {"kernel": shape((2048, 33), jnp.float32)},
      "once": {"kernel": shape((260, 333), jnp.float32)},
    }
    assert self.shards(tree, fsdp=8) == {
      "square": {"kernel": (65, 130)},
      "tall": {"kernel": (256, 33)},
      "once": {"kernel": (65, 333)},
    }

  def test_more_devices_never_hold_more_of_the_released_model(
    self, monkeypatch
  ):
    def of_one_device(sizes, axes, types, devices):
      return Mesh(np.array(devices).reshape(sizes), axes, types)

    monkeypatch.setattr(jax, "make_mesh", of_one_device)
    params = build.abstract_params(VARIANTS["released"].unet)
    tx = optax.adamw(1e-4)
    state = jax.eval_shape(functools.partial(create_state, tx=tx), params)

    def held(fsdp):
      mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:1] * fsdp)
      placed = sharding.param_shardings(state, mesh)
      parts = jax.tree.map(
        lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize,
        state,
        placed,
      )
      return sum(jax.tree.leaves(parts)) / 2**30

    gib = [held(2**n) for n in range(9)]
    assert gib[0] == pytest.approx(21.17, abs=0.01)
    # Without what is replicated, each would be half of the one before.
    for fewer, more in itertools.pairwise(gib):
      assert more < 0.56 * fewer

  def test_each_device_holds_only_its_part(self):
    mesh = sharding.make_mesh(fsdp=8)
    tree = {"kernel": jnp.ones((512, 256))}
    placed = jax.device_put(tree, sharding.param_shardings(tree, mesh))
    parts = placed["kernel"].addressable_shards
    assert {part.data.shape for part in parts} == {(64, 256)}


class TestBatches:
  @pytest.mark.parametrize(
    "layout",
    [
      {"data": 8},
      {"fsdp": 8},
      {"data": 4, "fsdp": 2},
      {"data": 2, "frames": 4},
      {"data": 2, "fsdp": 2, "frames": 2},
      {"data": 1, "frames": 8},
    ],
  )
  def test_global_batch_has_all_rows_in_order(self, layout):
    mesh = sharding.make_mesh(**layout)
    batch = numbered_batch(8, 8)
    placed = sharding.to_global(batch, mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    frames = placed.frames.addressable_shards[0].data.shape
    assert frames[0] == 8 // (mesh.shape["data"] * mesh.shape["fsdp"])
    assert frames[1] == 8 // mesh.shape["frames"]

  def test_single_frames_are_replicated_over_the_frames_axis(self):
    mesh = sharding.make_mesh(data=2, frames=4)
    placed = sharding.to_global(numbered_batch(4, 1), mesh)
    assert placed.frames.addressable_shards[0].data.shape[:2] == (2, 1)

  def test_moments_are_split_like_the_frames(self):
    mesh = sharding.make_mesh(data=2, frames=4)
    moments = np.arange(2 * 8 * 6, dtype=np.float32).reshape(2, 8, 1, 1, 6)
    batch = dataclasses.replace(numbered_batch(2, 8), moments=moments)
    placed = sharding.to_global(batch, mesh).moments
    np.testing.assert_array_equal(placed, moments)
    assert placed.addressable_shards[0].data.shape == (1, 2, 1, 1, 6)

  def test_frames_that_do_not_divide(self):
    mesh = sharding.make_mesh(data=2, frames=4)
    with pytest.raises(InputError, match=r"6 frames.*multiple of 4"):
      sharding.to_global(numbered_batch(4, 6), mesh)

  def test_one_process_reads_all_rows(self):
    mesh = sharding.make_mesh(data=2, frames=4)
    assert sharding.process_rows(mesh, 6) == list(range(6))

  def test_a_device_holds_the_same_part_of_a_larger_batch(self):
    """So that each row of the reader may be several rows of the batch."""
    rows = sharding.rows_sharding(sharding.make_mesh(data=2, fsdp=2, frames=2))
    small, large = (rows.devices_indices_map((n,)) for n in (8, 24))
    for device, (part,) in small.items():
      start, stop, _ = part.indices(8)
      assert large[device][0].indices(24)[:2] == (3 * start, 3 * stop)

  @pytest.mark.parametrize(("size", "near"), [(5, 4), (3, 4), (0, 4), (11, 8)])
  def test_batch_that_does_not_divide(self, size, near):
    mesh = sharding.make_mesh(data=4, frames=2)
    with pytest.raises(InputError, match=f"batch of {size} .* size is {near}"):
      sharding.process_rows(mesh, size)


def test_latents_are_constrained_inside_jit():
  mesh = sharding.make_mesh(data=2, fsdp=2, frames=2)
  pin = jax.jit(lambda x: sharding.constrain_latents(2 * x, mesh))
  latents = pin(jnp.ones((4, 6, 2, 2, 4)))
  assert latents.addressable_shards[0].data.shape == (1, 3, 2, 2, 4)


class TestSplitClips:
  def test_without_a_mesh_nothing_happens(self):
    x = np.zeros((2, 4, 3))
    assert sharding.split_clips(x) is x

  @pytest.mark.parametrize(
    ("layout", "rows", "frames", "shard"),
    [
      ({"data": 2, "frames": 4}, 2, 8, (1, 2, 3)),
      ({"data": 2, "fsdp": 2, "frames": 2}, 4, 8, (1, 4, 3)),
      # Two rows are split by `data` alone, and `fsdp` holds copies.
      ({"data": 2, "fsdp": 2, "frames": 2}, 2, 8, (1, 4, 3)),
      ({"data": 8}, 2, 8, (2, 8, 3)),
      ({"data": 1, "frames": 8}, 2, 4, (2, 4, 3)),
    ],
  )
  def test_shard_shapes(self, layout, rows, frames, shard):
    with jax.set_mesh(sharding.make_mesh(**layout)):
      x = jax.jit(sharding.split_clips)(np.ones((rows, frames, 3)))
    assert x.sharding.shard_shape(x.shape) == shard


@pytest.mark.parametrize("parts", [0, 3])
def test_unequal_parts_of_a_batch_are_refused(parts):
  with pytest.raises(InputError, match=f"8 has no {parts} equal parts"):
    sharding.check_parts(sharding.make_mesh(), 8, parts)
