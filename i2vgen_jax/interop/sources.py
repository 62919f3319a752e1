"""Every public form of weights, opened the same way.

A source is one network as it lies on disk: its module, its config and its
tensors, not yet read. `find` looks at what a path holds:

| path | networks |
|---|---|
| a cascade folder of ours, or one network of it | all that are there |
| a diffusers folder with `model_index.json` | unet, vae, both towers |
| one component of such a folder | that one |
| a .safetensors, .pth, .bin or .ckpt file | what its keys say |
| any other folder | those of every such file in it |
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from i2vgen_jax import networks, tokenizer, weights
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import (
  clip_keys,
  convert,
  files,
  unet_keys,
  vae_keys,
  vgen_keys,
)
from i2vgen_jax.interop.choices import DEFAULTS
from i2vgen_jax.interop.diffusers_folder import (
  read_choices,
  read_diffusion,
  read_json,
)
from i2vgen_jax.interop.recognise import Found, recognise
from i2vgen_jax.interop.table import Table
from i2vgen_jax.interop.tensors import Tensors
from i2vgen_jax.networks import Network
from i2vgen_jax.sharding import param_shardings
from i2vgen_jax.types import Params
from i2vgen_jax.variants import VARIANTS, variant_of

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
NATIVE = "orbax"


@dataclasses.dataclass(frozen=True)
class Source:
  """One network on disk.

  Attributes:
    name: its place in a cascade folder, a key of `networks.TYPES`.
    form: diffusers, vgen, ldm, transformers, openclip or orbax (ours).
    module: the network.
    config: what `config.json` of a cascade holds for it.
    abstract_params: shapes and dtypes of its parameters.
    tensors: of the file, or our parameters by path where the form is ours.
    table: between the two; None where the form is ours.
  """

  name: str
  form: str
  module: Any
  config: dict[str, Any]
  abstract_params: Params
  tensors: Tensors
  table: Table | None

  @property
  def variant(self) -> str | None:
    """The public variant of a U-Net, if it is one; None elsewhere."""
    return variant_of(self.module)

  def report(self) -> convert.Report:
    """The fate of every key of the file."""
    if self.table is None:
      shapes = self.tensors.shapes
      same = {path: (path,) for path in shapes}
      return convert.Report(self.tensors.where, same, (), (), (), {})
    return convert.compare(self.tensors, self.table, self.abstract_params)

  def leaves(self) -> Tensors:
    """Our parameters by path, read from the file one at a time.

    Raises:
      InputError: the file does not fit the network; or, when it is read, a
        value is NaN or infinite.
    """
    tensors = files.finite(self.tensors)
    if self.table is None:
      return tensors
    return convert.to_flax(tensors, self.table, self.abstract_params)

  def load(self, dtype: Any = None, mesh: Mesh | None = None) -> Network:
    """Reads the weights, each straight to where it shall live.

    Args:
      dtype: of the weights and of the computation; None keeps what is stored.
      mesh: splits large weights over its devices; None takes the first one.

    Raises:
      InputError: as `leaves`.
    """
    leaves = self.leaves()
    module = self.module if dtype is None else self.module.clone(dtype=dtype)
    if dtype is not None:
      leaves = leaves.cast(jnp.dtype(dtype))
    places: dict[str, Any] = {}
    if mesh is not None:
      shardings = param_shardings(self.abstract_params, mesh)
      places = traverse_util.flatten_dict(shardings, sep="/")
    params = convert.materialise(
      leaves, put=lambda path, array: jax.device_put(array, places.get(path))
    )
    return Network(module, params, self.config)


def find(
  path: Path, choices: Mapping[str, Any] | None = None
) -> dict[str, Source]:
  """The networks at a path, by name.

  Args:
    path: see above.
    choices: values that differ from those of the form; see `Choices`.

  Raises:
    InputError: nothing there that we know, or two of the same name.
  """
  choices = choices or {}
  if not path.exists():
    raise InputError(f"no weights at {path}; check the path")
  if path.is_file():
    return _of_weights(path, choices)
  if (path / "model_index.json").is_file():
    return _of_repository(path, choices)
  if (path / "params").is_dir():
    return {path.name: _native(path)}
  native = [n for n in networks.TYPES if (path / n / "params").is_dir()]
  if native:
    return {name: _native(path / name) for name in native}
  if (path / "config.json").is_file():
    return _of_weights(path, choices)
  return _of_files(path, choices)


def one(
  path: Path, name: str, choices: Mapping[str, Any] | None = None
) -> Source:
  """The source of one network; `unet` stands for the only U-Net there is.

  Raises:
    InputError: as `find`; or the network is not among those at the path.
  """
  found = find(path, choices)
  wanted = ("base", "refine") if name == "unet" else (name,)
  fitting = [source for key, source in found.items() if key in wanted]
  if len(fitting) != 1:
    raise InputError(
      f"{'no' if not fitting else 'more than one'} {name} in {path}, which "
      f"holds {', '.join(found)}; name a file or folder that has one"
    )
  return fitting[0]


def tokenizer_folder(path: Path) -> Path | None:
  """The folder of the tokenizer that belongs to the weights at a path."""
  folder = path if path.is_dir() else path.parent
  for place in (folder / "tokenizer", folder):
    if tokenizer.has_vocabulary(place):
      return place
  return None


# ---- Folders ----


def _of_repository(path: Path, choices: Mapping) -> dict[str, Source]:
  index = read_json(path / "model_index.json")
  if (name := index.get("_class_name")) != "I2VGenXLPipeline":
    raise InputError(
      f"{path} is a pipeline of class {name}; use one of I2VGenXLPipeline"
    )
  choices = {**read_choices(path), **choices}
  found: dict[str, Source] = {}
  for part in ("unet", "vae", "text_encoder", "image_encoder"):
    if not (path / part).is_dir():
      raise InputError(f"no {part} in {path}; copy the folder anew")
    found |= _of_weights(path / part, choices)
  found["base"].config["diffusion"] = read_diffusion(path)
  return found


def _of_files(path: Path, choices: Mapping) -> dict[str, Source]:
  """A folder with the files of VGen or ModelScope."""
  some = [p for p in sorted(path.iterdir()) if p.suffix in WEIGHT_SUFFIXES]
  if not some:
    raise InputError(
      f"no weights in {path}: neither a cascade, nor a diffusers folder, nor "
      f"files of {', '.join(WEIGHT_SUFFIXES)}"
    )
  found: dict[str, Source] = {}
  for file in some:
    for name, source in _of_weights(file, choices).items():
      if name in found:
        raise InputError(
          f"two files with a {name} in {path}: {found[name].tensors.where} and "
          f"{file}; leave one"
        )
      found[name] = source
  return found


def _of_weights(path: Path, choices: Mapping) -> dict[str, Source]:
  """A file, or a component's folder, where its config.json lies as well."""
  tensors = files.open_tensors(path)
  folder = path if path.is_dir() else path.parent
  given = {}
  if (folder / "config.json").is_file():
    given = read_json(folder / "config.json")
  found = recognise(tensors)
  ours = [one for one in found if one.network != "image_unet"]
  if not ours:
    raise InputError(
      f"{tensors.where} holds the image U-Net of Stable Diffusion alone, which "
      "makes no video; use weights of I2VGen-XL"
    )
  sources = [_source(one, choices, given) for one in ours]
  return {source.name: source for source in sources}


def _native(path: Path) -> Source:
  config = weights.load_config(path)
  module = networks.build(path.name, config["module"], path / "config.json")
  abstract_params = networks.abstract_params(module)
  return Source(
    name=path.name,
    form=NATIVE,
    module=module,
    config=config,
    abstract_params=abstract_params,
    tensors=_native_tensors(path, abstract_params),
    table=None,
  )


def _native_tensors(path: Path, abstract_params: Params) -> Tensors:
  """Read whole at the first call; each array goes when it has been taken."""
  abstract = traverse_util.flatten_dict(abstract_params, sep="/")
  held: dict[str, Any] = {}

  def read(key: str):
    if not held:
      params = weights.load_params(path, abstract_params)
      held.update(traverse_util.flatten_dict(params, sep="/"))
    return held.pop(key)

  dtypes = weights.load_dtypes(path)
  return Tensors(
    where=str(path),
    shapes={key: tuple(leaf.shape) for key, leaf in abstract.items()},
    dtypes=dtypes,
    read=read,
  )


# ---- From what was recognised to a module, its config and its table ----


def _source(found: Found, choices: Mapping, given: Mapping[str, Any]) -> Source:
  """`given` is the config.json that came with the weights, if any."""
  theirs = found.form in ("diffusers", "transformers")
  chosen = DEFAULTS["diffusers" if theirs else "vgen"]
  if "scaling_factor" in given:
    chosen = chosen.replace({"scaling_factor": given["scaling_factor"]})
  chosen = chosen.replace(choices)
  if found.network == "unet":
    variant = VARIANTS[found.variant]
    name, config = variant.component, variant.config()
    config["module"] |= found.fields | _said(given, _UNET_FIELDS)
    config["module"]["concat_gain"] = chosen.concat_gain
    config["sampling"]["to_clean"] = chosen.to_clean
    config["sampling"]["black_edge"] = chosen.black_edge
    config["sampling"]["reference_start"] = (
      chosen.reference_start and name == "refine"
    )
  else:
    name = found.network
    config = {"module": found.fields | _said(given, _TOWER_FIELDS[name])}
  if name == "vae":
    config["scaling_factor"] = chosen.scaling_factor
  if name == "text_encoder":
    _check_activation(found, given)
    config["pad_token_id"] = chosen.pad_token_id
  config["source"] = {"form": found.form}
  module = networks.build(name, config["module"], Path(found.tensors.where))
  return Source(
    name=name,
    form=found.form,
    module=module,
    config=config,
    abstract_params=networks.abstract_params(module),
    tensors=found.tensors,
    table=table_of(module, found.form),
  )


# Fields that no shape shows, or that of one tensor alone, by their name in the
# config.json of diffusers or transformers. What diffusers calls
# attention_head_dim is the width of a head.
_UNET_FIELDS = {
  "norm_num_groups": "norm_groups",
  "attention_head_dim": "head_dim",
}
_TOWER_FIELDS = {
  "vae": {"norm_num_groups": "norm_groups"},
  "text_encoder": {
    "num_attention_heads": "num_heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_length",
  },
  "image_encoder": {
    "num_attention_heads": "num_heads",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "projection_dim": "projection_dim",
  },
}


def _said(given: Mapping, names: Mapping[str, str]) -> dict[str, Any]:
  return {
    ours: given[theirs]
    for theirs, ours in names.items()
    if isinstance(given.get(theirs), int)
  }


def _check_activation(found: Found, given: Mapping) -> None:
  act = given.get("hidden_act", "gelu")
  if act != "gelu":
    raise InputError(
      f"a CLIP tower with activation {act}, in {found.tensors.where}; "
      "I2VGen-XL uses OpenCLIP ViT-H/14, whose activation is gelu"
    )


def table_of(module: Any, form: str) -> Table:
  """The table between a network of ours and a form.

  Raises:
    InputError: the form has no spelling for this network.
  """
  fields = type(module).__name__
  match fields, form:
    case "I2VGenUNet", "vgen":
      return vgen_keys.vgen_table(
        module.block_channels,
        module.layers_per_block,
        fps=module.use_fps,
        image_embeds=module.use_image_embeds,
        local_image=module.local_image == "concat",
      )
    case "I2VGenUNet", "diffusers":
      return unet_keys.diffusers_table(
        module.block_channels, module.layers_per_block
      )
    case "AutoencoderKL", "diffusers":
      return vae_keys.diffusers_table(
        module.block_channels, module.layers_per_block
      )
    case "AutoencoderKL", "ldm":
      return vae_keys.ldm_table(module.block_channels, module.layers_per_block)
    case "CLIPTextModel", "transformers":
      return clip_keys.transformers_text_table(module.num_layers)
    case "CLIPTextModel", "openclip":
      return clip_keys.openclip_text_table(module.num_layers)
    case "CLIPVisionModel", "transformers":
      return clip_keys.transformers_vision_table(module.num_layers)
    case "CLIPVisionModel", "openclip":
      return clip_keys.openclip_vision_table(module.num_layers)
  raise InputError(f"no {form} form of a {fields}; choose another form")
