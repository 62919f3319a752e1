"""Solvers as tables of coefficients.

Each evaluation of the network predicts x0 from x, and then

  x <- keep · x + denoised · x0 + previous · (last x0) + noise · n,

where n is standard normal. DDIM, DPM-Solver++ 2M and its SDE form, and Heun
are this update with different coefficients, which are computed here in
float64 on the host.

x has the scale of training, alpha x0 + sigma eps. The usual variable
x / alpha, of noise level sigma / alpha, is infinite where alpha is 0; the
same updates written for x have finite coefficients there.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32

from i2vgen_jax.diffusion.prediction import add_noise
from i2vgen_jax.diffusion.schedules import NoiseSchedule
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array


class Solver(NamedTuple):
  """One entry per evaluation of the network.

  Attributes:
    timesteps: integer timesteps, the input of the network.
    alphas, sigmas: levels that convert its output to x0.
    keep, denoised, previous, noise: coefficients of the update.
  """

  timesteps: Int32[np.ndarray, "n"]
  alphas: Float32[np.ndarray, "n"]
  sigmas: Float32[np.ndarray, "n"]
  keep: Float32[np.ndarray, "n"]
  denoised: Float32[np.ndarray, "n"]
  previous: Float32[np.ndarray, "n"]
  noise: Float32[np.ndarray, "n"]

  @property
  def num_evaluations(self) -> int:
    return len(self.timesteps)


def ddim(
  schedule: NoiseSchedule,
  timesteps: Float64[np.ndarray, "n"],
  *,
  eta: float = 0.0,
  to_clean: bool = False,
) -> Solver:
  """DDIM (Song et al. 2021), usually over `ddim_timesteps`.

  Args:
    timesteps: descending.
    eta: 0 is deterministic, 1 has the variance of DDPM.
    to_clean: the last step removes all noise (diffusers) instead of going to
      timestep 0 (VGen).

  Raises:
    InputError: timesteps or eta out of range; likewise below.
  """
  end = (1.0, 0.0) if to_clean else (schedule.alphas[0], schedule.sigmas[0])
  alpha, sigma, next_alpha, next_sigma = _steps(schedule, timesteps, eta, end)
  noise = eta * next_sigma / sigma * np.sqrt(1 - (alpha / next_alpha) ** 2)
  keep = np.sqrt(next_sigma**2 - noise**2) / sigma
  return _table(
    schedule, timesteps, keep, next_alpha - keep * alpha, noise=noise
  )


def dpmpp_2m(
  schedule: NoiseSchedule,
  timesteps: Float64[np.ndarray, "n"],
  *,
  eta: float = 0.0,
) -> Solver:
  """DPM-Solver++ 2M (Lu et al. 2022), midpoint form; ends clean.

  Args:
    timesteps: descending.
    eta: 0 follows the ODE, 1 the SDE (public variant (b)).
  """
  alpha, sigma, next_alpha, next_sigma = _steps(schedule, timesteps, eta)
  ratio = (alpha * next_sigma) / (sigma * next_alpha)  # e^-h
  with np.errstate(divide="ignore"):
    h = -np.log(ratio)
  # The first step, one after a start without signal (h infinite) and the step
  # to the clean end do not use the last x0.
  weight = np.zeros_like(h)
  weight[1:-1] = h[1:-1] / (2 * h[:-2])
  gain = next_alpha * (1 - ratio ** (1 + eta))
  return _table(
    schedule,
    timesteps,
    keep=next_sigma / sigma * ratio**eta,
    denoised=gain * (1 + weight),
    previous=-gain * weight,
    noise=next_sigma * np.sqrt(1 - ratio ** (2 * eta)),
  )


def heun(
  schedule: NoiseSchedule, timesteps: Float64[np.ndarray, "n"]
) -> Solver:
  """Heun's method on the ODE of x / alpha (Karras et al. 2022); ends clean.

  Each step has two evaluations: an Euler step, and a correction at its end by
  the mean of both slopes, which is a multiple of the change in x0. The last
  step, and one that starts without signal, is an Euler step only.

  Args:
    timesteps: descending.
  """
  alpha, sigma, next_alpha, next_sigma = _steps(schedule, timesteps)
  keep = next_sigma / sigma
  with np.errstate(divide="ignore"):
    level = sigma / alpha
  half = next_alpha[:-1] * (level[:-1] / level[1:] - 1) / 2
  previous = _interleave(0 * keep, -half)
  columns = (
    np.repeat(timesteps, 2)[1:],
    _interleave(keep, np.ones_like(half)),
    _interleave(next_alpha - keep * alpha, half),
    previous,
  )
  return _table(schedule, *(c[np.isfinite(previous)] for c in columns))


def sdedit_start(
  x0: Float[Array, "b ..."],
  noise: Float[Array, "b ..."],
  schedule: NoiseSchedule,
  t: float | int | np.integer,
  *,
  reference_scale: bool = False,
) -> Float[Array, "b ..."]:
  """x0 noised to timestep t, from which a solver starts (SDEdit).

  Args:
    reference_scale: reproduce public variant (b), whose solver starts from a
      sample that is too small by the factor sigma_t (0.972 at 599). Its
      weights were trained at the true scale, which is the default.
  """
  (alpha,), (sigma,) = schedule.at(np.array([t], np.float64))
  xt = add_noise(x0, noise, float(alpha), float(sigma))
  return float(sigma) * xt if reference_scale else xt


def _steps(schedule: NoiseSchedule, timesteps, eta=0.0, end=(1.0, 0.0)):
  """Levels (alpha, sigma) at the start of each step, then at its end."""
  last = schedule.num_train_timesteps - 1
  within = len(timesteps) and timesteps[0] <= last and timesteps[-1] >= 0
  if not within or not np.all(np.diff(timesteps) < 0):
    raise InputError(
      "timesteps must be descending and within the noise schedule, in the "
      f"solver; use values from {last} to 0"
    )
  if not 0 <= eta <= 1:
    raise InputError(f"eta {eta} is out of range, in the solver; use 0 to 1")
  alpha, sigma = schedule.at(timesteps)
  next_alpha = np.append(alpha[1:], end[0])
  return alpha, sigma, next_alpha, np.append(sigma[1:], end[1])


def _interleave(steps, corrections):
  entries = np.empty(len(steps) + len(corrections))
  entries[::2], entries[1::2] = steps, corrections
  return entries


def _table(
  schedule: NoiseSchedule, timesteps, keep, denoised, previous=0.0, noise=0.0
) -> Solver:
  # As in public variant (b), the network and the conversion of its output use
  # rounded timesteps, while the update is exact for fractional ones.
  rounded = np.rint(timesteps)
  columns = *schedule.at(rounded), keep, denoised, previous, noise
  return Solver(
    rounded.astype(np.int32),
    *(np.full(rounded.shape, c, np.float32) for c in columns),
  )
