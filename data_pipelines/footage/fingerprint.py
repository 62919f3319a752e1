"""Perceptual hashes of clips, which find duplicates."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

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


def fingerprint(frames: UInt8[np.ndarray, "n h w 3"]) -> int:
  """Hashes a clip to 64 bits that survive rescaling and re-encoding.

  Each bit says whether a low frequency is above the median: 40 bits of the
  mean picture, and 24 of its change over time, which distinguish shots of the
  same set.

  Args:
    frames: frames spread evenly over one shot; eight are enough. Another
      choice of frames alters 4 bits on average, at most 16.

  Returns:
    An integer below 2^64; compare two with `distance`.

  Raises:
    InputError: no frames.
  """
  if not len(frames):
    raise InputError("cannot fingerprint a clip of 0 frames")
  grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
  size = (_SIDE, _SIDE)
  small = np.stack(
    [cv2.resize(gray, size, interpolation=cv2.INTER_AREA) for gray in grays]
  ).astype(np.float64)
  place = _signs(small.mean(0), _PLACE_BITS)
  motion = _signs(np.log(small.std(0) + _NOISE), _MOTION_BITS)
  bits = np.concatenate([place, motion])
  return int.from_bytes(np.packbits(bits).tobytes())


def distance(first: int, second: int) -> int:
  """Number of bits, 0 to 64, in which two fingerprints differ."""
  return (first ^ second).bit_count()


def _signs(
  picture: Float[np.ndarray, "h w"], count: int
) -> Bool[np.ndarray, "count"]:
  """Whether each of the lowest frequencies is above their median."""
  y, x = np.indices(picture.shape)
  order = np.lexsort((y.ravel(), (x + y).ravel()))
  # Without the first, which is the mean brightness.
  lowest = cv2.dct(picture).ravel()[order[1 : count + 1]]
  return lowest > np.median(lowest)
