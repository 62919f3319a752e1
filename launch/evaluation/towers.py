"""CLIP towers that judge clips."""

import dataclasses
import functools

import jax
import numpy as np
from jaxtyping import Float

from i2vgen_jax import interop, preprocessing
from i2vgen_jax.cascade import load_tokenizer
from i2vgen_jax.models.build import Network
from i2vgen_jax.tokenizer import Tokenizer
from launch.evaluation.generation import Frames
from launch.progress import note

Embedding = Float[np.ndarray, "d"]


@dataclasses.dataclass(frozen=True)
class Towers:
  """The towers of some weights, which embed frames and texts.

  Attributes:
    image_encoder: of frames.
    text_encoder: of texts; None if it does not share the space of the frames.
    tokenizer: of the text tower.
  """

  image_encoder: Network
  text_encoder: Network | None = None
  tokenizer: Tokenizer | None = None

  @classmethod
  def load(cls, weights: interop.StoredWeights) -> "Towers | None":
    """The towers of the weights; None, with a note, if they have none."""
    image, text = map(weights.networks.get, ("image_encoder", "text_encoder"))
    if image is None:
      note(
        f"no CLIP image tower in {weights.folder}: similarities are left out"
      )
      return None
    image = image.load()
    # The denoiser needs no projection of texts, and the public forms lack it;
    # our own training of both towers does without.
    if text is None or "source" in text.config or weights.tokenizer is None:
      note(
        f"{weights.folder} has no text tower with a projection to the space of "
        "the frames: the similarity of text is left out"
      )
      return cls(image)
    return cls(image, text.load(), load_tokenizer(weights))

  def of_frames(self, frames: Frames) -> Float[np.ndarray, "f d"]:
    """The embedding of each frame, cropped as the picture of a video is."""
    side, width = self.image_encoder.module.image_size, frames.shape[2]
    views = [preprocessing.clip_view(frame, width, side) for frame in frames]
    params = {"params": self.image_encoder.params}
    return np.asarray(self._embed_views(params, np.stack(views)))

  def of_text(self, text: str) -> Embedding | None:
    """The embedding of a text; None without a text tower."""
    if self.text_encoder is None:
      return None
    params = {"params": self.text_encoder.params}
    [embedding] = self._embed_ids(params, self.tokenizer([text]).ids)
    return np.asarray(embedding)

  @functools.cached_property
  def _embed_views(self):
    return jax.jit(self.image_encoder.module.apply)

  @functools.cached_property
  def _embed_ids(self):
    module = self.text_encoder.module
    return jax.jit(lambda params, ids: module.apply(params, ids).pooled)
