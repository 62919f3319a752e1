"""One network as it is stored: its module, its config and unread weights."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from i2vgen_jax import trees
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import lora_files, mapping
from i2vgen_jax.interop.choices import DEFAULTS, Choices, put
from i2vgen_jax.interop.formats import native
from i2vgen_jax.interop.formats.diffusers_folder import read_fields
from i2vgen_jax.interop.formats.tensors import Tensors, weight_dtype
from i2vgen_jax.interop.keys import clip, unet, vae
from i2vgen_jax.interop.keys.kinds import PLAIN
from i2vgen_jax.interop.keys.table import LIBRARIES, Row, Table
from i2vgen_jax.interop.recognise import Found
from i2vgen_jax.models import build
from i2vgen_jax.sharding import param_shardings
from i2vgen_jax.types import Params
from i2vgen_jax.variants import VARIANTS, variant_of

NATIVE = "orbax"


@dataclasses.dataclass(frozen=True)
class StoredNetwork:
  """One network on disk.

  Attributes:
    name: its name in a cascade folder, a key of `build.TYPES`.
    form: diffusers, vgen, ldm, transformers, openclip or orbax (ours).
    module: the network.
    config: content of its `config.json` in a cascade folder.
    tensors: content of the file; in our own form, parameters by path.
    rest: keys of the file that belong to no network of ours.
    lora: is added to the weights when they are read.
  """

  name: str
  form: str
  module: Any
  config: dict[str, Any]
  tensors: Tensors
  rest: tuple[str, ...] = ()
  lora: lora_files.Lora = dataclasses.field(default_factory=dict)

  @property
  def variant(self) -> str | None:
    """The public variant of a U-Net; None if it is not one."""
    return variant_of(self.module)

  @property
  def abstract_params(self) -> Params:
    """Shapes and dtypes of its parameters."""
    return build.abstract_params(self.module)

  def report(self) -> mapping.Report:
    """What happened to each key of the file."""
    table = table_of(self.module, self.form)
    report = mapping.compare(self.tensors, table, self.abstract_params)
    return dataclasses.replace(report, ignored=(*report.ignored, *self.rest))

  def leaves(
    self, dtype: Any = None, concat_gain: float | None = None
  ) -> Tensors:
    """Our parameters by path, read from the file one at a time.

    Args:
      dtype: dtype to convert to; None keeps what is stored.
      concat_gain: gain of the U-Net that is to use the weights, to which the
        first convolution is rescaled; None is the gain of the module. Other
        networks have no gain.

    Raises:
      InputError: the file does not fit the network, or weights cannot have
        the dtype; or, during the reading, a value is not finite in it.
    """
    module, tensors = self.module, self.tensors.checked(weight_dtype(dtype))
    table = table_of(module, self.form)
    leaves = mapping.to_flax(tensors, table, self.abstract_params)
    leaves = lora_files.merged(leaves, self.lora)
    if concat_gain is None or getattr(module, "local_image", "") != "concat":
      return leaves

    def read(path: str) -> np.ndarray:
      array = leaves.read(path)
      if path == "conv_in/kernel":
        # This is exact for powers of two, which the public gains are.
        array, factor = array.copy(), module.concat_gain / concat_gain
        array[:, :, module.latent_channels :] *= array.dtype.type(factor)
      return array

    return dataclasses.replace(leaves, read=read)

  def with_lora(
    self, stored: lora_files.StoredLora, scale: float | int = 1.0
  ) -> "StoredNetwork":
    """This U-Net with a LoRA of it, times a factor.

    Raises:
      InputError: the LoRA is of another U-Net.
    """
    shapes = trees.shapes_of(self.abstract_params)
    pairs = stored.load(table_of(self.module, "diffusers"), shapes)
    scaled = {k: (a, np.float32(scale) * b) for k, (a, b) in pairs.items()}
    return dataclasses.replace(self, lora=scaled)

  def load(self, dtype: Any = None, mesh: Mesh | None = None) -> build.Network:
    """Reads the weights, each one directly onto its devices.

    Args:
      dtype: dtype of weights and computation; None keeps what is stored.
      mesh: splits large weights over its devices; None is the first device.

    Raises:
      InputError: as `leaves`.
    """
    dtype = weight_dtype(dtype)
    module = self.module if dtype is None else self.module.clone(dtype=dtype)
    places: dict[str, Any] = {}
    if mesh is not None:
      shardings = param_shardings(self.abstract_params, mesh)
      places = traverse_util.flatten_dict(shardings, sep="/")
    params = mapping.materialise(
      self.leaves(dtype),
      put=lambda path, array: jax.device_put(array, places.get(path)),
    )
    return build.Network(module, params, self.config)


def from_file(
  found: Found, choices: Mapping[str, Any], given: Mapping[str, Any]
) -> StoredNetwork:
  """A network that was recognised in a file.

  Args:
    found: the network.
    choices: values that differ from those of the form; see `Choices`.
    given: the `config.json` next to the file; empty if there is none.

  Raises:
    InputError: an impossible value, or a network that cannot exist.
  """
  where = Path(found.tensors.where)
  code = "diffusers" if found.form in LIBRARIES else "vgen"
  values = dataclasses.asdict(DEFAULTS[code])
  if "scaling_factor" in given:
    factor = {"scaling_factor": given["scaling_factor"]}
    values |= Choices.read(factor, where.parent / "config.json")
  values |= Choices.read(choices)
  name, config = found.network, {"module": {}}
  if found.variant:
    variant = VARIANTS[found.variant]
    name, config = variant.component, variant.config()
  config["module"] |= found.fields
  known = build.TYPES[name].__dataclass_fields__
  config["module"] |= read_fields(given, known, str(where))
  put(config, name, values)
  config["source"] = {"form": found.form}
  module = _make_module(name, config, choices, where)
  return StoredNetwork(name, found.form, module, config, found.tensors)


def from_native(folder: Path, choices: Mapping[str, Any]) -> StoredNetwork:
  """A network in our own form.

  Raises:
    InputError: it is damaged, or an impossible choice.
  """
  config = native.load_config(folder)
  name = _native_name(folder, config)
  put(config, name, Choices.read(choices))
  module = _make_module(name, config, choices, folder / "config.json")
  return StoredNetwork(name, NATIVE, module, config, native.read(folder))


# The arguments of a table, after the form, are fields of the module.
_TABLES = {
  "I2VGenUNet": unet.table,
  "AutoencoderKL": vae.table,
  "CLIPTextModel": clip.text_table,
  "CLIPVisionModel": clip.vision_table,
}


def table_of(module: Any, form: str) -> Table:
  """The table between a network of ours and a form that it has."""
  if form == NATIVE:
    paths = trees.shapes_of(build.abstract_params(module))
    return Table(tuple(Row(path, (path,), PLAIN) for path in paths))
  table = _TABLES[type(module).__name__]
  fields = inspect.signature(table).parameters.keys() - {"form"}
  return table(form, **{name: getattr(module, name) for name in fields})


def _make_module(
  name: str, config: dict[str, Any], choices: Mapping[str, Any], where: Path
) -> Any:
  """The module of a complete config, if one can have such sizes."""
  module = build.make_module(name, config["module"], where)
  try:
    build.abstract_params(module)
  except (ArithmeticError, TypeError, ValueError) as e:
    reason = str(e).strip().partition("\n")[0]
    raise InputError(
      f"no {name} can have the sizes in {where}: {reason}; use weights and "
      "config of one model"
    ) from e
  # The default of a form may exceed a small vocabulary; a cascade checks it.
  if name == "text_encoder" and "pad_token_id" in choices:
    pad = config["pad_token_id"]
    if pad >= module.vocab_size:
      raise InputError(
        f"pad_token_id {pad} is not one of the {module.vocab_size} tokens in "
        f"{where}; choose a smaller one"
      )
  return module


def _native_name(folder: Path, config: Mapping[str, Any]) -> str:
  """The name of the folder or, if it was renamed, what the config describes."""
  if (name := folder.resolve().name) in build.TYPES:
    return name
  module, sampling = config["module"], config.get("sampling")
  signs = {
    "refine": sampling and sampling.get("start_timestep") is not None,
    "base": sampling is not None,
    "image_encoder": "projection_dim" in module,
    "text_encoder": "vocab_size" in module,
    "vae": "scaling_factor" in config,
  }
  for name, is_present in signs.items():
    if is_present:
      return name
  raise InputError(
    f"cannot tell which network {folder} is; rename it to one of "
    f"{', '.join(build.TYPES)}"
  )
