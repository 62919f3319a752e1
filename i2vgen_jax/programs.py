"""The two compiled programs of a cascade: pixels and tokens in, pixels out."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax import encode, stage
from i2vgen_jax.stage import Settings
from i2vgen_jax.types import Array, Params

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Parts:
  """What decides the compiled program of a stage, besides its settings.

  Attributes:
    unet: module of the stage.
    vae: module of the autoencoder.
    text_encoder: module of CLIP's text tower, None if the U-Net takes no text.
    image_encoder: module of its image tower, None if it takes no CLIP vector.
    diffusion: what the U-Net was trained to.
    scaling_factor: of the latents.
  """

  unet: Any
  vae: Any
  text_encoder: Any
  image_encoder: Any
  diffusion: stage.Diffusion
  scaling_factor: float

  def encode(self, params, frames, noise, chunk):
    return encode.encode_frames(
      self.vae,
      params["vae"],
      frames,
      noise,
      scaling_factor=self.scaling_factor,
      chunk=chunk,
    )

  def decode(self, params, latents, chunk):
    frames = encode.decode_latents(
      self.vae,
      params["vae"],
      latents,
      scaling_factor=self.scaling_factor,
      chunk=chunk,
    )
    return encode.to_pixels(frames)

  def text(self, params, ids):
    if self.text_encoder is None:
      return None
    tower = {"params": params["text_encoder"]}
    return self.text_encoder.apply(tower, ids).context

  def embeds(self, params, clip_images):
    if self.image_encoder is None:
      return None
    tower = {"params": params["image_encoder"]}
    return self.image_encoder.apply(tower, clip_images)

  def generate(
    self,
    params,
    token_ids,
    negative_ids,
    rng,
    shape,
    settings,
    *,
    decode,
    progress,
    start=None,
    **picture,
  ):
    """Frames of new clips, or their latents; the end of both stages."""
    cond = encode.conditioning(
      self.unet,
      text_context=self.text(params, token_ids),
      fps=jnp.full(shape[0], settings.fps, jnp.float32),
      **picture,
    )
    made = stage.sample_latents(
      self.unet,
      params["unet"],
      self.diffusion,
      settings,
      cond,
      stage.null_conditioning(cond, self.text(params, negative_ids)),
      rng,
      shape,
      start,
      progress=progress,
    )
    if not decode:
      return made
    return self.decode(params, made, settings.decode_chunk)

  def latents_shape(self, frames_shape):
    """(b, f, h, w, c) of clips of (b, f, height, width, 3)."""
    b, f, height, width, _ = frames_shape
    factor = 2 ** (len(self.vae.block_channels) - 1)
    return (b, f, height // factor, width // factor, self.vae.latent_channels)


_compiled = functools.partial(
  jax.jit, static_argnames=("parts", "settings", "decode", "progress")
)


@_compiled
def base(
  params: dict[str, Params],
  pictures: Float[Array, "b h w 3"],
  clip_images: Float[Array, "b s s 3"],
  token_ids: Array,
  negative_ids: Array,
  rng: jax.Array,
  *,
  parts: Parts,
  settings: Settings,
  decode: bool,
  progress: Progress | None,
) -> Array:
  """Clips that begin with the pictures; see `Cascade.run_base`."""
  rng_encode, rng_sample = jax.random.split(rng)
  b, height, width, _ = pictures.shape
  shape = parts.latents_shape((b, settings.num_frames, height, width, 3))
  noise = stage.row_noise(rng_encode, (b, 1, *shape[2:]))
  latents = parts.encode(params, pictures[:, None], noise, 1)
  return parts.generate(
    params,
    token_ids,
    negative_ids,
    rng_sample,
    shape,
    settings,
    image_embeds=parts.embeds(params, clip_images),
    image_latents=latents[:, 0],
    decode=decode,
    progress=progress,
  )


@_compiled
def refine(
  params: dict[str, Params],
  clips: Array,
  token_ids: Array,
  negative_ids: Array,
  rng: jax.Array,
  *,
  parts: Parts,
  settings: Settings,
  decode: bool,
  progress: Progress | None,
) -> Array:
  """The clips at the stage's size, repaired; see `Cascade.run_refine`."""
  rng_encode, rng_sample = jax.random.split(rng)
  width, height = settings.size
  b, f = clips.shape[:2]
  # As in public variant (b): bilinear, no antialiasing, aspect not kept.
  frames = jax.image.resize(
    encode.to_unit_range(clips),
    (b, f, height, width, 3),
    "linear",
    antialias=False,
  )
  shape = parts.latents_shape(frames.shape)
  start = parts.encode(
    params, frames, stage.row_noise(rng_encode, shape), settings.decode_chunk
  )
  return parts.generate(
    params,
    token_ids,
    negative_ids,
    rng_sample,
    shape,
    settings,
    image_embeds=None,
    image_latents=None,
    start=start,
    decode=decode,
    progress=progress,
  )
