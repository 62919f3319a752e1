"""Writes networks in the public forms, and in ours.

Everything is read and written one tensor at a time, except that a torch file
is written from memory. A target appears under its name once it is complete.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2vgen_jax import tokenizer
from i2vgen_jax.errors import InputError, writing
from i2vgen_jax.files import check_absent, replacing_folder
from i2vgen_jax.interop import mapping
from i2vgen_jax.interop.choices import DEFAULTS
from i2vgen_jax.interop.formats import diffusers_folder, native, torch_files
from i2vgen_jax.interop.formats.diffusers_folder import PARTS
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.interop.opening import StoredWeights
from i2vgen_jax.interop.stored import StoredNetwork, table_of

# The variants whose U-Net each form can hold, and the fields that its code
# fixes.
_VARIANTS = {
  "diffusers": ("released",),
  "vgen": ("released",),
  "modelscope": ("image_to_video", "refine"),
}
_FIXED = {
  "diffusers": {"image_grid": 8, "input_heads": 8},
  "vgen": {"image_grid": 8, "input_heads": 8, "norm_groups": 32},
  "modelscope": {"input_heads": 8, "norm_groups": 32},
}


def check(networks: Mapping[str, StoredNetwork], form: str) -> None:
  """Raises InputError unless a form can hold the U-Net among the networks.

  Args:
    networks: what to write.
    form: orbax, diffusers, vgen or modelscope.
  """
  unets = [n for name, n in networks.items() if name in ("base", "refine")]
  if form in ("vgen", "modelscope") and len(unets) != 1:
    raise InputError(
      f"a file of {form} holds one U-Net, and the source has {len(unets)}: "
      "give one network of it"
    )
  for network in unets if form in _VARIANTS else ():
    where = network.tensors.where
    if network.variant not in _VARIANTS[form]:
      raise InputError(
        f"{form} has no U-Net like {network.name} in {where} "
        f"({network.variant or 'of no public variant'}); it holds "
        f"{' or '.join(_VARIANTS[form])}"
      )
    for field, value in _FIXED[form].items():
      if (actual := getattr(network.module, field)) != value:
        raise InputError(
          f"{form} has {field} {value} and the U-Net in {where} has {actual}; "
          "only the form orbax can hold it"
        )


def write(
  weights: StoredWeights, target: Path, form: str, dtype: Any = None
) -> None:
  """Writes weights, which `check` has accepted.

  Args:
    weights: what to write; for vgen and modelscope one U-Net.
    target: a folder, or a .pth file for vgen and modelscope. Only a cascade
      folder of ours (orbax) may exist; it receives further networks.
    form: orbax, diffusers, vgen or modelscope.
    dtype: dtype to convert to; None keeps what is stored.

  Raises:
    InputError: the target exists or cannot be written, or the weights are
      damaged.
  """
  if form != "orbax":
    check_absent(target)
  with writing(target):
    target.parent.mkdir(parents=True, exist_ok=True)
  match form:
    case "orbax":
      _write_native(weights, target, dtype)
    case "diffusers":
      _write_diffusers(weights, target, dtype)
    case _:
      (network,) = weights.networks.values()
      step = 0 if form == "vgen" else None
      torch_files.write(target, _converted(network, "vgen", dtype), step)


def missing_parts(weights: StoredWeights) -> list[str]:
  """What `I2VGenXLPipeline` needs and a diffusers folder of these lacks."""
  missing = [p for p, name in PARTS.items() if name not in weights.networks]
  rest = ("tokenizer", "scheduler", "model_index.json")
  return missing if _has_rest(weights) else [*missing, *rest]


def _write_native(weights: StoredWeights, folder: Path, dtype: Any) -> None:
  for name in weights.networks:
    check_absent(folder / name)
  has_tokenizer = (folder / "tokenizer").exists()
  # All parts appear at the end of this block, or none of them.
  with contextlib.ExitStack() as stack:
    if not folder.exists():
      folder = stack.enter_context(replacing_folder(folder))
    for name, network in weights.networks.items():
      part = stack.enter_context(replacing_folder(folder / name))
      params = mapping.materialise(network.leaves(dtype))
      native.write(part, network.config, params)
    if weights.tokenizer and not has_tokenizer:
      part = stack.enter_context(replacing_folder(folder / "tokenizer"))
      vocab, merges = tokenizer.read_vocabulary(weights.tokenizer)
      tokenizer.write_vocabulary(part, vocab, merges)


def _write_diffusers(weights: StoredWeights, folder: Path, dtype: Any) -> None:
  with replacing_folder(folder) as temporary:
    for part, name in PARTS.items():
      if name in weights.networks:
        network = weights.networks[name]
        library, _ = diffusers_folder.CLASSES[part]
        # A config may leave out fields that have their default.
        names = type(network.module).__dataclass_fields__
        fields = {name: getattr(network.module, name) for name in names}
        config = network.config | {"module": fields}
        tensors = _converted(network, library, dtype)
        diffusers_folder.write_component(temporary, part, config, tensors)
    if _has_rest(weights):
      diffusers_folder.write_rest(
        temporary,
        weights.networks["base"].config,
        weights.tokenizer,
        weights.networks["text_encoder"].config.get("pad_token_id", 0),
      )


def _has_rest(weights: StoredWeights) -> bool:
  """Whether scheduler, tokenizer and index of a repository can be written."""
  needed = {"base", "text_encoder"}
  return weights.tokenizer is not None and needed <= weights.networks.keys()


def _converted(network: StoredNetwork, form: str, dtype: Any) -> Tensors:
  gain = DEFAULTS[form].concat_gain if form in DEFAULTS else None
  leaves = network.leaves(dtype, gain)
  return mapping.to_torch(leaves, table_of(network.module, form))
