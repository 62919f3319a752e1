"""Forms of the U-Net against diffusers', by substitutions written down here."""

import re

import diffusers
import jax
import numpy as np
import pytest
import torch
from flax import traverse_util
from weight_helpers import arrays_of, check_fit, leaves_of, load

from i2vgen_jax.interop.keys.unet import stable_diffusion_table
from i2vgen_jax.interop.keys.unet import table as unet_table
from i2vgen_jax.interop.mapping import to_torch
from i2vgen_jax.models import build
from i2vgen_jax.models.unet import I2VGenUNet

FULL = ((320, 640, 1280, 1280), 2)
# All public levels and layers; other numbers of them.
SIZES = [((16, 24, 32, 32), 2), ((8, 16, 16), 1), ((8, 16), 3)]
WIDTHS = {"norm_groups": 4, "context_dim": 20, "head_dim": 4}

A = {"use_fps": True, "use_image_embeds": True, "local_image": "none"}
B = {"use_fps": False, "use_image_embeds": False, "local_image": "none"}
C = {"use_fps": True, "use_image_embeds": True, "local_image": "concat"}
LOCAL_IMAGE = ("local_image_concat.", "local_image_embedding.", "local_temp")
EMBEDDINGS = ("context_embedding.", "fps_embedding.")


def unet(channels, layers, **fields):
  return I2VGenUNet(block_channels=channels, layers_per_block=layers, **fields)


def keys(table):
  return {row.keys[0] for row in table.rows}


def video_reference(channels, layers, norm_groups, context_dim, head_dim):
  low = len(channels) - 1
  return diffusers.I2VGenXLUNet(
    down_block_types=("CrossAttnDownBlock3D",) * low + ("DownBlock3D",),
    up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * low,
    block_out_channels=channels,
    layers_per_block=layers,
    norm_num_groups=norm_groups,
    cross_attention_dim=context_dim,
    attention_head_dim=head_dim,
  )


def image_reference(channels, layers, norm_groups, context_dim, head_dim):
  low = len(channels) - 1
  return diffusers.UNet2DConditionModel(
    down_block_types=("CrossAttnDownBlock2D",) * low + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * low,
    block_out_channels=channels,
    layers_per_block=layers,
    norm_num_groups=norm_groups,
    cross_attention_dim=context_dim,
    # In this class, the number of heads.
    attention_head_dim=tuple(c // head_dim for c in channels),
    use_linear_projection=True,
  )


INSIDE_RESNETS = [
  (rf"(resnets\.\d+)\.{theirs}\.", rf"\1.{ours}.")
  for theirs, ours in (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
  )
]
OUTSIDE = [
  (r"^time_embedding\.linear_1", "time_embed.0"),
  (r"^time_embedding\.linear_2", "time_embed.2"),
  (r"^conv_in\.", "input_blocks.0.0."),
  (r"^conv_norm_out\.", "out.0."),
  (r"^conv_out\.", "out.2."),
]
VIDEO_ONLY = [
  (r"^transformer_in\.", "input_blocks.0.1."),
  (r"^image_latents_proj_in", "local_image_concat"),
  (r"^image_latents_context_embedding", "local_image_embedding"),
  (r"^image_latents_temporal_encoder", "local_temporal_encoder"),
  (r"^(local_temporal_encoder)\.norm1", r"\1.layers.0.0.norm"),
  (r"^(local_temporal_encoder)\.attn1", r"\1.layers.0.0.fn"),
  (r"^(local_temporal_encoder)\.ff\.net\.0\.proj", r"\1.layers.0.1.net.0.0"),
  (r"^(local_temporal_encoder)\.ff\.net\.2", r"\1.layers.0.1.net.2"),
  (r"^mid_block\.temp_attentions\.0", "middle_block.2"),
  (r"^mid_block\.temp_convs\.0", "middle_block.0.temopral_conv"),
  (r"^mid_block\.temp_convs\.1", "middle_block.3.temopral_conv"),
  (r"^mid_block\.resnets\.1", "middle_block.3"),
]
MIDDLE = [
  (r"^mid_block\.resnets\.0", "middle_block.0"),
  (r"^mid_block\.attentions\.0", "middle_block.1"),
  (r"^mid_block\.resnets\.1", "middle_block.2"),
]
CONV1D = re.compile(r"(transformer_in|temp_att.*\d)\.proj_(in|out)\.weight$")
PLACES = {
  "resnets": "0",
  "temp_convs": "0.temopral_conv",
  "attentions": "1",
  "temp_attentions": "2",
}


def ldm_rules(layers, video):
  """Diffusers' key to that of VGen, or of Stable Diffusion's own file."""
  per_level = layers + 1

  def down(m):
    number = 1 + per_level * int(m[1]) + int(m[3])
    return f"input_blocks.{number}.{PLACES[m[2]]}."

  def up(m):
    number = per_level * int(m[1]) + int(m[3])
    return f"output_blocks.{number}.{PLACES[m[2]]}."

  def downsampler(m):
    op = "op" if video else "0.op"
    return f"input_blocks.{per_level * (int(m[1]) + 1)}.{op}."

  def upsampler(m):
    after = 1 if m[1] == "0" else 3 if video else 2
    return f"output_blocks.{per_level * int(m[1]) + layers}.{after}.conv."

  return [
    *INSIDE_RESNETS,
    *OUTSIDE,
    *(VIDEO_ONLY if video else []),
    *MIDDLE,
    (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.", downsampler),
    (r"^up_blocks\.(\d+)\.upsamplers\.0\.conv\.", upsampler),
    (r"^down_blocks\.(\d+)\.(\w+)\.(\d+)\.", down),
    (r"^up_blocks\.(\d+)\.(\w+)\.(\d+)\.", up),
  ]


@pytest.fixture
def as_vgen(rename):
  """A file of VGen with the content of one of diffusers."""

  def convert(arrays, layers):
    arrays = {
      key: x[..., None] if CONV1D.search(key) else x
      for key, x in arrays.items()
    }
    encoder = "image_latents_temporal_encoder.attn1"
    stacked = np.concatenate(
      [arrays.pop(f"{encoder}.to_{name}.weight") for name in "qkv"]
    )
    result = rename(arrays, ldm_rules(layers, video=True))
    return result | {
      "local_temporal_encoder.layers.0.0.fn.to_qkv.weight": stacked
    }

  return convert


def as_modelscope(arrays, features):
  """A file of VGen without the layers that ModelScope's variants lack."""
  left_out = LOCAL_IMAGE + (() if features["use_fps"] else EMBEDDINGS)
  result = {k: x for k, x in arrays.items() if not k.startswith(left_out)}
  result["input_blocks.0.0.weight"] = arrays["input_blocks.0.0.weight"][:, :4]
  return result


@pytest.mark.parametrize(("channels", "layers"), SIZES)
def test_vgen_holds_the_same_parameters(
  channels, layers, state_shapes, draw_arrays, as_vgen, assert_same
):
  theirs = draw_arrays(
    state_shapes(lambda: video_reference(channels, layers, **WIDTHS))
  )
  file = as_vgen(theirs, layers)
  target = build.abstract_params(unet(channels, layers, **C, **WIDTHS))
  table = unet_table("vgen", channels, layers, **C)
  params = load(file, table, target)
  assert_same(
    params, load(theirs, unet_table("diffusers", channels, layers), target)
  )
  assert_same(arrays_of(to_torch(leaves_of(params), table)), file)


@pytest.mark.parametrize("features", [A, B])
def test_modelscope_holds_the_same_parameters(
  features, state_shapes, draw_arrays, as_vgen, assert_same
):
  channels, layers = SIZES[0]
  theirs = draw_arrays(
    state_shapes(lambda: video_reference(channels, layers, **WIDTHS))
  )
  file = as_modelscope(as_vgen(theirs, layers), features)
  target = build.abstract_params(unet(channels, layers, **features, **WIDTHS))
  table = unet_table("vgen", channels, layers, **features)
  params = load(file, table, target)
  assert_same(arrays_of(to_torch(leaves_of(params), table)), file)

  theirs["conv_in.weight"] = theirs["conv_in.weight"][:, :4]
  table = unet_table("diffusers", channels, layers, **features)
  fewer = {key: x for key, x in theirs.items() if key in keys(table)}
  assert len(fewer) < len(theirs)
  assert_same(params, load(fewer, table, target))


@pytest.mark.parametrize(
  ("features", "tensors", "parameters"),
  [
    (A, 1488, 1_419_843_396),
    (B, 1480, 1_411_233_860),
    (C, 1509, 1_420_469_224),
  ],
)
def test_full_size_video(
  features, tensors, parameters, state_shapes, hollow_arrays, as_vgen
):
  file = as_vgen(
    hollow_arrays(
      state_shapes(
        lambda: video_reference(
          *FULL, norm_groups=32, context_dim=1024, head_dim=64
        )
      )
    ),
    layers=2,
  )
  if features is not C:
    file = as_modelscope(file, features)
  assert len(file) == tensors
  assert sum(x.size for x in file.values()) == parameters
  check_fit(
    file,
    unet_table("vgen", *FULL, **features),
    build.abstract_params(unet(*FULL, **features)),
  )


def test_differences_between_the_variants():
  a, b, c = (
    keys(unet_table("vgen", *FULL, **features)) for features in (A, B, C)
  )
  assert b < a < c
  local = sorted(key.split(".")[0] for key in c - a)
  assert local == (
    ["local_image_concat"] * 6
    + ["local_image_embedding"] * 6
    + ["local_temporal_encoder"] * 9
  )
  embeddings = sorted(key.split(".")[0] for key in a - b)
  assert embeddings == ["context_embedding"] * 4 + ["fps_embedding"] * 4


def test_public_keys_of_the_resampling_convolutions():
  vgen = keys(unet_table("vgen", *FULL, **C))
  stable = keys(stable_diffusion_table("ldm", *FULL))
  for name in ("input_blocks.3.op", "input_blocks.6.op", "input_blocks.9.op"):
    assert f"{name}.weight" in vgen
    assert f"{name.replace('op', '0.op')}.weight" in stable
  for unit, in_vgen, in_stable in ((2, 1, 1), (5, 3, 2), (8, 3, 2)):
    assert f"output_blocks.{unit}.{in_vgen}.conv.weight" in vgen
    assert f"output_blocks.{unit}.{in_stable}.conv.weight" in stable


def spatial(target, table):
  """The parameters that the table contains."""
  leaves = traverse_util.flatten_dict(target, sep="/")
  some = {row.path: leaves[row.path] for row in table.rows}
  return traverse_util.unflatten_dict(some, sep="/")


@pytest.mark.parametrize(("channels", "layers"), SIZES)
def test_stable_diffusion_in_both_forms(
  channels, layers, state_shapes, draw_arrays, rename, assert_same
):
  theirs = draw_arrays(
    state_shapes(lambda: image_reference(channels, layers, **WIDTHS))
  )
  file = rename(theirs, ldm_rules(layers, video=False))
  listed = stable_diffusion_table("diffusers", channels, layers)
  numbered = stable_diffusion_table("ldm", channels, layers)
  target = spatial(
    build.abstract_params(unet(channels, layers, **B, **WIDTHS)), listed
  )
  params = load(file, numbered, target)
  assert_same(params, load(theirs, listed, target))
  assert_same(arrays_of(to_torch(leaves_of(params), listed)), theirs)
  assert_same(arrays_of(to_torch(leaves_of(params), numbered)), file)


def test_stable_diffusion_draws_the_same_image():
  """Temporal layers whose branches are zero leave the image model as it is."""
  channels, layers = SIZES[1]
  torch.manual_seed(0)
  theirs = image_reference(channels, layers, **WIDTHS).eval()
  table = stable_diffusion_table("diffusers", channels, layers)
  model = unet(channels, layers, **B, **WIDTHS)
  target = build.abstract_params(model)
  params = load(
    {key: x.numpy() for key, x in theirs.state_dict().items()},
    table,
    spatial(target, table),
  )
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f"), target)
  leaves = traverse_util.flatten_dict(zeros)
  leaves |= traverse_util.flatten_dict(params)

  rng = np.random.default_rng(0)
  latents = rng.normal(size=(2, 1, 8, 12, 4)).astype("f")
  text = rng.normal(size=(2, 7, 20)).astype("f")
  timesteps = np.array([981, 17])
  ours = jax.jit(model.apply)(
    {"params": traverse_util.unflatten_dict(leaves)},
    latents,
    timesteps,
    text_context=text,
  )
  with torch.no_grad():
    expected = theirs(
      torch.from_numpy(latents[:, 0].transpose(0, 3, 1, 2).copy()),
      torch.from_numpy(timesteps),
      encoder_hidden_states=torch.from_numpy(text),
    ).sample
  expected = expected.numpy().transpose(0, 2, 3, 1)
  np.testing.assert_allclose(ours[:, 0], expected, atol=1e-4)
  assert np.abs(expected).max() > 0.1


def test_full_size_stable_diffusion(state_shapes, hollow_arrays, rename):
  theirs = hollow_arrays(
    state_shapes(
      lambda: image_reference(
        *FULL, norm_groups=32, context_dim=1024, head_dim=64
      )
    )
  )
  assert len(theirs) == 686
  assert sum(x.size for x in theirs.values()) == 865_910_724
  table = stable_diffusion_table("diffusers", *FULL)
  target = spatial(build.abstract_params(unet(*FULL, **B)), table)
  check_fit(theirs, table, target)
  file = rename(theirs, ldm_rules(layers=2, video=False))
  check_fit(file, stable_diffusion_table("ldm", *FULL), target)
