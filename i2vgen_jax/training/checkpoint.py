"""Checkpoints of training states: written during training, restored anywhere.

The folder of a step holds the items `params`, `ema_params`, `optimizer` and
`position` side by side, so that one of them can be read alone. Orbax writes
under a temporary name and renames, and it restores into the shardings of the
given state, whichever mesh wrote the files.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from i2vgen_jax import trees
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import native
from i2vgen_jax.training.state import TrainState
from i2vgen_jax.types import Params

FOLDER = "checkpoints"


@contextlib.contextmanager
def _reading(step_dir: Path) -> Iterator[None]:
  """Turns the many errors of Orbax, which are long, into one InputError."""
  try:
    yield
  except InputError:
    raise
  except (OSError, ValueError, KeyError) as e:
    raise InputError(
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
    items = {k: ocp.args.StandardSave(v) for k, v in _items(state).items()}
    items["position"] = ocp.args.JsonSave({"step": step})
    self._manager.save(step, args=ocp.args.Composite(**items))

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
    position = np.int32(found.position["step"])
    step = jax.device_put(position, abstract.step.sharding)
    return TrainState(step, found.params, found.ema_params, found.optimizer)

  def reached_preemption(self, step: int) -> bool:
    """Whether any process got SIGTERM; the same answer in all of them."""
    return self._manager.reached_preemption(step)

  def __exit__(self, *_: Any) -> None:
    self._manager.wait_until_finished()
    self._manager.close()


def _items(state: TrainState) -> dict[str, Any]:
  """What is stored of a state, besides its step, by name."""
  return {
    "params": state.params,
    "ema_params": state.ema_params,
    "optimizer": state.opt_state,
  }
