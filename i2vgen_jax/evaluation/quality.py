"""Quality from pixels: against a reference, and from frame to frame."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from i2vgen_jax.errors import InputError

# Constants of SSIM: the window's standard deviation in pixels, its half width,
# and the terms that keep the ratios stable, (K L)^2 with K = 0.01 and 0.03.
_SIGMA, _REACH = 1.5, 5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


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


def ssim(
  a: UInt8[np.ndarray, "*frames h w 3"], b: UInt8[np.ndarray, "*frames h w 3"]
) -> float:
  """Structural similarity, from -1 to 1 for equal frames.

  Wang et al. 2004, equation 13: Gaussian window of 11 pixels with a standard
  deviation of 1.5, moments of the population, mean over the channels. Windows
  that reach over the edge do not count.

  Args:
    a: a picture, a clip or a batch of clips.
    b: the same shape.

  Raises:
    InputError: a side is shorter than the window.
  """
  height, width = a.shape[-3:-1]
  if min(height, width) <= 2 * _REACH:
    raise InputError(
      f"frames of {width}x{height} are too small for SSIM, whose window has "
      f"{2 * _REACH + 1} pixels; compare larger ones"
    )
  x, y = a.astype(np.float64), b.astype(np.float64)
  mean_x, mean_y = _local_mean(x), _local_mean(y)
  # Population moments: E[xy] - E[x] E[y].
  var_x = _local_mean(x * x) - mean_x**2
  var_y = _local_mean(y * y) - mean_y**2
  cov = _local_mean(x * y) - mean_x * mean_y
  luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
  structure = (2 * cov + _C2) / (var_x + var_y + _C2)
  inside = slice(_REACH, -_REACH)
  return float((luminance * structure)[..., inside, inside, :].mean())


def _local_mean(
  x: Float[np.ndarray, "*frames h w 3"],
) -> Float[np.ndarray, "*frames h w 3"]:
  sigma = (*(0,) * (x.ndim - 3), _SIGMA, _SIGMA, 0)
  return ndimage.gaussian_filter(x, sigma, radius=_REACH)


def steadiness(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
  """How little the pixels change from frame to frame, 0 to 1 for a still clip.

  The temporal flickering of VBench (Huang et al. 2024) as its code has it: 1
  minus the mean absolute difference of adjacent frames, in units of 255. Motion
  counts as flicker; VBench measures it on prompts without motion only.

  Raises:
    InputError: the clip has fewer than two frames.
  """
  if len(clip) < 2:
    raise InputError(
      f"a clip of {len(clip)} frames cannot flicker; give at least two"
    )
  change = np.diff(clip.astype(np.float64), axis=0)
  return float(1 - np.abs(change).mean() / 255)
