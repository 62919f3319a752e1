"""Functions of few pixels, run in the memory of a TPU core.

Between products with 320 channels, most of a program's time on a TPU goes to
writing, reading and transposing what one layer passes to the next. Layers that
work on each pixel alone, or on the frames of a pixel, need none of it: one
Pallas kernel runs the same code for one block of pixels after another.
"""

import contextlib
import contextvars
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from i2vgen_jax.kernels.platform import (
  for_platform,
  forward_only,
  with_backward,
)
from i2vgen_jax.remat import layer_result, layers_again
from i2vgen_jax.sharding import ROWS, on_each_device, split_pixels
from i2vgen_jax.types import Array, Params

# Rows and columns of the tiles of memory. Blocks are whole rows of tiles, and
# fewer channels take as much memory as LANES.
SUBLANES, LANES = 8, 128
# Frames x pixels x channels of a block.
BLOCK_ELEMENTS = 2**17 + 2**15
# The same where a block also holds all that the backward pass needs.
BACKWARD_ELEMENTS = 9 * 2**14
# Functions with larger weights are left to the compiler, which is good at wide
# layers. In a backward pass, gradients take twice as much beside them.
MAX_WEIGHT_BYTES = 24 * 2**20
MAX_BACKWARD_BYTES = 6 * 2**20
# Most cores of a chip, each of which has its own sums of gradients.
CORES = 2
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

  A block has a few pixels of a frame, or of all frames of a clip, in the
  backward pass as well.

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

  def call(leaves: Sequence[Any], *arrays: Array) -> Any:
    return fn(jax.tree.unflatten(tree, leaves), *arrays)

  def plain(leaves: Any, clips: Any, shared: Any) -> Any:
    return call(leaves, *clips, *shared)

  if in_kernel():
    return plain(leaves, clips, shared)
  if layers_again():
    plain = jax.checkpoint(plain)
  n = clips[0].shape[2]
  if mixes_frames:
    clips = [split_pixels(x) for x in clips]
  args = (leaves, tuple(clips), tuple(shared))
  if _num_bytes(leaves) > MAX_WEIGHT_BYTES:
    results = plain(*args)
  else:
    kernel = functools.partial(_on_tpu, call, mixes_frames)
    results = for_platform(*args, tpu=kernel, default=plain)
  if mixes_frames:
    # So that gradients of clips and of results are split alike. Otherwise the
    # compiler leaves out a sum over devices in the gradient of a weight.
    results = jax.tree.map(split_pixels, results)
  return layer_result(jax.tree.map(lambda y: y[..., :n, :], results))


def _num_bytes(arrays: Sequence[Array]) -> int:
  return sum(x.size * x.dtype.itemsize for x in arrays)


def _on_tpu(
  call: Callable,
  mixes_frames: bool,
  leaves: Sequence[Array],
  clips: Sequence[Array],
  shared: Sequence[Array],
) -> Any:
  """The result of a kernel, to which only the weights that call reads travel.

  Args:
    call: function of leaves, *clips and *shared.
    mixes_frames: see `on_blocks`.
    leaves: weights.
    clips: see `on_blocks`.
    shared: see `on_blocks`.
  """
  frames = clips[0].shape[1] if mixes_frames else 1
  _, shapes = _Grid(1, frames, SUBLANES, 1).of_arrays(clips, shared)
  with _tracing():
    jaxpr = jax.make_jaxpr(call)(leaves, *shapes)
  read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
  is_read = [id(v) in read for v in jaxpr.jaxpr.invars[: len(leaves)]]

  def call_read(leaves: Sequence[Array], *arrays: Array) -> Any:
    given = iter(leaves)
    return call([next(given) if used else None for used in is_read], *arrays)

  def plain(leaves: Any, clips: Any, shared: Any) -> Any:
    return call_read(leaves, *clips, *shared)

  leaves = [*itertools.compress(leaves, is_read)]
  kernel = functools.partial(_forward, call_read, mixes_frames)
  if _num_bytes(leaves) <= MAX_BACKWARD_BYTES:
    backward = functools.partial(_backward, call_read, mixes_frames)
    kernel = with_backward(kernel, backward)
  elif layers_again():
    kernel = with_backward(
      kernel, lambda args, gradients: jax.vjp(plain, *args)[1](gradients)
    )
  else:
    kernel = forward_only(kernel, plain)
  return kernel(leaves, clips, shared)


def _forward(
  call: Callable,
  mixes_frames: bool,
  leaves: Sequence[Array],
  clips: Sequence[Array],
  shared: Sequence[Array],
) -> Any:
  def results(*arrays: Any) -> Any:
    return call(*arrays), (), ()

  return _kernel(results, mixes_frames, False, leaves, clips, shared)[0]


def _backward(
  call: Callable, mixes_frames: bool, args: Any, gradients: Any
) -> Any:
  """Gradients of the arguments of `_forward`, from those of its results."""
  leaves, clips, shared = args
  flat, tree = jax.tree.flatten(gradients)

  def pull_back(leaves: Sequence[Array], *arrays: Array) -> Any:
    here, rest = arrays[: len(clips)], arrays[len(clips) :]
    of_results, shared = rest[: len(flat)], rest[len(flat) :]
    _, pullback = jax.vjp(call, leaves, *here, *shared)
    of_leaves, *others = pullback(jax.tree.unflatten(tree, of_results))
    return others[: len(clips)], others[len(clips) :], of_leaves

  args = (leaves, (*clips, *flat), shared)
  of_clips, *sums = _kernel(pull_back, mixes_frames, True, *args)
  of_shared, of_leaves = (
    [y.astype(x.dtype).reshape(x.shape) for x, y in zip(*pair, strict=True)]
    for pair in zip((shared, leaves), sums, strict=True)
  )
  return of_leaves, tuple(of_clips), tuple(of_shared)


def _kernel(
  call: Callable,
  mixes_frames: bool,
  sums: bool,
  leaves: Sequence[Array],
  clips: Sequence[Array],
  shared: Sequence[Array],
) -> Any:
  """The kernel on each device's part of the arrays.

  Args:
    call: function of leaves, clips and shared. Its results are a tree of arrays
      like `clips`; and of what is summed over all blocks of a clip, and over
      all blocks: arrays like `shared`, and like `leaves`.
    mixes_frames: see `on_blocks`.
    sums: whether there are sums.
    leaves: weights.
    clips: see `on_blocks`.
    shared: see `on_blocks`.
  """

  def run(*arrays: Array) -> Any:
    stop = len(clips) + len(shared)
    parts = arrays[: len(clips)], arrays[len(clips) : stop], arrays[stop:]
    return _on_device(call, mixes_frames, sums, *parts)

  each_frame = (ROWS,) if mixes_frames else (ROWS, "frames")
  each_pixel = (ROWS, None, "frames") if mixes_frames else each_frame
  axes = [
    *[each_pixel] * len(clips),
    *(each_frame if x.ndim == 4 else (ROWS,) for x in shared),
    *[()] * len(leaves),
  ]
  results, of_clips, of_all = on_each_device(
    run, (*clips, *shared, *leaves), axes
  )
  of_clips = [
    y.sum(2) if x.ndim == 4 else y.sum((1, 2))
    for x, y in zip(shared, of_clips, strict=sums)
  ]
  return results, of_clips, [y.sum((0, 1, 2)) for y in of_all]


@dataclasses.dataclass(frozen=True)
class _Grid:
  """Blocks of arrays by the steps of a kernel.

  Its axes are core, clip, frame and block of pixels.

  Attributes:
    cores: number of parts of the pixels that have sums of their own.
    frames: frames in a block, all or one.
    size: pixels in a block.
    num_blocks: number of blocks of pixels of each core.
  """

  cores: int
  frames: int
  size: int
  num_blocks: int

  def of_arrays(
    self, clips: Sequence[Array], shared: Sequence[Array]
  ) -> tuple[list[pl.BlockSpec], list[jax.ShapeDtypeStruct]]:
    """For those of `on_blocks`, with the shapes of the blocks."""
    specs = [self.of_pixels(x.shape) for x in clips]
    specs += [self.of_clip(x.shape) for x in shared]
    shapes = [
      jax.ShapeDtypeStruct(spec.block_shape, x.dtype)
      for spec, x in zip(specs, [*clips, *shared], strict=True)
    ]
    return specs, shapes

  def of_pixels(self, shape: tuple[int, ...]) -> pl.BlockSpec:
    """For an array [b f *heads n c]."""
    heads = shape[2:-2]
    none = (0,) * len(heads)
    return pl.BlockSpec(
      (1, self.frames, *heads, self.size, shape[-1]),
      lambda core, i, j, k: (i, j, *none, core * self.num_blocks + k, 0),
    )

  def of_clip(self, shape: tuple[int, ...]) -> pl.BlockSpec:
    """For an array [b f k c] or [b m c]."""
    if len(shape) == 4:
      block = (1, self.frames, *shape[2:])
      return pl.BlockSpec(block, lambda core, i, j, k: (i, j, 0, 0))
    return pl.BlockSpec((1, *shape[1:]), lambda core, i, j, k: (i, 0, 0))

  def whole(self, shape: tuple[int, ...]) -> pl.BlockSpec:
    place = (0,) * len(shape)
    # It does not change while a core runs, and needs no second buffer.
    return pl.BlockSpec(
      shape, lambda core, i, j, k: place, pipeline_mode=pl.Buffered(1)
    )

  def of_core(self, spec: pl.BlockSpec) -> pl.BlockSpec:
    """For an array that has an axis of cores before those of `spec`."""
    return pl.BlockSpec(
      (1, *spec.block_shape),
      lambda core, *rest: (core, *spec.index_map(core, *rest)),
      pipeline_mode=spec.pipeline_mode,
    )


def _on_device(
  call: Callable,
  mixes_frames: bool,
  sums: bool,
  clips: Sequence[Array],
  shared: Sequence[Array],
  leaves: Sequence[Array],
) -> Any:
  """The same as `_kernel`, with one sum for each of the device's parts.

  Sums over the blocks of a clip are [b 1 1 ...], or [b f 1 ...] of an array
  that has frames, and those over all blocks [1 1 1 ...].
  """
  b, f, n, _ = clips[0].shape
  frames = f if mixes_frames else 1
  widest = max(math.prod(x.shape[2:]) // n for x in clips)
  cores, elements = (CORES, BACKWARD_ELEMENTS) if sums else (1, BLOCK_ELEMENTS)
  rows = elements // (frames * max(LANES, widest))
  size, padded = split(-(-n // cores), rows)
  grid = _Grid(cores, frames, size, padded // size)
  clips = [pad_pixels(x, cores * padded) for x in clips]
  inputs, shapes_in = grid.of_arrays(clips, shared)
  with _tracing():
    trace = jax.make_jaxpr(call, return_shape=True)
    jaxpr, results = trace(leaves, *shapes_in)
  # Memory has no arrays of fewer than two axes.
  weights = [x.reshape(-1, x.shape[-1]) if x.ndim < 2 else x for x in leaves]
  flat, tree = jax.tree.flatten(results[0])
  # Shape, block, and the axes of the grid along which blocks are summed.
  shapes = [(b, f, *x.shape[2:-2], cores * padded, x.shape[-1]) for x in flat]
  outputs = [(shape, grid.of_pixels(shape), ()) for shape in shapes]
  for x in shared if sums else ():
    spec, axes = grid.of_clip(x.shape), (3,) if x.ndim == 4 else (2, 3)
    outputs.append(((cores, *x.shape), grid.of_core(spec), axes))
  for x in weights if sums else ():
    spec = grid.of_core(grid.whole(x.shape))
    outputs.append(((cores, *x.shape), spec, (1, 2, 3)))

  def block(*refs: Any) -> None:
    arrays = [ref[...] for ref in refs[: -len(outputs)]]
    given, rest = arrays[: len(weights)], arrays[len(weights) :]
    given = [y.reshape(x.shape) for x, y in zip(leaves, given, strict=True)]
    with _tracing():
      values = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *given, *rest)
    for ref, value, (_, _, axes) in zip(
      refs[-len(outputs) :], values, outputs, strict=True
    ):
      if axes:
        _add(ref, value, axes)
      else:
        ref[...] = value

  found = pl.pallas_call(
    block,
    grid=(cores, b, f // frames, grid.num_blocks),
    in_specs=[*(grid.whole(x.shape) for x in weights), *inputs],
    out_specs=[spec for _, spec, _ in outputs],
    out_shape=[
      jax.ShapeDtypeStruct(shape, jnp.float32 if axes else x.dtype)
      for (shape, _, axes), x in itertools.zip_longest(outputs, flat)
    ],
    compiler_params=compiler_params(
      "parallel", *["arbitrary" if sums else "parallel"] * 3
    ),
    name="on_blocks",
  )(*weights, *clips, *shared)
  results = jax.tree.unflatten(
    tree, [y[..., :n, :] for y in found[: len(flat)]]
  )
  if not sums:
    return results, (), ()
  found = [y.sum(0) for y in found[len(flat) :]]
  of_clips = [
    y[:, :, None] if y.ndim == 4 else y[:, None, None]
    for y in found[: len(shared)]
  ]
  of_all = [
    y.reshape(1, 1, 1, *x.shape)
    for x, y in zip(leaves, found[len(shared) :], strict=True)
  ]
  return results, of_clips, of_all


def _add(ref: Any, value: Array, axes: Sequence[int]) -> None:
  """Adds to a block, which is zero at the first step along axes of the grid."""
  is_first = functools.reduce(
    jnp.logical_and, [pl.program_id(axis) == 0 for axis in axes]
  )

  @pl.when(is_first)
  def start() -> None:
    ref[...] = jnp.zeros_like(ref)

  ref[...] += value.astype(ref.dtype).reshape(ref.shape)


def matrix_product(
  x: Float[Array, "*n c"], kernel: Float[Array, "c d"]
) -> Float[Array, "*n d"]:
  """x @ kernel in float32, with gradients that a kernel can compute.

  Those are products of two matrices in the dtype of x.
  """
  if not in_kernel():
    return contract(x, x.ndim - 1, kernel, 0)
  y = _rows_product(x.reshape(-1, x.shape[-1]), kernel)
  return y.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _rows_product(x: Array, kernel: Array) -> Array:
  return contract(x, 1, kernel, 0)


def _rows_product_gradients(
  args: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
  x, kernel = args
  gradient = gradient.astype(x.dtype)
  return (
    contract(gradient, 1, kernel, 1).astype(x.dtype),
    contract(x, 0, gradient, 0).astype(kernel.dtype),
  )


_rows_product.defvjp(
  lambda *args: (_rows_product(*args), args), _rows_product_gradients
)


def contract(a: Array, axis_a: int, b: Array, axis_b: int) -> Array:
  """Sums of products along an axis of each, in float32."""
  axes = (((axis_a,), (axis_b,)), ((), ()))
  return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def compiler_params(*axes: str) -> pltpu.CompilerParams:
  """Of a kernel whose steps along the axes of its grid are as named.

  Those along axes that are "parallel" are independent: the cores of a chip
  share them. Others are "arbitrary".
  """
  return pltpu.CompilerParams(
    dimension_semantics=axes, vmem_limit_bytes=VMEM_BYTES
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
