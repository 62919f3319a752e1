"""Perceptual hashes of clips, which find duplicates."""

import cv2
import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.media.video import Frames
from i2vgen_jax.errors import InputError

# Two clips that differ in at most this many bits are duplicates. Measured on
# eight frames per shot: re-encoding down to crf 40, resizing by 0.5 and 1.7,
# and changing the brightness by 10 % alter at most 8 bits in 45 clips, 2 on
# average. The five shots of bikes.mp4 are at least 26 bits apart. Of the 7503
# pairs of shots of Big Buck Bunny, half are 32 or more and 99 % are 22 or more
# bits apart; two pairs, which show an almost unchanged set, are within 8.
SAME = 8

_SIDE = 32  # pixels of the transformed picture
_PLACE_BITS, _MOTION_BITS = 40, 24
# Standard deviation over time, in levels, that may be noise.
_NOISE = 4


def fingerprint(frames: Frames) -> int:
  """Hashes a clip to 64 bits that survive rescaling and re-encoding.

  Each bit says whether a low frequency is above the median: 40 bits of the
  mean picture, and 24 of its change over time, which distinguish shots of the
  same set.

  Args:
    frames: frames spread evenly over one shot; eight are enough. Another
      choice of frames alters 4 bits on average, at most 16.

  Returns:
    An integer below 2^64; two are compared by the bits in which they differ.

  Raises:
    InputError: no frames.
  """
  if not len(frames):
    raise InputError("cannot fingerprint a clip of 0 frames")
  grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
  scaled = {"dsize": (_SIDE, _SIDE), "interpolation": cv2.INTER_AREA}
  small = np.array([cv2.resize(gray, **scaled) for gray in grays], np.float64)
  place = _signs(small.mean(0), _PLACE_BITS)
  motion = _signs(np.log(small.std(0) + _NOISE), _MOTION_BITS)
  return int.from_bytes(np.packbits([*place, *motion]).tobytes())


def _signs(
  picture: Float[np.ndarray, "h w"], count: int
) -> Bool[np.ndarray, "count"]:
  """Whether each of the lowest frequencies is above their median."""
  y, x = np.indices(picture.shape)
  order = np.lexsort((y.ravel(), (x + y).ravel()))
  # Without the first, which is the mean brightness.
  lowest = cv2.dct(picture).ravel()[order[1 : count + 1]]
  return lowest > np.median(lowest)
