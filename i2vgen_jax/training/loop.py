"""The training loop, read from top to bottom."""

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from i2vgen_jax import processes
from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import check_writable, write_json
from i2vgen_jax.sharding import (
  global_shapes,
  param_shardings,
  place,
  replicated,
  to_global,
)
from i2vgen_jax.training import overview, record
from i2vgen_jax.training import state as states
from i2vgen_jax.training.checkpoint import Checkpoints
from i2vgen_jax.training.laps import Laps
from i2vgen_jax.training.metrics import (
  MAX_RISE,
  MetricWriter,
  Window,
  Work,
  progress_line,
  say,
)
from i2vgen_jax.training.optimizer import learning_rate_schedule, make_optimizer
from i2vgen_jax.training.profiling import Profiler
from i2vgen_jax.training.step import (
  Metrics,
  PerShape,
  make_train_step,
  step_settings,
)
from i2vgen_jax.training.supervision import (
  StopSignal,
  Watchdog,
  ending_with_others,
)
from i2vgen_jax.training.task import Sums, Task
from i2vgen_jax.types import Batch, Params

# A run stops after this many bad steps in a row; see `Window`.
MAX_BAD = 10
# Number of examples in a sample picture.
PICTURE_ROWS = 4

BatchesFrom = Callable[[int], Iterator[tuple[int, Batch]]]


def train(
  task: Task,
  batches: BatchesFrom,
  config: Any,
  workdir: Path,
  mesh: Mesh,
  *,
  initial_params: Callable[[], Params] | None = None,
  held_out: Callable[[], Iterator[tuple[str, Batch]]] | None = None,
  to_show: Batch | None = None,
  examples: Sequence[Batch] = (),
  peak: float | None = None,
) -> states.TrainState:
  """Trains until `config.train.num_steps`, resuming what is in workdir.

  A run that gets SIGTERM or Ctrl-C saves and returns; the same call resumes
  it.

  A run that diverges, which are `MAX_BAD` bad steps in a row, goes on from the
  last checkpoint before, with the data that come next. Checkpoints of that time
  are set aside.

  Args:
    task: what to train.
    batches: number of the first batch -> endless (number, rows of this
      process).
    config: its group `train` has the settings of `make_optimizer`, and
      batch_size, accumulate, seed, ema_decay, log_every, checkpoint_every,
      sample_every, keep_checkpoints, keep_every, max_rollbacks, stall_timeout,
      wandb.
      All of it is written to workdir/config.json.
    workdir: folder of the run's checkpoints, TensorBoard files, sample
      pictures and logged metrics (see `record`).
    mesh: from `sharding.make_mesh`.
    initial_params: returns weights to start from, and is called only if
      workdir has no checkpoint; None draws them.
    held_out: returns the same few batches of held-out clips at each call, each
      with the name of its kind. Their mean loss under the averaged weights,
      with the same noise each time, is logged as `unseen_loss` whenever a
      sample picture is, as `unseen_loss/KIND` if there are several, and as
      `unseen_loss/PART` for the parts of `Task.held_out_loss`.
    to_show: a batch of which the first rows are in the sample pictures; None
      makes no pictures.
    examples: what one of `config.train.batch_size` rows is in each shape of
      batch that the data have: one row, or several if the clips are smaller.
      Their programs are compiled before the first step; others are compiled
      when they come.
    peak: operations a second of all devices, for their utilisation; None
      leaves that out.

  Returns:
    The last state.

  Raises:
    InputError: a count is not positive, workdir cannot be written or has the
      checkpoints of another model, the data end early, or the run diverges
      more than `max_rollbacks` times, or before its first checkpoint.
  """
  c = config.train
  check_counts(c)
  make_workdir(workdir)

  # ---- Everything that is compiled ----
  tx, rate = make_optimizer(c), learning_rate_schedule(c)
  abstract = states.abstract_state(task.init_params, tx, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  train_step = PerShape(
    make_train_step(shardings, loss_fn=task.loss, tx=tx, **step_settings(c))
  )
  loss_fn = jax.jit(task.held_out_loss, out_shardings=replicated(mesh))
  draw = jax.jit(task.sample_picture, out_shardings=replicated(mesh))
  shown = jax.tree.map(lambda x: x[:PICTURE_ROWS], to_show)

  laps = Laps()
  with (
    Checkpoints(workdir, c.keep_checkpoints, c.keep_every) as checkpoints,
    MetricWriter(workdir, c.wandb) as writer,
    Profiler(workdir) as profiler,
    StopSignal() as stop,
    Watchdog(c.stall_timeout, laps),
    # For the kernels, which run on each device's part.
    jax.set_mesh(mesh),
    # The last, as the exit of those above would wait for a lost process.
    ending_with_others(),
  ):
    frozen = place(task.frozen, param_shardings(task.frozen, mesh))

    # ---- Resume, or start ----
    state = checkpoints.restore_newest(abstract)
    if state is None and initial_params is not None:
      state = states.state_from(initial_params(), tx, shardings)
    elif state is None:
      state = states.init_state(task.init_params, tx, c.seed, shardings)
    done = int(state.step)
    is_first = processes.is_first()
    if is_first:
      # Only once the state fits: the folder may be another run's.
      record.resume(workdir, done)
      write_json(workdir / record.CONFIG, config.to_dict())
      for line in overview.write(workdir, abstract, frozen):
        say(line)
    laps.end("start")
    for example in examples if done < c.num_steps else ():
      num_rows = c.batch_size * len(example.index)
      shapes = global_shapes(example, mesh, num_rows)
      train_step.compile(abstract, frozen, shapes)
      laps.end("compile")
    processes.wait_for_all("compiled programs")
    laps.end("compile")
    say(f"training from step {done} to {c.num_steps} in {workdir}")

    # ---- Train ----
    def read(done: int) -> Iterator[tuple[int, Batch]]:
      numbered = batches(done + checkpoints.skipped)
      missing = max(c.num_steps - done, 0)
      return _placed_ahead(itertools.islice(numbered, missing), mesh)

    data, pending, window, rollbacks = read(done), None, Window(done), 0
    key = states.step_key(c.seed)
    while done < c.num_steps:
      laps.end("train")
      _, batch = next(data, (None, None))
      if batch is None:
        raise InputError(
          f"the data ended after step {done} of {c.num_steps}; the reader "
          "must repeat them endlessly"
        )
      # Reading costs nothing while the device is at work.
      laps.end("train" if _is_busy(pending) else "data")
      state, metrics = train_step(state, frozen, batch)
      rows = len(batch.index)
      work = Work(rows, rows * batch.num_frames, train_step.flops(batch))
      done += 1
      # The device works on this step while the host reads the one before.
      if pending is not None:
        window.add(*jax.device_get(pending))
      pending = metrics, work
      stopping = stop.caught or checkpoints.reached_preemption(done)
      last = stopping or done == c.num_steps

      # ---- Log ----
      values = {}
      if last or done % c.log_every == 0:
        window.add(*jax.device_get(pending))
        pending = None
        laps.end("train")
        values = window.report(peak) | laps.report()
        values |= {
          "learning_rate": float(rate(done - 1)),
          "rollbacks": rollbacks,
        }
        say(progress_line(done, c.num_steps, values))
      if window.bad_in_a_row >= MAX_BAD:
        checkpoints.set_aside_after(window.sound)
        good = checkpoints.latest_step()
        if good is None or rollbacks == c.max_rollbacks:
          raise InputError(_diverged(done, workdir, good or 0))
        rollbacks += 1
        position = done + checkpoints.skipped
        state = checkpoints.restore_newest(abstract)
        # An older one than `good` if that is damaged.
        bad, done = done, int(state.step)
        say(
          f"the run diverged at step {bad}; it goes on from step {done} with "
          f"the next data, rollback {rollbacks} of {c.max_rollbacks}"
        )
        pending, window = None, Window(done)
        checkpoints.skipped = position - done
        data = read(done)
        if is_first:
          record.resume(workdir, done)
        continue

      # ---- Evaluate, and save ----
      # 0 is never.
      due = c.sample_every and (last or done % c.sample_every == 0)
      evaluating = due and not stopping
      if evaluating and held_out is not None:
        losses = _mean_losses(
          functools.partial(loss_fn, state.ema_params, frozen, rng=key),
          held_out(),
          mesh,
        )
        values |= losses
        loss = losses["unseen_loss"]
        say(f"step {done}/{c.num_steps}  loss on held-out clips {loss:.4f}")
        laps.end("evaluate")
      # A good checkpoint never gives way to one of weights that diverge.
      if last or (not window.bad_in_a_row and done % c.checkpoint_every == 0):
        jax.block_until_ready(state)
        laps.end("train")
        save = checkpoints.save_last if last else checkpoints.save
        save(done, state, values.get("unseen_loss"))
        laps.end("checkpoint")
      picture = None
      if evaluating and to_show is not None:
        # Two programs with collectives at once can starve a CPU's threads.
        jax.block_until_ready(state)
        picture = draw(state.ema_params, frozen, shown)
        laps.end("evaluate")
      with _reporting_full_disk():
        if values:
          writer.scalars(done, values)
        if picture is not None:
          writer.picture(done, np.asarray(picture))
        if is_first and values:
          record.append(workdir, done, values)
        if is_first and evaluating:
          record.draw(workdir)
        profiler.after_step(done, look=bool(values))
      if stopping:
        say(f"stopped and saved at step {done} of {c.num_steps}")
        break
  return state


def _diverged(step: int, workdir: Path, good: int) -> str:
  return (
    f"the run diverged: {MAX_BAD} steps without a finite gradient, or with a "
    f"loss above {MAX_RISE} times its median, at step {step} of {workdir}; "
    "lower train.learning_rate or set train.grad_clip, and the same command "
    f"resumes from step {good}"
  )


def _mean_losses(
  loss_fn: Callable[[Batch], tuple[jax.Array, Sums]],
  batches: Iterator[tuple[str, Batch]],
  mesh: Mesh,
) -> dict[str, float]:
  """Mean loss as `unseen_loss`, and of several kinds and parts of batches."""
  losses, sums = collections.defaultdict(list), collections.Counter()
  counts = collections.Counter()
  for kind, batch in _placed_ahead(batches, mesh):
    loss, parts = jax.device_get(loss_fn(batch))
    losses[kind].append(float(loss))
    for part, (total, count) in parts.items():
      sums[part] += total
      counts[part] += count
  values = {"unseen_loss": np.mean([*itertools.chain(*losses.values())])}
  if len(losses) > 1:
    values |= {f"unseen_loss/{k}": np.mean(v) for k, v in losses.items()}
  values |= {f"unseen_loss/{p}": sums[p] / n for p, n in counts.items() if n}
  return {name: float(value) for name, value in values.items()}


def _is_busy(pending: tuple[Metrics, Work] | None) -> bool:
  """Whether the devices still compute a step."""
  return pending is not None and not pending[0]["loss"].is_ready()


@contextlib.contextmanager
def _reporting_full_disk() -> Iterator[None]:
  """Says what could not be logged; a run does not end for that."""
  try:
    yield
  except InputError as e:
    say(f"{e}; the run goes on")


def _placed_ahead(
  batches: Iterator[tuple[Any, Batch]], mesh: Mesh
) -> Iterator[tuple[Any, Batch]]:
  """Puts each batch on the devices while the step before it is running."""
  placed = ((name, to_global(batch, mesh)) for name, batch in batches)
  for current, _next in itertools.pairwise(itertools.chain(placed, [None])):
    yield current


def check_counts(c: Any) -> None:
  """Raises InputError for a count in group `train` that is out of range."""
  counts = ("num_steps", "batch_size", "accumulate", "keep_checkpoints")
  for name in (*counts, "log_every", "checkpoint_every"):
    if c[name] < 1:
      raise InputError(f"train.{name} must be at least 1, got {c[name]}")
  for name in ("sample_every", "keep_every", "max_rollbacks", "stall_timeout"):
    if c[name] < 0:
      raise InputError(f"train.{name} must be at least 0, got {c[name]}")


def make_workdir(workdir: Path) -> None:
  """Creates the folder, or raises InputError if it cannot be written."""
  with writing(workdir, "choose another workdir"):
    workdir.mkdir(parents=True, exist_ok=True)
  check_writable(workdir / "config.json")
