"""The frozen towers: pixels and tokens to conditioning, latents to pixels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from i2vgen_jax.types import Array, Conditioning, Params


def to_unit_range(frames: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
  """Pixels 0 to 255 -> [-1, 1], what the autoencoder takes."""
  return frames.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(frames: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
  """[-1, 1] -> pixels 0 to 255, clipped and rounded."""
  return jnp.round(jnp.clip(frames * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def encode_moments(
  vae: Any, params: Params, frames: Float[Array, "b f H W 3"], chunk: int
) -> Float[Array, "b f h w c2"]:
  """The posterior of clips: its mean, then its log variance, on channels.

  Args:
    vae: AutoencoderKL.
    params: its weights.
    frames: pixels in [-1, 1].
    chunk: frames of each clip that are encoded at once; memory alone.
  """

  def moments(flat: Array) -> Array:
    posterior = vae.apply({"params": params}, flat, method="encode")
    return jnp.concatenate([posterior.mean, posterior.logvar], axis=-1)

  return _in_chunks(moments, frames, chunk)


def sample_latents(
  moments: Float[Array, "b f h w c2"],
  noise: Float[Array, "b f h w c"] | None,
  scaling_factor: float,
) -> Float[Array, "b f h w c"]:
  """Scaled latents of a posterior.

  Args:
    moments: from `encode_moments`.
    noise: standard normal; selects a sample, as all public code draws one.
      None takes the mean.
    scaling_factor: 0.18215 for the public autoencoder.
  """
  mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
  if noise is not None:
    mean = mean + jnp.exp(0.5 * logvar) * noise
  return scaling_factor * mean


def encode_frames(
  vae: Any,
  params: Params,
  frames: Float[Array, "b f H W 3"],
  noise: Float[Array, "b f h w c"] | None,
  *,
  scaling_factor: float,
  chunk: int,
) -> Float[Array, "b f h w c"]:
  """Scaled latents of clips; see the two functions above."""
  moments = encode_moments(vae, params, frames, chunk)
  return sample_latents(moments, noise, scaling_factor)


def decode_latents(
  vae: Any,
  params: Params,
  latents: Float[Array, "b f h w c"],
  *,
  scaling_factor: float,
  chunk: int,
) -> Float[Array, "b f H W 3"]:
  """Clips in about [-1, 1], not clipped; see `encode_frames`."""

  def decode(flat: Array) -> Array:
    return vae.apply({"params": params}, flat, method="decode")

  return _in_chunks(decode, latents / scaling_factor, chunk)


def conditioning(
  unet: Any,
  *,
  text_context: Array | None,
  image_embeds: Array | None,
  image_latents: Array | None,
  fps: Array | None,
) -> Conditioning:
  """Of what was encoded, the members that this U-Net takes."""
  return Conditioning(
    text_context=text_context if unet.use_text else None,
    image_embeds=image_embeds if unet.use_image_embeds else None,
    image_latents=image_latents if unet.local_image != "none" else None,
    fps=fps if unet.use_fps else None,
  )


def denoiser(
  unet: Any, params: Params, **kwargs: Any
) -> Callable[[Array, Array, Conditioning], Array]:
  """The U-Net as the function (xt, t, cond) -> output that diffusion knows.

  Args:
    unet: I2VGenUNet.
    params: its weights.
    **kwargs: for `apply`, such as dropout's rngs.
  """

  def denoise_fn(xt: Array, t: Array, cond: Conditioning) -> Array:
    return unet.apply(
      {"params": params},
      xt,
      t,
      fps=cond.fps,
      image_latents=cond.image_latents,
      image_embeds=cond.image_embeds,
      text_context=cond.text_context,
      **kwargs,
    )

  return denoise_fn


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
