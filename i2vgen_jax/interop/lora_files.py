"""A LoRA of a U-Net, stored alone.

It is one safetensors file in the layout of diffusers and PEFT: float32 matrices
`unet.MODULE.lora_A.weight` and `unet.MODULE.lora_B.weight`, where MODULE is the
name of a linear layer in diffusers. In files that are written here, the factor
alpha / rank is already part of B, so that every reader applies the same change,
and the metadata names the stage that it is of.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from i2vgen_jax import lora, trees
from i2vgen_jax.errors import InputError, reading, writing
from i2vgen_jax.files import check_absent, replacing_folder
from i2vgen_jax.interop import mapping
from i2vgen_jax.interop.formats import safetensors_files
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.interop.keys.lora import rows_of
from i2vgen_jax.interop.keys.table import Table
from i2vgen_jax.types import Params

FILE = "pytorch_lora_weights.safetensors"
_ALPHA = ".alpha"
# Where diffusers puts the settings of PEFT.
_SETTINGS = "lora_adapter_metadata"

# A and B of each changed kernel, by its path; their product is the change.
Lora = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class StoredLora:
  """A file, of which only names and shapes have been read.

  Attributes:
    stage: base or refine; diffusers has only base stages.
    alpha: numerator of the factor alpha / rank on B; None is the rank.
    tensors: content of the file.
  """

  stage: str
  alpha: float | None
  tensors: Tensors

  def load(self, network: Table, shapes: Mapping[str, trees.Shape]) -> Lora:
    """The LoRA in our layout.

    Args:
      network: table of the U-Net in the form of diffusers.
      shapes: shape of each parameter of the U-Net, by its path.

    Raises:
      InputError: it is of another U-Net, or damaged.
    """
    there = self.tensors.shapes
    used, abstract, alphas = [], {}, {}
    for kernel, (a, b) in rows_of(network).items():
      if not {*a.keys, *b.keys} & there.keys():
        continue
      key = a.key_in(there)
      rank = max([*there.get(key, ()), 1][0], 1)
      width, features = shapes[kernel]
      used += [a, b]
      abstract |= {
        a.path: np.broadcast_to(0.0, (width, rank)),
        b.path: np.broadcast_to(0.0, (rank, features)),
      }
      alphas[kernel] = key.removesuffix(".lora_A.weight") + _ALPHA
    table = Table(tuple(used), frozenset(alphas.values()))
    report = mapping.compare(self.tensors, table, abstract)
    if problems := str(report):
      raise InputError(
        f"this is no LoRA of this U-Net, {self.tensors.where}: {problems}; use "
        "one of a U-Net of the same size"
      )
    leaves = mapping.to_flax(self.tensors.checked(), table, abstract)
    return {k: self._pair(k, leaves, alpha) for k, alpha in alphas.items()}

  def _pair(
    self, kernel: str, leaves: Tensors, alpha_key: str
  ) -> tuple[np.ndarray, np.ndarray]:
    a, b = (leaves.read(p).astype(np.float32) for p in lora.paths(kernel))
    rank, alpha = len(b), self.alpha
    if alpha_key in self.tensors.shapes:
      alpha = float(self.tensors.read(alpha_key))
    if alpha is not None:
      b = b * np.float32(alpha / rank)
    return a, b


def open_lora(path: str | Path) -> StoredLora:
  """The LoRA in a file, or in a folder with a file of the usual name.

  Raises:
    InputError: there is none, or it needs more than A and B.
  """
  path = Path(path).expanduser()
  path = path / FILE if path.is_dir() else path
  tensors = safetensors_files.read(path)
  metadata = safetensors_files.read_metadata(path)
  with reading(path, "download it again"):
    settings = dict(json.loads(metadata.get(_SETTINGS, "{}")))
    settings = {k.removeprefix("unet."): v for k, v in settings.items()}
    if (alpha := settings.get("lora_alpha")) is not None:
      alpha = float(alpha)
  for name in ("use_rslora", "use_dora", "alpha_pattern"):
    if settings.get(name):
      raise InputError(
        f"a LoRA with {name}, in {path}, cannot be used here; merge it with "
        "PEFT first"
      )
  return StoredLora(metadata.get("stage", "base"), alpha, tensors)


def save(
  folder: Path,
  params: Params,
  scale: float,
  network: Table,
  about: Mapping[str, Any],
) -> None:
  """Writes a LoRA into a new folder.

  Args:
    folder: appears once it is complete.
    params: the LoRA; see `i2vgen_jax.lora`.
    scale: alpha / rank, which becomes part of B.
    network: table of the U-Net in the form of diffusers.
    about: metadata; `stage` is read again.

  Raises:
    InputError: the folder exists, or cannot be written.
  """
  arrays = {
    path: np.asarray(leaf) * leaf.dtype.type(scale if "lora_B" in path else 1)
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
  }
  leaves = Tensors(
    where=str(folder),
    shapes={path: array.shape for path, array in arrays.items()},
    dtypes={path: array.dtype for path, array in arrays.items()},
    read=arrays.__getitem__,
  )
  rows = [row for pair in rows_of(network).values() for row in pair]
  table = Table(tuple(row for row in rows if row.path in arrays))
  metadata = {"format": "pt"} | {k: str(v) for k, v in about.items()}
  check_absent(folder)
  with writing(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
  with replacing_folder(folder) as temporary:
    tensors = mapping.to_torch(leaves, table)
    safetensors_files.write(temporary / FILE, tensors, metadata)


def merged(leaves: Tensors, changes: Lora) -> Tensors:
  """The parameters of a network with a LoRA of it, in the same dtypes."""

  def read(path: str) -> np.ndarray:
    array = leaves.read(path)
    if path not in changes:
      return array
    return lora.add(array, *changes[path], 1.0).astype(array.dtype)

  return dataclasses.replace(leaves, read=read)
