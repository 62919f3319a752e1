"""The device mesh, and the shardings of parameters and batches.

A layout has three axes. `data` and `fsdp` both split the rows of a batch;
`fsdp` also splits large weights, their moments and their averages; `frames`
splits the frames of a clip. Models name no mesh: the training objective and the
stage constrain the latents, `split_clips` and `split_pixels` the activations
between layers over space and over time, and the compiler propagates the layout.

No axis of a kernel of 320x320 divides by 128. The mesh therefore has `fsdp` as
two axes, of which one splits at most `FSDP_WIDTH` times and the other the rest,
so that both axes of the kernel can be split. All arrays of a program must have
the same mesh, or the compiler does not propagate their layouts.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array, Batch

AXES = ("data", "fsdp", "frames")
FSDP = ("fsdp", "fsdp_rest")
ROWS = ("data", *FSDP)
# Divides every channel width of the public networks: 128, 320, ..., 1280.
FSDP_WIDTH = 64

# Paths of the arrays that `fsdp` splits. The moments and averages of a weight
# end in the same path.
FSDP_PATHS = r"(kernel|embedding)$"
# For fewer elements a gather costs more than a replica.
MIN_SHARDED_SIZE = 2**16


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  frames: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """The mesh of all devices; data = -1 uses all that the other axes leave.

  The devices of several TPU slices, between which the network is slow, are in
  different places along `data`: weights and frames are never split over slices.

  Raises:
    InputError: the layout does not use every device exactly once, or `fsdp` or
      `frames` would span slices.
  """
  slices = _slices(jax.devices() if devices is None else devices)
  n, count = sum(map(len, slices)), len(slices)
  rest = fsdp * frames
  filled = n // rest if data == -1 and rest > 0 else data
  if min(filled, fsdp, frames) < 1 or filled * rest != n or filled % count:
    place = f"{n} devices"
    if count > 1:
      place = f"{count} slices of {n // count} devices, as fsdp and frames "
      place += "cannot span slices"
    raise InputError(
      f"mesh data={data} fsdp={fsdp} frames={frames} does not fit {place}; a "
      f"near layout is {_near_layout(n, count, fsdp, frames)}"
    )
  width = math.gcd(fsdp, FSDP_WIDTH)
  shape = (filled // count, width, fsdp // width, frames)
  names = (*ROWS, "frames")
  # jax.make_mesh defaults to explicit axes, where constraints are refused.
  auto = (AxisType.Auto,) * len(names)
  # It knows the links inside of a slice, and refuses the devices of several.
  parts = [jax.make_mesh(shape, names, auto, devices=part) for part in slices]
  joined = np.concatenate([part.devices for part in parts])
  return Mesh(joined, names, axis_types=auto)


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
  """The devices of each slice; those that know of no slice are in one."""
  slices = collections.defaultdict(list)
  for device in devices:
    slices[getattr(device, "slice_index", 0)].append(device)
  return [part for _, part in sorted(slices.items())]


def _near_layout(n: int, slices: int, fsdp: int, frames: int) -> str:
  frames = math.gcd(n // slices, max(frames, 1))
  fsdp = math.gcd(n // slices // frames, max(fsdp, 1))
  return f"data={n // frames // fsdp} fsdp={fsdp} frames={frames}"


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy of the array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def param_shardings(tree: Any, mesh: Mesh) -> Any:
  """A sharding for each array of `tree`: params, or a whole training state.

  Args:
    tree: arrays or their abstract shapes.
    mesh: the mesh to place them on.

  Returns:
    The same tree with a NamedSharding at each leaf. Large arrays at
    `FSDP_PATHS` are split along their largest divisible axis, above
    `FSDP_WIDTH` devices along two; all others are replicated. Twice as many
    devices along `fsdp` never hold more each, for the widths of `FSDP_WIDTH`.
  """

  def place(path: Any, leaf: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    large = math.prod(leaf.shape) >= MIN_SHARDED_SIZE
    if not (large and re.search(FSDP_PATHS, name)):
      return replicated(mesh)
    return NamedSharding(mesh, _split_most(mesh, leaf.shape))

  return jax.tree_util.tree_map_with_path(place, tree)


def _split_most(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
  """Splits by each axis of `FSDP` the largest part of a shape that it can."""
  split: list[tuple[str, ...]] = [()] * len(shape)
  parts = [*shape]
  for name in FSDP:
    size = mesh.shape[name]
    divisible = [i for i, n in enumerate(parts) if n % size == 0]
    if size > 1 and divisible:
      largest = max(divisible, key=lambda i: parts[i])
      split[largest] += (name,)
      parts[largest] //= size
  return PartitionSpec(*(names or None for names in split))


def place(tree: Any, shardings: Any) -> Any:
  """Host arrays that all processes have, on the devices of the shardings.

  `jax.device_put` would send them to all processes, to compare them.
  """

  def put(array: Any, sharding: NamedSharding) -> jax.Array:
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(put, tree, shardings)


def rows_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of arrays [b ...]."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def frames_sharding(mesh: Mesh, num_frames: int) -> NamedSharding:
  """Sharding of arrays [b f ...]; single frames are not split along f.

  Raises:
    InputError: the frames do not divide over the mesh.
  """
  size = mesh.shape["frames"]
  if num_frames > 1 and num_frames % size:
    raise InputError(
      f"clips of {num_frames} frames do not divide over mesh axis "
      f"frames={size}; choose a multiple of {size}, or frames=1"
    )
  split = "frames" if num_frames > 1 else None
  return NamedSharding(mesh, PartitionSpec(ROWS, split))


def batch_shardings(mesh: Mesh, batch: Batch) -> Batch:
  """A sharding for each array of a batch."""
  rows = rows_sharding(mesh)
  frames = frames_sharding(mesh, batch.num_frames)
  over_frames = ("frames", "moments")
  places = {
    field.name: frames if field.name in over_frames else rows
    for field in dataclasses.fields(batch)
    if getattr(batch, field.name) is not None
  }
  return Batch(**places)


def constrain_latents(
  latents: Float[jax.Array, "b f h w c"], mesh: Mesh
) -> Float[jax.Array, "b f h w c"]:
  """Constrains the sharding of latents; activations follow from it."""
  sharding = clips_sharding(mesh, latents.shape)
  return jax.lax.with_sharding_constraint(latents, sharding)


def on_each_device(
  fn: Callable[..., Any],
  args: Sequence[Array],
  axes: Sequence[Sequence[str | tuple[str, ...] | None]],
) -> Any:
  """Runs fn on the part of each device, for kernels the compiler cannot split.

  The mesh is that of `jax.set_mesh`; without one, and inside of another such
  call, there is a single part.

  Args:
    fn: function of all args; its results have the first axes of the first.
    args: arrays.
    axes: for each array, the mesh axes that split its first axes. An axis that
      they do not divide is whole on each device.
  """
  mesh = _mesh_to_split_over()
  if mesh is None:
    return fn(*args)

  specs = tuple(
    _dividing(mesh, names, x.shape) for x, names in zip(args, axes, strict=True)
  )
  split = jax.shard_map(fn, in_specs=specs, out_specs=specs[0], check_vma=False)
  return split(*args)


def num_devices() -> int:
  """Number of devices that `on_each_device` has."""
  mesh = _mesh_to_split_over()
  return 1 if mesh is None else mesh.size


def _mesh_to_split_over() -> jax.sharding.AbstractMesh | None:
  """The mesh of `jax.set_mesh`; None inside of `on_each_device`."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.manual_axes else mesh


def clips_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
  """Sharding of an array [b f h w c] or [b ...] by the axes that divide it."""
  axes = (ROWS, "frames") if len(shape) == 5 else (ROWS,)
  return NamedSharding(mesh, _dividing(mesh, axes, shape))


def split_clips(x: Float[Array, "b f ..."]) -> Float[Array, "b f ..."]:
  """Splits rows and frames over the mesh of `jax.set_mesh`.

  Mesh axes that do not divide them hold copies; without a mesh nothing happens.
  """
  mesh = _mesh_to_split_over()
  if mesh is None or mesh.size == 1:
    return x
  spec = _dividing(mesh, (ROWS, "frames"), x.shape)
  return jax.lax.with_sharding_constraint(x, spec)


def split_pixels(x: Float[Array, "b f n c"]) -> Float[Array, "b f m c"]:
  """Splits rows and pixels over the mesh, for layers over the frames.

  Zeros pad the pixels to equal parts. The compiler exchanges the parts of the
  devices along `frames`, where it would otherwise gather all frames on each.
  """
  mesh = _mesh_to_split_over()
  if mesh is None or mesh.shape["frames"] == 1 or x.shape[1] == 1:
    return x
  rest = -x.shape[2] % mesh.shape["frames"]
  x = jnp.pad(x, ((0, 0), (0, 0), (0, rest), (0, 0)))
  spec = _dividing(mesh, (ROWS, None, "frames"), x.shape)
  return jax.lax.with_sharding_constraint(x, spec)


def _dividing(
  mesh: Mesh | jax.sharding.AbstractMesh,
  axes: Sequence[str | tuple[str, ...] | None],
  shape: tuple[int, ...],
) -> PartitionSpec:
  """The mesh axes of the first axes of an array that they divide.

  Of a tuple of mesh axes the first ones that divide are left.
  """

  def left(axis: str | tuple[str, ...] | None, length: int) -> tuple[str, ...]:
    names = (axis,) if isinstance(axis, str) else axis or ()
    while length % math.prod(mesh.shape[name] for name in names):
      names = names[:-1]
    return names

  return PartitionSpec(
    *(left(axis, n) or None for axis, n in zip(axes, shape, strict=False))
  )


def check_rows(mesh: Mesh, batch_size: int) -> None:
  """Raises InputError for a batch that does not divide over the devices."""
  shards = _row_shards(mesh)
  if batch_size % shards or batch_size < 1:
    near = max(shards, batch_size // shards * shards)
    raise InputError(
      f"a batch of {batch_size} does not divide over the {shards} row shards "
      f"of the mesh (data x fsdp); a near size is {near}"
    )


def check_parts(mesh: Mesh, batch_size: int, parts: int) -> None:
  """Raises InputError unless equal parts of a batch divide over the devices."""
  if parts < 1 or batch_size % parts:
    raise InputError(
      f"a batch of {batch_size} has no {parts} equal parts; choose another "
      "train.batch_size or train.accumulate"
    )
  check_rows(mesh, batch_size // parts)


def process_rows(mesh: Mesh, batch_size: int) -> list[int]:
  """Sorted rows of a global batch that the devices of this process hold.

  Two processes hold the same rows if the frames of a clip span both.

  Raises:
    InputError: the batch does not divide over the devices.
  """
  check_rows(mesh, batch_size)
  places = rows_sharding(mesh).addressable_devices_indices_map((batch_size,))
  slices = {index[0].indices(batch_size)[:2] for index in places.values()}
  return sorted(row for start, stop in slices for row in range(start, stop))


def to_global(batch: Batch, mesh: Mesh) -> Batch:
  """One global batch from the rows that each process has read.

  Args:
    batch: host arrays with the rows of `process_rows`, in that order, and all
      frames of each.
    mesh: the mesh of the training step.
  """
  shards = _row_shards(mesh)
  # With one row per shard, the rows are the shards of this process.
  held = len(process_rows(mesh, shards))
  mine = process_rows(mesh, len(batch.index) * shards // held)
  batch_size = len(mine) * shards // held

  def place(rows: Any, sharding: NamedSharding) -> jax.Array:
    def shard(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(batch_size)
      first = mine.index(start)
      own = slice(first, first + stop - start)
      return np.asarray(rows[(own, *index[1:])])

    shape = (batch_size, *rows.shape[1:])
    return jax.make_array_from_callback(shape, sharding, shard)

  shardings = batch_shardings(mesh, batch)
  return jax.tree.map(place, batch, shardings)


def global_shapes(batch: Batch, mesh: Mesh, batch_size: int) -> Batch:
  """Abstract shapes of the global batch that has rows like those of a batch."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      (batch_size, *x.shape[1:]), x.dtype, sharding=sharding
    ),
    batch,
    batch_shardings(mesh, batch),
  )


def _row_shards(mesh: Mesh) -> int:
  return math.prod(mesh.shape[axis] for axis in ROWS)
