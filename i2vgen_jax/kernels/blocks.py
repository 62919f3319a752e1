"""Functions of few pixels, run in the memory of a TPU core.

Between products with 320 channels, most of a program's time on a TPU goes to
writing, reading and transposing what one layer passes to the next. Layers that
work on each pixel alone, or on the frames of a pixel, need none of it: one
Pallas kernel runs the same code for one block of pixels after another.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from i2vgen_jax.kernels.platform import for_platform, with_backward_of
from i2vgen_jax.sharding import ROWS, on_each_device, split_pixels
from i2vgen_jax.types import Array, Params

# Rows and columns of the tiles of memory. Blocks are whole rows of tiles, and
# fewer channels take as much memory as LANES.
SUBLANES, LANES = 8, 128
# Frames x pixels x channels of a block.
BLOCK_ELEMENTS = 2**17 + 2**15
# Functions with larger weights are left to the compiler, which is good at wide
# layers.
MAX_WEIGHT_BYTES = 24 * 2**20
VMEM_BYTES = 60 * 2**20

_in_kernel = contextvars.ContextVar("in_kernel", default=False)


def in_kernel() -> bool:
  """Whether a function is being traced for a block of `on_blocks`."""
  return _in_kernel.get()


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
  token = _in_kernel.set(True)
  try:
    yield
  finally:
    _in_kernel.reset(token)


def on_blocks(
  fn: Callable[..., Any],
  params: Params,
  clips: Sequence[Float[Array, "b f n _"]],
  shared: Sequence[Float[Array, "b *_ c"]] = (),
  *,
  mixes_frames: bool,
) -> Any:
  """fn(params, *clips, *shared), on a TPU for blocks of pixels.

  A block has all frames of a few pixels of a clip. The backward pass is that
  of fn, without blocks.

  Args:
    fn: function whose results at a pixel depend on that pixel of `clips` alone,
      or on all its frames.
    params: weights, of which each block has all.
    clips: arrays of n pixels a frame, as are the results.
    shared: arrays of which each block has all that belongs to its clip, without
      pixels: [b f k c], values of each frame, or [b m c].
    mixes_frames: whether results depend on other frames of their pixel. Decides
      along which axis a mesh splits the arrays.
  """
  leaves, tree = jax.tree.flatten(params)

  def call(leaves: Sequence[Array], *arrays: Array) -> Any:
    return fn(jax.tree.unflatten(tree, leaves), *arrays)

  def plain(leaves: Any, clips: Any, shared: Any) -> Any:
    return call(leaves, *clips, *shared)

  if in_kernel():
    return plain(leaves, clips, shared)
  n = clips[0].shape[2]
  if mixes_frames:
    clips = [split_pixels(x) for x in clips]
  args = (leaves, tuple(clips), tuple(shared))
  if sum(x.size * x.dtype.itemsize for x in leaves) > MAX_WEIGHT_BYTES:
    results = plain(*args)
  else:
    kernel = functools.partial(_kernel, call, mixes_frames)
    kernel = with_backward_of(plain, kernel)
    results = for_platform(*args, tpu=kernel, default=plain)
  return jax.tree.map(lambda y: y[:, :, :n], results)


def _kernel(
  call: Callable,
  mixes_frames: bool,
  leaves: Sequence[Array],
  clips: Sequence[Array],
  shared: Sequence[Array],
) -> Any:
  """The kernel on each device's part of the arrays."""

  def run(*arrays: Array) -> Any:
    stop = len(clips) + len(shared)
    parts = arrays[: len(clips)], arrays[len(clips) : stop], arrays[stop:]
    return _on_device(call, *parts)

  each_frame = (ROWS,) if mixes_frames else (ROWS, "frames")
  each_pixel = (ROWS, None, "frames") if mixes_frames else each_frame
  axes = [
    *[each_pixel] * len(clips),
    *(each_frame if x.ndim == 4 else (ROWS,) for x in shared),
    *[()] * len(leaves),
  ]
  return on_each_device(run, (*clips, *shared, *leaves), axes)


def _on_device(
  call: Callable,
  clips: Sequence[Array],
  shared: Sequence[Array],
  leaves: Sequence[Array],
) -> Any:
  b, f, n, _ = clips[0].shape
  widest = max(LANES, *(x.shape[-1] for x in clips))
  size, padded = split(n, BLOCK_ELEMENTS // (f * widest))
  clips = [pad_pixels(x, padded) for x in clips]

  def for_block(x: Array, *pixels: int) -> jax.ShapeDtypeStruct:
    shape = (1, f, *pixels, x.shape[-1]) if pixels else (1, *x.shape[1:])
    return jax.ShapeDtypeStruct(shape, x.dtype)

  # Only the weights that fn uses travel.
  small = [*(for_block(x, size) for x in clips), *map(for_block, shared)]
  with _tracing():
    trace = jax.make_jaxpr(call, return_shape=True)
    jaxpr, results = trace(leaves, *small)
  read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
  is_read = [id(v) in read for v in jaxpr.jaxpr.invars[: len(leaves)]]
  weights = [x for x, used in zip(leaves, is_read, strict=True) if used]
  # Memory has no arrays of fewer than two axes.
  weights = [x.reshape(-1, x.shape[-1]) if x.ndim < 2 else x for x in weights]
  flat, tree = jax.tree.flatten(results)

  def block(*refs: Any) -> None:
    inputs, outputs = refs[: -len(flat)], refs[-len(flat) :]
    arrays = [ref[...] for ref in inputs]
    given, rest = arrays[: len(weights)], arrays[len(weights) :]
    given = iter(given)
    everything = [
      next(given).reshape(x.shape) if used else jnp.zeros((), x.dtype)
      for x, used in zip(leaves, is_read, strict=True)
    ]
    with _tracing():
      values = jax.core.eval_jaxpr(
        jaxpr.jaxpr, jaxpr.consts, *everything, *rest
      )
    for ref, value in zip(outputs, values, strict=True):
      ref[...] = value

  def of_pixels(channels: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, f, size, channels), lambda i, j: (i, 0, j, 0))

  def of_clip(x: Array) -> pl.BlockSpec:
    place = (0,) * (x.ndim - 1)
    return pl.BlockSpec((1, *x.shape[1:]), lambda i, j: (i, *place))

  def whole(x: Array) -> pl.BlockSpec:
    place = (0,) * x.ndim
    return pl.BlockSpec(x.shape, lambda i, j: place)

  outputs = pl.pallas_call(
    block,
    grid=(b, padded // size),
    in_specs=[
      *map(whole, weights),
      *(of_pixels(x.shape[-1]) for x in clips),
      *map(of_clip, shared),
    ],
    out_specs=[of_pixels(x.shape[-1]) for x in flat],
    out_shape=[
      jax.ShapeDtypeStruct((b, f, padded, x.shape[-1]), x.dtype) for x in flat
    ],
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM_BYTES),
    name="on_blocks",
  )(*weights, *clips, *shared)
  return jax.tree.unflatten(tree, [y[:, :, :n] for y in outputs])


def pad_pixels(x: Float[Array, "b f n c"], length: int) -> Array:
  """x with zeros after its n pixels."""
  return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))


def split(length: int, most: int) -> tuple[int, int]:
  """The size of a block of up to `most` rows, and `length` padded to blocks.

  Padding copies the array, so it is only for lengths without a divisor that is
  a multiple of 8.
  """
  most = max(most // SUBLANES, 1) * SUBLANES
  sizes = range(SUBLANES, min(most, length) + 1, SUBLANES)
  if divisors := [size for size in sizes if length % size == 0]:
    return divisors[-1], length
  count = -(-length // most)
  size = -(-length // (count * SUBLANES)) * SUBLANES
  return size, count * size
