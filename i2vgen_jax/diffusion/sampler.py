"""The sampler: one scan over a solver's table."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from i2vgen_jax.diffusion.prediction import to_x0
from i2vgen_jax.diffusion.solvers import Solver
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array


def sample(
  denoise_fn: Callable[..., Float[Array, "b ..."]],
  solver: Solver,
  xt: Float[Array, "b ..."],
  rngs: Key[Array, "b"],
  *,
  prediction_type: str = "v",
  features: Any = None,
  progress: Callable[[int], None] | None = None,
) -> Float[Array, "b ..."]:
  """Integrates xt from the solver's first level to its last, in float32.

  Jit-able: denoise_fn, solver and the keyword arguments are constants. Rows
  are independent of each other if those of denoise_fn are.

  Args:
    denoise_fn: guided (xt, t) -> output, t int32[b].
    xt: a sample at the solver's first level.
    rngs: one key per row, for the noise of stochastic solvers.
    features: arrays that denoise_fn hands on from one evaluation to the next;
      it is then (xt, t, i, features) -> (output, features), where i is the
      number of the evaluation. See `shortcuts.shortened`.
    progress: called on the host after each evaluation with the number of
      evaluations done, 1 to solver.num_evaluations.

  Returns:
    The sample at the solver's last level.

  Raises:
    InputError: an eps prediction at a level without signal.
  """
  if prediction_type == "eps" and np.any(solver.alphas == 0):
    raise InputError(
      "an eps prediction cannot start at zero terminal SNR, in the sampler; "
      "predict v or start below the last timestep"
    )

  def evaluate(carry, entry):
    x, last_x0, kept = carry
    i, at = entry
    t = jnp.full(x.shape[0], at.timesteps)
    if kept is None:
      output = denoise_fn(x, t)
    else:
      output, kept = denoise_fn(x, t, i, kept)
    x0 = to_x0(
      output.astype(jnp.float32), x, at.alphas, at.sigmas, prediction_type
    )
    x = at.keep * x + at.denoised * x0 + at.previous * last_x0
    if np.any(solver.noise):
      x += at.noise * _step_noise(rngs, i, x.shape[1:])
    if progress is not None:
      _report(progress, i + 1, x)
    return (x, x0, kept), None

  start = xt.astype(jnp.float32)
  entries = (jnp.arange(solver.num_evaluations), solver)
  carry = start, jnp.zeros_like(start), features
  (x, *_), _ = jax.lax.scan(evaluate, carry, entries)
  return x


def _step_noise(
  rngs: Key[Array, "b"], i: Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
  def draw(row_rng):
    return jax.random.normal(jax.random.fold_in(row_rng, i), shape)

  return jax.vmap(draw)(rngs)


def _report(progress, done, x) -> None:
  # A value of x makes the call wait for the evaluation it reports.
  first = x[(0,) * x.ndim]
  jax.debug.callback(lambda n, _: progress(int(n)), done, first)
