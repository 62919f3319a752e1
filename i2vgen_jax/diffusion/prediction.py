"""What the network predicts, and how to read x0 and eps out of it.

x_t = alpha x0 + sigma eps, v = alpha eps - sigma x0 (Salimans & Ho 2022).
"""

import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array

# One level for all rows, or one per row.
Level = Float[Array, "b"] | Float[Array, ""] | float


def to_x0(
  output: Float[Array, "b ..."],
  xt: Float[Array, "b ..."],
  alpha: Level,
  sigma: Level,
  prediction_type: str,
) -> Float[Array, "b ..."]:
  """The clean sample that an output of the network stands for.

  An eps prediction says nothing of x0 where alpha is 0 and gives infinities.

  Raises:
    InputError: prediction_type is none of eps, v, x0.
  """
  alpha, sigma = _per_row(alpha, xt), _per_row(sigma, xt)
  match prediction_type:
    case "x0":
      return output
    case "eps":
      return (xt - sigma * output) / alpha
    case "v":
      return alpha * xt - sigma * output
  raise _unknown(prediction_type)


def to_eps(
  output: Float[Array, "b ..."],
  xt: Float[Array, "b ..."],
  alpha: Level,
  sigma: Level,
  prediction_type: str,
) -> Float[Array, "b ..."]:
  """The noise that an output of the network stands for; see `to_x0`.

  From v it is finite at alpha = 0, where going through x0 / alpha is not.
  """
  alpha, sigma = _per_row(alpha, xt), _per_row(sigma, xt)
  match prediction_type:
    case "x0":
      return (xt - alpha * output) / sigma
    case "eps":
      return output
    case "v":
      return sigma * xt + alpha * output
  raise _unknown(prediction_type)


def target(
  x0: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  alpha: Level,
  sigma: Level,
  prediction_type: str,
) -> Float[Array, "b ..."]:
  """What the network should have put out for this x0 and noise."""
  alpha, sigma = _per_row(alpha, x0), _per_row(sigma, x0)
  match prediction_type:
    case "x0":
      return x0
    case "eps":
      return eps
    case "v":
      return alpha * eps - sigma * x0
  raise _unknown(prediction_type)


def add_noise(
  x0: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  alpha: Level,
  sigma: Level,
) -> Float[Array, "b ..."]:
  """x_t of the forward process."""
  return _per_row(alpha, x0) * x0 + _per_row(sigma, x0) * eps


def _per_row(level: Level, like: Float[Array, "b ..."]):
  level = jnp.asarray(level)
  return level.reshape(level.shape + (1,) * (like.ndim - level.ndim))


def _unknown(prediction_type: str) -> InputError:
  return InputError(
    f"unknown prediction type {prediction_type!r}, in the config; use v, eps "
    "or x0"
  )
