"""Public weights, in any form, as modules and parameters of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from i2vgen_jax.cascade import Cascade
from i2vgen_jax.interop import hub, sources
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
    path: see `sources.find`, or `owner/name` on the Hub.
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


def load_cascade(
  path: str | Path,
  dtype: Any = None,
  *,
  mesh: Mesh | None = None,
  choices: Mapping[str, Any] | None = None,
) -> Cascade:
  """All networks at a path, ready to run; arguments as `load_unet`.

  The tokenizer is that of the folder, in `tokenizer/` or beside the weights.

  Raises:
    InputError: as `load_unet`; or what a stage needs is not there.
  """
  folder = hub.resolve(path, half=_is_half(dtype))
  found = sources.find(folder, choices)
  loaded = {name: source.load(dtype, mesh) for name, source in found.items()}
  tokenizer = sources.tokenizer_folder(folder) or folder / "tokenizer"
  return Cascade.assemble(folder, tokenizer, loaded)


def _load(name, path, dtype, mesh, choices) -> Loaded:
  folder = hub.resolve(path, half=_is_half(dtype))
  part = folder / name
  if (folder / "model_index.json").is_file() and part.is_dir():
    folder = part
  network = sources.one(folder, name, choices).load(dtype, mesh)
  return network.module, network.params


def _is_half(dtype: Any) -> bool:
  return dtype is not None and jnp.dtype(dtype).itemsize == 2
