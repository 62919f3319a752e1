"""Noise schedules: scales of signal and noise at each training timestep.

They are computed once, in float64, on the host, and are constants of compiled
programs. x_t = alpha_t x0 + sigma_t eps with alpha² + sigma² = 1.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64

from i2vgen_jax.errors import InputError

NUM_TRAIN_TIMESTEPS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
  """Signal and noise scale of each timestep; index 0 is the cleanest.

  Both are stored, because computing one from the other through 1 - x² loses
  precision where it is small.
  """

  alphas: Float64[np.ndarray, "t"]
  sigmas: Float64[np.ndarray, "t"]

  @property
  def num_train_timesteps(self) -> int:
    return len(self.alphas)

  def at(
    self, timesteps: Float64[np.ndarray, "n"]
  ) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    """(alphas, sigmas) at integer or fractional timesteps.

    ln(sigma/alpha) is interpolated linearly, as in public variant (b). There
    is no signal between a timestep without signal and the one before it.
    """
    with np.errstate(divide="ignore"):
      log_ratio = np.log(self.sigmas) - np.log(self.alphas)
    integers = np.arange(self.num_train_timesteps)
    log_ratio = np.interp(timesteps, integers, log_ratio)
    return _from_log_snr(-2 * log_ratio)


def linear_sd() -> NoiseSchedule:
  """Stable Diffusion's schedule, linear in sqrt(beta): public variant (a)."""
  ends = np.sqrt([0.00085, 0.012])
  return _from_betas(np.linspace(*ends, NUM_TRAIN_TIMESTEPS) ** 2)


def cosine() -> NoiseSchedule:
  """Squared-cosine schedule, beta at most 0.999: public variant (c)."""
  u = np.arange(NUM_TRAIN_TIMESTEPS + 1) / NUM_TRAIN_TIMESTEPS
  level = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
  return _from_betas(np.minimum(1 - level[1:] / level[:-1], 0.999))


def logsnr_cosine_interp(
  scale_min: float = 2.0, scale_max: float = 4.0
) -> NoiseSchedule:
  """Cosine in log-SNR within ±15, shifted for resolution: variant (b).

  The shift is 2 ln(scale_min) at the clean end, 2 ln(scale_max) at the noisy
  end, and linear in between.
  """
  clean = np.linspace(1, 0, NUM_TRAIN_TIMESTEPS)
  angle_noisy, angle_clean = np.arctan(np.exp([7.5, -7.5]))
  angle = angle_noisy + clean * (angle_clean - angle_noisy)
  shift = clean * np.log(scale_min) + (1 - clean) * np.log(scale_max)
  return NoiseSchedule(*_from_log_snr(-2 * np.log(np.tan(angle)) - 2 * shift))


def rescale_alphas(schedule: NoiseSchedule) -> NoiseSchedule:
  """Shifts and scales alpha: the first value is kept, the last becomes 0.

  Source: Lin et al. 2023, algorithm 1; public variant (c).
  """
  first, last = schedule.alphas[[0, -1]]
  alphas = (schedule.alphas - last) * (first / (first - last))
  return NoiseSchedule(alphas, np.sqrt((1 - alphas) * (1 + alphas)))


def rescale_sigmas(schedule: NoiseSchedule) -> NoiseSchedule:
  """Shifts and scales sigma: the first value is kept, the last becomes 1.

  Source: public variant (b), which defines its schedule by sigma. There it
  only removes the remaining signal of the last timestep, 1.4e-4.
  """
  first, last = schedule.sigmas[[0, -1]]
  stretch = (1 - first) / (last - first)
  sigmas = first + stretch * (schedule.sigmas - first)
  # 1 - sigmas = stretch (last - old sigmas), written without cancellation.
  signal = schedule.alphas**2 - schedule.alphas[-1] ** 2
  below_one = stretch * signal / (last + schedule.sigmas)
  return NoiseSchedule(np.sqrt(below_one * (1 + sigmas)), sigmas)


def make_schedule(name: str, zero_terminal_snr: bool) -> NoiseSchedule:
  """The noise schedule of a config.

  Args:
    name: linear_sd, cosine or logsnr_cosine_interp.
    zero_terminal_snr: whether the last timestep is pure noise.

  Raises:
    InputError: there is no such schedule.
  """
  makers = {
    "linear_sd": (linear_sd, rescale_alphas),
    "cosine": (cosine, rescale_alphas),
    "logsnr_cosine_interp": (logsnr_cosine_interp, rescale_sigmas),
  }
  if name not in makers:
    raise InputError(
      f"unknown noise schedule {name!r}, in the config; use linear_sd, cosine "
      "or logsnr_cosine_interp"
    )
  make, rescale = makers[name]
  return rescale(make()) if zero_terminal_snr else make()


def _from_betas(betas: Float64[np.ndarray, "t"]) -> NoiseSchedule:
  log_alphas_cumprod = np.cumsum(np.log1p(-betas))
  return NoiseSchedule(
    np.exp(log_alphas_cumprod / 2), np.sqrt(-np.expm1(log_alphas_cumprod))
  )


def _from_log_snr(log_snr: Float64[np.ndarray, "t"]):
  return 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))
