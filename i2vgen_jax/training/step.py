"""One training step: gradient, update, average, in one compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from i2vgen_jax.flops import needed_flops
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
  accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
  """One training step; a pure function.

  With `accumulate` above 1 the batch is worked on in that many parts, one after
  another, and their gradients are averaged: the same update with less memory,
  if the loss is a mean over rows.

  A step whose loss or gradient is not finite changes only the step count;
  metric `skipped` is then 1. The rng is the same at every step, since draws
  derive from `batch.index`.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def part(rows: Batch) -> Any:
    return grad_fn(state.params, frozen, rows, step_key(seed))

  (loss, metrics), grads = _mean_over_parts(part, batch, accumulate)
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


def _mean_over_parts(
  fn: Callable[[Batch], Any], batch: Batch, parts: int
) -> Any:
  """Mean of a function's results over parts of a batch.

  Every part has rows of each device: row i belongs to part i modulo `parts`.
  """
  if parts == 1:
    return fn(batch)
  split = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch
  )
  first = jax.tree.map(lambda x: x[0], split)
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(fn, first))

  def add(total: Any, rows: Batch) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, fn(rows)), None

  total, _ = jax.lax.scan(add, zeros, split)
  return jax.tree.map(lambda x: x / parts, total)


class PerShape:
  """A training step, compiled once for each shape of a batch."""

  def __init__(self, step: Callable):
    """
    Args:
      step: jitted function of (state, frozen, batch).
    """
    self._step = step
    self._compiled: dict[Any, tuple[Callable, int]] = {}

  def compile(self, state: TrainState, frozen: Any, batch: Batch) -> Callable:
    """The program for the shapes of a batch.

    Args:
      state: arrays or their abstract shapes, as is `batch`.
      frozen: weights of the frozen networks.
      batch: of the whole job.
    """
    key = _shapes(batch)
    if key not in self._compiled:
      traced = self._step.trace(state, frozen, batch)
      program = traced.lower().compile()
      self._compiled[key] = program, needed_flops(traced.jaxpr.jaxpr)
    return self._compiled[key][0]

  def __call__(
    self, state: TrainState, frozen: Any, batch: Batch
  ) -> tuple[TrainState, Metrics]:
    return self.compile(state, frozen, batch)(state, frozen, batch)

  def flops(self, batch: Batch) -> int:
    """Operations of a step; see `flops.needed_flops`."""
    return self._compiled[_shapes(batch)][1]


def _shapes(batch: Batch) -> tuple[Any, ...]:
  leaves, structure = jax.tree.flatten(batch)
  return structure, *(leaf.shape for leaf in leaves)


def step_settings(config: Any) -> dict[str, Any]:
  """Settings of `train_step` in the group `train` of a config."""
  return {k: config[k] for k in ("ema_decay", "seed", "accumulate")}


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
