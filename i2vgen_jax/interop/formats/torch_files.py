"""Weights as `torch.save` writes them: .pth, .pt, .bin, .ckpt.

Such a file is a pickle, a program that builds objects. It is opened only with
`torch.load(weights_only=True)`, which builds plain tensors and refuses the
rest. A zip file, which torch has written since 1.6, is mapped into memory and
its tensors are copied one at a time; an older file is loaded at once.
"""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.files import replacing
from i2vgen_jax.interop.formats.safetensors_files import DTYPES
from i2vgen_jax.interop.formats.tensors import Tensors

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80\x02"
_ADVICE = "download it again"
# torch and NumPy use the same names.
_DTYPES = {dtype.name: dtype for dtype in DTYPES.values()}


def read(path: Path) -> Tensors:
  """The tensors of the file's `state_dict`, or of the whole if it has none.

  Raises:
    InputError: the file is missing or damaged, holds anything but tensors
      there or a program anywhere; or torch is not installed.
  """
  torch = _torch(path)
  with reading(path, _ADVICE), path.open("rb") as file:
    head = file.read(4)
    if not head.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
      raise ValueError(f"not a torch file, it starts with {head!r}")
    file.seek(0)
    tensors = _state_dict(torch, path, file, is_zip=head == ZIP_MAGIC)
    dtypes = {key: _dtype(key, x) for key, x in tensors.items()}
    if head == ZIP_MAGIC:
      _check_records(path, tensors)

  def read(key: str) -> np.ndarray:
    tensor = tensors[key].detach()
    if tensor.dtype == torch.bfloat16:
      tensor = tensor.view(torch.int16)
    return np.array(tensor.numpy(), order="C").view(dtypes[key])

  shapes = {key: tuple(x.shape) for key, x in tensors.items()}
  return Tensors(str(path), shapes, dtypes, read)


def write(path: Path, tensors: Tensors, step: int | None = None) -> None:
  """Writes `{"state_dict": tensors, "step": step}`, all in memory at once.

  Args:
    path: file to write; it is replaced only once everything is written.
    tensors: what to write.
    step: training step; None leaves it out.

  Raises:
    InputError: the file cannot be written, or torch is not installed.
    ValueError: an array is not of the shape and dtype that `tensors` lists.
  """
  torch = _torch(path)

  def shared(array: np.ndarray) -> "torch.Tensor":
    if array.dtype == jnp.bfloat16:
      return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)

  with warnings.catch_warnings():
    # Arrays of JAX are read-only. Nothing writes to these tensors.
    warnings.simplefilter("ignore", UserWarning)
    state = {key: shared(tensors.read_checked(key)) for key in tensors.shapes}
  extra = {} if step is None else {"step": step}
  with replacing(path) as temporary, temporary.open("wb") as file:
    try:
      torch.save({"state_dict": state, **extra}, file)
    except RuntimeError:
      # torch hides the system's reason, which another write raises again.
      file.write(b"\0")
      file.flush()
      raise


def _state_dict(
  torch: Any, path: Path, file: BinaryIO, is_zip: bool
) -> dict[str, "torch.Tensor"]:
  # torch takes a path that ends like this for a safetensors file.
  mapped = is_zip and path.suffix != ".safetensors"
  try:
    source = str(path) if mapped else file
    content = torch.load(source, "cpu", weights_only=True, mmap=mapped)
  except Exception as e:  # A damaged pickle can raise anything.
    if unsafe := re.search(r"GLOBAL (\S+)", str(e)):
      raise InputError(
        f"{path} holds {unsafe[1]} beside weights, and loading that could run "
        "any program; nothing was run, use a file of tensors or safetensors"
      ) from e
    raise ValueError("torch cannot load it; it holds no torch weights") from e
  if isinstance(content, dict) and "state_dict" in content:
    content = content["state_dict"]
  if not isinstance(content, dict):
    raise ValueError(f"it holds a {type(content).__name__}, not a dict")
  for key, value in content.items():
    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
      raise InputError(
        f"{key!r} is a {type(value).__name__} and not a named tensor, in "
        f"{path}; use a file whose top or `state_dict` holds tensors only"
      )
  return content


def _check_records(path: Path, tensors: dict[str, "torch.Tensor"]) -> None:
  """Raises ValueError where torch maps bytes that are not those of a tensor.

  It neither decompresses records nor compares their size with the pickle.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
  except (zipfile.BadZipFile, NotImplementedError) as e:
    raise ValueError("its zip is damaged") from e
  if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
    raise ValueError("it is a compressed zip")
  sizes = {entry.file_size for entry in entries}
  for key, tensor in tensors.items():
    if tensor.untyped_storage().nbytes() not in sizes:
      raise ValueError(f"the bytes of {key!r} are not in the file")


def _dtype(key: str, tensor: "torch.Tensor") -> np.dtype:
  name = str(tensor.dtype).removeprefix("torch.")
  layout = "negated" if tensor.is_neg() else str(tensor.layout)
  if name not in _DTYPES or layout != "torch.strided":
    raise ValueError(
      f"{key!r} is a {layout} tensor of {name}, not a dense one of "
      f"{', '.join(_DTYPES)}"
    )
  return _DTYPES[name]


def _torch(path: Path) -> Any:
  try:
    import torch
  except ImportError as e:
    raise InputError(
      f"torch is not installed, and {path} needs it; pip install "
      "'i2vgen-jax[interop]' or use the safetensors form"
    ) from e
  return torch
