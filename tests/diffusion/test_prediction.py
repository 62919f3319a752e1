"""Conversions between x0 and what the network predicts."""

import numpy as np
import pytest

from i2vgen_jax.diffusion import prediction
from i2vgen_jax.errors import InputError

SHAPE = (3, 2, 4, 5, 4)


def draw(seed):
  return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("prediction_type", ["eps", "v", "x0"])
def test_perfect_prediction_recovers_x0(prediction_type):
  x0, eps = draw(0), draw(1)
  angle = np.array([0.3, 0.8, 1.3], np.float32)  # one level per row
  alpha, sigma = np.cos(angle), np.sin(angle)
  xt = np.stack(
    [alpha[i] * x0[i] + sigma[i] * eps[i] for i in range(len(angle))]
  )
  output = prediction.target(x0, eps, alpha, sigma, prediction_type)
  args = (output, xt, alpha, sigma, prediction_type)
  np.testing.assert_allclose(
    prediction.add_noise(x0, eps, alpha, sigma), xt, atol=1e-6
  )
  np.testing.assert_allclose(prediction.to_x0(*args), x0, atol=1e-5)


def test_v_is_the_velocity_along_the_circle():
  """v = dx/d(angle) on x = cos(angle) x0 + sin(angle) eps."""
  x0, eps = draw(2), draw(3)
  angle, step = 0.7, 1e-2
  ahead, behind = (
    np.cos(a) * x0 + np.sin(a) * eps for a in (angle + step, angle - step)
  )
  v = prediction.target(x0, eps, np.cos(angle), np.sin(angle), "v")
  np.testing.assert_allclose(v, (ahead - behind) / (2 * step), atol=2e-4)


def test_v_is_finite_at_zero_terminal_snr():
  x0, eps = draw(4), draw(5)
  v = prediction.target(x0, eps, 0.0, 1.0, "v")
  np.testing.assert_array_equal(v, -x0)
  np.testing.assert_array_equal(prediction.to_x0(v, eps, 0.0, 1.0, "v"), x0)


def test_error_of_an_unknown_type_lists_the_known_types():
  x = draw(6)
  for convert in (prediction.to_x0, prediction.target):
    with pytest.raises(InputError, match="use v, eps or x0"):
      convert(x, x, 0.6, 0.8, "velocity")
