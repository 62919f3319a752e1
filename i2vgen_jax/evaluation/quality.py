"""Pixel-wise quality."""

import numpy as np
from jaxtyping import Bool, UInt8

from i2vgen_jax.errors import InputError


def psnr(
  a: UInt8[np.ndarray, "*pixels 3"],
  b: UInt8[np.ndarray, "*pixels 3"],
  mask: Bool[np.ndarray, "*pixels"] | None = None,
) -> float:
  """Peak signal-to-noise ratio in dB, peak 255; infinite for equal pixels.

  Args:
    a: a picture, a clip or a batch of clips.
    b: the same shape.
    mask: the pixels to compare; None compares all.

  Raises:
    InputError: there is no pixel to compare.
  """
  if mask is not None:
    a, b = a[mask], b[mask]
  if not a.size:
    raise InputError("no pixel to compare; give a mask that selects some")
  error = np.mean(np.square(a.astype(np.float64) - b.astype(np.float64)))
  with np.errstate(divide="ignore"):
    return float(10 * np.log10(255**2 / error))
