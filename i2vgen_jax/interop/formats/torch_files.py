"""Weights as `torch.save` writes them: .pth, .pt, .bin, .ckpt.

Such a file is a program that builds objects. Only programs that build plain
tensors are run, by `torch.load(weights_only=True)`; any other is refused.

A file of torch 1.6 or later is a zip without compression. Loaded to torch's
"meta" device, its tensors tell where in the zip their bytes are, so that each
can be read alone. An older file is loaded whole.
"""

import re
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats.disk import read_at, replacing
from i2vgen_jax.interop.formats.safetensors_files import DTYPES
from i2vgen_jax.interop.formats.tensors import Tensors

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80\x02"
# Torch and numpy call these the same.
_DTYPES = {dtype.name: dtype for dtype in DTYPES.values()}


class _Place(NamedTuple):
  """Where a tensor lies in the file; strides count values, not bytes."""

  offset: int
  dtype: np.dtype
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read(path: Path) -> Tensors:
  """The tensors of the file's `state_dict`, or of the whole if it has none.

  Raises:
    InputError: the file is missing, damaged, holds anything but tensors there
      or any program anywhere; or torch is not installed.
  """
  try:
    with path.open("rb") as file:
      head = file.read(4)
  except OSError as e:
    raise InputError(f"cannot read {path}: {e.strerror}; name another") from e
  if head == ZIP_MAGIC:
    return _read_zip(path)
  if head.startswith(PICKLE_MAGIC):
    return _read_old(path)
  raise InputError(
    f"{path} is no torch file, it starts with {head!r}; download it anew"
  )


def write(path: Path, tensors: Tensors, step: int | None = None) -> None:
  """Writes `{"state_dict": tensors, "step": step}`, all in memory at once.

  Args:
    path: of the file, which is replaced only once all is written.
    tensors: what to write.
    step: left out if None.

  Raises:
    InputError: no room, no file can be made there, or torch is not installed.
    ValueError: an array is not of the shape and dtype that `tensors` tells.
  """
  torch = _torch(path)
  state = {key: _to_torch(tensors.read_checked(key)) for key in tensors.shapes}
  extra = {} if step is None else {"step": step}
  with replacing(path) as file:
    said: list[OSError] = []

    def keep(data: Any) -> int:
      try:
        return file.write(data)
      except OSError as e:
        said.append(e)
        raise

    try:
      target = types.SimpleNamespace(write=keep, flush=file.flush)
      torch.save({"state_dict": state, **extra}, target)
    except RuntimeError as e:
      # Torch's own writer hides what the system said.
      raise said[0] if said else e from None


def _read_zip(path: Path) -> Tensors:
  records = _records(path)
  places = {
    key: _place(path, key, tensor, records)
    for key, tensor in _load(path, "meta").items()
  }

  def read(key: str) -> np.ndarray:
    place = places[key]
    span = read_at(path, place.offset, place.dtype, (_span(place),))
    width = place.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
      span, place.shape, [width * stride for stride in place.strides]
    )
    return np.asarray(view, order="C")

  return Tensors(
    where=str(path),
    shapes={key: place.shape for key, place in places.items()},
    dtypes={key: place.dtype for key, place in places.items()},
    read=read,
  )


def _read_old(path: Path) -> Tensors:
  tensors = _load(path, "cpu")

  def read(key: str) -> np.ndarray:
    return _to_numpy(tensors[key].detach().clone())

  return Tensors(
    where=str(path),
    shapes={key: tuple(tensor.shape) for key, tensor in tensors.items()},
    dtypes={key: _dtype(path, key, t) for key, t in tensors.items()},
    read=read,
  )


def _load(path: Path, device: str) -> dict[str, "torch.Tensor"]:
  """The state dict on a device; on "meta" it has no values."""
  torch = _torch(path)
  try:
    # By its path, a file called .safetensors would be taken for one.
    with path.open("rb") as file:
      content = torch.load(file, map_location=device, weights_only=True)
  except Exception as e:  # A damaged pickle can raise anything.
    unsafe = re.search(r"GLOBAL (\S+)", str(e))
    if unsafe:
      raise InputError(
        f"{path} holds {unsafe[1]} beside weights, and loading that could run "
        "anything; nothing was run, use a file of tensors or safetensors"
      ) from e
    raise _broken(path, "torch cannot load it") from e
  if isinstance(content, dict) and "state_dict" in content:
    content = content["state_dict"]
  if not isinstance(content, dict):
    raise _broken(path, f"it holds a {type(content).__name__}, not a dict")
  for key, value in content.items():
    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
      raise InputError(
        f"{key!r} is a {type(value).__name__} and no named tensor, in {path}; "
        "use a file whose top or `state_dict` holds tensors only"
      )
  return content


def _records(path: Path) -> dict[int, int]:
  """Offset and size of the bytes of every record of the zip."""
  try:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
      entries = archive.infolist()
      records = {}
      for entry in entries:
        # The two lengths differ from those of the zip's own directory.
        file.seek(entry.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), "<u2").tolist()
        records[entry.header_offset + 30 + name + extra] = entry.file_size
  except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as e:
    raise _broken(path, "its zip is damaged") from e
  if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
    raise _broken(path, "it is a compressed zip")
  return records


def _place(
  path: Path, key: str, tensor: "torch.Tensor", records: dict[int, int]
) -> _Place:
  """Where a tensor of the meta device lies.

  Torch computes offsets rather than looks them up. In a zip that another tool
  packed they are wrong, hence the check against the zip's own records.
  """
  dtype = _dtype(path, key, tensor)
  storage = tensor.untyped_storage()
  start = getattr(storage, "_checkpoint_offset", None)
  place = _Place(
    (start or 0) + tensor.storage_offset() * dtype.itemsize,
    dtype,
    tuple(tensor.shape),
    tuple(tensor.stride()),
  )
  # Of a tensor that ends beyond its storage, torch makes the storage larger.
  if records.get(start) != storage.nbytes():
    raise _broken(path, f"the bytes of {key!r} are not where torch puts them")
  return place


def _span(place: _Place) -> int:
  """How many values lie from the tensor's first to its last."""
  if 0 in place.shape:
    return 0
  steps = zip(place.shape, place.strides, strict=True)
  return 1 + sum((size - 1) * stride for size, stride in steps)


def _dtype(path: Path, key: str, tensor: "torch.Tensor") -> np.dtype:
  """Numpy's dtype of a plain tensor; InputError for any other."""
  name = str(tensor.dtype).removeprefix("torch.")
  layout = "negated" if tensor.is_neg() else str(tensor.layout)
  if name not in _DTYPES or layout != "torch.strided":
    raise InputError(
      f"{key!r} is a {layout} tensor of {name}, in {path}; use dense "
      f"ones of {', '.join(_DTYPES)}"
    )
  return _DTYPES[name]


def _to_torch(array: np.ndarray) -> "torch.Tensor":
  """Shares memory."""
  import torch

  with warnings.catch_warnings():
    # Arrays of JAX are read-only. Nothing writes to these tensors.
    warnings.simplefilter("ignore", UserWarning)
    if array.dtype == jnp.bfloat16:
      return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_numpy(tensor: "torch.Tensor") -> np.ndarray:
  """Shares memory if it is contiguous."""
  import torch

  tensor = tensor.contiguous()
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
  return tensor.numpy()


def _torch(path: Path) -> Any:
  try:
    import torch
  except ImportError as e:
    raise InputError(
      f"torch is not installed, and {path} needs it; pip install "
      "'i2vgen-jax[interop]' or use the safetensors form"
    ) from e
  return torch


def _broken(path: Path, what: str) -> InputError:
  return InputError(
    f"{path} is damaged or holds no torch weights: {what}; download it anew"
  )
