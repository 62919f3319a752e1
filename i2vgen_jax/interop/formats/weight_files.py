"""Opens the weights in a file, in shards with an index, or in a folder."""

import itertools
import os
from pathlib import Path

from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.files import read_json
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
  for stem, fp16 in itertools.product(stems, ("", ".fp16"))
  for name in (f"{stem}{fp16}.{suffix}", f"{stem}.{suffix}.index{fp16}.json")
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
  whole = [path for path in there if has_all_shards(path)]
  return next(iter(whole or there), None)


def read_index(path: Path) -> Tensors:
  """The tensors of all shards that a `*.index.json` names.

  Raises:
    InputError: it is not an index, or index and shards do not agree.
  """
  shard_of = _weight_map(path)
  shards = {n: _open(_shard(path, n)) for n in set(shard_of.values())}
  with reading(path, "use shards and index of one download"):
    for key, name in shard_of.items():
      if key not in shards[name].shapes:
        raise ValueError(f"{key!r} is in the index and not in shard {name}")
    for name, shard in shards.items():
      if extra := sorted(shard.shapes.keys() - shard_of.keys()):
        raise ValueError(
          f"{extra[0]!r} is in shard {name} and not in the index"
        )
  return Tensors(
    where=str(path),
    shapes={key: shards[name].shapes[key] for key, name in shard_of.items()},
    dtypes={key: shards[name].dtypes[key] for key, name in shard_of.items()},
    read=lambda key: shards[shard_of[key]].read(key),
  )


def has_all_shards(path: Path) -> bool:
  """Whether all shards of an index exist; True for any other file."""
  if path.suffix != ".json":
    return True
  return all((path.parent / n).is_file() for n in _weight_map(path).values())


def _open(path: Path, index: bool = False) -> Tensors:
  """The tensors of a file; `index` says whether it may be an index."""
  with reading(path), path.open("rb") as file:
    head = file.read(512)
  if head.startswith(_TORCH):
    return torch_files.read(path)
  # The length of the header comes first, and is far below 2^32.
  if head[4:9] == b"\0\0\0\0{":
    return safetensors_files.read(path)
  if index and head.startswith(b"{"):
    return read_index(path)
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


def _weight_map(path: Path) -> dict[str, str]:
  names = read_json(path, advice="download it again").get("weight_map")
  if not isinstance(names, dict) or not all(
    isinstance(name, str) for name in names.values()
  ):
    raise InputError(
      f"{path} is not an index of shards: it has no `weight_map` of file "
      "names; give the weight file itself"
    )
  return names


def _shard(path: Path, name: str) -> Path:
  """The path of a shard. Links are not resolved: the Hub's cache uses them."""
  if Path(name).is_absolute() or ".." in Path(name).parts:
    raise InputError(
      f"shard {name!r} lies outside of the folder of {path}; nothing was "
      "read, use an index that you trust"
    )
  shard = path.parent / name
  if not os.path.isfile(shard):  # Unlike Path.is_file, it never raises.
    raise InputError(f"no shard {name!r}, which {path} names; copy it there")
  return shard
