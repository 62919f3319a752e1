"""GroupNorm as a factor and an offset for each channel of each frame.

Its moments need all pixels; the rest is a function of each pixel, which can be
part of the next layer's kernel.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Float

from i2vgen_jax.kernels import blocks
from i2vgen_jax.kernels.platform import for_platform, with_backward
from i2vgen_jax.remat import layer_result
from i2vgen_jax.sharding import ROWS, on_each_device, split_pixels
from i2vgen_jax.types import Array


def group_norm_factors(
  x: Float[Array, "b f n c"],
  scale: Float[Array, "c"],
  bias: Float[Array, "c"],
  *,
  num_groups: int,
  epsilon: float,
  per_frame: bool,
) -> Float[Array, "b f 2 c"]:
  """Factor and offset that normalise clips of n pixels a frame, float32.

  Args:
    x: clips.
    scale: learned factor of each channel.
    bias: learned offset of each channel.
    num_groups: number of groups of adjacent channels.
    epsilon: added to the variance.
    per_frame: whether the moments are over the pixels of one frame, or over
      those of all frames.
  """
  on_tpu = functools.partial(_moments_on_tpu, per_frame=per_frame)
  moments = for_platform(x, tpu=on_tpu, default=_moments)
  mean, variance = layer_result(moments)

  def over(values: Array) -> Array:
    """Means over the channels of a group, and over frames."""
    grouped = values.reshape(*values.shape[:-1], num_groups, -1)
    axes = (3,) if per_frame else (1, 3)
    grouped = jnp.broadcast_to(grouped.mean(axes, keepdims=True), grouped.shape)
    return grouped.reshape(values.shape)

  centre = over(mean)
  spread = over(variance + jnp.square(mean - centre))
  gain = scale * jax.lax.rsqrt(spread + epsilon)
  return jnp.stack([gain, bias - centre * gain], axis=2)


def apply_factors(
  x: Float[Array, "b f n c"], factors: Float[Array, "b f 2 c"]
) -> Float[Array, "b f n c"]:
  """x times the factor plus the offset, float32."""
  return x.astype(jnp.float32) * factors[:, :, :1] + factors[:, :, 1:]


def _moments(x: Float[Array, "b f n c"]) -> tuple[Array, Array]:
  """Mean and variance of each channel of each frame, [b f c].

  About one of the values, since the difference of the mean square and the
  squared mean loses the digits of a small variance.
  """
  pivot = jax.lax.stop_gradient(x[:, :, :1].astype(jnp.float32))
  centred = x.astype(jnp.float32) - pivot
  mean = centred.mean(2)
  variance = jnp.square(centred).mean(2) - mean**2
  return mean + pivot[:, :, 0], variance


def _moments_on_tpu(
  x: Float[Array, "b f n c"], per_frame: bool
) -> tuple[Array, Array]:
  n = x.shape[2]
  if x.shape[1] == 1:
    # Pictures, which the compiler adds up within the convolution before.
    values = x.astype(jnp.float32)
    sums = jnp.stack([values.sum(2), jnp.square(values).sum(2)], axis=2)
  else:
    axes = (ROWS, "frames")
    if not per_frame:
      # As the layers over time that follow: each device has all frames.
      x, axes = split_pixels(x), (ROWS, None, "frames")

    def sums_of(x: Array) -> Array:
      return on_each_device(_sums, (x,), [axes]).sum(2)

    sums = with_backward(sums_of, _sums_backward)(x)
  sums /= n
  mean, square = sums[:, :, 0], sums[:, :, 1]
  return mean, jnp.maximum(square - mean**2, 0)


def _sums_backward(
  args: tuple[Array], gradients: Float[Array, "b f 2 c"]
) -> tuple[Array]:
  [x] = args
  of_sum, of_square = gradients[:, :, :1], gradients[:, :, 1:]
  return ((of_sum + 2 * of_square * x.astype(jnp.float32)).astype(x.dtype),)


def _sums(x: Float[Array, "b f n c"]) -> Float[Array, "b f 1 2 c"]:
  """Sums of x and of x^2 over the pixels of each frame.

  Arrays of several devices are joined along the third axis.
  """
  b, f, n, c = x.shape
  size, padded = blocks.split(n, blocks.BLOCK_ELEMENTS // (f * c))
  x = blocks.pad_pixels(x, padded)

  def block(x_ref: Any, sums_ref: Any) -> None:
    @pl.when(pl.program_id(1) == 0)
    def start() -> None:
      sums_ref[...] = jnp.zeros_like(sums_ref)

    values = x_ref[0].astype(jnp.float32)
    sums_ref[0, :, 0] += values.sum(1)
    sums_ref[0, :, 1] += jnp.square(values).sum(1)

  return pl.pallas_call(
    block,
    grid=(b, padded // size),
    in_specs=[pl.BlockSpec((1, f, size, c), lambda i, j: (i, 0, j, 0))],
    out_specs=pl.BlockSpec((1, f, 2, c), lambda i, j: (i, 0, 0, 0)),
    out_shape=jax.ShapeDtypeStruct((b, f, 2, c), jnp.float32),
    compiler_params=blocks.compiler_params("parallel", "arbitrary"),
    name="group_norm_sums",
  )(x)[:, :, None]
