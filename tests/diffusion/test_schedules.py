"""Schedules against measured values and third-party tables."""

import diffusers
import numpy as np
import pytest

from i2vgen_jax.diffusion import schedules
from i2vgen_jax.errors import InputError

ALL = [
  (name, zero)
  for name in ("linear_sd", "cosine", "logsnr_cosine_interp")
  for zero in (False, True)
]


@pytest.mark.parametrize(
  ("name", "zero_terminal_snr", "expected"),
  [
    (
      "cosine",
      False,
      {
        0: 0.999958715775178,
        1: 0.999912575927368,
        21: 0.997971133165994,
        500: 0.492285172448803,
        981: 7.867147e-4,
        999: 2.428767e-9,
      },
    ),
    (
      "cosine",
      True,
      {
        0: 0.999958715775178,
        1: 0.999912573653347,
        21: 0.997971035254790,
        500: 0.492264538531666,
        981: 7.840299e-4,
        999: 0.0,
      },
    ),
    (
      "linear_sd",
      False,
      {
        0: 0.99915,
        1: 0.998296027838,
        981: 0.005775500140,
        999: 0.004660098513,
      },
    ),
  ],
)
def test_alphas_cumprod_has_the_stored_values(
  name, zero_terminal_snr, expected
):
  schedule = schedules.make_schedule(name, zero_terminal_snr)
  actual = schedule.alphas[list(expected)] ** 2
  stored = list(expected.values())
  # The stored values carry from 7 to 15 digits.
  digits = [5e-15 if len(repr(v)) > 14 else 1e-7 for v in stored]
  assert np.all(np.abs(actual - stored) <= np.multiply(digits, stored))


def test_refine_schedule_has_the_values_measured_in_float32():
  stored = {
    0: 0.00110626,
    1: 0.00425177,
    100: 0.32262039,
    300: 0.78256887,
    500: 0.94300967,
    599: 0.97236323,
    700: 0.98798817,
    900: 0.99911308,
    999: 1.0,
  }
  for zero_terminal_snr in (False, True):
    schedule = schedules.make_schedule(
      "logsnr_cosine_interp", zero_terminal_snr
    )
    # The reference subtracts from 1 in float32: noise of 6e-8 / (2 sigma).
    np.testing.assert_allclose(
      schedule.sigmas[list(stored)], list(stored.values()), atol=2e-7
    )
    np.testing.assert_allclose(schedule.alphas[599], 0.23347326, atol=2e-7)
    ratio = schedule.sigmas[599] / schedule.alphas[599]
    np.testing.assert_allclose(ratio, 4.1647735, rtol=1e-6)
    np.testing.assert_allclose(-2 * np.log(ratio), -2.853, atol=5e-4)


def test_log_snr_is_shifted_at_both_ends():
  plain = schedules.logsnr_cosine_interp(1.0, 1.0)
  shifted = schedules.logsnr_cosine_interp(2.0, 4.0)

  def log_snr(schedule):
    return 2 * np.log(schedule.alphas / schedule.sigmas)

  np.testing.assert_allclose(log_snr(plain)[[0, -1]], [15, -15], rtol=1e-9)
  gap = log_snr(plain) - log_snr(shifted)
  np.testing.assert_allclose(
    gap, np.linspace(np.log(4), np.log(16), 1000), rtol=1e-9
  )


@pytest.mark.parametrize(
  ("name", "zero_terminal_snr", "beta_schedule"),
  [
    ("linear_sd", False, "scaled_linear"),
    ("linear_sd", True, "scaled_linear"),
    ("cosine", False, "squaredcos_cap_v2"),
    ("cosine", True, "squaredcos_cap_v2"),
  ],
)
def test_every_timestep_agrees_with_diffusers(
  name, zero_terminal_snr, beta_schedule
):
  oracle = diffusers.DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule=beta_schedule,
    rescale_betas_zero_snr=zero_terminal_snr,
  )
  schedule = schedules.make_schedule(name, zero_terminal_snr)
  np.testing.assert_allclose(
    schedule.alphas**2, oracle.alphas_cumprod.numpy(), atol=2e-6
  )


@pytest.mark.parametrize(("name", "zero_terminal_snr"), ALL)
def test_schedules_preserve_variance_and_decrease_signal(
  name, zero_terminal_snr
):
  schedule = schedules.make_schedule(name, zero_terminal_snr)
  assert schedule.num_train_timesteps == 1000
  assert schedule.alphas.dtype == schedule.sigmas.dtype == np.float64
  np.testing.assert_allclose(
    np.hypot(schedule.alphas, schedule.sigmas), 1, rtol=1e-14
  )
  assert np.all(np.diff(schedule.alphas) < 0)
  assert np.all(np.diff(schedule.sigmas) > 0)
  assert (schedule.alphas[-1] == 0) == zero_terminal_snr


@pytest.mark.parametrize(("name", "zero_terminal_snr"), ALL)
def test_levels_between_timesteps_are_geometric_means(name, zero_terminal_snr):
  schedule = schedules.make_schedule(name, zero_terminal_snr)
  ratio = schedule.sigmas[:-1] / schedule.alphas[:-1]
  alphas, sigmas = schedule.at(np.arange(998) + 0.5)
  np.testing.assert_allclose(
    sigmas / alphas, np.sqrt(ratio[1:] * ratio[:-1]), rtol=1e-9
  )
  for stored, looked_up in zip(
    (schedule.alphas, schedule.sigmas),
    schedule.at(np.arange(1000.0)),
    strict=True,
  ):
    np.testing.assert_allclose(looked_up, stored, rtol=1e-12)


def test_error_of_an_unknown_schedule_lists_the_known_schedules():
  with pytest.raises(InputError, match=r"linear_sd.*cosine.*logsnr_cosine"):
    schedules.make_schedule("sqrt", False)
