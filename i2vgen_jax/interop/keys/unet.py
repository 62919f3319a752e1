"""Keys of the U-Net in its public forms.

There are two spellings. One is that of diffusers. The other is that of LDM,
the original latent diffusion code: Stable Diffusion's own files have it, and
VGen and ModelScope extended it for video. Widths of a U-Net must not decrease
from one level to the next lower one.
"""

import functools
from collections.abc import Iterator, Sequence

from i2vgen_jax.interop.keys import kinds
from i2vgen_jax.interop.keys.table import Kind, Part, Table, rows


@functools.lru_cache(maxsize=16)
def table(
  form: str,
  block_channels: tuple[int, ...],
  layers_per_block: int,
  *,
  use_fps: bool = True,
  use_image_embeds: bool = True,
  local_image: str = "concat",
) -> Table:
  """The table of a video U-Net of any size.

  | variant | use_fps | use_image_embeds | local_image |
  |---|---|---|---|
  | (a) ModelScope image to video | yes | yes | none |
  | (b) ModelScope video to video | no | no | none |
  | (c) VGen `UNetSD_I2VGen`, diffusers `I2VGenXLUNet` | yes | yes | concat |

  Args:
    form: diffusers or vgen; ModelScope has the form of VGen.
    block_channels, layers_per_block: fields of the U-Net.
    use_fps, use_image_embeds, local_image: the same.
  """
  parts = (
    *_ENDS,
    *_FPS * use_fps,
    *_IMAGE_EMBEDS * use_image_embeds,
    *_LOCAL_IMAGE * (local_image == "concat"),
    Part("temporal_in", _TEMPORAL, "transformer_in", "input_blocks.0.1"),
    *_levels(block_channels, layers_per_block, video=True),
  )
  return Table(tuple(rows(parts, form)))


def stable_diffusion_table(
  form: str, block_channels: tuple[int, ...], layers_per_block: int
) -> Table:
  """The U-Net of Stable Diffusion 2.1, from which the video U-Net starts.

  The table has no rows for temporal layers and conditions. `conv_in` takes
  the 4 channels of the noisy latents, without those of a local image.

  Args:
    form: `diffusers` is that of its `UNet2DConditionModel` with linear
      projections, `ldm` that of `v2-1_512-ema-pruned.ckpt` after the prefix
      `model.diffusion_model.`.
    block_channels: field of the U-Net.
    layers_per_block: field of the U-Net.
  """
  levels = _levels(block_channels, layers_per_block, video=False)
  return Table(tuple(rows((*_ENDS, *levels), form)))


def _levels(
  channels: Sequence[int], layers: int, video: bool
) -> Iterator[Part]:
  """Everything between the first and the last convolution, in order.

  LDM numbers the blocks; block 0 is the first convolution.
  """
  lowest = len(channels) - 1
  for i, width in enumerate(channels):
    number = 1 + i * (layers + 1)
    for j in range(layers):
      skip = j == 0 and width != channels[max(i - 1, 0)]
      block = _block(j, skip, i < lowest, video)
      theirs = f"down_blocks.{i}", f"input_blocks.{number + j}"
      yield Part(f"down_{i}_{j}", block, *theirs)
    if i < lowest:
      # In video U-Nets the convolution is the block itself.
      key = f"input_blocks.{number + layers}" + (".op" if video else ".0.op")
      theirs = f"down_blocks.{i}.downsamplers.0.conv", key
      yield Part(f"down_{i}_downsample/conv", kinds.conv2d, *theirs)

  theirs = "mid_block", "middle_block"
  yield Part("mid_0", _block(0, False, True, video), *theirs)
  yield Part("mid_1", _block(1, False, False, video, 2 + video), *theirs)

  for n, i in enumerate(reversed(range(lowest + 1))):
    attention = i < lowest
    for j in range(layers + 1):
      # The skip connection always adds channels, so every block has a skip.
      block = _block(j, True, attention, video)
      key = f"output_blocks.{n * (layers + 1) + j}"
      yield Part(f"up_{i}_{j}", block, f"up_blocks.{n}", key)
    if i > 0:
      theirs = f"up_blocks.{n}.upsamplers.0.conv"
      key = f"{key}.{1 + attention * (1 + video)}.conv"
      yield Part(f"up_{i}_upsample/conv", kinds.conv2d, theirs, key)


def _block(
  j: int, skip: bool, attention: bool, video: bool, first: int = 0
) -> Iterator[Part]:
  """The parts of a `SpaceTimeBlock`.

  Args:
    j: index in the lists of a level of diffusers.
    skip: whether its residual block changes the width.
    attention: whether it has transformers.
    video: whether it has the temporal parts.
    first: number of its first module in LDM's sequence. The temporal
      convolutions are inside of the residual block there.
  """
  yield Part("resnet", _RESNET + _SKIP * skip, f"resnets.{j}", f"{first}")
  if video:
    # The spelling is theirs.
    theirs = f"temp_convs.{j}", f"{first}.temopral_conv"
    yield Part("temporal_conv", _TEMPORAL_CONVS, *theirs)
  if attention:
    yield Part("spatial", _SPATIAL, f"attentions.{j}", f"{first + 1}")
  if attention and video:
    yield Part("temporal", _TEMPORAL, f"temp_attentions.{j}", f"{first + 2}")


# ---- Names of the layers ----

_RESNET = (
  Part("norm_1/norm", kinds.norm, "norm1", "in_layers.0"),
  Part("conv_1", kinds.conv2d, "conv1", "in_layers.2"),
  Part("temb_proj", kinds.linear, "time_emb_proj", "emb_layers.1"),
  Part("norm_2/norm", kinds.norm, "norm2", "out_layers.0"),
  Part("conv_2", kinds.conv2d, "conv2", "out_layers.3"),
)
_SKIP = (Part("skip", kinds.conv2d, "conv_shortcut", "skip_connection"),)


# Each is a sequence of norm, SiLU and convolution, from the second on with a
# dropout before the convolution.
_TEMPORAL_CONVS = tuple(
  part
  for n in range(1, 5)
  for part in (
    Part(f"norm_{n}/norm", kinds.norm, f"conv{n}.0"),
    Part(f"conv_{n}", kinds.temporal_conv, f"conv{n}.{2 if n == 1 else 3}"),
  )
)

_ATTENTION = (
  Part("to_q", kinds.unbiased),
  Part("to_k", kinds.unbiased),
  Part("to_v", kinds.unbiased),
  Part("to_out", kinds.linear, "to_out.0"),
)
_BLOCK = (
  Part("norm_1/norm", kinds.norm, "norm1"),
  Part("attn_1", _ATTENTION, "attn1"),
  Part("norm_2/norm", kinds.norm, "norm2"),
  Part("attn_2", _ATTENTION, "attn2"),
  Part("norm_3/norm", kinds.norm, "norm3"),
  Part("ff/proj_in", kinds.linear, "ff.net.0.proj"),
  Part("ff/proj_out", kinds.linear, "ff.net.2"),
)


def _transformer(original: Kind | None = None) -> tuple[Part, ...]:
  """A transformer, whose projections may have another layout in LDM."""
  return (
    Part("norm/norm", kinds.norm, "norm"),
    Part("proj_in", kinds.linear, original_content=original),
    Part("block", _BLOCK, "transformer_blocks.0"),
    Part("proj_out", kinds.linear, original_content=original),
  )


_SPATIAL, _TEMPORAL = _transformer(), _transformer(kinds.conv1d)
_TIME = (
  Part("linear_1", kinds.linear, "linear_1", "0"),
  Part("linear_2", kinds.linear, "linear_2", "2"),
)
_ENDS = (
  Part("time_embedding", _TIME, "time_embedding", "time_embed"),
  Part("conv_in", kinds.conv2d, "conv_in", "input_blocks.0.0"),
  Part("norm_out/norm", kinds.norm, "conv_norm_out", "out.0"),
  Part("conv_out", kinds.conv2d, "conv_out", "out.2"),
)


def _sequence(kind: Kind, path: str, *places: int) -> tuple[Part, ...]:
  """Layers of one kind at the given places of a `torch.nn.Sequential`."""
  return tuple(
    Part(f"{path}_{n}", kind, f"{place}") for n, place in enumerate(places, 1)
  )


_MLP = _sequence(kinds.linear, "linear", 0, 2)
_FPS = (Part("fps_embedding", _MLP),)
_IMAGE_EMBEDS = (Part("embeds_tokens/mlp", _MLP, "context_embedding"),)

# VGen stacks query, key and value in one matrix.
_ENCODER = (
  Part("norm/norm", kinds.norm, "norm1", "0.norm"),
  *kinds.stacked("attn/to_{}", "attn1.to_{}", "0.fn.to_qkv", bias=False),
  Part("attn/to_out", kinds.linear, "attn1.to_out.0", "0.fn.to_out.0"),
  Part("ff_1", kinds.linear, "ff.net.0.proj", "1.net.0.0"),
  Part("ff_2", kinds.linear, "ff.net.2", "1.net.2"),
)
_PROJ = "image_latents_proj_in", "local_image_concat"
_TOKENS = "image_latents_context_embedding", "local_image_embedding"
_OVER_TIME = "image_latents_temporal_encoder", "local_temporal_encoder.layers.0"
_LOCAL_IMAGE = (
  Part("local_image/proj", _sequence(kinds.conv2d, "conv", 0, 2, 4), *_PROJ),
  Part("image_tokens", _sequence(kinds.conv2d, "conv", 0, 3, 5), *_TOKENS),
  Part("local_image/temporal_encoder", _ENCODER, *_OVER_TIME),
)
