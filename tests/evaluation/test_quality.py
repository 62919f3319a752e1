"""Values known without a formula, and those of scikit-image."""

import math

import numpy as np
import pytest
from skimage import data, metrics

from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation.quality import psnr, ssim, steadiness

BLACK = np.zeros((2, 4, 6, 3), np.uint8)


def test_known_values():
  assert psnr(BLACK, BLACK) == math.inf
  assert psnr(BLACK, np.full_like(BLACK, 255)) == 0
  # A tenth of the peak in amplitude is 20 dB.
  assert psnr(BLACK, np.full_like(BLACK, 51)) == pytest.approx(
    13.9794, abs=1e-4
  )
  assert psnr(BLACK, np.full_like(BLACK, 1)) == pytest.approx(48.1308, abs=1e-4)


def test_half_of_the_pixels_wrong_costs_three_decibel():
  half = BLACK.copy()
  half[:, :2] = 51
  gain = psnr(BLACK, half) - psnr(BLACK, np.full_like(BLACK, 51))
  assert gain == pytest.approx(3.0103, abs=1e-4)


def test_differences_do_not_wrap():
  a, b = np.full_like(BLACK, 250), np.full_like(BLACK, 5)
  assert psnr(a, b) == psnr(b, a) < 1


def test_mask_selects_pixels():
  wrong = BLACK.copy()
  wrong[0, 1, 2] = 255
  mask = np.zeros(BLACK.shape[:-1], bool)
  mask[0, 1, 2] = True
  assert psnr(BLACK, wrong, mask) == 0
  assert psnr(BLACK, wrong, ~mask) == math.inf
  with pytest.raises(InputError, match="no pixel to compare"):
    psnr(BLACK, wrong, mask & ~mask)


def noisy(picture, amplitude):
  noise = np.random.default_rng(0).normal(0, amplitude, picture.shape)
  return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("amplitude", [2, 20, 100])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_psnr_and_ssim_are_those_of_scikit_image(name, amplitude):
  photo = getattr(data, name)()[:201, :150]
  other = noisy(photo, amplitude)
  expected = metrics.peak_signal_noise_ratio(photo, other, data_range=255)
  assert psnr(photo, other) == pytest.approx(expected, abs=1e-6)
  expected = metrics.structural_similarity(
    photo,
    other,
    channel_axis=-1,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
    data_range=255,
  )
  assert ssim(photo, other) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_known_pairs():
  photo = data.astronaut()[:64, :80]
  assert ssim(photo, photo) == pytest.approx(1)
  # Constants have no structure: 2 c^2 against the sum of the squares.
  gray, half = np.full_like(photo, 200), np.full_like(photo, 100)
  assert ssim(gray, half) == pytest.approx(2 * 2 / (2**2 + 1), abs=1e-3)
  assert ssim(photo, 255 - photo) < 0


def test_ssim_of_a_clip_is_the_mean_of_its_frames():
  clip = np.stack([data.astronaut()[:64, :80], data.chelsea()[:64, :80]])
  other = noisy(clip, 20)
  expected = np.mean([*map(ssim, clip, other)])
  assert ssim(clip, other) == pytest.approx(expected)


def test_ssim_needs_a_window():
  with pytest.raises(InputError, match="6x4 are too small for SSIM"):
    ssim(BLACK, BLACK)


def test_steadiness_counts_the_change_of_frames():
  assert steadiness(BLACK) == 1
  clip = np.stack([BLACK[0], np.full_like(BLACK[0], 255), BLACK[0]])
  assert steadiness(clip) == 0
  # A fifth of the peak, in one of two steps.
  clip[1:] = 51
  assert steadiness(clip) == pytest.approx(0.9)
  with pytest.raises(InputError, match="1 frames cannot flicker"):
    steadiness(BLACK[:1])
