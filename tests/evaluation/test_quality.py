"""PSNR: values known without a formula."""

import math

import numpy as np
import pytest

from i2vgen_jax.errors import InputError
from i2vgen_jax.evaluation.quality import psnr

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
