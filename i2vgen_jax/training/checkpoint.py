"""Training states on disk: written while training goes on, restored anywhere.

A step's folder holds the items `params`, `ema_params`, `optimizer` and
`position` side by side, so that sampling reads one of them alone. Orbax
writes under a temporary name and renames, and it restores into the shardings
of the state it is given, whatever mesh wrote the files.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from i2vgen_jax.errors import InputError
from i2vgen_jax.training.files import replacing
from i2vgen_jax.training.state import TrainState
from i2vgen_jax.types import Params

FOLDER = "checkpoints"


def write_json(path: Path, values: Any) -> None:
  """Readable JSON, whole or not at all."""
  with replacing(path) as partial:
    partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _saved_tree(where: Path, name: str) -> Any:
  """The tree of array descriptions that item `name` of a step has."""
  try:
    return ocp.PyTreeCheckpointHandler().metadata(where / name).tree
  except (OSError, ValueError, KeyError) as e:
    raise _unreadable(where) from e


def _unreadable(where: Path) -> InputError:
  return InputError(
    f"checkpoint incomplete or damaged, in {where}; delete that folder to go "
    "on from the one before"
  )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }


def check_same(saved: Any, wanted: Any, where: Path) -> None:
  """Raises InputError that names the first path where two trees differ."""
  saved, wanted = _shapes(saved), _shapes(wanted)
  for path in sorted(saved.keys() | wanted.keys()):
    if saved.get(path) != wanted.get(path):
      raise InputError(
        f"checkpoint of another model: {path} is "
        f"{saved.get(path, 'absent')} there and "
        f"{wanted.get(path, 'absent')} in this config, in {where}; use its "
        "config, or another workdir"
      )


def load_params(
  workdir: Path, step: int | None = None, name: str = "ema_params"
) -> Params:
  """Weights alone, as host arrays; neither optimizer nor mesh is needed.

  Args:
    workdir: of the training run.
    step: steps done; None is the newest.
    name: "ema_params" or "params".

  Raises:
    InputError: no such checkpoint, or a damaged one.
  """
  folder = (workdir / FOLDER).absolute()
  steps = _steps(folder)
  step = max(steps, default=None) if step is None else step
  if step not in steps:
    raise InputError(
      f"no checkpoint{'' if step is None else f' of step {step}'} in "
      f"{folder}; it has {sorted(steps) or 'none'}"
    )
  where = folder / str(step)
  tree = _saved_tree(where, name)
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
  )
  try:
    with ocp.PyTreeCheckpointer() as reader:
      return reader.restore(where / name, restore_args=as_numpy)
  except (OSError, ValueError, KeyError) as e:
    raise _unreadable(where) from e


def _steps(folder: Path) -> list[int]:
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return [int(name) for name in names if name.isdigit()]


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: Path, keep: int):
    """Opens or creates the folder; the newest `keep` steps survive."""
    self._folder = (workdir / FOLDER).absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  def latest_step(self) -> int | None:
    """Steps done in the newest complete checkpoint; None without one."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState) -> None:
    """Copies the state off the devices and writes it in the background."""
    if step == self.latest_step():
      return
    save = ocp.args.StandardSave
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=save(state.params),
        ema_params=save(state.ema_params),
        optimizer=save(state.opt_state),
        position=ocp.args.JsonSave({"step": step}),
      ),
    )

  def restore(self, step: int, abstract: TrainState) -> TrainState:
    """The state after `step` steps, in the shardings of `abstract`.

    Raises:
      InputError: the checkpoint is incomplete, or of another model.
    """
    where = self._folder / str(step)
    targets = {
      "params": abstract.params,
      "ema_params": abstract.ema_params,
      "optimizer": abstract.opt_state,
    }
    for name, target in targets.items():
      check_same(_saved_tree(where, name), target, where / name)
    restore = ocp.args.StandardRestore
    items = {name: restore(target) for name, target in targets.items()}
    try:
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(position=ocp.args.JsonRestore(), **items),
      )
    except (OSError, ValueError, KeyError) as e:
      raise _unreadable(where) from e
    position = jax.device_put(
      jax.numpy.int32(found.position["step"]), abstract.step.sharding
    )
    return TrainState(
      step=position,
      params=found.params,
      ema_params=found.ema_params,
      opt_state=found.optimizer,
    )

  def reached_preemption(self, step: int) -> bool:
    """Whether some process of several was told to stop; same on all."""
    return self._manager.reached_preemption(step)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._manager.wait_until_finished()
    self._manager.close()
