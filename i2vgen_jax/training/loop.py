"""The training loop, read from top to bottom."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from i2vgen_jax import processes
from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import check_writable, write_json
from i2vgen_jax.sharding import param_shardings, place, replicated, to_global
from i2vgen_jax.training import record
from i2vgen_jax.training import state as states
from i2vgen_jax.training.checkpoint import Checkpoints
from i2vgen_jax.training.metrics import (
  MAX_RISE,
  MetricWriter,
  Window,
  progress_line,
  say,
)
from i2vgen_jax.training.optimizer import make_optimizer
from i2vgen_jax.training.step import make_train_step
from i2vgen_jax.training.task import Task
from i2vgen_jax.types import Batch, Params

# A run stops after this many bad steps in a row; see `Window`.
MAX_BAD = 10
# Number of examples in a sample picture.
PICTURE_ROWS = 4

BatchesFrom = Callable[[int], Iterator[tuple[int, Batch]]]


class _StopSignal:
  """Records SIGTERM in place of ending the process; Ctrl-C becomes SIGTERM.

  A second Ctrl-C ends the process at once, not by an exception, which a
  callback of JAX could swallow.

  Several processes may each get the signal at another step; there the runtime
  of JAX catches SIGTERM and agrees on one step, so it is left alone.
  """

  def __init__(self):
    self.caught = False
    self._interrupted = False
    self._before: dict[signal.Signals, Any] = {}

  def _terminate(self, *_: Any) -> None:
    self.caught = True

  def _interrupt(self, *_: Any) -> None:
    if self._interrupted:
      os._exit(130)
    self._interrupted = True
    say("stops and saves after this step; Ctrl-C again ends the run at once")
    os.kill(os.getpid(), signal.SIGTERM)

  def __enter__(self) -> "_StopSignal":
    handlers = {signal.SIGINT: self._interrupt}
    if jax.process_count() == 1:
      handlers[signal.SIGTERM] = self._terminate
    self._before = {s: signal.signal(s, h) for s, h in handlers.items()}
    return self

  def __exit__(self, *_: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)


def train(
  task: Task,
  batches: BatchesFrom,
  config: Any,
  workdir: Path,
  mesh: Mesh,
  *,
  initial_params: Callable[[], Params] | None = None,
  held_out: Callable[[], Iterator[Batch]] | None = None,
  to_show: Batch | None = None,
) -> states.TrainState:
  """Trains until `config.train.num_steps`, resuming what is in workdir.

  A run that gets SIGTERM or Ctrl-C saves and returns; the same call resumes
  it.

  Args:
    task: what to train.
    batches: start step -> endless (step, rows of this process).
    config: its group `train` has the settings of `make_optimizer`, and
      batch_size, seed, ema_decay, log_every, checkpoint_every, sample_every,
      keep_checkpoints. All of it is written to workdir/config.json.
    workdir: folder of the run's checkpoints, TensorBoard files, sample
      pictures and logged metrics (see `record`).
    mesh: from `sharding.make_mesh`.
    initial_params: returns weights to start from, and is called only if
      workdir has no checkpoint; None draws them.
    held_out: returns the same few batches of held-out clips at each call.
      Their mean loss under the averaged weights, with the same noise each
      time, is logged as `unseen_loss` whenever a sample picture is.
    to_show: a batch of which the first rows are in the sample pictures; None
      makes no pictures.

  Returns:
    The last state.

  Raises:
    InputError: a count is not positive, workdir cannot be written or has the
      checkpoints of another model, the data end early, or the run diverges:
      `MAX_BAD` steps in a row are bad, after which checkpoints of that time are
      set aside.
  """
  c = config.train
  check_counts(c)
  make_workdir(workdir)

  # ---- Everything that is compiled ----
  tx = make_optimizer(c)
  abstract = states.abstract_state(task.init_params, tx, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  train_step = make_train_step(
    shardings, loss_fn=task.loss, tx=tx, ema_decay=c.ema_decay, seed=c.seed
  )
  loss_fn = jax.jit(task.held_out_loss)
  draw = jax.jit(task.sample_picture, out_shardings=replicated(mesh))
  shown = jax.tree.map(lambda x: x[:PICTURE_ROWS], to_show)
  frozen = place(task.frozen, param_shardings(task.frozen, mesh))

  with (
    Checkpoints(workdir, c.keep_checkpoints) as checkpoints,
    MetricWriter(workdir) as writer,
    _StopSignal() as stop,
    # For the kernels, which run on each device's part.
    jax.set_mesh(mesh),
  ):
    # ---- Resume, or start ----
    state = checkpoints.restore_newest(abstract)
    if state is None and initial_params is not None:
      state = states.state_from(initial_params(), tx, shardings)
    elif state is None:
      state = states.init_state(task.init_params, tx, c.seed, shardings)
    start = int(state.step)
    is_first = processes.is_first()
    if is_first:
      # Only once the state fits: the folder may be another run's.
      record.resume(workdir, start)
      write_json(workdir / record.CONFIG, config.to_dict())
    say(f"training from step {start} to {c.num_steps} in {workdir}")

    # ---- Train ----
    done, pending, window = start, None, Window(start)
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

      # ---- Log ----
      values = {}
      if last or done % c.log_every == 0:
        window.add(jax.device_get(pending))
        pending = None
        values = window.report()
        writer.scalars(done, values)
        say(progress_line(done, c.num_steps, values))
      if window.bad_in_a_row >= MAX_BAD:
        checkpoints.set_aside_after(window.sound)
        raise InputError(
          f"the run diverged: {MAX_BAD} steps without a finite gradient, or "
          f"with a loss above {MAX_RISE} times its median, at step {done} of "
          f"{workdir}; lower train.learning_rate or set train.grad_clip, and "
          f"the same command resumes from step {checkpoints.latest_step() or 0}"
        )

      # ---- Save, and evaluate ----
      # A good checkpoint never gives way to one of weights that diverge.
      sound = not window.bad_in_a_row
      if last or (sound and done % c.checkpoint_every == 0):
        checkpoints.save(done, state)
      # 0 is never.
      due = c.sample_every and (last or done % c.sample_every == 0)
      evaluating = due and not stopping
      if evaluating and held_out is not None:
        losses = [
          loss_fn(state.ema_params, frozen, batch, states.step_key(c.seed))
          for _, batch in _placed_ahead(enumerate(held_out()), mesh)
        ]
        value = float(np.mean(jax.device_get(losses)))
        values = values | {"unseen_loss": value}
        writer.scalars(done, {"unseen_loss": value})
        say(f"step {done}/{c.num_steps}  loss on held-out clips {value:.4f}")
      if is_first and values:
        record.append(workdir, done, values)
      if is_first and evaluating:
        record.draw(workdir)
      if evaluating and to_show is not None:
        # Two programs with collectives at once can starve a CPU's threads.
        jax.block_until_ready(state)
        picture = draw(state.ema_params, frozen, shown)
        if picture is not None:
          writer.picture(done, np.asarray(picture))
      if stopping:
        say(f"stopped and saved at step {done} of {c.num_steps}")
        break
    else:
      if done < c.num_steps:
        raise InputError(
          f"the data ended after step {done} of {c.num_steps}; the reader "
          "must repeat them endlessly"
        )
  return state


def _placed_ahead(
  batches: Iterator[tuple[int, Batch]], mesh: Mesh
) -> Iterator[tuple[int, Batch]]:
  """Puts each batch on the devices while the step before it is running."""
  placed = ((step, to_global(batch, mesh)) for step, batch in batches)
  for current, _next in itertools.pairwise(itertools.chain(placed, [None])):
    yield current


def check_counts(c: Any) -> None:
  """Raises InputError for a count in group `train` that is not positive."""
  counts = ("num_steps", "batch_size", "keep_checkpoints")
  for name in (*counts, "log_every", "checkpoint_every"):
    if c[name] < 1:
      raise InputError(f"train.{name} must be at least 1, got {c[name]}")
  if c.sample_every < 0:
    raise InputError(
      f"train.sample_every must be at least 0, got {c.sample_every}; 0 is never"
    )


def make_workdir(workdir: Path) -> None:
  """Creates the folder, or raises InputError if it cannot be written."""
  with writing(workdir, "choose another workdir"):
    workdir.mkdir(parents=True, exist_ok=True)
  check_writable(workdir / "config.json")
