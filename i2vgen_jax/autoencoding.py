"""Clips of pixels to scaled latents and back, a few frames at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from i2vgen_jax.kernels.blocks import SUBLANES
from i2vgen_jax.kernels.platform import for_platform
from i2vgen_jax.models.vae import Posterior
from i2vgen_jax.sharding import ROWS, num_devices, on_each_device
from i2vgen_jax.types import Array, Params


def to_unit_range(frames: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
  """Pixels 0 to 255 -> [-1, 1], the range of the autoencoder."""
  return frames.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(frames: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
  """[-1, 1] -> pixels 0 to 255, clipped and rounded."""
  return jnp.round(jnp.clip(frames * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def resize(
  frames: Float[Array, "b f H W 3"],
  size: tuple[int, int],
  *,
  antialias: bool = False,
) -> Float[Array, "b f h w 3"]:
  """Frames in another (width, height), bilinear; the shape is not kept.

  As in public variant (b), which does not antialias.
  """
  width, height = size
  shape = (*frames.shape[:2], height, width, 3)
  return jax.image.resize(frames, shape, "linear", antialias=antialias)


def encode_clips(
  vae: Any, params: Params, frames: Float[Array, "b f H W 3"], chunk: int
) -> Posterior:
  """The autoencoder's posterior of every frame, float32[b f h w c].

  Args:
    vae: AutoencoderKL.
    params: weights of the autoencoder.
    frames: pixels in [-1, 1].
    chunk: number of frames that each device encodes at once, on a TPU one if
      it is less than 8; it changes the memory that is used, not the result.
  """
  return _by_frame(vae, "encode", params, frames, chunk)


def decode_clips(
  vae: Any, params: Params, latents: Float[Array, "b f h w c"], chunk: int
) -> Float[Array, "b f H W 3"]:
  """Clips of unscaled latents, about [-1, 1], not clipped; `encode_clips`."""
  return _by_frame(vae, "decode", params, latents, chunk)


def _by_frame(
  vae: Any, method: str, params: Params, x: Float[Array, "b f ..."], chunk: int
) -> Any:
  """A method of the autoencoder on all frames, spread over all devices."""
  b, f = x.shape[:2]
  chunk = min(chunk, -(-b * f // num_devices()))
  whole = chunk * num_devices()
  flat = x.reshape(b * f, *x.shape[2:])
  rest = -(b * f) % whole
  flat = jnp.pad(flat, ((0, rest), *[(0, 0)] * (flat.ndim - 1)))
  leaves, tree = jax.tree.flatten(params)

  def run(frames: Array, *leaves: Array) -> Any:
    weights = {"params": jax.tree.unflatten(tree, leaves)}

    def in_parts(size: int, frames: Array) -> Any:
      parts = frames.reshape(-1, size, *frames.shape[1:])
      made = jax.lax.map(lambda p: vae.apply(weights, p, method=method), parts)
      return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), made)

    kernels = {}
    if chunk < SUBLANES:
      # The compiler lays frames out in the rows of a tile. Too few to fill it
      # take up to twice as long as one after another.
      kernels["tpu"] = functools.partial(in_parts, 1)
    default = functools.partial(in_parts, chunk)
    return for_platform(frames, **kernels, default=default)

  axes = [((*ROWS, "frames"),), *[()] * len(leaves)]
  made = on_each_device(run, (flat, *leaves), axes)
  return jax.tree.map(lambda y: y[: b * f].reshape(b, f, *y.shape[1:]), made)
