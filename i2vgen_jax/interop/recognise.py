"""What a weight file holds, told from its keys and shapes, never its name.

Sizes are what most tensors agree on, so that a key that is missing or has a
wrong shape is found by the comparison that follows, and named there.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats.tensors import Tensors

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Found:
  """One network in a file.

  Attributes:
    network: unet, vae, text_encoder or image_encoder; `image_unet` is the
      U-Net of Stable Diffusion, which ours can be started from.
    form: whose spelling the keys have: diffusers, vgen, ldm, transformers or
      openclip. ModelScope spells as VGen does.
    variant: of a U-Net, a key of `variants.VARIANTS`; None elsewhere.
    prefix: of its keys in the file.
    tensors: those of this network, without the prefix.
    fields: fields of its module that the shapes decide.
  """

  network: str
  form: str
  variant: str | None
  prefix: str
  tensors: Tensors
  fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Sign:
  """How to know one network in one form.

  Attributes:
    network: see `Found`.
    form: see `Found`.
    prefix: of its keys; taken away before anything else is looked at.
    marks: patterns of which each must match some key.
    lacks: a pattern that must match none; empty is no condition.
    fields: shapes -> fields of the module.
  """

  network: str
  form: str
  prefix: str
  marks: tuple[str, ...]
  fields: Callable[[Shapes], dict[str, Any]]
  lacks: str = ""


def recognise(tensors: Tensors) -> list[Found]:
  """Every network of ours that a file holds.

  Raises:
    InputError: it holds none; known models of others are called by name.
  """
  for name, has, lacks in _STRANGERS:
    if _any(has, tensors) and not _any(lacks, tensors):
      raise InputError(
        f"these are weights of {name}, in {tensors.where}; use those of "
        "I2VGen-XL"
      )
  # Of torch's wrapper for training on many devices.
  outer = "module."
  if not all(key.startswith(outer) for key in tensors.shapes):
    outer = ""
  found: dict[str, Found] = {}
  for sign in _SIGNS:
    inside = tensors.under(outer + sign.prefix)
    if sign.network not in found and _matches(sign, inside):
      found[sign.network] = Found(
        network=sign.network,
        form=sign.form,
        variant=_variant(inside) if sign.network == "unet" else None,
        prefix=outer + sign.prefix,
        tensors=_own(inside, sign),
        fields=sign.fields(inside.shapes),
      )
  if not found:
    some = ", ".join(sorted(tensors.shapes)[:3]) or "nothing"
    raise InputError(
      f"no network of I2VGen-XL in {tensors.where}: its {len(tensors.shapes)} "
      f"tensors begin with {some}; use one of the public weight files"
    )
  return list(found.values())


def _any(pattern: str, tensors: Tensors) -> bool:
  return any(re.search(pattern, key) for key in tensors.shapes)


def _matches(sign: _Sign, tensors: Tensors) -> bool:
  if sign.lacks and _any(sign.lacks, tensors):
    return False
  return all(_any(f"^{mark}", tensors) for mark in sign.marks)


def _variant(tensors: Tensors) -> str:
  parts = {
    "fps": r"fps_embedding\.",
    "CLIP tokens": r"context_embedding\.",
    "the local image path": r"(local_image_concat|image_latents_proj_in)\.",
  }
  has = [n for n, pattern in parts.items() if _any(f"^{pattern}", tensors)]
  variant = {0: "refine", 2: "image_to_video", 3: "released"}.get(len(has))
  if variant is None or (
    variant == "image_to_video" and list(parts)[:2] != has
  ):
    raise InputError(
      f"a video U-Net of no public variant, in {tensors.where}: it has "
      f"{' and '.join(has)} alone; variant (c) has {', '.join(parts)}, (a) "
      "the first two and (b) none"
    )
  return variant


def _own(tensors: Tensors, sign: _Sign) -> Tensors:
  """Without the picture's tower, which shares the file of OpenCLIP's text."""
  if (sign.network, sign.form) != ("text_encoder", "openclip"):
    return tensors

  def rest(some):
    return {k: v for k, v in some.items() if not k.startswith("visual.")}

  return dataclasses.replace(
    tensors, shapes=rest(tensors.shapes), dtypes=rest(tensors.dtypes)
  )


# ---- Sizes ----


def _diffusers_unet(shapes: Shapes) -> dict[str, Any]:
  return _diffusers_levels(shapes) | {
    "latent_channels": _side(
      shapes,
      (r"conv_out\.", 0),
      (r"image_latents_proj_in\.4\.", 0),
      (r"image_latents_(proj_in|context_embedding)\.0\.", 1),
    ),
    "context_dim": _side(
      shapes, (r"(down|up)_blocks\.\d+\.attentions.*attn2\.to_[kv]\.", 1)
    ),
    **_heads(_side(shapes, (r"transformer_in\.(proj_in|.*to_[qkv])\.", 0))),
  }


def _diffusers_levels(shapes: Shapes) -> dict[str, Any]:
  block = r"down_blocks\.{}\.resnets\.\d+\.(conv[12]|norm2)\."
  return {
    "block_channels": tuple(
      _side(shapes, (block.format(i), 0))
      for i in range(_count(shapes, r"down_blocks\.(\d+)\."))
    ),
    "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
  }


def _vgen_unet(shapes: Shapes) -> dict[str, Any]:
  return _flat_levels(shapes) | {
    "latent_channels": _side(
      shapes,
      (r"out\.2\.", 0),
      (r"input_blocks\.0\.0\.", 1),
      (r"local_image_concat\.4\.", 0),
      (r"local_image_(concat|embedding)\.0\.", 1),
    ),
    "context_dim": _side(
      shapes, (r"(in|out)put_blocks\.\d+\.1\..*attn2\.to_[kv]\.", 1)
    ),
    **_heads(_side(shapes, (r"input_blocks\.0\.1\.(proj_in|.*to_[qkv])\.", 0))),
  }


def _flat_levels(shapes: Shapes) -> dict[str, Any]:
  """The blocks of all levels in one row: conv_in, blocks, a step down, ..."""
  steps = {
    m[1] for k in shapes if (m := re.match(r"input_blocks\.(\d+)\..*op\.", k))
  }
  levels = 1 + len(steps)
  layers = _count(shapes, r"input_blocks\.(\d+)\.") // levels - 1
  block = r"input_blocks\.({})\.0\.(in_layers\.2|out_layers\.[03])\."

  def numbers(level: int) -> str:
    first = 1 + level * (layers + 1)
    return "|".join(str(first + j) for j in range(layers))

  return {
    "block_channels": tuple(
      _side(shapes, (block.format(numbers(i)), 0)) for i in range(levels)
    ),
    "layers_per_block": layers,
  }


def _heads(inner: int) -> dict[str, int]:
  """At the mouth there are 8 heads, of the width they have everywhere."""
  return {"input_heads": 8, "head_dim": max(inner // 8, 1)}


def _vae(level: str, block: str, layer: str) -> Callable:
  def fields(shapes: Shapes) -> dict[str, Any]:
    levels = _count(shapes, rf"encoder\.{level}\.(\d+)\.")
    return {
      "block_channels": tuple(
        _side(shapes, (rf"encoder\.{level}\.{i}\.{block}\.\d+\.conv[12]\.", 0))
        for i in range(levels)
      ),
      "layers_per_block": _count(shapes, rf"encoder\.{level}\.0\.{layer}"),
      "latent_channels": _side(
        shapes,
        (r"post_quant_conv\.", 0),
        (r"post_quant_conv\.", 1),
        (r"decoder\.conv_in\.", 1),
      ),
    }

  return fields


def _text(words: str, places: str, layers: str, mlp: str) -> Callable:
  def fields(shapes: Shapes) -> dict[str, Any]:
    width = _side(shapes, (words, 1), (rf"{layers}\.\d+\.(layer_norm|ln_)", 0))
    return {
      "vocab_size": _side(shapes, (words, 0)),
      "width": width,
      "num_layers": _count(shapes, rf"{layers}\.(\d+)\."),
      # Heads of 64 in every text tower of OpenCLIP.
      "num_heads": max(width // 64, 1),
      "mlp_width": _side(shapes, (rf"{layers}\.\d+\.{mlp}\.", 0)),
      "max_length": _side(shapes, (places, 0)),
    }

  return fields


def _vision(
  root: str, patches: str, places: str, layers: str, mlp: str, out: str, axis
) -> Callable:
  def fields(shapes: Shapes) -> dict[str, Any]:
    width = _side(
      shapes,
      (root + patches, 0),
      (rf"{root}{layers}\.\d+\.(layer_norm|ln_)", 0),
    )
    patch = _side(shapes, (root + patches, 2), (root + patches, 3))
    grid = round(max(_side(shapes, (root + places, 0)) - 1, 0) ** 0.5)
    return {
      "width": width,
      "num_layers": _count(shapes, rf"{root}{layers}\.(\d+)\."),
      # Heads of 80 in ViT-H/14.
      "num_heads": max(width // 80, 1),
      "mlp_width": _side(shapes, (rf"{root}{layers}\.\d+\.{mlp}\.", 0)),
      "patch_size": patch,
      "image_size": patch * grid,
      "projection_dim": _side(shapes, (out, axis)),
    }

  return fields


def _count(shapes: Shapes, pattern: str) -> int:
  """One more than the largest number at the group of the pattern."""
  found = (re.match(pattern, key) for key in shapes)
  return max((int(m[1]) + 1 for m in found if m), default=0)


def _side(shapes: Shapes, *places: tuple[str, int]) -> int:
  """The side that most tensors have; 1 if there are none.

  Args:
    shapes: of the file.
    places: (pattern of keys, axis) where that side is found.
  """
  sides = Counter(
    shape[axis]
    for pattern, axis in places
    for key, shape in shapes.items()
    if len(shape) > axis and re.match(pattern, key)
  )
  return sides.most_common(1)[0][0] if sides else 1


# ---- The signs ----

_SIGNS = (
  _Sign(
    "unet",
    "diffusers",
    "",
    (r"transformer_in\.", r"image_latents_proj_in\."),
    _diffusers_unet,
  ),
  _Sign("unet", "vgen", "", (r".*temopral_conv",), _vgen_unet),
  _Sign(
    "image_unet",
    "diffusers",
    "",
    (r"down_blocks\.0\.attentions\.", r"time_embedding\."),
    _diffusers_levels,
    lacks=r"transformer_in|temp_convs",
  ),
  *(
    _Sign(
      "image_unet",
      "ldm",
      prefix,
      (r"input_blocks\.1\.1\.",),
      _flat_levels,
      lacks="temopral_conv",
    )
    for prefix in ("model.diffusion_model.", "")
  ),
  _Sign(
    "vae",
    "diffusers",
    "",
    (r"encoder\.down_blocks\.", r"decoder\."),
    _vae("down_blocks", "resnets", r"resnets\.(\d+)\."),
  ),
  *(
    _Sign(
      "vae",
      "ldm",
      prefix,
      (r"encoder\.down\.", r"decoder\."),
      _vae("down", "block", r"block\.(\d+)\."),
    )
    for prefix in ("first_stage_model.", "")
  ),
  *(
    _Sign(
      "text_encoder",
      "transformers",
      "",
      (rf"{prefix}embeddings\.token_embedding\.",),
      _text(
        rf"{prefix}embeddings\.token_embedding\.",
        rf"{prefix}embeddings\.position_embedding\.",
        rf"{prefix}encoder\.layers",
        r"mlp\.fc1",
      ),
    )
    for prefix in (r"text_model\.", "")
  ),
  _Sign(
    "text_encoder",
    "openclip",
    "",
    (r"token_embedding\.", r"transformer\.resblocks\."),
    _text(
      r"token_embedding\.",
      r"positional_embedding",
      r"transformer\.resblocks",
      r"mlp\.c_fc",
    ),
  ),
  _Sign(
    "image_encoder",
    "transformers",
    "",
    (r"vision_model\.embeddings\.",),
    _vision(
      r"vision_model\.",
      r"embeddings\.patch_embedding\.",
      r"embeddings\.position_embedding\.",
      r"encoder\.layers",
      r"mlp\.fc1",
      r"visual_projection\.",
      0,
    ),
  ),
  _Sign(
    "image_encoder",
    "openclip",
    "visual.",
    (r"class_embedding", r"transformer\.resblocks\."),
    _vision(
      "",
      r"conv1\.",
      r"positional_embedding",
      r"transformer\.resblocks",
      r"mlp\.c_fc",
      r"proj$",
      1,
    ),
  ),
)

# Others' models that people confuse with this one: a key of theirs, and one
# of ours that they lack.
_STRANGERS = (
  ("Stable Video Diffusion", r"spatial_res_block|time_stack|time_mixer", "$^"),
  ("Stable Diffusion XL", r"add_embedding\.|label_emb\.", "$^"),
  ("AnimateDiff", "motion_modules", "$^"),
  (
    "a text-to-video model (UNet3DConditionModel)",
    r"^transformer_in\.",
    r"^(image_latents_|context_embedding|fps_embedding)",
  ),
)
