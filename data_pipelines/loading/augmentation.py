"""Random crops and mirror images, the same for all frames of a clip."""

import dataclasses
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from i2vgen_jax.errors import InputError

# Words that a mirror image would make untrue, as whole words: not "bright".
_SIDES = re.compile(
  r"\b(left|right)(most|wards?|hand(ed)?)?\b|clockwise\b", re.IGNORECASE
)


class View(NamedTuple):
  """The part of a frame that is shown; all of it by default.

  Attributes:
    share: share of each side that is kept.
    left: share of the width to the left of the part.
    top: share of the height above the part.
    mirrored: whether left and right are exchanged.
  """

  share: float = 1.0
  left: float = 0.0
  top: float = 0.0
  mirrored: bool = False

  def of(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """The part of a frame."""
    height, width = frame.shape[:2]
    left, top = int(self.left * width), int(self.top * height)
    right = left + max(round(self.share * width), 1)
    bottom = top + max(round(self.share * height), 1)
    part = frame[top:bottom, left:right]
    return part[:, ::-1] if self.mirrored else part


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Random changes of training frames; none by default.

  Attributes:
    min_crop: smallest share of each side that is kept. The share is drawn
      between it and 1, and the position anywhere in the frame; the aspect
      ratio stays.
    flip: chance of the mirror image. Clips whose captions name a side or a
      direction of rotation are never mirrored; but written text, and sides
      that a caption does not mention, are.

  Raises:
    InputError: A value is outside of its range.
  """

  min_crop: float | int = 1.0
  flip: float | int = 0.0

  def __post_init__(self):
    if not (0 < self.min_crop <= 1 and 0 <= self.flip <= 1):
      raise InputError(
        "min_crop must be above 0 and at most 1, and flip between 0 and 1, got"
        f" {self.min_crop} and {self.flip}"
      )

  def draw(self, caption: str, rng: np.random.Generator) -> View:
    """Draws the view of a clip with that caption."""
    share = rng.uniform(self.min_crop, 1.0)
    left, top = (1 - share) * rng.uniform(size=2)
    mirrored = rng.uniform() < self.flip and not _SIDES.search(caption)
    return View(float(share), float(left), float(top), bool(mirrored))
