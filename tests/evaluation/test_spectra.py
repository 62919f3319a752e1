"""Spectra of signals whose power is known beforehand."""

import numpy as np
import pytest
from PIL import Image

from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation import spectra


def to_clip(values):
  """Levels [f h w] about middle gray, as an 8-bit clip."""
  gray = np.rint(128 + values).astype(np.uint8)
  return np.repeat(gray[..., None], 3, axis=-1)


def white_noise(deviation, shape=(4, 48, 64)):
  noise = np.random.default_rng(0).normal(0, deviation, (*shape, 3))
  return np.rint(128 + noise).astype(np.uint8)


@pytest.mark.parametrize(("across", "down"), [(9, 0), (0, 9), (3, 4), (5, 12)])
def test_a_spatial_wave_peaks_in_its_band_with_its_power(across, down):
  """Pythagorean waves: 3 by 4 cycles are 5 cycles along their direction."""
  y, x = np.indices((64, 64)) / 64
  wave = 100 * np.sin(2 * np.pi * (across * x + down * y))
  power = spectra.spatial_spectrum(to_clip(wave[None]))
  cycles = round((across**2 + down**2) ** 0.5)
  assert power.shape == (32,)
  assert int(np.argmax(power)) + 1 == cycles
  far = np.abs(np.arange(1, 33) - cycles) > 2
  assert power[far].max() < 1e-4 * power.max()
  # Parseval: the densities of all coefficients sum to the count of pixels
  # times the mean square, half the squared amplitude.
  grid = range(-32, 32)
  rings = [round((i * i + j * j) ** 0.5) for i in grid for j in grid]
  counts = [rings.count(band) for band in range(1, 33)]
  assert counts @ power == pytest.approx(64 * 64 * 100**2 / 2, rel=0.01)


@pytest.mark.parametrize("cycles", [3, 8, 13])
def test_a_flicker_peaks_in_its_band_with_its_power(cycles):
  time = np.arange(32)[:, None, None] / 32
  flicker = 100 * np.sin(2 * np.pi * cycles * time) * np.ones((1, 4, 6))
  power = spectra.temporal_spectrum(to_clip(flicker))
  assert power.shape == (16,)
  assert int(np.argmax(power)) + 1 == cycles
  # Parseval again; a real signal has half its power at positive frequencies.
  assert power.sum() == pytest.approx(32 * 100**2 / 4, rel=0.01)


def test_white_noise_is_flat_at_its_variance_at_every_size():
  for shape in ((4, 48, 64), (16, 96, 32), (9, 31, 33)):
    clip = white_noise(12, shape)
    assert spectra.spatial_spectrum(clip)[3:] == pytest.approx(144, rel=0.2)
    assert spectra.temporal_spectrum(clip)[1:] == pytest.approx(144, rel=0.1)


def test_band_count_is_half_of_the_shorter_side_and_of_the_frames():
  clip = white_noise(5, (7, 20, 30))
  assert spectra.spatial_spectrum(clip).shape == (10,)
  assert spectra.temporal_spectrum(clip).shape == (3,)


def test_a_still_clip_has_no_temporal_power_and_a_flat_frame_no_spatial():
  still = np.repeat(white_noise(30)[:1], 8, axis=0)
  assert spectra.temporal_spectrum(still).max() < 1e-9
  flat = np.full((2, 16, 16, 3), 77, np.uint8)
  assert spectra.spatial_spectrum(flat).max() < 1e-9


def test_an_edge_at_the_seam_is_no_high_frequency():
  """A ramp is smooth, though its two borders do not meet."""
  ramp = np.tile(np.linspace(-120, 120, 64), (1, 64, 1))
  power = spectra.spatial_spectrum(to_clip(ramp))
  assert power[9:].max() < 1e-4 * power[0]


def test_log_distance_counts_decades_above_the_rounding_noise():
  b = np.array([3.0, 40.0, 500.0])
  a = 10 * b + 9 / 12
  assert spectra.log_distance(a, b) == pytest.approx(1)
  assert spectra.log_distance(b, a) == pytest.approx(1)
  assert spectra.log_distance(b, b) == 0
  faint = np.zeros(3)
  assert spectra.log_distance(faint, faint + 1e-6) < 1e-5


def test_both_noise_and_lost_detail_are_away_from_the_real_clip():
  real = white_noise(20)
  noisy = np.clip(real + white_noise(40) - 128.0, 0, 255).astype(np.uint8)
  blurred = np.stack(
    [
      np.array(Image.fromarray(frame).resize((32, 24)).resize((64, 48)))
      for frame in real
    ]
  )
  for power in (spectra.spatial_spectrum, spectra.temporal_spectrum):
    for other in (noisy, blurred):
      assert spectra.log_distance(power(other), power(real)) > 0.2
  noisy, blurred, real = map(spectra.spatial_spectrum, (noisy, blurred, real))
  assert noisy[-1] > 2 * real[-1] > 20 * blurred[-1]


def test_too_small_clips_are_one_clear_line():
  with pytest.raises(InputError, match="no temporal spectrum"):
    spectra.temporal_spectrum(np.zeros((1, 8, 8, 3), np.uint8))
  with pytest.raises(InputError, match="no spatial spectrum"):
    spectra.spatial_spectrum(np.zeros((4, 1, 8, 3), np.uint8))
