"""Finds the weights in a file or folder, whatever their form."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import safetensors_files, torch_files
from i2vgen_jax.interop.formats.tensors import Tensors

_TORCH = (torch_files.ZIP_MAGIC, torch_files.PICKLE_MAGIC)


def open_tensors(path: Path) -> Tensors:
  """The tensors of a file, or of the weights that a folder has.

  Args:
    path: a safetensors or torch file, an index of shards, or a folder, of
      which full precision is taken, or fp16 where that is all there is. What
      a file is, its content says, not its name.

  Raises:
    InputError: nothing there, or nothing that is weights.
  """
  if os.path.isdir(path):  # Unlike Path's, it never raises.
    path = _find(path)
  return _open(path, index=True)


def weights_in(folder: Path) -> Path | None:
  """The file in a folder that diffusers or transformers would open."""
  some = [folder / name for name in _NAMES if os.path.isfile(folder / name)]
  # The Hub's cache may hold the index of weights that were not asked for.
  whole = [path for path in some if safetensors_files.is_whole(path)]
  return next(iter(whole or some), None)


def _open(path: Path, index: bool) -> Tensors:
  """The tensors of a file; of an index only where that may be one."""
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
  if index and head.startswith(b"{"):
    return safetensors_files.read_index(path, lambda p: _open(p, index=False))
  raise InputError(f"{path} holds no weights: {_what(head)}")


def checked(tensors: Tensors) -> Tensors:
  """The same; reading one that is no weight raises InputError.

  That is one of whole numbers, or one with NaN or infinity.
  """

  def read(key: str) -> np.ndarray:
    array = tensors.read(key)
    if array.dtype.kind in "iub":
      raise InputError(
        f"{key!r} is {array.dtype} and weights are floating point, in "
        f"{tensors.where}; use weights that are not quantised"
      )
    count = array.size - np.count_nonzero(np.isfinite(array))
    if count:
      raise InputError(
        f"{count} of {array.size} values of {key!r} are NaN or infinite as "
        f"{array.dtype}, in {tensors.where}; use whole weights or another dtype"
      )
    return array

  return dataclasses.replace(tensors, read=read)


def _find(folder: Path) -> Path:
  path = weights_in(folder)
  if path is None:
    raise InputError(
      f"no weights in {folder}; looked for {', '.join(_NAMES)}; name another "
      "folder, or the file itself"
    )
  return path


# What diffusers and transformers call their files, the best first.
_NAMES = tuple(
  name
  for form, stems in (
    ("safetensors", ("diffusion_pytorch_model", "model")),
    ("bin", ("diffusion_pytorch_model", "pytorch_model")),
  )
  for stem in stems
  for part in ("", ".fp16")
  for name in (f"{stem}{part}.{form}", f"{stem}.{form}.index{part}.json")
)


def _what(head: bytes) -> str:
  """What a file is instead, from its first bytes, and what to do."""
  if not head:
    return "it is empty; download it anew"
  if head.startswith(b"version https://git-lfs"):
    return "it is a git-LFS pointer; run `git lfs pull`"
  if head.lstrip().startswith(b"<"):
    return "it is a web page; download the file itself"
  return f"it starts with {head[:16]!r}; name another or download it anew"
