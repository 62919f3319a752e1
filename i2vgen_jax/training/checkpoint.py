"""Checkpoints of training states: written during training, restored anywhere.

The folder of a step holds the items `params`, `ema_params`, `optimizer` and
`position` side by side, so that one of them can be read alone. Orbax writes
under a temporary name and renames, and it restores into the shardings of the
given state, whichever mesh wrote the files.

`checksums.json` in the folder of a step has the CRC-32 of each of its files. A
checkpoint that does not match is set aside, under the name STEP.damaged, and
the one before is used.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from i2vgen_jax import trees
from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import CHECKSUMS, check_checksums, write_checksums
from i2vgen_jax.interop.formats import native
from i2vgen_jax.processes import from_first, is_first, wait_for_all
from i2vgen_jax.training.metrics import say
from i2vgen_jax.training.state import TrainState
from i2vgen_jax.types import Params

FOLDER = "checkpoints"


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
  """The checkpoints of one workdir."""

  def __init__(self, workdir: Path, keep: int):
    """Opens or creates the folder; only the newest `keep` steps are kept."""
    self._folder = (workdir / FOLDER).absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def latest_step(self) -> int | None:
    """Steps done in the newest complete checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState) -> None:
    """Copies the state off the devices and writes it in the background."""
    if step == self.latest_step():
      return
    self._seal()
    items = {k: ocp.args.StandardSave(v) for k, v in _items(state).items()}
    items["position"] = ocp.args.JsonSave({"step": step})
    self._manager.save(step, args=ocp.args.Composite(**items))

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
        check_checksums(self._folder / str(step))
      except InputError as e:
        problem = str(e)
    if from_first(bool(problem)):
      raise DamagedError(problem or f"checkpoint {step} is damaged")

  def set_aside_after(self, step: int) -> None:
    """Renames the checkpoints of later steps to STEP.diverged."""
    self._manager.wait_until_finished()
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

  def _seal(self) -> None:
    """Writes the checksums of checkpoints that are complete."""
    self._manager.wait_until_finished()
    for step in self._manager.all_steps() if is_first() else ():
      folder = self._folder / str(step)
      if not (folder / CHECKSUMS).exists():
        write_checksums(folder)

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
      items = {k: ocp.args.StandardRestore(v) for k, v in targets.items()}
      items["position"] = ocp.args.JsonRestore()
      found = self._manager.restore(step, args=ocp.args.Composite(**items))
    if found.position["step"] != step:
      raise DamagedError(
        f"checkpoint {step_dir} has the state of step {found.position['step']}"
      )
    position = np.int32(step)
    step = jax.device_put(position, abstract.step.sharding)
    return TrainState(step, found.params, found.ema_params, found.optimizer)

  def reached_preemption(self, step: int) -> bool:
    """Whether any process got SIGTERM; the same answer in all of them."""
    return self._manager.reached_preemption(step)

  def __exit__(self, *_: Any) -> None:
    self._seal()
    self._manager.close()


def _items(state: TrainState) -> dict[str, Any]:
  """What is stored of a state, besides its step, by name."""
  return {
    "params": state.params,
    "ema_params": state.ema_params,
    "optimizer": state.opt_state,
  }
