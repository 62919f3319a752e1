"""Similarities of CLIP embeddings: of frames, of a picture, of a text.

The measures of AIGCBench (Fan et al. 2024, arXiv 2401.01651), each a
mean of cosines: -1 to 1, and 1 for vectors of the same direction. The numbers
depend on the towers that made the embeddings; compare those of the same towers.
"""

import numpy as np
from jaxtyping import Float

from i2vgen_jax.errors import InputError


def similarity(
  frames: Float[np.ndarray, "f d"], other: Float[np.ndarray, "d"]
) -> float:
  """Mean cosine of the frames with a picture, or with a text (CLIPSIM).

  Args:
    frames: embedding of each frame.
    other: embedding of the picture or of the text.
  """
  return float(np.mean(_unit(frames) @ _unit(other)))


def frame_consistency(frames: Float[np.ndarray, "f d"]) -> float:
  """Mean cosine of adjacent frames.

  Raises:
    InputError: there are fewer than two frames.
  """
  if len(frames) < 2:
    raise InputError(
      f"{len(frames)} frames have no neighbours; give at least two"
    )
  unit = _unit(frames)
  return float(np.mean(np.sum(unit[1:] * unit[:-1], axis=-1)))


def _unit(x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)
