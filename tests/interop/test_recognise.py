"""Which network, form, variant and size: from keys and shapes alone."""

import dataclasses
import re

import diffusers
import numpy as np
import public_standin
import pytest
import torch
from public_standin import TEXT, VAE, VISION, file_shapes
from weight_helpers import unreadable

from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.recognise import recognise
from i2vgen_jax.models.clip import CLIPTextModel, CLIPVisionModel
from i2vgen_jax.models.vae import AutoencoderKL
from i2vgen_jax.variants import VARIANTS

ODD = {
  "block_channels": (16, 48, 24),
  "layers_per_block": 3,
  "head_dim": 8,
  "context_dim": 20,
  "norm_groups": 8,
  "latent_channels": 3,
}
UNET_FIELDS = (
  "block_channels",
  "layers_per_block",
  "head_dim",
  "input_heads",
  "context_dim",
  "latent_channels",
)
VAE_FIELDS = ("block_channels", "layers_per_block", "latent_channels")
TEXT_FIELDS = (
  "vocab_size",
  "width",
  "num_layers",
  "num_heads",
  "mlp_width",
  "max_length",
)
VISION_FIELDS = (
  "width",
  "num_layers",
  "num_heads",
  "mlp_width",
  "patch_size",
  "image_size",
  "projection_dim",
)
TOWERS = [
  (AutoencoderKL, "vae", VAE_FIELDS, ("diffusers", "ldm")),
  (CLIPTextModel, "text_encoder", TEXT_FIELDS, ("transformers", "openclip")),
  (CLIPVisionModel, "image_encoder", VISION_FIELDS, ("transformers",)),
]
SMALL = {AutoencoderKL: VAE, CLIPTextModel: TEXT, CLIPVisionModel: VISION}
OTHER_VAE = AutoencoderKL(
  block_channels=(8, 24, 16),
  layers_per_block=3,
  latent_channels=3,
  norm_groups=4,
)


def picked(module, fields):
  return {name: getattr(module, name) for name in fields}


def prefixed(prefix, shapes):
  return {prefix + key: shape for key, shape in shapes.items()}


def renamed(shapes, pattern, replacement):
  return {re.sub(pattern, replacement, k): s for k, s in shapes.items()}


def only(tensors):
  (found,) = recognise(tensors)
  return found


def modelscope_shapes(released, variant):
  """The released variant's file without what (a) and (b) lack."""
  lacks = "local_"
  if variant == "refine":
    lacks += "|fps_embedding|context_embedding"
  shapes = {k: s for k, s in released.items() if not re.match(lacks, k)}
  out, both, *kernel = released["input_blocks.0.0.weight"]
  return shapes | {"input_blocks.0.0.weight": (out, both // 2, *kernel)}


@pytest.mark.parametrize("size", ["public", "small", "odd"])
@pytest.mark.parametrize(
  ("variant", "form"),
  [
    ("released", "diffusers"),
    ("released", "vgen"),
    ("image_to_video", "vgen"),
    ("refine", "vgen"),
  ],
)
def test_unet(variant, form, size):
  module = {
    "public": VARIANTS["released"].unet,
    "small": public_standin.unet(),
    "odd": public_standin.unet(**ODD),
  }[size]
  shapes = file_shapes(module, form)
  if variant != "released":
    shapes = modelscope_shapes(shapes, variant)
  found = only(unreadable(shapes))
  assert (found.network, found.form) == ("unet", form)
  assert found.variant == variant
  assert found.fields == picked(module, UNET_FIELDS)


@pytest.mark.parametrize("size", ["public", "small"])
@pytest.mark.parametrize(
  ("kind", "network", "fields", "form"),
  [(*tower[:3], form) for tower in TOWERS for form in tower[3]],
)
def test_tower(kind, network, fields, form, size):
  module = kind() if size == "public" else SMALL[kind]
  found = only(unreadable(file_shapes(module, form)))
  assert (found.network, found.form) == (network, form)
  assert found.variant is None
  assert found.fields == picked(module, fields)


@pytest.mark.parametrize("form", ["diffusers", "ldm"])
def test_autoencoder_of_another_shape(form):
  found = only(unreadable(file_shapes(OTHER_VAE, form)))
  assert found.fields == picked(OTHER_VAE, VAE_FIELDS)


def test_text_tower_without_its_prefix():
  """As transformers 5 names the parameters of the module."""
  shapes = file_shapes(TEXT, "transformers")
  assert all(key.startswith("text_model.") for key in shapes)
  bare = renamed(shapes, r"^text_model\.", "")
  found = only(unreadable(bare))
  assert found.fields == picked(TEXT, TEXT_FIELDS)
  assert found.tensors.shapes == bare


def openclip():
  unused = {"text_projection": (64, 64), "logit_scale": ()}
  text = file_shapes(TEXT, "openclip")
  image = file_shapes(VISION, "openclip")
  return text, image, text | prefixed("visual.", image) | unused


def test_both_towers_in_one_file():
  text, image, shapes = openclip()
  found = {one.network: one for one in recognise(unreadable(shapes))}
  assert set(found) == {"text_encoder", "image_encoder"}
  assert {one.form for one in found.values()} == {"openclip"}
  assert found["text_encoder"].fields == picked(TEXT, TEXT_FIELDS)
  assert found["image_encoder"].fields == picked(VISION, VISION_FIELDS)
  own = found["text_encoder"].tensors
  assert set(own.shapes) == {*text, "text_projection", "logit_scale"}
  assert set(own.dtypes) == set(own.shapes)
  assert found["image_encoder"].tensors.shapes == image


def test_keys_without_prefix_read_those_with_it():
  shapes = prefixed("first_stage_model.", file_shapes(VAE, "ldm"))
  read = []

  def record(key):
    read.append(key)
    return np.zeros(shapes[key])

  tensors = dataclasses.replace(unreadable(shapes), read=record)
  only(tensors).tensors.read("encoder.conv_in.weight")
  assert read == ["first_stage_model.encoder.conv_in.weight"]


def test_autoencoder_within_a_checkpoint():
  """Stable Diffusion 2.1's, next to its U-Net and text tower."""
  vae = file_shapes(VAE, "ldm")
  shapes = {
    **prefixed("model.diffusion_model.", as_ldm(lambda: image_unet(sd21=True))),
    **prefixed("first_stage_model.", vae),
    **prefixed("cond_stage_model.model.", openclip()[0]),
    "betas": (1000,),
    "model_ema.decay": (),
  }
  found = {one.network: one for one in recognise(unreadable(shapes))}
  assert set(found) == {"image_unet", "vae"}
  assert (found["vae"].form, found["image_unet"].form) == ("ldm", "ldm")
  assert found["vae"].tensors.shapes == vae
  assert found["vae"].fields == picked(VAE, VAE_FIELDS)
  channels = {"block_channels": (32, 64), "layers_per_block": 1}
  assert found["image_unet"].fields == channels


# ---- Files with an error, which a later comparison names ----

# Only one tensor has these sizes, or it identifies the network.
DECISIVE = (
  r"(text_model\.embeddings\.)?token_embedding|position(_embedding|al_emb)"
  r"|vision_model\.embeddings\.|visual_projection|conv1\.weight|^proj$"
  r"|post_quant_conv|^(conv_out|out\.2)\."
)
MODULES = [
  (public_standin.unet(), "diffusers"),
  (public_standin.unet(), "vgen"),
  (public_standin.unet("image_to_video"), "vgen"),
  (public_standin.unet("refine"), "vgen"),
  (public_standin.unet(block_channels=(16, 24, 32), norm_groups=8), "vgen"),
  (VAE, "diffusers"),
  (VAE, "ldm"),
  (TEXT, "transformers"),
  (TEXT, "openclip"),
  (VISION, "transformers"),
]


def some_keys(shapes):
  """A sample, as all keys would take too long."""
  keys = [key for key in shapes if not re.search(DECISIVE, key)]
  assert len(keys) > 0.8 * len(shapes)
  return keys[:: max(len(keys) // 12, 1)]


@pytest.mark.parametrize(("module", "form"), MODULES)
def test_missing_key_changes_no_field(module, form):
  shapes = file_shapes(module, form)
  whole = only(unreadable(shapes))
  for key in some_keys(shapes):
    found = only(unreadable({k: s for k, s in shapes.items() if k != key}))
    assert (found.network, found.form) == (whole.network, form), key
    assert (found.variant, found.fields) == (whole.variant, whole.fields), key


@pytest.mark.parametrize(("module", "form"), MODULES)
def test_wrong_shape_changes_no_field(module, form):
  shapes = file_shapes(module, form)
  whole = only(unreadable(shapes))
  for key in some_keys(shapes):
    for wrong in ((), tuple(n + 3 for n in shapes[key])):
      found = only(unreadable({**shapes, key: wrong}))
      assert (found.network, found.form) == (whole.network, form), key
      assert (found.variant, found.fields) == (whole.variant, whole.fields), key


@pytest.mark.parametrize(("module", "form"), MODULES)
def test_extra_key(module, form):
  shapes = file_shapes(module, form)
  whole = only(unreadable(shapes))
  found = only(
    unreadable({"optimizer.step": (), **shapes, "zzz.weight": (9, 9)})
  )
  assert (found.variant, found.fields) == (whole.variant, whole.fields)
  assert "zzz.weight" in found.tensors.shapes


# ---- Other models ----


def image_unet(sd21):
  """Small, with everything that distinguishes versions 1 and 2."""
  return diffusers.UNet2DConditionModel(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=1024 if sd21 else 768,
    attention_head_dim=8,
    use_linear_projection=sd21,
  )


def shapes_of(build):
  with torch.device("meta"):
    module = build()
  return {key: tuple(x.shape) for key, x in module.state_dict().items()}


def as_ldm(build):
  """The names of Stable Diffusion's own file that identify it."""
  rules = [
    (r"^time_embedding\.linear_([12])", lambda m: f"time_embed.{m[1]}"),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^down_blocks\.0\.resnets\.0\.", "input_blocks.1.0."),
    (r"^down_blocks\.0\.attentions\.0\.", "input_blocks.1.1."),
    (r"^down_blocks\.0\.downsamplers\.0\.conv\.", "input_blocks.2.0.op."),
    (r"^down_blocks\.1\.resnets\.0\.", "input_blocks.3.0."),
    (r"^(input_blocks.*)\.conv1\.", r"\1.in_layers.2."),
    (r"^(input_blocks.*)\.conv2\.", r"\1.out_layers.3."),
    (r"^add_embedding\.linear_([12])", lambda m: f"label_emb.0.{m[1]}"),
    (r"^mid_block", "middle_block"),
    (r"^up_blocks", "output_blocks"),
  ]
  shapes = shapes_of(build)
  for pattern, replacement in rules:
    shapes = renamed(shapes, pattern, replacement)
  return shapes


@pytest.mark.parametrize("sd21", [False, True])
@pytest.mark.parametrize("prefix", [None, "", "model.diffusion_model."])
def test_image_unet_of_stable_diffusion(sd21, prefix):
  def build():
    return image_unet(sd21)

  shapes = shapes_of(build)
  if prefix is not None:
    shapes = prefixed(prefix, as_ldm(build))
  found = only(unreadable(shapes))
  assert found.network == "image_unet"
  assert found.form == ("diffusers" if prefix is None else "ldm")
  assert found.variant is None
  fields = {"block_channels": (32, 64), "layers_per_block": 1}
  assert found.fields == fields


def xl():
  return diffusers.UNet2DConditionModel(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=64,
    attention_head_dim=(4, 8),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=80,
  )


def svd():
  return diffusers.UNetSpatioTemporalConditionModel(
    down_block_types=(
      "CrossAttnDownBlockSpatioTemporal",
      "DownBlockSpatioTemporal",
    ),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    block_out_channels=(32, 64),
    layers_per_block=1,
    num_attention_heads=(2, 4),
  )


def text_to_video():
  return diffusers.UNet3DConditionModel(
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=64,
    attention_head_dim=8,
  )


def animate():
  return diffusers.UNetMotionModel(
    down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=64,
    motion_num_attention_heads=4,
  )


def motion_modules():
  return diffusers.MotionAdapter(
    block_out_channels=(32, 64), motion_num_attention_heads=4
  )


OTHER_MODELS = [
  (svd, "Stable Video Diffusion"),
  (xl, "Stable Diffusion XL"),
  (animate, "AnimateDiff"),
  (motion_modules, "AnimateDiff"),
  (text_to_video, "a text-to-video model (UNet3DConditionModel)"),
]


@pytest.mark.parametrize(("build", "name"), OTHER_MODELS)
def test_other_models_are_named(build, name):
  with pytest.raises(InputError) as raised:
    recognise(unreadable(shapes_of(build), "models/theirs.safetensors"))
  assert str(raised.value) == (
    f"these are weights of {name}, in models/theirs.safetensors; use those of "
    "I2VGen-XL"
  )


def test_checkpoint_of_stable_diffusion_xl():
  """Its autoencoder must not be taken for ours."""
  shapes = {
    **prefixed("model.diffusion_model.", as_ldm(xl)),
    **prefixed("first_stage_model.", file_shapes(VAE, "ldm")),
  }
  with pytest.raises(InputError, match="Stable Diffusion XL"):
    recognise(unreadable(shapes))


@pytest.mark.parametrize(
  "shapes",
  [{}, {"layer.weight": (3, 4)}, {f"h.{i}.attn": (2,) for i in range(9)}],
)
def test_unknown_keys(shapes):
  with pytest.raises(InputError, match="no network of I2VGen-XL in file"):
    recognise(unreadable(shapes))


@pytest.mark.parametrize(
  ("form", "without", "has"),
  [
    ("vgen", r"fps_embedding", "only CLIP tokens and the local image path"),
    ("vgen", r"context_embedding", "only fps and the local image path"),
    ("vgen", r"fps_embedding|context_embedding", "only the local image path"),
    ("vgen", r"context_embedding|local_", "it has only fps"),
    ("vgen", r"fps_embedding|local_", "it has only CLIP tokens"),
    ("diffusers", r"fps_embedding", "CLIP tokens and the local image path"),
  ],
)
def test_incomplete_variant(form, without, has):
  shapes = file_shapes(public_standin.unet(), form)
  some = {k: s for k, s in shapes.items() if not re.match(without, k)}
  assert len(some) < len(shapes)
  with pytest.raises(InputError, match="of no public variant") as raised:
    recognise(unreadable(some))
  assert has in str(raised.value)


@pytest.mark.parametrize(
  ("module", "form", "only_one"),
  [
    (public_standin.unet(), "diffusers", ()),
    (public_standin.unet(), "vgen", ()),
    (public_standin.unet("refine"), "vgen", ()),
    (VAE, "diffusers", ()),
    (VAE, "ldm", ()),
    (TEXT, "openclip", ("token_embedding.weight", "positional_embedding")),
    (VISION, "openclip", ("visual.conv1.weight", "visual.proj")),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_side_changes_no_size(module, form, only_one):
  """So the comparison names that key and not all others."""
  shapes = file_shapes(module, form)
  if isinstance(module, CLIPVisionModel):
    shapes = prefixed("visual.", shapes)

  def sizes(some):
    return [
      (found.variant, found.fields) for found in recognise(unreadable(some))
    ]

  expected, misled = sizes(shapes), set()
  for key, shape in shapes.items():
    for axis, side in enumerate(shape):
      wrong = (*shape[:axis], side + 1, *shape[axis + 1 :])
      if sizes(shapes | {key: wrong}) != expected:
        misled.add(key)
  # The only tensors with these sizes; the config.json next to the
  # weights of transformers has them.
  assert misled == set(only_one)
