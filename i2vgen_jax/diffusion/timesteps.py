"""The timesteps that a solver visits, from noisy to clean."""

import numpy as np
from jaxtyping import Float64

from i2vgen_jax.errors import InputError


def ddim_timesteps(
  num_steps: int, t_max: int = 999
) -> Float64[np.ndarray, "n"]:
  """Integers 1 + k·stride: 981, 961, ..., 21, 1 for 50 of 1000.

  If num_steps does not divide the range, VGen visits more timesteps than
  num_steps; like diffusers we visit exactly num_steps and start lower. The
  offset of 1 becomes 0 if there are as many steps as timesteps.

  Raises:
    InputError: num_steps outside 1 .. t_max + 1.
  """
  _check(num_steps, t_max + 1)
  stride = (t_max + 1) // num_steps
  offset = min(1, t_max - (num_steps - 1) * stride)
  return offset + stride * np.arange(num_steps)[::-1].astype(np.float64)


def spaced_timesteps(
  num_steps: int,
  t_max: int,
  t_min: int = 0,
  *,
  spacing: str = "trailing",
  drop_last: bool = False,
) -> Float64[np.ndarray, "n"]:
  """The three discretisations of public variant (b); fractional.

  Args:
    num_steps: number of timesteps.
    t_max: noisiest timestep.
    t_min: cleanest timestep.
    spacing: "trailing" starts at t_max, "leading" ends at t_min, "linspace"
      does both.
    drop_last: space one timestep more and leave out the last, so that the
      final step is longer, as variant (b) does for DPM-Solver++ SDE.

  Raises:
    InputError: more steps than timesteps, fewer than one, or an unknown
      spacing.
  """
  span = t_max - t_min + 1
  _check(num_steps, span - drop_last)
  n = num_steps + drop_last
  match spacing:
    case "leading":
      timesteps = t_min + np.arange(n)[::-1] * (span / n)
    case "linspace":
      timesteps = np.linspace(t_max, t_min, n)
    case "trailing":
      timesteps = t_max - np.arange(n) * (span / n)
    case _:
      raise InputError(
        f"unknown timestep spacing {spacing!r}, in the config; use trailing, "
        "leading or linspace"
      )
  return np.clip(timesteps, t_min, t_max)[:num_steps]


def _check(num_steps: int, most: int) -> None:
  if not 1 <= num_steps <= most:
    raise InputError(
      f"cannot sample in {num_steps} sampling steps, in num_steps; use 1 to "
      f"{most}"
    )
