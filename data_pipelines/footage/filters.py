"""Limits on the scores of clips and pictures: the filters of a build.

To add a filter, measure its score in `scores.Scores`, list that score in
`shards.dataset.SCORES`, and give it a field here. The command-line flag and
the reason in the quarantine follow from the name of the field, the help of the
flag from the docstring.
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
  needs a function of the user's.

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
    for name, bound in dataclasses.asdict(self).items():
      side, score = name.split("_", 1)
      value = scores.get(score, math.nan)
      if bound is None:
        continue
      if value < bound if side == "min" else value > bound:
        text = f"{score} is {value:.4g}, and {name} is {bound:g}"
        raise InputError(text, name)


def _reason(limit: str) -> str:
  side, score = limit.split("_", 1)
  relation = "below" if side == "min" else "above"
  return f"{score.replace('_', ' ')} {relation} the limit"


# Name of each limit -> what it leaves out.
REASONS = {f.name: _reason(f.name) for f in dataclasses.fields(Limits)}
