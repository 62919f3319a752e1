"""Recognises networks in a weight file by keys and shapes, never by its name.

A size is what most tensors agree on, so that a missing key or a wrong shape
does not change it; the comparison that follows then names that key.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats.tensors import Tensors

Shapes = Mapping[str, tuple[int, ...]]
Fields = Callable[[Shapes], dict[str, Any]]


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


@dataclasses.dataclass(frozen=True)
class _Signature:
  """How to recognise one network in one form.

  Attributes:
    network: see `Found`.
    form: see `Found`.
    prefix: prefix of its keys, which the patterns do not see.
    has: patterns, each of which must match the start of a key.
    fields: shapes -> fields of the module.
    lacks: pattern that must match no key; empty is no condition.
  """

  network: str
  form: str
  prefix: str
  has: tuple[str, ...]
  fields: Fields
  lacks: str = ""

  def matches(self, tensors: Tensors) -> bool:
    if self.lacks and _any(self.lacks, tensors):
      return False
    return all(_any(f"^{pattern}", tensors) for pattern in self.has)


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
  for signature in _SIGNATURES:
    prefix = outer + signature.prefix
    inside = tensors.under(prefix)
    network, form = signature.network, signature.form
    if network in found or not signature.matches(inside):
      continue
    found[network] = Found(
      network=network,
      form=form,
      variant=_variant(inside) if network == "unet" else None,
      prefix=prefix,
      tensors=_without_images(inside) if form == "openclip" else inside,
      fields=signature.fields(inside.shapes),
    )
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
    "fps": r"fps_embedding\.",
    "CLIP tokens": r"context_embedding\.",
    "the local image path": r"(local_image_concat|image_latents_proj_in)\.",
  }
  has = [name for name, part in parts.items() if _any(f"^{part}", tensors)]
  names = list(parts)
  for variant, needed in (
    ("refine", []),
    ("image_to_video", names[:2]),
    ("released", names),
  ):
    if has == needed:
      return variant
  raise InputError(
    f"a video U-Net of no public variant, in {tensors.where}: it has only "
    f"{' and '.join(has)}; variant (c) has {', '.join(names)}, (a) the first "
    "two and (b) none"
  )


def _without_images(tensors: Tensors) -> Tensors:
  """Without the image tower, which shares the file of OpenCLIP's text tower."""

  def rest(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if not k.startswith("visual.")}

  return dataclasses.replace(
    tensors, shapes=rest(tensors.shapes), dtypes=rest(tensors.dtypes)
  )


# ---- Sizes ----


def _count(shapes: Shapes, pattern: str) -> int:
  """One more than the largest number in the group of the pattern."""
  matches = (re.match(pattern, key) for key in shapes)
  return max((int(m[1]) + 1 for m in matches if m), default=0)


def _size(shapes: Shapes, *places: tuple[str, int]) -> int:
  """The size that most tensors have; 1 if there are none.

  Args:
    shapes: shapes in the file.
    places: (pattern of keys, axis) at which the size is found.
  """
  sizes = Counter(
    shape[axis]
    for pattern, axis in places
    for key, shape in shapes.items()
    if len(shape) > axis and re.match(pattern, key)
  )
  return sizes.most_common(1)[0][0] if sizes else 1


def _diffusers_unet(shapes: Shapes) -> dict[str, Any]:
  conditions = r"image_latents_(proj_in|context_embedding)\.0\."
  return _diffusers_levels(shapes) | {
    "latent_channels": _size(
      shapes,
      (r"conv_out\.", 0),
      (r"image_latents_proj_in\.4\.", 0),
      (conditions, 1),
    ),
    "context_dim": _size(
      shapes, (r"(down|up)_blocks\.\d+\.attentions.*attn2\.to_[kv]\.", 1)
    ),
    **_heads(shapes, r"transformer_in"),
  }


def _diffusers_levels(shapes: Shapes) -> dict[str, Any]:
  levels = _count(shapes, r"down_blocks\.(\d+)\.")
  layer = r"resnets\.\d+\.(conv[12]|norm2)\."
  return {
    "block_channels": tuple(
      _size(shapes, (rf"down_blocks\.{i}\.{layer}", 0)) for i in range(levels)
    ),
    "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
  }


def _vgen_unet(shapes: Shapes) -> dict[str, Any]:
  return _ldm_levels(shapes) | {
    "latent_channels": _size(
      shapes,
      (r"out\.2\.", 0),
      (r"input_blocks\.0\.0\.", 1),
      (r"local_image_concat\.4\.", 0),
      (r"local_image_(concat|embedding)\.0\.", 1),
    ),
    "context_dim": _size(
      shapes, (r"(in|out)put_blocks\.\d+\.1\..*attn2\.to_[kv]\.", 1)
    ),
    **_heads(shapes, r"input_blocks\.0\.1"),
  }


def _ldm_levels(shapes: Shapes) -> dict[str, Any]:
  """The blocks of all levels in one row: conv_in, blocks, downsampling, ..."""
  steps = {
    m[1] for k in shapes if (m := re.match(r"input_blocks\.(\d+)\..*op\.", k))
  }
  levels = 1 + len(steps)
  layers = _count(shapes, r"input_blocks\.(\d+)\.") // levels - 1
  layer = r"0\.(in_layers\.2|out_layers\.[03])\."

  def width(level: int) -> int:
    first = 1 + level * (layers + 1)
    numbers = "|".join(str(first + j) for j in range(layers))
    return _size(shapes, (rf"input_blocks\.({numbers})\.{layer}", 0))

  return {
    "block_channels": tuple(width(i) for i in range(levels)),
    "layers_per_block": layers,
  }


def _heads(shapes: Shapes, first_transformer: str) -> dict[str, int]:
  """The first transformer has 8 heads, of the width that all heads have."""
  layers = rf"{first_transformer}\.(proj_in|.*to_[qkv])\."
  return {
    "input_heads": 8,
    "head_dim": max(_size(shapes, (layers, 0)) // 8, 1),
  }


def _vae(level: str, block: str) -> Fields:
  def fields(shapes: Shapes) -> dict[str, Any]:
    levels = _count(shapes, rf"encoder\.{level}\.(\d+)\.")
    return {
      "block_channels": tuple(
        _size(shapes, (rf"encoder\.{level}\.{i}\.{block}\.\d+\.conv[12]\.", 0))
        for i in range(levels)
      ),
      "layers_per_block": _count(
        shapes, rf"encoder\.{level}\.0\.{block}\.(\d+)\."
      ),
      "latent_channels": _size(
        shapes,
        (r"post_quant_conv\.", 0),
        (r"post_quant_conv\.", 1),
        (r"decoder\.conv_in\.", 1),
      ),
    }

  return fields


def _clip(
  first: str, layers: str, mlp: str, head_dim: int, axis: int
) -> Fields:
  """Fields of both CLIP towers.

  Args:
    first: keys of the first layer.
    layers: key of the list of layers.
    mlp: first layer of the feed-forward network.
    head_dim: width of a head.
    axis: that of the width in the first layer.
  """

  def fields(shapes: Shapes) -> dict[str, Any]:
    norms = rf"{layers}\.\d+\.(layer_norm|ln_)"
    width = _size(shapes, (first, axis), (norms, 0))
    return {
      "width": width,
      "num_layers": _count(shapes, rf"{layers}\.(\d+)\."),
      "num_heads": max(width // head_dim, 1),
      "mlp_width": _size(shapes, (rf"{layers}\.\d+\.{mlp}\.", 0)),
    }

  return fields


def _text(words: str, positions: str, layers: str, mlp: str) -> Fields:
  # The heads of all text towers of OpenCLIP are 64 wide.
  tower = _clip(words, layers, mlp, head_dim=64, axis=1)
  return lambda shapes: (
    tower(shapes)
    | {
      "vocab_size": _size(shapes, (words, 0)),
      "max_length": _size(shapes, (positions, 0)),
    }
  )


def _vision(
  patches: str, positions: str, layers: str, mlp: str, output: tuple[str, int]
) -> Fields:
  # The heads of ViT-H/14 are 80 wide.
  tower = _clip(patches, layers, mlp, head_dim=80, axis=0)

  def fields(shapes: Shapes) -> dict[str, Any]:
    patch = _size(shapes, (patches, 2), (patches, 3))
    grid = round(max(_size(shapes, (positions, 0)) - 1, 0) ** 0.5)
    return tower(shapes) | {
      "patch_size": patch,
      "image_size": patch * grid,
      "projection_dim": _size(shapes, output),
    }

  return fields


def _transformers_text(prefix: str) -> _Signature:
  words = rf"{prefix}embeddings\.token_embedding\."
  positions = rf"{prefix}embeddings\.position_embedding\."
  fields = _text(words, positions, rf"{prefix}encoder\.layers", r"mlp\.fc1")
  return _Signature("text_encoder", "transformers", "", (words,), fields)


# ---- Signatures ----

_IMAGE_UNET = (r"input_blocks\.1\.1\.",)
_LDM_VAE = (r"encoder\.down\.", r"decoder\.")
_OPENCLIP = r"transformer\.resblocks"
_VISION = r"vision_model\."

_SIGNATURES = (
  _Signature(
    "unet",
    "diffusers",
    "",
    (r"transformer_in\.", r"image_latents_proj_in\."),
    _diffusers_unet,
  ),
  _Signature("unet", "vgen", "", (r".*temopral_conv",), _vgen_unet),
  _Signature(
    "image_unet",
    "diffusers",
    "",
    (r"down_blocks\.0\.attentions\.", r"time_embedding\."),
    _diffusers_levels,
    lacks=r"transformer_in|temp_convs",
  ),
  *(
    _Signature(
      "image_unet", "ldm", prefix, _IMAGE_UNET, _ldm_levels, "temopral_conv"
    )
    for prefix in ("model.diffusion_model.", "")
  ),
  _Signature(
    "vae",
    "diffusers",
    "",
    (r"encoder\.down_blocks\.", r"decoder\."),
    _vae("down_blocks", "resnets"),
  ),
  *(
    _Signature("vae", "ldm", prefix, _LDM_VAE, _vae("down", "block"))
    for prefix in ("first_stage_model.", "")
  ),
  _transformers_text(r"text_model\."),
  _transformers_text(""),
  _Signature(
    "text_encoder",
    "openclip",
    "",
    (r"token_embedding\.", rf"{_OPENCLIP}\."),
    _text(
      r"token_embedding\.", r"positional_embedding", _OPENCLIP, r"mlp\.c_fc"
    ),
  ),
  _Signature(
    "image_encoder",
    "transformers",
    "",
    (rf"{_VISION}embeddings\.",),
    _vision(
      rf"{_VISION}embeddings\.patch_embedding\.",
      rf"{_VISION}embeddings\.position_embedding\.",
      rf"{_VISION}encoder\.layers",
      r"mlp\.fc1",
      (r"visual_projection\.", 0),
    ),
  ),
  _Signature(
    "image_encoder",
    "openclip",
    "visual.",
    (r"class_embedding", rf"{_OPENCLIP}\."),
    _vision(
      r"conv1\.",
      r"positional_embedding",
      _OPENCLIP,
      r"mlp\.c_fc",
      (r"proj$", 1),
    ),
  ),
)

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
