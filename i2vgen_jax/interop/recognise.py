"""Recognises networks in a weight file by keys and shapes, never by its name.

The key tables say which key holds which of our parameters, so that a size has
one description for all forms: the paths of the parameters that have it. A size
is what most tensors agree on, so that a missing key or a wrong shape does not
change it; the comparison that follows then names that key.
"""

import contextlib
import dataclasses
import functools
import re
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.interop.keys import clip, unet, vae
from i2vgen_jax.interop.keys.table import Table

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Found:
  """One network in a file.

  Attributes:
    network: unet, vae, text_encoder or image_encoder; `image_unet` is the
      U-Net of Stable Diffusion, from which ours can start.
    form: the spelling of the keys: diffusers, vgen, ldm, transformers or
      openclip. ModelScope has the spelling of VGen.
    variant: for a U-Net, a key of `variants.VARIANTS`; else None.
    prefix: prefix of its keys in the file.
    tensors: tensors of this network, without the prefix.
    fields: fields of its module that the shapes decide.
  """

  network: str
  form: str
  variant: str | None
  prefix: str
  tensors: Tensors
  fields: dict[str, Any]


class _Signature(NamedTuple):
  """How to recognise one network in one form.

  Attributes:
    network: see `Found`.
    form: see `Found`.
    has: patterns, each of which must match the start of a key.
    prefix: prefix of its keys, which the patterns do not see.
    others: prefixes of keys beside them that belong to another network.
  """

  network: str
  form: str
  has: tuple[str, ...]
  prefix: str = ""
  others: tuple[str, ...] = ()


_VIDEO_UNET = r"transformer_in\.", r"image_latents_proj_in\."
_IMAGE_UNET = r"down_blocks\.0\.attentions\.", r"time_embedding\."
_LDM_UNET = (r"input_blocks\.1\.1\.",)
_VAE = r"encoder\.down_blocks\.", r"decoder\."
_LDM_VAE = r"encoder\.down\.", r"decoder\."
_TEXT = (r"(text_model\.)?embeddings\.token_embedding\.",)
_OPENCLIP_TEXT = r"token_embedding\.", r"transformer\.resblocks\."
_IMAGE = (r"vision_model\.embeddings\.",)
_OPENCLIP_IMAGE = r"class_embedding", r"transformer\.resblocks\."
_SIGNATURES = (
  _Signature("unet", "diffusers", _VIDEO_UNET),
  _Signature("unet", "vgen", (r".*temopral_conv",)),
  _Signature("image_unet", "diffusers", _IMAGE_UNET),
  _Signature("image_unet", "ldm", _LDM_UNET, "model.diffusion_model."),
  _Signature("image_unet", "ldm", _LDM_UNET),
  _Signature("vae", "diffusers", _VAE),
  _Signature("vae", "ldm", _LDM_VAE, "first_stage_model."),
  _Signature("vae", "ldm", _LDM_VAE),
  _Signature("text_encoder", "transformers", _TEXT),
  _Signature("text_encoder", "openclip", _OPENCLIP_TEXT, others=("visual.",)),
  _Signature("image_encoder", "transformers", _IMAGE),
  _Signature("image_encoder", "openclip", _OPENCLIP_IMAGE, "visual."),
)
# Keys that image models lack.
_VIDEO = "transformer_in|temp_convs|temopral_conv"

# Models that are confused with this one: a pattern of their keys, and one of
# ours that they lack.
_OTHER_MODELS = (
  ("Stable Video Diffusion", r"spatial_res_block|time_stack|time_mixer", "$^"),
  ("Stable Diffusion XL", r"add_embedding\.|label_emb\.", "$^"),
  ("AnimateDiff", "motion_modules", "$^"),
  (
    "a text-to-video model (UNet3DConditionModel)",
    r"^transformer_in\.",
    r"^(image_latents_|context_embedding|fps_embedding)",
  ),
)


def recognise(tensors: Tensors) -> list[Found]:
  """Every network of ours in a file.

  Raises:
    InputError: there is none; known other models are named.
  """
  for name, has, lacks in _OTHER_MODELS:
    if _any(has, tensors) and not _any(lacks, tensors):
      raise InputError(
        f"these are weights of {name}, in {tensors.where}; use those of "
        "I2VGen-XL"
      )
  # The prefix of torch's wrapper for training on several devices.
  outer = "module."
  if not all(key.startswith(outer) for key in tensors.shapes):
    outer = ""
  found: dict[str, Found] = {}
  for network, form, has, prefix, others in _SIGNATURES:
    inside = tensors.under(outer + prefix, others)
    matches = all(_any(f"^{pattern}", inside) for pattern in has)
    if network in found or not matches:
      continue
    if network == "image_unet" and _any(_VIDEO, inside):
      continue
    variant = _variant(inside) if network == "unet" else None
    fields = _fields(network, form, inside.shapes)
    prefix = outer + prefix
    found[network] = Found(network, form, variant, prefix, inside, fields)
  if not found:
    first = ", ".join(sorted(tensors.shapes)[:3]) or "nothing"
    raise InputError(
      f"no network of I2VGen-XL in {tensors.where}: its {len(tensors.shapes)} "
      f"tensors begin with {first}; use one of the public weight files"
    )
  return list(found.values())


def _any(pattern: str, tensors: Tensors) -> bool:
  return any(re.search(pattern, key) for key in tensors.shapes)


def _variant(tensors: Tensors) -> str:
  parts = {
    "fps": r"^fps_embedding\.",
    "CLIP tokens": r"^context_embedding\.",
    "the local image path": r"^(local_image_concat|image_latents_proj_in)\.",
  }
  names = tuple(parts)
  has = tuple(name for name in names if _any(parts[name], tensors))
  known = {(): "refine", names[:2]: "image_to_video", names: "released"}
  if has in known:
    return known[has]
  raise InputError(
    f"a video U-Net of no public variant, in {tensors.where}: it has only "
    f"{' and '.join(has)}; variant (c) has {', '.join(names)}, (a) the first "
    "two and (b) none"
  )


# ---- Sizes ----


def _fields(network: str, form: str, shapes: Shapes) -> dict[str, Any]:
  """Fields of the module that the keys and shapes of its file decide."""
  if network in ("text_encoder", "image_encoder"):
    return _clip_fields(network, form, shapes)
  levels, layers = _depth(shapes)
  # No size depends on the skip convolutions between levels of other widths.
  table = vae.table if network == "vae" else unet.table
  size = functools.partial(_size, shapes, table(form, (0,) * levels, layers))
  blocks = r"down_{}_\d+/resnet/(conv_[12]|norm_2/norm)/"
  if network == "vae":
    blocks = r"encoder/down_{}_resnet_\d+/conv_[12]/"
  widths = [size((blocks.format(i), -1)) for i in range(levels)]
  fields = {"block_channels": tuple(widths), "layers_per_block": layers}
  if network == "vae":
    middle = ("post_quant_conv/", -1), ("post_quant_conv/", -2)
    return fields | {"latent_channels": size(*middle, ("decoder/conv_in/", -2))}
  if network == "image_unet":
    return fields
  first = r"temporal_in/(proj_in|block/attn_[12]/to_[qkv])/"
  text = r"(down|up)_\d+_\d+/spatial/block/attn_2/to_[kv]/"
  return fields | {
    "latent_channels": size(
      (r"conv_out/|local_image/proj/conv_3/", -1),
      (r"conv_in/|(local_image/proj|image_tokens)/conv_1/", -2),
    ),
    "context_dim": size((text, -2)),
    # The first transformer has 8 heads, of the width that all heads have.
    "input_heads": 8,
    "head_dim": max(size((first, -1)) // 8, 1),
  }


def _depth(shapes: Shapes) -> tuple[int, int]:
  """Number of levels of a U-Net or autoencoder, and of layers in each."""
  if blocks := _count(shapes, r"input_blocks\.(\d+)\."):
    # LDM has the blocks of all levels in one row, and conv_in before them.
    step = re.compile(r"input_blocks\.(\d+)\..*op\.")
    levels = 1 + len({m[1] for key in shapes if (m := step.match(key))})
    return levels, blocks // levels - 1
  down = r"(?:encoder\.)?down(?:_blocks)?\."
  layers = _count(shapes, down + r"0\.(?:resnets|block)\.(\d+)\.")
  return _count(shapes, down + r"(\d+)\."), layers


def _clip_fields(network: str, form: str, shapes: Shapes) -> dict[str, Any]:
  is_text = network == "text_encoder"
  prefix = r"(?:text_model\.)?" if is_text else r"(?:vision_model\.)?"
  lists = r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\."
  num_layers = _count(shapes, prefix + lists)
  table = clip.text_table if is_text else clip.vision_table
  size = functools.partial(_size, shapes, table(form, num_layers))
  width = size((r"(layer_\d+/)?(norm_|final_norm/)", -1))
  length = size(("position_embedding", -2))
  # The heads of all text towers of OpenCLIP are 64 wide, those of ViT-H/14 80.
  fields = {
    "width": width,
    "num_layers": num_layers,
    "num_heads": max(width // (64 if is_text else 80), 1),
    "mlp_width": size((r"layer_\d+/mlp_in/", -1)),
  }
  if is_text:
    words = size(("token_embedding/", -2))
    return fields | {"vocab_size": words, "max_length": length}
  patch = size(("patch_embedding/", 0), ("patch_embedding/", 1))
  return fields | {
    "patch_size": patch,
    "image_size": patch * round(max(length - 1, 0) ** 0.5),
    "projection_dim": size(("projection/", -1)),
  }


def _count(shapes: Shapes, pattern: str) -> int:
  """One more than the largest number in the group of the pattern."""
  matches = (re.match(pattern, key) for key in shapes)
  return max((int(m[1]) + 1 for m in matches if m), default=0)


def _size(shapes: Shapes, table: Table, *places: tuple[str, int]) -> int:
  """The size that most tensors have; 1 if there are none.

  Args:
    shapes: shapes in the file.
    table: table of the network.
    places: (pattern of our paths, axis of our array) of the size.
  """
  sizes = []
  for pattern, axis in places:
    for row in table.rows:
      if re.match(pattern, row.path):
        # The tensor may be missing or have another rank.
        with contextlib.suppress(KeyError, ValueError, IndexError):
          shape = shapes[row.key_in(shapes)]
          sizes.append(row.flax_shape(shape)[axis])
  return statistics.mode(sizes or [1])
