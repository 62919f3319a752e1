"""Weights on disk: one folder per network of a cascade.

    CASCADE/vae/            config.json  params/
    CASCADE/text_encoder/   config.json  params/
    CASCADE/image_encoder/  config.json  params/
    CASCADE/tokenizer/      vocab.json  merges.txt
    CASCADE/base/           config.json  params/
    CASCADE/refine/         config.json  params/

`params/` is an Orbax checkpoint. `config.json` has the fields of the module
under `module`, and beside it what the network needs to be used rightly.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Params

# Up to so many bytes all arrays of a network share one store (OCDBT). Such a
# store is held in memory until it is whole; a large network gets a file for
# each array instead.
_ONE_STORE = 2**28


def save(folder: Path, config: dict[str, Any], params: Params) -> None:
  """Writes one network under a temporary name, then renames.

  Raises:
    InputError: the folder exists already, or cannot be written.
  """
  folder = folder.absolute()
  if folder.exists():
    raise InputError(f"{folder} exists already; remove it or name another")
  partial = folder.with_name(f".{folder.name}.partial")
  try:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    text = json.dumps(config, indent=2, sort_keys=True)
    (partial / "config.json").write_text(text + "\n")
    with ocp.Checkpointer(_handler(params)) as writer:
      writer.save(partial / "params", args=ocp.args.PyTreeSave(params))
    # It says on which path of this machine the files were written.
    (partial / "params" / "commit_success.txt").unlink(missing_ok=True)
    os.replace(partial, folder)
  except (OSError, ValueError) as e:
    # Orbax's writer reports a full disk as a ValueError.
    of_system = re.search(r": ([^:]+) \[os_error_code=", str(e))
    if isinstance(e, ValueError) and not of_system:
      raise
    reason = of_system[1] if of_system else e.strerror
    raise InputError(
      f"cannot write {folder}: {reason}; choose another place"
    ) from e
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _handler(params: Params) -> ocp.PyTreeCheckpointHandler:
  """Writes arrays as they are, where Orbax would first copy them all.

  The copies are for those who change them before the writing is done.
  """
  handlers = ocp.type_handlers
  registry = handlers.create_type_handler_registry(
    (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, handlers.ArrayHandler()),
  )
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  return ocp.PyTreeCheckpointHandler(
    type_handler_registry=registry,
    use_ocdbt=size <= _ONE_STORE,
    save_concurrent_gb=1,
  )


def digest(params: Params) -> str:
  """32 hexadecimal digits that any change of a value or a name changes."""
  whole = hashlib.blake2b(digest_size=16)
  for path, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
    array = np.asarray(leaf)
    whole.update(f"{path} {array.dtype} {array.shape}\n".encode())
    whole.update(np.ascontiguousarray(array).view(np.uint8).data)
  return whole.hexdigest()


def load_config(folder: Path) -> dict[str, Any]:
  """The config of one network.

  Raises:
    InputError: there is none, or it is no JSON object.
  """
  path = folder / "config.json"
  try:
    config = json.loads(path.read_text())
  except FileNotFoundError as e:
    raise InputError(
      f"no {folder.name} in {folder.parent}; it needs {path}"
    ) from e
  except (OSError, ValueError) as e:
    raise InputError(f"cannot read {path}: {e}; copy it anew") from e
  if not isinstance(config, dict) or not isinstance(config.get("module"), dict):
    raise InputError(
      f"{path} is not the config of a network; it lacks `module`"
    )
  return config


def load_types(folder: Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of the stored arrays, by path ("a/b/kernel").

  Raises:
    InputError: damaged files.
  """
  with _reading(folder) as (reader, path):
    tree = reader.metadata(path).item_metadata.tree
  leaves = traverse_util.flatten_dict(tree, sep="/")
  return {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for name, leaf in leaves.items()
  }


def load_params(
  folder: Path, abstract_params: Params, dtype: Any = None
) -> Params:
  """The arrays of one network, checked against what its module expects.

  Args:
    folder: of the network.
    abstract_params: shapes that the module's init gives.
    dtype: to convert to; None keeps what is stored.

  Raises:
    InputError: damaged files, or another network's weights.
  """
  with _reading(folder) as (reader, path):
    tree = reader.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    params = reader.restore(path, restore_args=as_numpy)
  _check_shapes(params, abstract_params, folder / "params")
  if dtype is not None:
    params = jax.tree.map(lambda x: x.astype(dtype), params)
  return params


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[tuple[ocp.PyTreeCheckpointer, Path]]:
  """A reader and the path of the arrays; damage becomes an InputError."""
  path = (folder / "params").absolute()
  try:
    with ocp.PyTreeCheckpointer() as reader:
      yield reader, path
  except (OSError, ValueError, KeyError, AttributeError) as e:
    raise InputError(
      f"weights missing or damaged, in {path}; copy them anew"
    ) from e


def _check_shapes(params: Params, abstract: Params, where: Path) -> None:
  stored = traverse_util.flatten_dict(params, sep="/")
  wanted = traverse_util.flatten_dict(abstract, sep="/")
  for path in sorted(stored.keys() | wanted.keys()):
    have = stored[path].shape if path in stored else "absent"
    need = wanted[path].shape if path in wanted else "absent"
    if have != need:
      raise InputError(
        f"weights of another variant: {path} is {have} there and {need} in "
        f"its config, in {where}; use weights and config of one model"
      )
