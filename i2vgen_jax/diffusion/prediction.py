"""Prediction types: what the network predicts, and x0 from it.

x_t = alpha x0 + sigma eps, v = alpha eps - sigma x0 (Salimans & Ho 2022).
"""

import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array

# One level for all rows, or one per row.
Level = Float[Array, "b"] | Float[Array, ""] | float


# The conversions of each prediction type.
_TARGET = {
  "v": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
  "eps": lambda x0, eps, alpha, sigma: eps,
  "x0": lambda x0, eps, alpha, sigma: x0,
}
_TO_X0 = {
  "v": lambda output, xt, alpha, sigma: alpha * xt - sigma * output,
  "eps": lambda output, xt, alpha, sigma: (xt - sigma * output) / alpha,
  "x0": lambda output, xt, alpha, sigma: output,
}


def to_x0(
  output: Float[Array, "b ..."],
  xt: Float[Array, "b ..."],
  alpha: Level,
  sigma: Level,
  prediction_type: str,
) -> Float[Array, "b ..."]:
  """The clean sample that the output of the network implies.

  An eps prediction does not determine x0 where alpha is 0: the result is
  infinite.

  Raises:
    InputError: prediction_type is not one of v, eps and x0.
  """
  return _convert(_TO_X0, output, xt, alpha, sigma, prediction_type)


def target(
  x0: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  alpha: Level,
  sigma: Level,
  prediction_type: str,
) -> Float[Array, "b ..."]:
  """The output that the network is trained towards; see `to_x0`."""
  return _convert(_TARGET, x0, eps, alpha, sigma, prediction_type)


def add_noise(
  x0: Float[Array, "b ..."],
  eps: Float[Array, "b ..."],
  alpha: Level,
  sigma: Level,
) -> Float[Array, "b ..."]:
  """Noisy sample x_t of the forward process."""
  return _per_row(alpha, x0) * x0 + _per_row(sigma, x0) * eps


def _per_row(level: Level, like: Float[Array, "b ..."]):
  level = jnp.asarray(level)
  return level.reshape(level.shape + (1,) * (like.ndim - level.ndim))


def _convert(conversions, x, y, alpha, sigma, prediction_type: str):
  if prediction_type not in conversions:
    raise InputError(
      f"unknown prediction type {prediction_type!r}, in the config; use v, eps "
      "or x0"
    )
  convert = conversions[prediction_type]
  return convert(x, y, _per_row(alpha, x), _per_row(sigma, x))
