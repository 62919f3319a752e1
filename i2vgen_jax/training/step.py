"""One training step: gradient, update, average, in one compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from i2vgen_jax.training.state import TrainState, step_key
from i2vgen_jax.types import Batch, Params

Metrics = dict[str, jax.Array]
# (params, frozen, batch, rng) -> (loss, metrics)
LossFn = Callable[[Params, Any, Batch, jax.Array], tuple[jax.Array, Metrics]]


def ema_rate(ema_decay: float, step: jax.Array) -> jax.Array:
  """Share of the moving average that is kept at update `step`, from 0.

  min(decay, (1 + n) / (10 + n)): a short run forgets its random start, and a
  long one has the constant decay of the public code (0.9999).
  """
  return jnp.minimum(ema_decay, (1 + step) / (10 + step))


def train_step(
  state: TrainState,
  frozen: Any,
  batch: Batch,
  *,
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  ema_decay: float,
  seed: int,
) -> tuple[TrainState, Metrics]:
  """One training step; a pure function.

  A step whose loss or gradient is not finite changes only the step count;
  metric `skipped` is then 1. The rng is the same at every step, since draws
  derive from `batch.index`.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  rng = step_key(seed)
  (loss, metrics), grads = grad_fn(state.params, frozen, batch, rng)
  grad_norm = optax.global_norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  keep = ema_rate(ema_decay, state.step)
  ema_params = jax.tree.map(
    lambda average, new: average + (1 - keep) * (new - average),
    state.ema_params,
    params,
  )

  new = (params, ema_params, opt_state)
  old = (state.params, state.ema_params, state.opt_state)
  new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
  metrics = metrics | {
    "loss": loss,
    "grad_norm": grad_norm,
    "skipped": 1.0 - finite,
  }
  return TrainState(state.step + 1, *new), metrics


def make_train_step(shardings: TrainState, **settings: Any) -> Callable:
  """The compiled (state, frozen, batch) -> (state, metrics).

  The buffers of the given state are donated: it cannot be used afterwards.

  Args:
    shardings: those of the state; see `state.abstract_state`.
    **settings: keyword arguments of `train_step`.
  """
  step = functools.partial(train_step, **settings)
  # Like the step count, the metrics are on every device.
  out = shardings, shardings.step
  return jax.jit(step, donate_argnums=0, out_shardings=out)
