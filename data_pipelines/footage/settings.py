"""Settings of a footage build, and the limits on scores that filter it.

To add a filter, measure its score in `scores.Scores`, list that score in
`shards.dataset.SCORES`, and give it a field in `Limits`. The command-line flag
and the reason in the quarantine follow from the name of the field, the help of
the flag from the docstring.
"""

import dataclasses
import math
from collections.abc import Mapping

from i2vgen_jax.errors import InputError

Bound = float | int | None


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds `min_X` and `max_X` on score X; None is no bound.

  A score that was not measured passes: pictures have no motion, and aesthetics
  needs a function supplied by the user.

  Attributes:
    min_motion: Least mean speed, in shorter sides per second.
    max_motion: Greatest mean speed, in shorter sides per second.
    min_sharpness: Least variance of the Laplacian; photos have 200 to 1700.
    min_brightness: Least mean luma, 0 to 1.
    max_text_share: Greatest share of overlaid text, 0 to 1.
    min_subject_share: Least share of the main subject, 0 to 1.
    min_aesthetics: Least result of the aesthetics function.
  """

  min_motion: Bound = None
  max_motion: Bound = None
  min_sharpness: Bound = None
  min_brightness: Bound = None
  max_text_share: Bound = None
  min_subject_share: Bound = None
  min_aesthetics: Bound = None

  def check(self, scores: Mapping[str, float | int]) -> None:
    """Raises InputError for the first limit that the scores break."""
    for name, bound in vars(self).items():
      side, score = name.split("_", 1)
      value = scores.get(score, math.nan)
      if bound is None:
        continue
      if value < bound if side == "min" else value > bound:
        text = f"{score} is {value:.4g}, and {name} is {bound:g}"
        raise InputError(text, name)


@dataclasses.dataclass(frozen=True)
class ScanSettings:
  """What counts as a clip.

  Attributes:
    split_shots: whether videos are cut into shots; if not, each row of the
      manifest is one clip.
    min_frames: shorter shots are left out.
    max_seconds: longer shots become several clips of equal length.
    max_film_seconds: longer videos are left out.
    join_captions: whether several captions of a row become one.
    aesthetics: `module:function` that scores uint8[n h w 3], or None.
  """

  split_shots: bool = True
  min_frames: int = 16
  max_seconds: float | int = 10
  max_film_seconds: float | int = 3 * 3600
  join_captions: bool = False
  aesthetics: str | None = None


@dataclasses.dataclass(frozen=True)
class FootageSettings:
  """Everything but the manifest that decides the bytes of a footage build.

  Attributes:
    split: name of the only split.
    scan: what counts as a clip.
    limits: bounds on the scores.
    short_side: larger frames are scaled down to this shorter side, in pixels.
    shard_size: number of examples in each shard.
    seed: seed of the order of the examples.
    stall_seconds: time limit for the work on one file.
  """

  split: str = "train"
  scan: ScanSettings = ScanSettings()
  limits: Limits = Limits()
  short_side: int = 720
  shard_size: int = 256
  seed: int = 0
  stall_seconds: float | int = 3600
