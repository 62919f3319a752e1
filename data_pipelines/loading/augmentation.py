"""Crops and mirror images, the same for all frames of a clip."""

import dataclasses
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from i2vgen_jax.errors import InputError

# What a mirror would make untrue; whole words, so that bright is none.
_SIDES = re.compile(
  r"\b(left|right)(most|wards?|hand(ed)?)?\b|clockwise\b", re.IGNORECASE
)


class View(NamedTuple):
  """The part of a picture that is shown; the whole by default.

  Attributes:
    share: of each side that is kept.
    left: of the width, what lies left of the part.
    top: of the height, what lies above it.
    mirrored: left and right change places.
  """

  share: float = 1.0
  left: float = 0.0
  top: float = 0.0
  mirrored: bool = False

  def of(
    self, frames: UInt8[np.ndarray, "f h w 3"]
  ) -> UInt8[np.ndarray, "f y x 3"]:
    """That part of every frame."""
    height, width = frames.shape[1:3]
    left, top = int(self.left * width), int(self.top * height)
    right = left + max(round(self.share * width), 1)
    bottom = top + max(round(self.share * height), 1)
    part = frames[:, top:bottom, left:right]
    return part[:, :, ::-1] if self.mirrored else part


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What a training may change in its pictures; nothing by default.

  Attributes:
    min_crop: smallest share of each side that is kept. The share is drawn
      between it and 1, the place anywhere in the picture; the shape stays.
    flip: chance of the mirror image. A clip whose caption names a side or a
      sense of turning keeps its own; but writing in a picture, and what the
      caption does not tell, would be mirrored as well.

  Raises:
    InputError: a value outside of its range.
  """

  min_crop: float | int = 1.0
  flip: float | int = 0.0

  def __post_init__(self):
    if not (0 < self.min_crop <= 1 and 0 <= self.flip <= 1):
      raise InputError(
        f"cannot augment with min_crop {self.min_crop} and flip {self.flip};"
        " give a share above 0 and up to 1, and a chance from 0 to 1"
      )

  def draw(self, caption: str, rng: np.random.Generator) -> View:
    """What to show of a clip with that caption."""
    share = rng.uniform(self.min_crop, 1.0)
    left, top = (1 - share) * rng.uniform(size=2)
    mirrored = rng.uniform() < self.flip and not _SIDES.search(caption)
    return View(float(share), float(left), float(top), bool(mirrored))
