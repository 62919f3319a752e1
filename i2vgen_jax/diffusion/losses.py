"""The training loss: one noise level per row, mean squared error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from i2vgen_jax.diffusion import prediction
from i2vgen_jax.diffusion.schedules import NoiseSchedule
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array, Conditioning


def per_row_rngs(
  rng: Key[Array, ""], index: Int[Array, "b"]
) -> Key[Array, "b"]:
  """One key per row, which depends only on the row's index.

  Values drawn from them (under vmap) are therefore the same for any batch
  composition, number of hosts and mesh.
  """
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, index)


def offset_noise(
  rng: Key[Array, ""], shape: tuple[int, ...], strength: float
) -> Float[Array, "..."]:
  """Normal noise plus an offset per frame and channel, not renormalised.

  The offset is independent across frames (public variants (a) and (c)).

  Args:
    shape: (..., h, w, c).
    strength: standard deviation of the offset.
  """
  rng_pixel, rng_frame = jax.random.split(rng)
  offset = jax.random.normal(rng_frame, (*shape[:-3], 1, 1, shape[-1]))
  return jax.random.normal(rng_pixel, shape) + strength * offset


def shifted_timesteps(
  u: Float[Array, "n"], bound: int, shift: float
) -> Int[Array, "n"]:
  """Timesteps below `bound` of fractions from 0 to 1.

  The fractions are mapped by u -> s u / (1 + (s - 1) u) (Esser et al. 2024,
  eq. 23). With a shift s above 1, noisy timesteps are more frequent.
  """
  u = shift * u / (1 + (shift - 1) * u)
  return (bound * u).astype(np.int32)


def diffusion_loss(
  denoise_fn: Callable[..., Float[Array, "b f h w c"]],
  schedule: NoiseSchedule,
  x0: Float[Array, "b f h w c"],
  cond: Conditioning,
  rng: Key[Array, ""],
  index: Int[Array, "b"],
  *,
  prediction_type: str = "v",
  noise_offset: float = 0.1,
  max_timestep: int | None = None,
  timestep_shift: float = 1.0,
  timesteps: Int[Array, "b"] | None = None,
  weights: Float[Array, "b f h w"] | None = None,
  start: Float[Array, "b f h w c"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "b"]]:
  """Mean squared error of the prediction, without SNR weights.

  Args:
    denoise_fn: (xt, t, cond) -> output, t an integer per row.
    index: number of each example in the global order; together with `rng` it
      determines the row's timestep and noise.
    noise_offset: strength of `offset_noise`.
    max_timestep: timesteps are drawn from [0, max_timestep); None uses all.
      The refine stage trains below T_r = 600.
    timestep_shift: shift of the drawn timesteps; see `shifted_timesteps`. 1 is
      uniform.
    timesteps: those of the rows; None draws them.
    weights: factor on the squared error of each latent; None is 1.
    start: what the noisiest level shows in place of x0, such as a clip that is
      to be restored; None is x0. Its difference from x0 is a part of the
      noise, so that it fades with sigma / alpha, as on the path of a solver
      that starts from it.

  Returns:
    The mean over rows, and the loss of each row.

  Raises:
    InputError: max_timestep, timestep_shift or prediction_type out of range.
  """
  bound = schedule.num_train_timesteps if max_timestep is None else max_timestep
  if not 0 < bound <= schedule.num_train_timesteps:
    raise InputError(
      f"max_timestep {max_timestep} is out of range, in the config; use 1 to "
      f"{schedule.num_train_timesteps}"
    )
  if not timestep_shift > 0:
    raise InputError(
      f"timestep_shift {timestep_shift} is out of range, in the config; use "
      "more than 0"
    )

  def draw(row_rng):
    rng_time, rng_noise = jax.random.split(row_rng)
    # Centres of equal bins, so that a shift of 1 returns the bin itself.
    u = (jax.random.randint(rng_time, (), 0, bound) + 0.5) / bound
    return u, offset_noise(rng_noise, x0.shape[1:], noise_offset)

  u, eps = jax.vmap(draw)(per_row_rngs(rng, index))
  t = timesteps
  if t is None:
    t = shifted_timesteps(u, bound, timestep_shift)
  x0 = x0.astype(jnp.float32)
  alphas = jnp.asarray(schedule.alphas, jnp.float32)
  sigmas = jnp.asarray(schedule.sigmas, jnp.float32)
  if start is not None:
    eps += (start - x0) * (alphas / sigmas)[bound - 1]
  alpha, sigma = alphas[t], sigmas[t]
  xt = prediction.add_noise(x0, eps, alpha, sigma)
  output = denoise_fn(xt, t, cond).astype(jnp.float32)
  error = output - prediction.target(x0, eps, alpha, sigma, prediction_type)
  error = jnp.mean(jnp.square(error), axis=-1)
  if weights is not None:
    error *= weights
  per_row = jnp.mean(error, axis=(1, 2, 3))
  return per_row.mean(), per_row
