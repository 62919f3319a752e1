"""Every public form of weights, opened the same way.

A source is one network as it lies on disk: its module, its config and its
tensors, not yet read. `find` looks at what a path holds:

| path | networks |
|---|---|
| a cascade folder of ours, or one network of it | all that are there |
| a diffusers folder with `model_index.json` | unet, vae, both towers |
| a part of such a folder | those that are there |
| one component of such a folder | that one |
| a .safetensors, .pth, .bin or .ckpt file | what its keys say |
| any other folder | those of every such file in it |
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util
from jax.sharding import Mesh

from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import convert
from i2vgen_jax.interop.choices import DEFAULTS, Choices, put
from i2vgen_jax.interop.formats import native, weight_files
from i2vgen_jax.interop.formats.diffusers_folder import (
  read_choices,
  read_json,
  read_scheduler,
)
from i2vgen_jax.interop.formats.tensors import Tensors, weight_dtype
from i2vgen_jax.interop.keys import clip, unet, unet_vgen, vae
from i2vgen_jax.interop.keys.layouts import PLAIN
from i2vgen_jax.interop.keys.table import Row, Table
from i2vgen_jax.interop.recognise import Found, recognise
from i2vgen_jax.models import build
from i2vgen_jax.models.build import Network
from i2vgen_jax.sharding import param_shardings
from i2vgen_jax.types import Params
from i2vgen_jax.variants import VARIANTS, variant_of

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
NATIVE = "orbax"
PARTS = ("unet", "vae", "text_encoder", "image_encoder")


@dataclasses.dataclass(frozen=True)
class StoredNetwork:
  """One network on disk.

  Attributes:
    name: its place in a cascade folder, a key of `build.TYPES`.
    form: diffusers, vgen, ldm, transformers, openclip or orbax (ours).
    module: the network.
    config: what `config.json` of a cascade holds for it.
    abstract_params: shapes and dtypes of its parameters.
    tensors: of the file, or our parameters by path where the form is ours.
    table: between the two.
    rest: keys of the file that belong to no network of ours.
  """

  name: str
  form: str
  module: Any
  config: dict[str, Any]
  abstract_params: Params
  tensors: Tensors
  table: Table
  rest: tuple[str, ...] = ()

  @property
  def variant(self) -> str | None:
    """The public variant of a U-Net, if it is one; None elsewhere."""
    return variant_of(self.module)

  def report(self) -> convert.Report:
    """The fate of every key of the file."""
    same = convert.compare(self.tensors, self.table, self.abstract_params)
    return dataclasses.replace(same, ignored=(*same.ignored, *self.rest))

  def leaves(self, dtype: Any = None) -> Tensors:
    """Our parameters by path, read from the file one at a time.

    Args:
      dtype: to convert to; None keeps what is stored.

    Raises:
      InputError: the file does not fit the network, or no weights have such a
        dtype; or, when it is read, a value is no finite number of it.
    """
    dtype = weight_dtype(dtype)
    tensors = self.tensors if dtype is None else self.tensors.cast(dtype)
    return convert.to_flax(
      weight_files.checked(tensors), self.table, self.abstract_params
    )

  def load(self, dtype: Any = None, mesh: Mesh | None = None) -> Network:
    """Reads the weights, each straight to where it shall live.

    Args:
      dtype: of the weights and of the computation; None keeps what is stored.
      mesh: splits large weights over its devices; None takes the first one.

    Raises:
      InputError: as `leaves`.
    """
    dtype = weight_dtype(dtype)
    leaves = self.leaves(dtype)
    module = self.module if dtype is None else self.module.clone(dtype=dtype)
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
) -> dict[str, StoredNetwork]:
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
  if (path / "params").is_dir():
    source = _native(path, choices)
    return {source.name: source}
  native = [n for n in build.TYPES if (path / n / "params").is_dir()]
  if native:
    return {name: _native(path / name, choices) for name in native}
  whole = (path / "model_index.json").is_file()
  if whole or any((path / part / "config.json").is_file() for part in PARTS):
    return _of_repository(path, choices, whole)
  if weight_files.weights_in(path):
    return _of_weights(path, choices)
  return _of_files(path, choices)


def one(
  path: Path, name: str, choices: Mapping[str, Any] | None = None
) -> StoredNetwork:
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


def _of_repository(
  path: Path, choices: Mapping, whole: bool
) -> dict[str, StoredNetwork]:
  """All parts of a folder of diffusers, or those that are there."""
  if whole:
    index = read_json(path / "model_index.json")
    if (name := index.get("_class_name")) != "I2VGenXLPipeline":
      raise InputError(
        f"{path} is a pipeline of class {name}; use one of I2VGenXLPipeline"
      )
  choices = {**read_choices(path), **choices}
  found: dict[str, StoredNetwork] = {}
  for part in PARTS:
    if (path / part).is_dir():
      found |= _of_component(path / part, choices)
    elif whole:
      raise InputError(f"no {part} in {path}; copy the folder anew")
  if "base" in found and (whole or (path / "scheduler").is_dir()):
    for name, values in read_scheduler(path).items():
      found["base"].config[name] |= values
  return found


def _of_component(path: Path, choices: Mapping) -> dict[str, StoredNetwork]:
  found = _of_weights(path, choices)
  name = "base" if path.name == "unet" else path.name
  if list(found) != [name]:
    raise InputError(
      f"weights of {', '.join(found)} in {path}; copy the folder anew"
    )
  return found


def _of_files(path: Path, choices: Mapping) -> dict[str, StoredNetwork]:
  """A folder with the files of VGen or ModelScope."""
  some = [p for p in sorted(path.iterdir()) if p.suffix in WEIGHT_SUFFIXES]
  if not some:
    raise InputError(
      f"no weights in {path}: neither a cascade, nor a diffusers folder, nor "
      f"files of {', '.join(WEIGHT_SUFFIXES)}"
    )
  found: dict[str, StoredNetwork] = {}
  for file in some:
    # A config.json beside them is of none of them in particular.
    for name, source in _of_file(file, choices, {}).items():
      if name in found:
        raise InputError(
          f"two files with a {name} in {path}: {found[name].tensors.where} and "
          f"{file}; leave one"
        )
      found[name] = source
  return found


def _of_weights(path: Path, choices: Mapping) -> dict[str, StoredNetwork]:
  """A file, or a component's folder, where its config.json lies as well."""
  config = (path if path.is_dir() else path.parent) / "config.json"
  given = read_json(config) if config.is_file() else {}
  return _of_file(path, choices, given)


def _of_file(
  path: Path, choices: Mapping, given: Mapping
) -> dict[str, StoredNetwork]:
  """`given` is the config.json that came with the weights, if any."""
  tensors = weight_files.open_tensors(path)
  found = recognise(tensors)
  ours = [one for one in found if one.network != "image_unet"]
  if not ours:
    raise InputError(
      f"{tensors.where} holds the image U-Net of Stable Diffusion alone, which "
      "makes no video; use weights of I2VGen-XL"
    )
  sources = [_source(one, choices, given) for one in ours]
  used = {one.prefix + key for one in ours for key in one.tensors.shapes}
  rest = tuple(sorted(tensors.shapes.keys() - used))
  sources[0] = dataclasses.replace(sources[0], rest=rest)
  return {source.name: source for source in sources}


def _native(path: Path, choices: Mapping) -> StoredNetwork:
  config = native.load_config(path)
  name = _native_name(path, config)
  put(config, name, Choices.read(choices))
  module, abstract_params = _built(name, config, choices, path / "config.json")
  paths = traverse_util.flatten_dict(abstract_params, sep="/")
  return StoredNetwork(
    name=name,
    form=NATIVE,
    module=module,
    config=config,
    abstract_params=abstract_params,
    tensors=_native_tensors(path, abstract_params),
    table=Table(tuple(Row(key, (key,), PLAIN) for key in paths)),
  )


def _native_name(path: Path, config: Mapping[str, Any]) -> str:
  """The folder's, or if it was renamed that of the network it describes."""
  if (name := path.resolve().name) in build.TYPES:
    return name
  module, sampling = config["module"], config.get("sampling")
  if sampling is not None:
    refines = sampling.get("start_timestep") is not None
    return "refine" if refines else "base"
  if "patch_size" in module:
    return "image_encoder"
  if "vocab_size" in module:
    return "text_encoder"
  if "scaling_factor" in config:
    return "vae"
  raise InputError(
    f"{path} does not say which network it is; name the folder as one of "
    f"{', '.join(build.TYPES)}"
  )


def _native_tensors(path: Path, abstract_params: Params) -> Tensors:
  """Read whole at the first call; each array goes when it has been taken."""
  held: dict[str, Any] = {}

  def read(key: str):
    if not held:
      params = native.load_params(path, abstract_params)
      held.update(traverse_util.flatten_dict(params, sep="/"))
    return held.pop(key)

  stored = native.load_types(path)
  return Tensors(
    where=str(path),
    shapes={key: leaf.shape for key, leaf in stored.items()},
    dtypes={key: leaf.dtype for key, leaf in stored.items()},
    read=read,
  )


# ---- From what was recognised to a module, its config and its table ----


def _source(
  found: Found, choices: Mapping, given: Mapping[str, Any]
) -> StoredNetwork:
  """`given` is the config.json that came with the weights, if any."""
  where = Path(found.tensors.where)
  theirs = found.form in ("diffusers", "transformers")
  chosen = dataclasses.asdict(DEFAULTS["diffusers" if theirs else "vgen"])
  if "scaling_factor" in given:
    said = {"scaling_factor": given["scaling_factor"]}
    chosen |= Choices.read(said, where.parent / "config.json")
  chosen |= Choices.read(choices)
  if found.network == "unet":
    variant = VARIANTS[found.variant]
    name, config = variant.component, variant.config()
    config["module"] |= found.fields | _said(given, _UNET_FIELDS, where)
  else:
    name = found.network
    fields = _said(given, _TOWER_FIELDS[name], where)
    config = {"module": found.fields | fields}
  if name in ("text_encoder", "image_encoder"):
    _check_tower(given, where)
  put(config, name, chosen)
  config["source"] = {"form": found.form}
  module, abstract_params = _built(name, config, choices, where)
  return StoredNetwork(
    name=name,
    form=found.form,
    module=module,
    config=config,
    abstract_params=abstract_params,
    tensors=found.tensors,
    table=table_of(module, found.form),
  )


def _built(
  name: str, config: dict[str, Any], choices: Mapping, where: Path
) -> tuple[Any, Params]:
  """The module of a config and its shapes, if there can be such a network."""
  module = build.make_module(name, config["module"], where)
  try:
    shapes = build.abstract_params(module)
  except (ArithmeticError, TypeError, ValueError) as e:
    reason = str(e).strip().partition("\n")[0]
    raise InputError(
      f"no {name} can have the sizes in {where}: {reason}; use weights and "
      "config of one model"
    ) from e
  # The default of a form is not for a small vocabulary; a cascade checks it.
  if name == "text_encoder" and "pad_token_id" in choices:
    pad = config["pad_token_id"]
    if pad >= module.vocab_size:
      raise InputError(
        f"pad_token_id {pad} is none of the {module.vocab_size} tokens in "
        f"{where}; choose a smaller one"
      )
  return module, shapes


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


def _said(
  given: Mapping, names: Mapping[str, str], where: Path
) -> dict[str, Any]:
  said = {
    ours: given[theirs]
    for theirs, ours in names.items()
    if type(given.get(theirs)) is int
  }
  for name, value in said.items():
    if value < 1:
      raise InputError(
        f"{name} cannot be {value}, in the config.json of {where}; copy it anew"
      )
  return said


def _check_tower(given: Mapping, where: Path) -> None:
  for name, value in {"hidden_act": "gelu", "layer_norm_eps": 1e-5}.items():
    if given.get(name, value) != value:
      raise InputError(
        f"a CLIP tower with {name} {given[name]}, in {where}; I2VGen-XL uses "
        f"OpenCLIP ViT-H/14, which has {value}"
      )


def table_of(module: Any, form: str) -> Table:
  """The table between a network of ours and a form.

  Raises:
    InputError: the form has no spelling for this network.
  """
  fields = type(module).__name__
  match fields, form:
    case "I2VGenUNet", "vgen":
      return unet_vgen.vgen_table(
        module.block_channels,
        module.layers_per_block,
        fps=module.use_fps,
        image_embeds=module.use_image_embeds,
        local_image=module.local_image == "concat",
      )
    case "I2VGenUNet", "diffusers":
      return unet.diffusers_table(
        module.block_channels, module.layers_per_block
      )
    case "AutoencoderKL", "diffusers":
      return vae.diffusers_table(module.block_channels, module.layers_per_block)
    case "AutoencoderKL", "ldm":
      return vae.ldm_table(module.block_channels, module.layers_per_block)
    case "CLIPTextModel", "transformers":
      return clip.transformers_text_table(module.num_layers)
    case "CLIPTextModel", "openclip":
      return clip.openclip_text_table(module.num_layers)
    case "CLIPVisionModel", "transformers":
      return clip.transformers_vision_table(module.num_layers)
    case "CLIPVisionModel", "openclip":
      return clip.openclip_vision_table(module.num_layers)
  raise InputError(f"no {form} form of a {fields}; choose another form")
