"""Checkpoints of training states: written during training, restored anywhere.

The folder of a step holds the items `params`, `ema_params`, `optimizer` and
`position` side by side, so that one of them can be read alone. Orbax writes
under a temporary name and renames, and it restores into the shardings of the
given state, whichever mesh wrote the files.

`checksums.json` in the folder of a step has the CRC-32 of each of its files,
but for two that hold nothing of the state. A checkpoint that does not match is
set aside, under the name STEP.damaged, and the one before is used. A checkpoint
that cannot be written, as on a full disk, is reported, and the run goes on.
"""

import contextlib
import operator
import shutil
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from i2vgen_jax import trees
from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import check_checksums, check_file, write_checksums
from i2vgen_jax.interop.formats import native
from i2vgen_jax.processes import from_first, is_first, wait_for_all
from i2vgen_jax.training.metrics import say
from i2vgen_jax.training.state import TrainState
from i2vgen_jax.types import Params

FOLDER = "checkpoints"
# Name of each stored part of a state, and its field.
_FIELDS = {
  "params": "params",
  "ema_params": "ema_params",
  "optimizer": "opt_state",
}
# Name of the loss on held-out clips among the metrics of a checkpoint.
_LOSS = "unseen_loss"
# Files that Orbax writes when a checkpoint gets its final name.
_STAMP, _COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"
# Names of folders that Orbax has not finished.
_UNFINISHED = "*.orbax-checkpoint-tmp*"
# Smaller parts of an array are not divided among its replicas. Otherwise Orbax
# slices each array for each device while the training waits: 8.7 s in place of
# 1.4 s for 6,000 arrays on 8 virtual devices.
_MIN_SLICE_BYTES = 2**20
# Seconds to wait before the last checkpoint of a run is written once more.
_RETRIES = (1, 10, 60)
# What a failed write raises, from Python, Orbax and TensorStore.
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)


class DamagedError(InputError):
  """A checkpoint is incomplete or damaged."""


@contextlib.contextmanager
def _reading(step_dir: Path) -> Iterator[None]:
  """Turns the many errors of Orbax, which are long, into one InputError."""
  try:
    yield
  except InputError:
    raise
  except (OSError, ValueError, KeyError, AttributeError) as e:
    raise DamagedError(
      f"checkpoint incomplete or damaged, in {step_dir}; delete that folder to "
      "resume from the one before"
    ) from e


def _stored_tree(item: Path) -> Any:
  """Descriptions of the arrays of one item of a step."""
  return ocp.PyTreeCheckpointHandler().metadata(item).tree


def load_params(
  workdir: Path, step: int | None = None, name: str = "ema_params"
) -> Params:
  """Weights alone, as host arrays; needs neither optimizer nor mesh.

  Args:
    workdir: folder of the training run.
    step: number of steps done; None is the newest checkpoint.
    name: "ema_params" or "params".

  Raises:
    InputError: there is no such checkpoint, or it is damaged.
  """
  folder = (workdir / FOLDER).absolute()
  steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
  step = max(steps, default=None) if step is None else step
  if step not in steps:
    raise InputError(
      f"no checkpoint{'' if step is None else f' of step {step}'} in "
      f"{folder}; it has {sorted(steps) or 'none'}"
    )
  item = folder / str(step) / name
  check_checksums(item.parent, lambda path: path.startswith(f"{name}/"))
  with _reading(item.parent), native.reader() as reader:
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _stored_tree(item)
    )
    return reader.restore(item, restore_args=as_numpy)


class Checkpoints(contextlib.AbstractContextManager):
  """The checkpoints of one workdir.

  Attributes:
    skipped: number of batches that the run has left out of its data, because
      they came before a divergence; stored with each checkpoint.
  """

  def __init__(self, workdir: Path, keep: int, keep_every: int = 0):
    """Opens or creates the folder.

    Args:
      workdir: folder of the run.
      keep: number of the newest checkpoints that are kept, beside the one with
        the lowest loss on held-out clips.
      keep_every: checkpoints at multiples of it are kept as well; 0 is none.
    """
    self.skipped = 0
    self._folder = (workdir / FOLDER).absolute()
    best = policy.BestN(
      get_metric_fn=operator.itemgetter(_LOSS),
      reverse=True,
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    policies = [policy.LatestN(keep), best]
    if keep_every:
      policies.append(policy.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy.AnyPreservationPolicy(policies),
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
    )
    self._manager = ocp.CheckpointManager(
      self._folder, options=options, item_handlers=_handlers()
    )

  def latest_step(self) -> int | None:
    """Steps done in the newest complete checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(
    self, step: int, state: TrainState, held_out_loss: float | None = None
  ) -> None:
    """Copies the state off the devices and writes it in the background.

    What cannot be written is reported, by a later call at the latest.
    """
    self._finish()
    if step == self.latest_step():
      return
    items = {k: ocp.args.PyTreeSave(v) for k, v in _items(state).items()}
    position = {"step": step, "skipped": self.skipped}
    items["position"] = ocp.args.JsonSave(position)
    metrics = None if held_out_loss is None else {_LOSS: held_out_loss}
    with self._reporting():
      self._manager.save(
        step, args=ocp.args.Composite(**items), metrics=metrics
      )

  def save_last(
    self, step: int, state: TrainState, held_out_loss: float | None = None
  ) -> None:
    """Saves and waits until the files are complete.

    Raises:
      InputError: they cannot be written, tried several times.
    """
    for pause in (0, *_RETRIES):
      time.sleep(pause)
      self.save(step, state, held_out_loss)
      self._finish()
      if self.latest_step() == step:
        return
    raise InputError(
      f"the last checkpoint, of step {step}, cannot be written in "
      f"{self._folder}; free the disk, and the same command resumes from step "
      f"{self.latest_step() or 0}"
    )

  def _finish(self) -> None:
    """Waits for the checkpoint that is being written."""
    with self._reporting():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _reporting(self) -> Iterator[None]:
    """Reports a checkpoint that could not be written, and removes its part."""
    try:
      yield
    except _WRITE_ERRORS as e:
      reason = textwrap.shorten(str(e), 200, placeholder="...")
      say(
        f"a checkpoint was not written in {self._folder}: {reason}; free the "
        "disk; the run goes on and writes the next one"
      )
      if is_first():
        for part in self._folder.glob(_UNFINISHED):
          shutil.rmtree(part, ignore_errors=True)
      self._manager.reload()

  def _seal(self) -> None:
    """Writes the checksums of a checkpoint before it gets its final name.

    The thread that writes calls it, on the first process.
    """
    for folder in self._folder.glob(_UNFINISHED):
      write_checksums(folder, (_STAMP, _COMMITTED))

  def restore_newest(self, abstract: TrainState) -> TrainState | None:
    """The state of the newest checkpoint that is intact; None without any.

    Checkpoints that are not are set aside.

    Raises:
      InputError: the checkpoints are of another model, or all are damaged.
    """
    damaged = []
    while (step := self.latest_step()) is not None:
      try:
        self._check(step)
        return self.restore(step, abstract)
      except DamagedError as e:
        damaged.append(step)
        say(f"{e}; it is set aside as {step}.damaged")
        self._set_aside(step, "damaged")
    if damaged:
      raise InputError(
        f"all checkpoints in {self._folder} are damaged, of steps {damaged}; "
        "copy one back, or choose another workdir to begin again"
      )
    return None

  def _check(self, step: int) -> None:
    """Raises DamagedError in all processes if a file of a step is damaged."""
    problem = ""
    if is_first():
      try:
        check_file(self._folder / str(step) / _COMMITTED, "the commit mark")
        check_checksums(self._folder / str(step))
      except InputError as e:
        problem = str(e)
    if from_first(bool(problem)):
      raise DamagedError(problem or f"checkpoint {step} is damaged")

  def set_aside_after(self, step: int) -> None:
    """Renames the checkpoints of later steps to STEP.diverged."""
    self._finish()
    for late in self._manager.all_steps():
      if late > step:
        self._set_aside(late, "diverged")

  def _set_aside(self, step: int, why: str) -> None:
    if is_first():
      folder = self._folder / str(step)
      aside = folder.with_name(f"{step}.{why}")
      with writing(folder):
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    wait_for_all(f"checkpoint {step} set aside")
    self._manager.reload()

  def restore(self, step: int, abstract: TrainState) -> TrainState:
    """The state after `step` steps, in the shardings of `abstract`.

    Raises:
      InputError: the checkpoint is incomplete, or of another model.
    """
    step_dir, targets = self._folder / str(step), _items(abstract)
    with _reading(step_dir):
      for name, target in targets.items():
        stored = trees.shapes_of(_stored_tree(step_dir / name))
        if text := str(trees.compare_shapes(stored, trees.shapes_of(target))):
          raise InputError(
            f"checkpoint {step_dir / name} is of another model: {text}; use "
            "its config, or another workdir"
          )
      items = {
        name: ocp.args.PyTreeRestore(
          target, ocp.checkpoint_utils.construct_restore_args(target)
        )
        for name, target in targets.items()
      }
      items["position"] = ocp.args.JsonRestore()
      found = self._manager.restore(step, args=ocp.args.Composite(**items))
    if found.position["step"] != step:
      raise DamagedError(
        f"checkpoint {step_dir} has the state of step {found.position['step']}"
      )
    # Checkpoints of earlier versions do not have it.
    self.skipped = found.position.get("skipped", 0)
    position = np.int32(step)
    step = jax.device_put(position, abstract.step.sharding)
    return TrainState(step, found.params, found.ema_params, found.optimizer)

  def reached_preemption(self, step: int) -> bool:
    """Whether any process got SIGTERM; the same answer in all of them."""
    return self._manager.reached_preemption(step)

  def __exit__(self, *_: Any) -> None:
    self._finish()
    self._manager.close()


def _handlers() -> dict[str, ocp.CheckpointHandler]:
  """How each item of a step is written."""
  arrays = ocp.type_handlers.ArrayHandler(
    min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES
  )
  registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
  trees = {
    item: ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    for item in _FIELDS
  }
  return trees | {"position": ocp.JsonCheckpointHandler()}


def _items(state: TrainState) -> dict[str, Any]:
  """What is stored of a state, besides its step, by name."""
  return {item: getattr(state, field) for item, field in _FIELDS.items()}
