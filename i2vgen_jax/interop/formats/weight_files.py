"""Finds the weights in a file or folder, whatever their form."""

import os
from pathlib import Path

from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.interop.formats import safetensors_files, torch_files
from i2vgen_jax.interop.formats.tensors import Tensors

# How diffusers and transformers name their files, in order of preference.
STEMS = {
  "safetensors": ("diffusion_pytorch_model", "model"),
  "bin": ("diffusion_pytorch_model", "pytorch_model"),
}
_NAMES = tuple(
  name
  for suffix, stems in STEMS.items()
  for stem in stems
  for precision in ("", ".fp16")
  for name in (
    f"{stem}{precision}.{suffix}",
    f"{stem}.{suffix}.index{precision}.json",
  )
)
_TORCH = (torch_files.ZIP_MAGIC, torch_files.PICKLE_MAGIC)


def open_tensors(path: Path) -> Tensors:
  """The tensors of a file, or of the weights in a folder.

  Args:
    path: a safetensors or torch file, an index of shards, or a folder. In a
      folder full precision is preferred to fp16. The content of a file
      decides what it is, not its name.

  Raises:
    InputError: there are no weights.
  """
  if os.path.isdir(path):  # Unlike Path.is_dir, it never raises.
    folder, path = path, weights_in(path)
    if path is None:
      raise InputError(
        f"no weights in {folder}; looked for {', '.join(_NAMES)}; give "
        "another folder, or the file itself"
      )
  return _open(path, index=True)


def weights_in(folder: Path) -> Path | None:
  """The file in a folder that diffusers or transformers would open."""
  there = [folder / name for name in _NAMES if os.path.isfile(folder / name)]
  # The Hub's cache may hold an index whose shards were not downloaded.
  whole = [path for path in there if safetensors_files.has_all_shards(path)]
  return next(iter(whole or there), None)


def _open(path: Path, index: bool) -> Tensors:
  """The tensors of a file; `index` says whether it may be an index."""
  with reading(path), path.open("rb") as file:
    head = file.read(512)
  if head.startswith(_TORCH):
    return torch_files.read(path)
  # The length of the header comes first, and is far below 2^32.
  if head[4:9] == b"\0\0\0\0{":
    return safetensors_files.read(path)
  if index and head.startswith(b"{"):
    return safetensors_files.read_index(path, lambda p: _open(p, index=False))
  raise InputError(f"{path} holds no weights: {_describe(head)}")


def _describe(head: bytes) -> str:
  """What a file is instead, from its first bytes, and what to do."""
  if not head:
    return "it is empty; download it again"
  if head.startswith(b"version https://git-lfs"):
    return "it is a git-LFS pointer; run `git lfs pull`"
  if head.lstrip().startswith(b"<"):
    return "it is a web page; download the file itself"
  return f"it starts with {head[:16]!r}; give another or download it again"
