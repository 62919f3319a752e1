"""The state of a training run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from i2vgen_jax.sharding import param_shardings, place
from i2vgen_jax.types import Params

InitParams = Callable[[jax.Array], Params]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a run needs to resume exactly.

  Attributes:
    step: number of training steps done, which is also the position in the data.
    params: the trained weights.
    ema_params: their moving average, which sampling uses.
    opt_state: the optimizer's moments and its count of updates.
  """

  step: Any
  params: Params
  ema_params: Params
  opt_state: Any


def create_state(
  params: Params, tx: optax.GradientTransformation
) -> TrainState:
  """The state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),
    opt_state=tx.init(params),
  )


def abstract_state(
  init_params_fn: InitParams, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Shapes, dtypes and shardings of a state, without computing it."""
  shapes = jax.eval_shape(
    lambda: create_state(init_params_fn(jax.random.key(0)), tx)
  )
  return jax.tree.map(
    lambda leaf, sharding: leaf.update(sharding=sharding),
    shapes,
    param_shardings(shapes, mesh),
  )


def init_state(
  init_params_fn: InitParams,
  tx: optax.GradientTransformation,
  seed: int,
  shardings: TrainState,
) -> TrainState:
  """Draws the weights in their shardings: no device holds all of them."""
  # One draw per weight makes a program that LLVM optimizes for minutes, and it
  # runs only once.
  fast = {"xla_backend_optimization_level": "0"}
  # The seed is a constant of the program: processes need not share an array.
  draw = jax.jit(
    lambda: create_state(init_params_fn(init_key(seed)), tx),
    out_shardings=shardings,
    compiler_options=fast if jax.default_backend() == "cpu" else None,
  )
  return draw()


def state_from(
  params: Params, tx: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
  """A state that starts from given weights, which all processes have."""
  params = place(params, shardings.params)
  create = jax.jit(lambda p: create_state(p, tx), out_shardings=shardings)
  return create(params)


def init_key(seed: int) -> jax.Array:
  """Key of the initial weights."""
  return jax.random.fold_in(jax.random.key(seed), 0)


def step_key(seed: int) -> jax.Array:
  """Key of noise, noise levels and dropout, with `batch.index`."""
  return jax.random.fold_in(jax.random.key(seed), 1)
