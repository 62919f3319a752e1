"""Functions of few pixels, run in the memory of a TPU core.

Between products with 320 channels, most of a program's time on a TPU goes to
writing, reading and transposing what one layer passes to the next. Layers that
work on each pixel alone, or on the frames of a pixel, need none of it: one
Pallas kernel runs the same code for one block of pixels after another.
"""

import contextlib
import contextvars
import functools
import math
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
  clips: Sequence[Float[Array, "b f *_ n _"]],
  shared: Sequence[Float[Array, "b *_ c"]] = (),
  *,
  mixes_frames: bool,
) -> Any:
  """fn(params, *clips, *shared), on a TPU for blocks of pixels.

  A block has a few pixels of a frame, or of all frames of a clip. The backward
  pass is that of fn, without blocks.

  Args:
    fn: function whose results at a pixel depend on that pixel of `clips` alone,
      or on all its frames.
    params: weights, of which each block has all.
    clips: arrays of n pixels a frame, as are the results: [b f n c], or
      [b f h n d] for h heads.
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
  if mixes_frames:
    # So that gradients of clips and of results are split alike. Otherwise the
    # compiler leaves out a sum over devices in the gradient of a weight.
    results = jax.tree.map(split_pixels, results)
  return jax.tree.map(lambda y: y[..., :n, :], results)


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
    return _on_device(call, mixes_frames, *parts)

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
  mixes_frames: bool,
  clips: Sequence[Array],
  shared: Sequence[Array],
  leaves: Sequence[Array],
) -> Any:
  b, f, n, _ = clips[0].shape
  frames = f if mixes_frames else 1
  widest = max(math.prod(x.shape[2:]) // n for x in clips)
  size, padded = split(n, BLOCK_ELEMENTS // (frames * max(LANES, widest)))
  clips = [pad_pixels(x, padded) for x in clips]

  def of_pixels(shape: tuple[int, ...]) -> pl.BlockSpec:
    """For an array [b f *heads n c]."""
    heads = shape[2:-2]
    none = (0,) * len(heads)
    return pl.BlockSpec(
      (1, frames, *heads, size, shape[-1]),
      lambda i, j, k: (i, j, *none, k, 0),
    )

  def of_clip(shape: tuple[int, ...]) -> pl.BlockSpec:
    """For an array [b f k c] or [b m c]."""
    if len(shape) == 4:
      return pl.BlockSpec((1, frames, *shape[2:]), lambda i, j, k: (i, j, 0, 0))
    return pl.BlockSpec((1, *shape[1:]), lambda i, j, k: (i, 0, 0))

  def whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    place = (0,) * len(shape)
    return pl.BlockSpec(shape, lambda i, j, k: place)

  inputs = [of_pixels(x.shape) for x in clips]
  inputs += [of_clip(x.shape) for x in shared]
  # Only the weights that fn uses travel.
  small = [
    jax.ShapeDtypeStruct(spec.block_shape, x.dtype)
    for spec, x in zip(inputs, [*clips, *shared], strict=True)
  ]
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

  shapes = [(b, f, *x.shape[2:-2], padded, x.shape[-1]) for x in flat]
  outputs = pl.pallas_call(
    block,
    grid=(b, f // frames, padded // size),
    in_specs=[*(whole(x.shape) for x in weights), *inputs],
    out_specs=[of_pixels(shape) for shape in shapes],
    out_shape=[
      jax.ShapeDtypeStruct(shape, x.dtype)
      for shape, x in zip(shapes, flat, strict=True)
    ],
    compiler_params=compiler_params(axes=3),
    name="on_blocks",
  )(*weights, *clips, *shared)
  return jax.tree.unflatten(tree, [y[..., :n, :] for y in outputs])


def compiler_params(axes: int) -> pltpu.CompilerParams:
  """Of a kernel whose steps along all axes of its grid are independent.

  Two cores of a chip share them.
  """
  return pltpu.CompilerParams(
    dimension_semantics=("parallel",) * axes, vmem_limit_bytes=VMEM_BYTES
  )


def pad_pixels(x: Float[Array, "*b n c"], length: int) -> Array:
  """x with zeros after its n pixels."""
  rest = length - x.shape[-2]
  return jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, rest), (0, 0)])


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
