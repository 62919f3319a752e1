"""The training loop, read from top to bottom."""

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from i2vgen_jax.errors import InputError
from i2vgen_jax.sharding import param_shardings, replicated, to_global
from i2vgen_jax.training import record
from i2vgen_jax.training.checkpoint import Checkpoints, write_json
from i2vgen_jax.training.metrics import (
  MetricWriter,
  Window,
  progress_line,
  say,
)
from i2vgen_jax.training.optimizer import make_optimizer
from i2vgen_jax.training.state import (
  InitParams,
  TrainState,
  abstract_state,
  init_state,
  state_from,
  step_key,
)
from i2vgen_jax.training.step import Objective, make_train_step
from i2vgen_jax.types import Batch, Params

# So many steps in a row without a finite gradient are no accident.
MAX_SKIPPED = 10

BatchesFrom = Callable[[int], Iterator[tuple[int, Batch]]]
SampleFn = Callable[[Params, int], np.ndarray]


class _StopSignal:
  """Remembers SIGTERM instead of dying of it.

  Of several processes each may get the signal at another step; there the
  runtime of JAX catches it and agrees on one step, so we leave it alone.
  """

  def __init__(self):
    self.caught = False

  def _remember(self, *_: Any) -> None:
    self.caught = True

  def __enter__(self) -> "_StopSignal":
    if jax.process_count() == 1:
      self._before = signal.signal(signal.SIGTERM, self._remember)
    return self

  def __exit__(self, *_: Any) -> None:
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, self._before)


def train(
  *,
  init_params_fn: InitParams,
  objective: Objective,
  frozen: Any,
  batches: BatchesFrom,
  config: Any,
  workdir: Path,
  mesh: Mesh,
  sample_fn: SampleFn | None = None,
  unseen: Callable[[], Iterator[Batch]] | None = None,
  initial_params: Params | None = None,
) -> TrainState:
  """Trains until `config.train.num_steps`, resuming whatever workdir holds.

  A run that gets SIGTERM saves and returns; the same call goes on from there.

  Args:
    init_params_fn: rng -> params, traceable; decides the shapes.
    objective: see `objectives`.
    frozen: arrays that the objective reads and nothing trains.
    batches: start step -> endless (step, rows of this process).
    config: its group `train` has num_steps, seed, learning_rate,
      warmup_steps, decay, beta2, weight_decay, grad_clip,
      spatial_grad_scale, ema_decay, log_every, checkpoint_every,
      sample_every, keep_checkpoints.
      The whole is written to workdir/config.json.
    workdir: checkpoints, TensorBoard files, samples and record of this run;
      for the last see `record`.
    mesh: from `sharding.make_mesh`.
    sample_fn: (ema_params, steps done) -> uint8[h w 3] to look at.
    unseen: gives the same few batches of clips that nothing trains on; their
      mean loss under the averaged weights, with the same noise each time, is
      reported as `unseen_loss` whenever a sample is.
    initial_params: weights to start from instead of a random draw.

  Returns:
    The last state.

  Raises:
    InputError: a count is not positive, workdir cannot be written or holds
      another model, the data end early, or the gradient stays infinite or
      not a number.
  """
  c = config.train
  check_counts(c)
  make_workdir(workdir)

  # ---- The optimizer, and the state without its values ----
  tx = make_optimizer(
    learning_rate=c.learning_rate,
    num_steps=c.num_steps,
    warmup_steps=c.warmup_steps,
    decay=c.decay,
    beta2=c.beta2,
    weight_decay=c.weight_decay,
    grad_clip=c.grad_clip,
    spatial_grad_scale=c.spatial_grad_scale,
  )
  abstract = abstract_state(init_params_fn, tx, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  train_step = make_train_step(
    objective,
    tx,
    ema_decay=c.ema_decay,
    seed=c.seed,
    shardings=shardings,
    metrics_sharding=replicated(mesh),
  )
  frozen = jax.device_put(frozen, param_shardings(frozen, mesh))
  loss_fn = jax.jit(lambda *args: objective(*args)[0])

  with (
    Checkpoints(workdir, c.keep_checkpoints) as checkpoints,
    MetricWriter(workdir) as writer,
    _StopSignal() as stop,
  ):
    # ---- Resume, or start ----
    start = checkpoints.latest_step() or 0
    if start:
      state = checkpoints.restore(start, abstract)
    elif initial_params is not None:
      state = state_from(initial_params, tx, shardings)
    else:
      state = init_state(init_params_fn, tx, c.seed, shardings)
    telling = jax.process_index() == 0
    if telling:
      # Not before the state fits: the folder may be another run's.
      record.resume(workdir, start)
      write_json(workdir / "config.json", config.to_dict())
    say(f"training from step {start} to {c.num_steps} in {workdir}")

    # ---- Train ----
    done, pending, window = start, None, Window()
    missing = max(c.num_steps - start, 0)
    to_do = itertools.islice(batches(start), missing)
    for step, batch in _placed_ahead(to_do, mesh):
      state, metrics = train_step(state, frozen, batch)
      done = step + 1
      # The device works on this step while the host reads the one before.
      if pending is not None:
        window.add(jax.device_get(pending))
      pending = metrics
      stopping = stop.caught or checkpoints.reached_preemption(done)
      last = stopping or done == c.num_steps

      # ---- Report ----
      values = {}
      if last or done % c.log_every == 0:
        window.add(jax.device_get(pending))
        pending = None
        values = window.report()
        writer.scalars(done, values)
        say(progress_line(done, c.num_steps, values))
      if window.skipped_in_a_row >= MAX_SKIPPED:
        raise InputError(
          f"no finite loss and gradient for {MAX_SKIPPED} steps, at step "
          f"{done} of {workdir}; lower train.learning_rate or set "
          "train.grad_clip"
        )

      # ---- Save, and show ----
      if last or done % c.checkpoint_every == 0:
        checkpoints.save(done, state)
      looking = not stopping and (last or done % c.sample_every == 0)
      if looking and unseen is not None:
        losses = [
          loss_fn(state.ema_params, frozen, batch, step_key(c.seed))
          for _, batch in _placed_ahead(enumerate(unseen()), mesh)
        ]
        value = float(np.mean(jax.device_get(losses)))
        values = values | {"unseen_loss": value}
        writer.scalars(done, {"unseen_loss": value})
        say(f"step {done}/{c.num_steps}  loss on unseen clips {value:.4f}")
      if telling and values:
        record.append(workdir, done, values)
      if telling and looking:
        record.draw(workdir)
      if looking and sample_fn is not None:
        writer.picture(done, sample_fn(state.ema_params, done))
      if stopping:
        say(f"stopped at step {done}; the same command goes on from there")
        break
    else:
      if done < c.num_steps:
        raise InputError(
          f"the data ended after step {done} of {c.num_steps}; the reader "
          "must go round for ever"
        )
  return state


def _placed_ahead(
  batches: Iterator[tuple[int, Batch]], mesh: Mesh
) -> Iterator[tuple[int, Batch]]:
  """Puts each batch on the devices while the step before it has its turn."""
  waiting = None
  for step, batch in batches:
    placed = step, to_global(batch, mesh)
    if waiting is not None:
      yield waiting
    waiting = placed
  if waiting is not None:
    yield waiting


def check_counts(c: Any) -> None:
  """Raises InputError for a count in group `train` that is not positive."""
  counts = ("num_steps", "batch_size", "keep_checkpoints")
  periods = ("log_every", "checkpoint_every", "sample_every")
  for name in counts + periods:
    if c[name] < 1:
      raise InputError(f"train.{name} is {c[name]}; make it 1 or more")


def make_workdir(workdir: Path) -> None:
  """Creates the folder, or raises InputError if nothing can be put there."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  except OSError as e:
    raise InputError(
      f"cannot write: {e.strerror}, in {workdir}; choose another workdir"
    ) from e
