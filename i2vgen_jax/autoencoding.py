"""Clips of pixels to scaled latents and back, a few frames at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from i2vgen_jax.models.vae import Posterior
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
    chunk: number of frames of each clip that are encoded at once; it changes
      the memory that is used, not the result.
  """

  def encode(flat: Array) -> Posterior:
    return vae.apply({"params": params}, flat, method="encode")

  return _in_chunks(encode, frames, chunk)


def decode_clips(
  vae: Any, params: Params, latents: Float[Array, "b f h w c"], chunk: int
) -> Float[Array, "b f H W 3"]:
  """Clips of unscaled latents, about [-1, 1], not clipped; `encode_clips`."""

  def decode(flat: Array) -> Array:
    return vae.apply({"params": params}, flat, method="decode")

  return _in_chunks(decode, latents, chunk)


def _in_chunks(fn: Callable, x: Float[Array, "b f ..."], chunk: int) -> Any:
  """fn on frames as one flat batch, `chunk` frames of each clip at a time."""
  b, f = x.shape[:2]
  chunk = min(chunk, f)
  passes = -(-f // chunk)
  x = jnp.pad(x, ((0, 0), (0, passes * chunk - f), *[(0, 0)] * (x.ndim - 2)))
  # Strided, not contiguous: where f is split over devices, each pass then
  # takes frames from all of them.
  parts = jnp.moveaxis(x.reshape(b, chunk, passes, *x.shape[2:]), 2, 0)

  def run(part: Array) -> Any:
    out = fn(part.reshape(b * chunk, *part.shape[2:]))
    return jax.tree.map(lambda y: y.reshape(b, chunk, *y.shape[1:]), out)

  def join(parts: Array) -> Array:
    joined = jnp.moveaxis(parts, 0, 2)
    return joined.reshape(b, passes * chunk, *joined.shape[3:])[:, :f]

  return jax.tree.map(join, jax.lax.map(run, parts))
