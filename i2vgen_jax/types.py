"""Types that all parts of the library share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Params = Mapping[str, Any]
Array = jax.Array | np.ndarray


# The members of these two are Any because JAX rebuilds pytrees around leaves
# that are not arrays (shapes, shardings); the docstring gives their shapes.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
  """Conditions of the denoiser; a member that its variant lacks is None.

  Attributes:
    text_context: float[b n d], CLIP text tokens, penultimate layer and final
      norm.
    image_embeds: float[b e], projected, unnormalised CLIP embedding of the
      picture.
    image_latents: float[b h w c], scaled VAE latents of the picture.
    fps: float[b], conditioning fps: frames per second of the clip.
  """

  text_context: Any = None
  image_embeds: Any = None
  image_latents: Any = None
  fps: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """One batch of a training step: pixels, or encoded latents, or both.

  Attributes:
    fps: float[b], frames per second of the drawn clip; 1 for still images.
    index: int[b], number of the example in the endless global order. Every
      random draw of a row derives from it, so neither the number of hosts nor
      the mesh changes the noise.
    token_ids: int[b n], captions, padded to the text tower's length; None if
      no network reads them.
    frames: uint8[b f h w 3], pixels of the clips; a still image is a clip of
      one frame.
    clip_images: float[b s s 3], the CLIP view of each first frame,
      normalised; None if no network reads them.
    moments: float[b f h w 2c], mean and log variance of the latents; if None,
      the step encodes `frames`.
    image_embeds: float[b e], CLIP embedding of each first frame; if None, the
      step encodes `clip_images`.
  """

  fps: Any
  index: Any
  token_ids: Any = None
  frames: Any = None
  clip_images: Any = None
  moments: Any = None
  image_embeds: Any = None

  @property
  def num_frames(self) -> int:
    """Number of frames in each clip."""
    known = self.moments if self.frames is None else self.frames
    return known.shape[1]
