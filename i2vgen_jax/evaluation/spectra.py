"""The paper's frequency analysis: spatial and temporal power spectra.

The paper compares generated with real video by their spatial and temporal
spectra: base videos have noise at high frequencies, refined ones are closer
to the real spectrum. How it computes them is not public; this is our
definition. Frames and time are weighted with a Hann window, because neither is
periodic and the jump at the border would hide weak frequencies. Power is a
density: white noise of standard deviation s has the value s**2 in every band,
whatever the size of the clip. Band 0, the mean, is left out.
"""

import numpy as np
from jaxtyping import Float, UInt8

from i2vgen_jax.errors import InputError

# Power of the rounding to 8 bits; weaker power is meaningless.
ROUNDING = 1 / 12

Spectrum = Float[np.ndarray, "bands"]


def spatial_spectrum(clip: UInt8[np.ndarray, "f h w 3"]) -> Spectrum:
  """Power of the frames, averaged over directions, frames and channels.

  Returns:
    One value for each integer number of cycles per shorter side, from 1 to
    half of its pixels, in squared 8-bit levels.

  Raises:
    InputError: there is no frame, or a side has fewer than two pixels.
  """
  f, h, w, _ = clip.shape
  if f < 1 or min(h, w) < 2:
    raise InputError(
      f"a clip of {f} frames of {w}x{h} has no spatial spectrum; give at least"
      " one frame with two pixels per side"
    )
  window = np.outer(_hann(h), _hann(w))[..., None]
  power = np.mean([_density(frame, window, (0, 1)) for frame in clip], axis=0)
  radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
  band = np.rint(radius * min(h, w)).astype(int).ravel()
  total = np.bincount(band, power.mean(-1).ravel())
  return (total / np.bincount(band))[1 : min(h, w) // 2 + 1]


def temporal_spectrum(clip: UInt8[np.ndarray, "f h w 3"]) -> Spectrum:
  """Power of each pixel over time, averaged over the pixels.

  Returns:
    One value for each integer number of cycles per clip, from 1 to half of its
    frames, in squared 8-bit levels.

  Raises:
    InputError: the clip has fewer than two frames.
  """
  f = len(clip)
  if f < 2:
    raise InputError(
      f"a clip of {f} frames has no temporal spectrum; give at least two"
    )
  window = _hann(f)[:, None, None, None]
  power = _density(clip, window, (0,)).mean(axis=(1, 2, 3))
  return power[1 : f // 2 + 1]


def log_distance(a: Spectrum, b: Spectrum) -> float:
  """Mean absolute difference of log10 power over the bands."""
  ratio = (a + ROUNDING) / (b + ROUNDING)
  return float(np.mean(np.abs(np.log10(ratio))))


def _hann(n: int) -> Float[np.ndarray, "n"]:
  """Hann window that is zero just outside the samples; mean square 1."""
  window = np.hanning(n + 2)[1:-1]
  return window / np.sqrt(np.mean(window**2))


def _density(x: np.ndarray, window: np.ndarray, axes: tuple[int, ...]):
  """Squared Fourier coefficients of x without its mean over the axes."""
  x = x - x.mean(axis=axes, keepdims=True)
  count = np.prod([x.shape[axis] for axis in axes])
  return np.abs(np.fft.fftn(x * window, axes=axes)) ** 2 / count
