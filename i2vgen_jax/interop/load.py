"""Public weights, in any form, as modules and parameters of ours."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from i2vgen_jax.interop import hub, stored
from i2vgen_jax.interop.formats.tensors import weight_dtype
from i2vgen_jax.types import Params

Loaded = tuple[Any, Params]


def load_unet(
  path: str | Path,
  dtype: Any = None,
  *,
  mesh: Mesh | None = None,
  choices: Mapping[str, Any] | None = None,
) -> Loaded:
  """The U-Net of a file, a folder or a repository on the Hub.

  `module.apply({"params": params}, latents, timesteps, ...)`, where `latents`
  is [b f h w c]; see `I2VGenUNet.__call__` for the conditions, and the fields
  of the module for those that its variant has.

  Args:
    path: see `stored.find`, or `owner/name` on the Hub.
    dtype: of weights and computation; None keeps what is stored.
    mesh: splits large weights over its devices.
    choices: values that differ from those of the form; see `Choices`.

  Raises:
    InputError: there is no U-Net, it is damaged, or not of a public variant.
  """
  return _load("unet", path, dtype, mesh, choices)


def load_vae(
  path: str | Path,
  dtype: Any = None,
  *,
  mesh: Mesh | None = None,
  choices: Mapping[str, Any] | None = None,
) -> Loaded:
  """The autoencoder, as `load_unet`; its scaling factor is in the config."""
  return _load("vae", path, dtype, mesh, choices)


def load_text_encoder(
  path: str | Path, dtype: Any = None, *, mesh: Mesh | None = None
) -> Loaded:
  """CLIP's text tower, as `load_unet`."""
  return _load("text_encoder", path, dtype, mesh, None)


def load_image_encoder(
  path: str | Path, dtype: Any = None, *, mesh: Mesh | None = None
) -> Loaded:
  """CLIP's picture tower, as `load_unet`."""
  return _load("image_encoder", path, dtype, mesh, None)


StoredNetwork = stored.StoredNetwork


@dataclasses.dataclass(frozen=True)
class StoredWeights:
  """The networks at a path, not yet read, and the folder of their tokenizer."""

  folder: Path
  networks: dict[str, StoredNetwork]
  tokenizer: Path | None


def open_weights(
  path: str | Path,
  *,
  choices: Mapping[str, Any] | None = None,
  half: bool = False,
) -> StoredWeights:
  """What a path holds, before anything large is read; see `stored.find`."""
  folder = hub.resolve(path, half=half)
  return StoredWeights(
    folder, stored.find(folder, choices), stored.tokenizer_folder(folder)
  )


def _load(name, path, dtype, mesh, choices) -> Loaded:
  folder = hub.resolve(path, half=_is_half(dtype))
  part = folder / name
  if (part / "config.json").is_file():
    folder = part
  network = stored.one(folder, name, choices).load(dtype, mesh)
  return network.module, network.params


def _is_half(dtype: Any) -> bool:
  dtype = weight_dtype(dtype)
  return dtype is not None and dtype.itemsize == 2
