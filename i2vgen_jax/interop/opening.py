"""Opens weights in any form.

| path | networks |
|---|---|
| a cascade folder of ours, or one network of it | all that are there |
| a diffusers folder with `model_index.json` | unet, vae, both CLIP towers |
| a part of such a folder | those that are there |
| one component of such a folder | that one |
| a .safetensors, .pth, .pt, .bin or .ckpt file | those that its keys show |
| any other folder | those of every such file in it |
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError, reading
from i2vgen_jax.files import read_json
from i2vgen_jax.interop import hub, lora_files
from i2vgen_jax.interop.formats import diffusers_folder, weight_files
from i2vgen_jax.interop.formats.diffusers_folder import PARTS
from i2vgen_jax.interop.formats.tensors import weight_dtype
from i2vgen_jax.interop.recognise import recognise
from i2vgen_jax.interop.stored import StoredNetwork, from_file, from_native
from i2vgen_jax.models import build
from i2vgen_jax.types import Params

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

Loaded = tuple[Any, Params]
Networks = dict[str, StoredNetwork]


@dataclasses.dataclass(frozen=True)
class StoredWeights:
  """The networks at a path, not read yet.

  Attributes:
    folder: the path on this machine; a file or a folder.
    networks: the networks by name: vae, text_encoder, image_encoder, base,
      refine.
    tokenizer: folder of their tokenizer; None if there is none.
  """

  folder: Path
  networks: Networks
  tokenizer: Path | None

  def one(self, name: str) -> StoredNetwork:
    """One network; `unet` is the only U-Net, `base` or `refine`.

    Raises:
      InputError: there is none, or more than one.
    """
    names = ("base", "refine") if name == "unet" else (name,)
    found = [self.networks[n] for n in names if n in self.networks]
    if len(found) != 1:
      raise InputError(
        f"{'more than one' if found else 'no'} {name} in {self.folder}, which "
        f"holds {', '.join(self.networks)}; give a file or folder that has one"
      )
    return found[0]

  def in_dtype(self, dtype: Any) -> "StoredWeights":
    """The same with networks that compute in a dtype; None changes nothing."""
    if dtype is None:
      return self
    networks = {
      name: dataclasses.replace(stored, module=stored.module.clone(dtype=dtype))
      for name, stored in self.networks.items()
    }
    return dataclasses.replace(self, networks=networks)

  def with_lora(
    self, path: str | Path, scale: float | int = 1.0
  ) -> "StoredWeights":
    """The same weights with a LoRA added to one of the U-Nets.

    Args:
      path: a file, or a folder with it; see `interop.lora_files`.
      scale: factor on the change that it makes.

    Raises:
      InputError: it is not one, or of a U-Net that is not here.
    """
    stored = lora_files.open_lora(path)
    if stored.stage not in self.networks:
      raise InputError(
        f"{path} is a LoRA of a {stored.stage} stage, and none is used of "
        f"{self.folder}; use it with one"
      )
    changed = self.networks[stored.stage].with_lora(stored, scale)
    networks = {**self.networks, stored.stage: changed}
    return dataclasses.replace(self, networks=networks)


def open_weights(
  path: str | Path,
  *,
  choices: Mapping[str, Any] | None = None,
  half: bool = False,
) -> StoredWeights:
  """What a path holds, before anything large is read.

  Args:
    path: see the top of this module, or `owner/name` on the Hub.
    choices: values that differ from those of the form; see `Choices`.
    half: whether to prefer the fp16 files of a repository on the Hub.

  Raises:
    InputError: there are no known weights, or two of the same name.
  """
  path = hub.resolve(path, half)
  folder = path if path.is_dir() else path.parent
  words = (folder / "tokenizer", folder)
  return StoredWeights(
    folder=path,
    networks=_find(path, choices or {}),
    tokenizer=next(filter(tokenizer.has_vocabulary, words), None),
  )


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
    path: see the top of this module, or `owner/name` on the Hub.
    dtype: dtype of weights and computation; None keeps what is stored.
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
  """The autoencoder; see `load_unet`."""
  return _load("vae", path, dtype, mesh, choices)


def load_text_encoder(
  path: str | Path, dtype: Any = None, *, mesh: Mesh | None = None
) -> Loaded:
  """CLIP's text tower; see `load_unet`."""
  return _load("text_encoder", path, dtype, mesh)


def load_image_encoder(
  path: str | Path, dtype: Any = None, *, mesh: Mesh | None = None
) -> Loaded:
  """CLIP's image tower; see `load_unet`."""
  return _load("image_encoder", path, dtype, mesh)


def _load(
  name: str,
  path: str | Path,
  dtype: Any,
  mesh: Mesh | None,
  choices: Mapping[str, Any] | None = None,
) -> Loaded:
  known = weight_dtype(dtype)
  folder = hub.resolve(path, half=known is not None and known.itemsize == 2)
  if (folder / name / "config.json").is_file():
    folder = folder / name
  network = open_weights(folder, choices=choices).one(name).load(known, mesh)
  return network.module, network.params


# ---- Folders and files ----


def _find(path: Path, choices: Mapping[str, Any]) -> Networks:
  if (path / "params").is_dir():
    network = from_native(path, choices)
    return {network.name: network}
  if native := [n for n in build.TYPES if (path / n / "params").is_dir()]:
    return {name: from_native(path / name, choices) for name in native}
  whole = (path / "model_index.json").is_file()
  if whole or any((path / part / "config.json").is_file() for part in PARTS):
    return _in_repository(path, choices, whole)
  if path.is_file() or weight_files.weights_in(path):
    return _in_weights(path, choices)
  return _in_files(path, choices)


def _in_repository(
  path: Path, choices: Mapping[str, Any], whole: bool
) -> Networks:
  """All parts of a diffusers folder, or those that are there."""
  if whole:
    index = read_json(path / "model_index.json")
    if (kind := index.get("_class_name")) != "I2VGenXLPipeline":
      raise InputError(
        f"{path} is a pipeline of class {kind}; use one of I2VGenXLPipeline"
      )
  choices = {**diffusers_folder.read_choices(path), **choices}
  networks: Networks = {}
  with reading(path, "copy the folder again"):
    for part, name in PARTS.items():
      if (path / part).is_dir():
        found = _in_weights(path / part, choices)
        if list(found) != [name]:
          raise ValueError(f"weights of {', '.join(found)} in {path / part}")
        networks |= found
      elif whole:
        raise ValueError(f"no {part} in the folder")
  if "base" in networks and (whole or (path / "scheduler").is_dir()):
    for name, values in diffusers_folder.read_scheduler(path).items():
      networks["base"].config[name] |= values
  return networks


def _in_files(path: Path, choices: Mapping[str, Any]) -> Networks:
  """A folder with the files of VGen or ModelScope."""
  files = [p for p in sorted(path.iterdir()) if p.suffix in _SUFFIXES]
  if not files:
    raise InputError(
      f"no weights in {path}: neither a cascade, nor a diffusers folder, nor "
      f"files of {', '.join(_SUFFIXES)}"
    )
  networks: Networks = {}
  for file in files:
    # A config.json next to several files belongs to none of them.
    found = _in_file(file, choices, {})
    if twice := found.keys() & networks.keys():
      name = min(twice)
      raise InputError(
        f"two files with a {name} in {path}: "
        f"{networks[name].tensors.where} and {file}; keep one"
      )
    networks |= found
  return networks


def _in_weights(path: Path, choices: Mapping[str, Any]) -> Networks:
  """A file, or the folder of a component, with its config.json."""
  config = (path if path.is_dir() else path.parent) / "config.json"
  return _in_file(path, choices, read_json(config) if config.is_file() else {})


def _in_file(
  path: Path, choices: Mapping[str, Any], given: Mapping[str, Any]
) -> Networks:
  tensors = weight_files.open_tensors(path)
  found = [one for one in recognise(tensors) if one.network != "image_unet"]
  if not found:
    raise InputError(
      f"{tensors.where} holds the image U-Net of Stable Diffusion alone, which "
      "makes no video; use weights of I2VGen-XL"
    )
  networks = [from_file(one, choices, given) for one in found]
  used = {one.prefix + key for one in found for key in one.tensors.shapes}
  rest = tuple(sorted(tensors.shapes.keys() - used))
  networks[0] = dataclasses.replace(networks[0], rest=rest)
  return {network.name: network for network in networks}
