"""The words that every part of the system shares."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

Params = Mapping[str, Any]
Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
  """What steers the denoiser; a member is None where the variant lacks it.

  Attributes:
    text_context: CLIP text tokens, penultimate layer and final norm.
    image_embeds: projected, unnormalised CLIP embedding of the picture.
    image_latents: scaled VAE latents of the picture.
    fps: frames per second that the clip should play at.
  """

  text_context: Float[Array, "b n d"] | None = None
  image_embeds: Float[Array, "b e"] | None = None
  image_latents: Float[Array, "b h w c"] | None = None
  fps: Float[Array, "b"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """One batch as the reader hands it to a training step.

  Attributes:
    frames: pixels of the clips; a still image is a clip of one frame.
    clip_images: the CLIP view of each first frame, normalised.
    token_ids: captions, padded to the text tower's length.
    fps: frames per second of the drawn clip; 1 for still images.
    index: number of the drawn example in the endless global order; every
      random draw of a row derives from it, so that the host count and the
      mesh cannot change the noise.
  """

  frames: UInt8[Array, "b f h w 3"]
  clip_images: Float[Array, "b s s 3"]
  token_ids: Int[Array, "b n"]
  fps: Float[Array, "b"]
  index: Int[Array, "b"]
