"""The sampler: the update of one evaluation, and a scan of all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from i2vgen_jax.diffusion.prediction import to_x0
from i2vgen_jax.diffusion.solvers import Solver
from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array


class State(NamedTuple):
  """What goes from one evaluation to the next.

  Attributes:
    x: float32[b ...], the sample at the current level.
    x0: float32[b ...], the prediction of the evaluation before.
    features: see `sample`.
  """

  x: Any
  x0: Any
  features: Any = None

  @classmethod
  def of(cls, xt: Float[Array, "b ..."], features: Any = None) -> "State":
    """The state before the first evaluation."""
    x = xt.astype(jnp.float32)
    return cls(x, jnp.zeros_like(x), features)


def sample(
  denoise_fn: Callable[..., Any],
  solver: Solver,
  xt: Float[Array, "b ..."],
  rngs: Key[Array, "b"],
  *,
  prediction_type: str = "v",
  features: Any = None,
  branches: Int[np.ndarray, "n"] | None = None,
) -> Float[Array, "b ..."]:
  """Integrates xt from the solver's first level to its last, in float32.

  Jit-able: denoise_fn, solver and the keyword arguments are constants. Rows
  are independent of each other if those of denoise_fn are.

  Args:
    denoise_fn: guided (xt, t) -> output, t int32[b].
    xt: a sample at the solver's first level.
    rngs: one key per row, for the noise of stochastic solvers.
    features: arrays that denoise_fn hands on from one evaluation to the next;
      it is then (xt, t, branch, features) -> (output, features). See
      `shortcuts.shortened`.
    branches: the branch of each evaluation, if features are given.

  Returns:
    The sample at the solver's last level.

  Raises:
    InputError: an eps prediction at a level without signal.
  """
  check_prediction(solver, prediction_type)
  is_noisy = bool(np.any(solver.noise))

  def evaluate(state, entry):
    i, branch, at = entry
    return step(
      denoise_fn, at, i, branch, state, rngs, prediction_type, is_noisy
    ), None

  numbers = jnp.arange(solver.num_evaluations)
  entries = (numbers, numbers if branches is None else branches, solver)
  state, _ = jax.lax.scan(evaluate, State.of(xt, features), entries)
  return state.x


def check_prediction(solver: Solver, prediction_type: str) -> None:
  """Raises InputError for an eps prediction at a level without signal."""
  if prediction_type == "eps" and np.any(solver.alphas == 0):
    raise InputError(
      "an eps prediction cannot start at zero terminal SNR, in the sampler; "
      "predict v or start below the last timestep"
    )


def step(
  denoise_fn: Callable[..., Any],
  at: Solver,
  i: Int[Array, ""],
  branch: Int[Array, ""],
  state: State,
  rngs: Key[Array, "b"],
  prediction_type: str,
  is_noisy: bool,
) -> State:
  """Evaluation number i and the update that follows it.

  Args:
    denoise_fn: see `sample`, as for `rngs` and `prediction_type`.
    at: the entry of the solver.
    i: number of the entry.
    branch: see `sample`; unused without features.
    state: from the evaluation before.
    is_noisy: whether the solver adds noise at any level.
  """
  x, last_x0, features = state
  t = jnp.full(x.shape[0], at.timesteps)
  if features is None:
    output = denoise_fn(x, t)
  else:
    output, features = denoise_fn(x, t, branch, features)
  x0 = to_x0(
    output.astype(jnp.float32), x, at.alphas, at.sigmas, prediction_type
  )
  x = at.keep * x + at.denoised * x0 + at.previous * last_x0
  if is_noisy:
    x += at.noise * _step_noise(rngs, i, x.shape[1:])
  return State(x, x0, features)


def _step_noise(
  rngs: Key[Array, "b"], i: Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
  def draw(row_rng):
    return jax.random.normal(jax.random.fold_in(row_rng, i), shape)

  return jax.vmap(draw)(rngs)
