"""Our own form of weights: one folder per network of a cascade.

    CASCADE/vae/            config.json  params/
    CASCADE/text_encoder/   config.json  params/
    CASCADE/image_encoder/  config.json  params/
    CASCADE/tokenizer/      vocab.json  merges.txt
    CASCADE/base/           config.json  params/
    CASCADE/refine/         config.json  params/

`params/` is an Orbax checkpoint. `config.json` has the fields of the module
under `module`, and next to it the settings that belong to the weights.
`params/checksums.json` has the CRC-32 of each file of the checkpoint. Every
process that reads weights checks the files before Orbax opens them; weights
without checksums, of older versions, are read unchecked.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from orbax.checkpoint.options import MultiprocessingOptions

from i2vgen_jax import files
from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.processes import alone
from i2vgen_jax.types import Params

# Up to this many bytes all arrays of a network share one store (OCDBT). Such
# a store is held in memory until it is complete; the arrays of a large
# network get a file each instead.
_MAX_SHARED_BYTES = 2**28
# Paths of these files end in the place of a chunk: .../0 or .../3.0.1.
_CHUNK = re.compile(r"/\d+(\.\d+)*$")


def save(folder: Path, config: dict[str, Any], params: Params) -> None:
  """Writes one network; the folder appears once it is complete.

  Raises:
    InputError: the folder exists, or cannot be written.
  """
  files.check_absent(folder)
  with writing(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing_folder(folder) as temporary:
    write(temporary, config, params)


def write(folder: Path, config: dict[str, Any], params: Params) -> None:
  """Writes one network into an empty folder.

  Raises:
    OSError: the file system refuses.
  """
  text = json.dumps(config, indent=2, sort_keys=True)
  (folder / "config.json").write_text(text + "\n")
  # Orbax takes no relative path.
  place = (folder / "params").absolute()
  try:
    options = alone()
    handler = _handler(params, options)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as writer:
      writer.save(place, args=ocp.args.PyTreeSave(params))
  except ValueError as e:
    # This is how Orbax reports a full disk.
    if reason := re.search(r": ([^:]+) \[os_error_code=", str(e)):
      raise OSError(reason[1]) from e
    raise
  # It names the path at which the files were written.
  (place / "commit_success.txt").unlink(missing_ok=True)
  files.write_checksums(place)


def _handler(
  params: Params, options: MultiprocessingOptions
) -> ocp.PyTreeCheckpointHandler:
  """A handler that writes arrays in place; by default Orbax copies them first.

  The copies serve callers that change arrays before the writing is done.
  """
  handlers = ocp.type_handlers
  registry = handlers.create_type_handler_registry(
    (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, handlers.ArrayHandler()),
  )
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  return ocp.PyTreeCheckpointHandler(
    type_handler_registry=registry,
    use_ocdbt=size <= _MAX_SHARED_BYTES,
    save_concurrent_gb=1,
    multiprocessing_options=options,
  )


def reader() -> ocp.Checkpointer:
  """Reads arrays in this process, whatever other processes do."""
  options = alone()
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
  return ocp.Checkpointer(handler, multiprocessing_options=options)


def digest(params: Params) -> str:
  """32 hexadecimal digits that change with any value or name."""
  whole = hashlib.blake2b(digest_size=16)
  for path, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
    array = np.asarray(leaf)
    whole.update(f"{path} {array.dtype} {array.shape}\n".encode())
    whole.update(np.ascontiguousarray(array).view(np.uint8).data)
  return whole.hexdigest()


def load_config(folder: Path) -> dict[str, Any]:
  """The config of one network.

  Raises:
    InputError: it is missing, damaged, or not the config of a network.
  """
  path = folder / "config.json"
  if not path.exists():
    raise InputError(f"no {folder.name} in {folder.parent}; it needs {path}")
  config = files.read_json(path)
  if not isinstance(config.get("module"), dict):
    raise InputError(
      f"{path} is not the config of a network; it lacks `module`"
    )
  return config


def read(folder: Path) -> Tensors:
  """The arrays of one network by path, for example "mlp/in/kernel".

  The first call of `Tensors.read` reads all of them; each array is released
  once it has been returned.

  Raises:
    InputError: the files are damaged.
  """
  place = (folder / "params").absolute()
  _check_files(place, chunks=False)
  with _checkpointer(place) as checkpointer:
    tree = checkpointer.metadata(place).item_metadata.tree
  leaves = traverse_util.flatten_dict(tree, sep="/")
  held: dict[str, np.ndarray] = {}

  def read(path: str) -> np.ndarray:
    if not held:
      _check_files(place, chunks=True)
      as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
      args = jax.tree.map(lambda _: as_numpy, tree)
      with _checkpointer(place) as checkpointer:
        params = checkpointer.restore(place, restore_args=args)
      held.update(traverse_util.flatten_dict(params, sep="/"))
    return held.pop(path)

  return Tensors(
    where=str(folder),
    shapes={path: leaf.shape for path, leaf in leaves.items()},
    dtypes={path: leaf.dtype for path, leaf in leaves.items()},
    read=read,
  )


def _check_files(place: Path, *, chunks: bool) -> None:
  """Compares files with their checksums, if there are any.

  Args:
    place: folder of the files.
    chunks: whether to check the chunks of large networks, or all other files,
      which Orbax reads to learn the shapes.

  Raises:
    InputError: a file is missing or damaged.
  """
  files.check_checksums(place, lambda name: bool(_CHUNK.search(name)) == chunks)


@contextlib.contextmanager
def _checkpointer(place: Path) -> Iterator[ocp.Checkpointer]:
  """A checkpointer; damage of the arrays at `place` becomes an InputError."""
  try:
    with reader() as checkpointer:
      yield checkpointer
  except (OSError, ValueError, KeyError, AttributeError) as e:
    # The messages of Orbax are pages long.
    raise InputError(
      f"weights missing or damaged, in {place}; copy the folder again"
    ) from e
