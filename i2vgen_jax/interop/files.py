"""Finds the weights in a file or folder, whatever their form."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import safetensors_files, torch_files
from i2vgen_jax.interop.tensors import Tensors

_TORCH = (torch_files.ZIP_MAGIC, torch_files.PICKLE_MAGIC)


def open_tensors(path: Path, variant: str | None = None) -> Tensors:
  """The tensors of a file, or of the weights that a folder has.

  Args:
    path: a safetensors or torch file, an index of shards, or a folder. What a
      file is, its content says, not its name.
    variant: of a folder, the one to take, as "fp16"; None takes full
      precision, or fp16 where that is all there is.

  Raises:
    InputError: nothing there, or nothing that is weights.
  """
  if os.path.isdir(path):  # Unlike Path's, it never raises.
    path = _find(path, variant)
  try:
    with path.open("rb") as file:
      head = file.read(512)
  except OSError as e:
    raise InputError(f"cannot read {path}: {e.strerror}; name another") from e
  if head.startswith(_TORCH):
    return torch_files.read(path)
  # Its length comes first, and is far below 2^32.
  if head[4:9] == b"\0\0\0\0{":
    return safetensors_files.read(path)
  if head.startswith(b"{"):
    return safetensors_files.read_index(path)
  raise InputError(f"{path} holds no weights: {_what(head)}")


def finite(tensors: Tensors) -> Tensors:
  """The same; reading one with NaN or infinity raises InputError."""

  def read(key: str) -> np.ndarray:
    array = tensors.read(key)
    if array.dtype.kind in "iub":
      return array
    count = array.size - np.count_nonzero(np.isfinite(array))
    if count:
      raise InputError(
        f"{count} of {array.size} values of {key!r} are NaN or infinite, in "
        f"{tensors.where}; use weights that are whole"
      )
    return array

  return dataclasses.replace(tensors, read=read)


def _find(folder: Path, variant: str | None) -> Path:
  names = _names(variant)
  for name in names:
    if os.path.isfile(folder / name):
      return folder / name
  raise InputError(
    f"no weights in {folder}; looked for {', '.join(names)}; name another "
    "folder, or the file itself"
  )


def _names(variant: str | None) -> list[str]:
  """What diffusers and transformers call their files, the best first."""
  if variant is None:
    variants = ["", ".fp16"]
    bins = [""]
  else:
    variants = bins = [f".{variant}"]
  return [
    *(
      name
      for stem in ("diffusion_pytorch_model", "model")
      for part in variants
      for name in (
        f"{stem}{part}.safetensors",
        f"{stem}.safetensors.index{part}.json",
      )
    ),
    *(
      f"{stem}{part}.bin"
      for stem in ("diffusion_pytorch_model", "pytorch_model")
      for part in bins
    ),
  ]


def _what(head: bytes) -> str:
  """What a file is instead, from its first bytes, and what to do."""
  if not head:
    return "it is empty; download it anew"
  if head.startswith(b"version https://git-lfs"):
    return "it is a git-LFS pointer; run `git lfs pull`"
  if head.lstrip().startswith(b"<"):
    return "it is a web page; download the file itself"
  return f"it starts with {head[:16]!r}; name another or download it anew"
