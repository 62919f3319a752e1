"""LDM's autoencoder and OpenCLIP against diffusers' and transformers' forms."""

import diffusers
import numpy as np
import pytest
import transformers
from weight_helpers import arrays_of, check_fit, leaves_of, load

from i2vgen_jax.interop.keys import clip, vae
from i2vgen_jax.interop.mapping import to_torch
from i2vgen_jax.models import build
from i2vgen_jax.models.clip import CLIPTextModel, CLIPVisionModel
from i2vgen_jax.models.vae import AutoencoderKL

PUBLIC_VAE = ((128, 256, 512, 512), 2)
PUBLIC_TEXT = {
  "vocab_size": 49408,
  "width": 1024,
  "num_layers": 24,
  "num_heads": 16,
  "mlp_width": 4096,
  "max_length": 77,
}
PUBLIC_VISION = {
  "width": 1280,
  "num_layers": 32,
  "num_heads": 16,
  "mlp_width": 5120,
  "patch_size": 14,
  "image_size": 224,
  "projection_dim": 1024,
}
TEXT = {
  "vocab_size": 31,
  "width": 24,
  "num_layers": 2,
  "num_heads": 3,
  "mlp_width": 40,
  "max_length": 11,
}
# The projection is square, so its shape does not reveal a transpose.
VISION = {
  "width": 24,
  "num_layers": 3,
  "num_heads": 3,
  "mlp_width": 40,
  "patch_size": 4,
  "image_size": 12,
  "projection_dim": 24,
}


def vae_reference(channels, layers, groups):
  return diffusers.AutoencoderKL(
    block_out_channels=channels,
    down_block_types=("DownEncoderBlock2D",) * len(channels),
    up_block_types=("UpDecoderBlock2D",) * len(channels),
    layers_per_block=layers,
    latent_channels=4,
    norm_num_groups=groups,
  )


def text_reference(**fields):
  return transformers.CLIPTextModel(
    transformers.CLIPTextConfig(
      vocab_size=fields["vocab_size"],
      hidden_size=fields["width"],
      num_hidden_layers=fields["num_layers"],
      num_attention_heads=fields["num_heads"],
      intermediate_size=fields["mlp_width"],
      max_position_embeddings=fields["max_length"],
    )
  )


def vision_reference(**fields):
  return transformers.CLIPVisionModelWithProjection(
    transformers.CLIPVisionConfig(
      hidden_size=fields["width"],
      num_hidden_layers=fields["num_layers"],
      num_attention_heads=fields["num_heads"],
      intermediate_size=fields["mlp_width"],
      patch_size=fields["patch_size"],
      image_size=fields["image_size"],
      projection_dim=fields["projection_dim"],
    )
  )


def vae_rules(levels):
  def finest_first(m):
    return f"decoder.up.{levels - 1 - int(m[1])}."

  return [
    (r"^encoder\.down_blocks\.(\d+)\.", r"encoder.down.\1."),
    (r"^decoder\.up_blocks\.(\d+)\.", finest_first),
    (r"\.(down|up)samplers\.0\.conv\.", r".\1sample.conv."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
  ]


@pytest.fixture
def as_ldm(rename):
  """The autoencoder in Stable Diffusion's own file."""

  def convert(arrays, levels):
    return {
      key: x[..., None, None] if "attn_1" in key and x.ndim == 2 else x
      for key, x in rename(arrays, vae_rules(levels)).items()
    }

  return convert


LAYERS = [
  (r"^encoder\.layers", "transformer.resblocks"),
  (r"\.layer_norm([12])\.", r".ln_\1."),
  (r"\.self_attn\.", ".attn."),
  (r"\.fc1\.", ".c_fc."),
  (r"\.fc2\.", ".c_proj."),
]
TEXT_RULES = [
  (r"^text_model\.", ""),
  (r"^embeddings\.token_embedding\.", "token_embedding."),
  (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
  (r"^final_layer_norm\.", "ln_final."),
  *LAYERS,
]
VISION_RULES = [
  (r"^vision_model\.", ""),
  (r"^embeddings\.class_embedding", "class_embedding"),
  (r"^embeddings\.patch_embedding\.", "conv1."),
  (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
  (r"^pre_layrnorm\.", "ln_pre."),
  (r"^post_layernorm\.", "ln_post."),
  (r"^visual_projection\.weight", "proj"),
  *LAYERS,
]


@pytest.fixture
def as_openclip(rename):
  """A tower in OpenCLIP's file."""

  def convert(arrays, rules, num_layers):
    result = rename(arrays, rules)
    for i in range(num_layers):
      attn = f"transformer.resblocks.{i}.attn"
      for kind in ("weight", "bias"):
        result[f"{attn}.in_proj_{kind}"] = np.concatenate(
          [result.pop(f"{attn}.{name}_proj.{kind}") for name in "qkv"]
        )
    if "proj" in result:
      result["proj"] = result["proj"].T
    return result

  return convert


@pytest.mark.parametrize(
  ("channels", "layers"), [((8, 16, 24, 24), 2), ((8, 16, 8), 1)]
)
def test_ldm_autoencoder(
  channels, layers, state_shapes, draw_arrays, as_ldm, assert_same
):
  theirs = draw_arrays(
    state_shapes(lambda: vae_reference(channels, layers, groups=4))
  )
  file = as_ldm(theirs, len(channels))
  target = build.abstract_params(
    AutoencoderKL(
      block_channels=channels, layers_per_block=layers, norm_groups=4
    )
  )
  table = vae.table("ldm", channels, layers)
  params = load(file, table, target)
  listed = vae.table("diffusers", channels, layers)
  assert_same(params, load(theirs, listed, target))
  assert_same(arrays_of(to_torch(leaves_of(params), table)), file)


def test_full_size_autoencoder(state_shapes, hollow_arrays, as_ldm):
  file = as_ldm(
    hollow_arrays(state_shapes(lambda: vae_reference(*PUBLIC_VAE, groups=32))),
    levels=4,
  )
  assert len(file) == 248
  assert sum(x.size for x in file.values()) == 83_653_863
  check_fit(
    file, vae.table("ldm", *PUBLIC_VAE), build.abstract_params(AutoencoderKL())
  )


def test_openclip_text(state_shapes, draw_arrays, as_openclip, assert_same):
  theirs = draw_arrays(state_shapes(lambda: text_reference(**TEXT)))
  file = as_openclip(theirs, TEXT_RULES, TEXT["num_layers"])
  unused = draw_arrays(
    {"text_projection": (24, 24), "logit_scale": (), "attn_mask": (11, 11)}
  )
  target = build.abstract_params(CLIPTextModel(**TEXT))
  table = clip.text_table("openclip", TEXT["num_layers"])
  params = load(file | unused, table, target)
  listed = clip.text_table("transformers", TEXT["num_layers"])
  assert_same(params, load(theirs, listed, target))
  assert_same(arrays_of(to_torch(leaves_of(params), table)), file)


def test_openclip_vision(state_shapes, draw_arrays, as_openclip, assert_same):
  theirs = draw_arrays(state_shapes(lambda: vision_reference(**VISION)))
  file = as_openclip(theirs, VISION_RULES, VISION["num_layers"])
  target = build.abstract_params(CLIPVisionModel(**VISION))
  table = clip.vision_table("openclip", VISION["num_layers"])
  params = load(file, table, target)
  listed = clip.vision_table("transformers", VISION["num_layers"])
  assert_same(params, load(theirs, listed, target))
  assert_same(arrays_of(to_torch(leaves_of(params), table)), file)


def test_full_size_openclip(state_shapes, hollow_arrays, as_openclip):
  theirs = hollow_arrays(state_shapes(lambda: text_reference(**PUBLIC_TEXT)))
  file = as_openclip(theirs, TEXT_RULES, num_layers=24)
  assert sum(x.size for x in file.values()) == 352_984_064
  check_fit(
    file,
    clip.text_table("openclip", 24),
    build.abstract_params(CLIPTextModel()),
  )

  theirs = hollow_arrays(
    state_shapes(lambda: vision_reference(**PUBLIC_VISION))
  )
  file = as_openclip(theirs, VISION_RULES, num_layers=32)
  assert sum(x.size for x in file.values()) == 632_076_800
  check_fit(
    file,
    clip.vision_table("openclip", 32),
    build.abstract_params(CLIPVisionModel()),
  )
