"""What the public forms of the U-Net call the layers of each part.

There are two spellings. One is diffusers'. The other is LDM's, of the
original latent diffusion code: Stable Diffusion's own files have it, and VGen
and ModelScope took it over for video.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from i2vgen_jax.interop.keys.layouts import CONV1D, LINEAR, TEMPORAL_CONV
from i2vgen_jax.interop.keys.table import (
  Row,
  conv2d,
  linear,
  norm,
  weight_and_bias,
)

Spelling = Literal["diffusers", "ldm"]
Kind = Callable[[str, str], Iterable[Row]]


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer with its names in our tree and in both spellings.

  Attributes:
    ours: path inside the part.
    kind: gives the rows of such a layer from its path and its key.
    diffusers: key inside the part.
    ldm: the same; None where the two agree.
    ldm_kind: where LDM stores the layer in another layout.
  """

  ours: str
  kind: Kind
  diffusers: str
  ldm: str | None = None
  ldm_kind: Kind | None = None


def spell(
  layers: Iterable[Layer], spelling: Spelling, path: str = "", key: str = ""
) -> Iterator[Row]:
  """Rows of a part; `path` and `key` are put in front of its layers' names."""
  for layer in layers:
    kind, name = layer.kind, layer.diffusers
    if spelling == "ldm":
      kind, name = layer.ldm_kind or kind, layer.ldm or name
    yield from kind(path + layer.ours, key + name)


def _temporal_conv(path: str, key: str) -> Iterable[Row]:
  return weight_and_bias(path, (key,), TEMPORAL_CONV)


def _conv1d(path: str, key: str) -> Iterable[Row]:
  return weight_and_bias(path, (key,), CONV1D)


def _third(index: int) -> Kind:
  """A linear layer without bias, one of three stacked in one matrix."""
  return lambda path, key: [
    Row(f"{path}/kernel", (f"{key}.weight",), LINEAR, part=(index, 3))
  ]


_unbiased = functools.partial(linear, bias=False)

RESNET = (
  Layer("norm_1/norm", norm, "norm1", "in_layers.0"),
  Layer("conv_1", conv2d, "conv1", "in_layers.2"),
  Layer("temb_proj", linear, "time_emb_proj", "emb_layers.1"),
  Layer("norm_2/norm", norm, "norm2", "out_layers.0"),
  Layer("conv_2", conv2d, "conv2", "out_layers.3"),
)
SKIP = (Layer("skip", conv2d, "conv_shortcut", "skip_connection"),)

DOWNSAMPLE = (Layer("conv", conv2d, "conv", "op"),)
UPSAMPLE = (Layer("conv", conv2d, "conv"),)

# Each is a sequence of norm, SiLU and convolution; from the second on it holds
# a dropout too.
TEMPORAL_CONVS = (
  Layer("norm_1/norm", norm, "conv1.0"),
  Layer("conv_1", _temporal_conv, "conv1.2"),
  Layer("norm_2/norm", norm, "conv2.0"),
  Layer("conv_2", _temporal_conv, "conv2.3"),
  Layer("norm_3/norm", norm, "conv3.0"),
  Layer("conv_3", _temporal_conv, "conv3.3"),
  Layer("norm_4/norm", norm, "conv4.0"),
  Layer("conv_4", _temporal_conv, "conv4.3"),
)

_BLOCK = tuple(
  Layer(f"block/{ours}", kind, f"transformer_blocks.0.{theirs}")
  for ours, kind, theirs in (
    ("norm_1/norm", norm, "norm1"),
    ("attn_1/to_q", _unbiased, "attn1.to_q"),
    ("attn_1/to_k", _unbiased, "attn1.to_k"),
    ("attn_1/to_v", _unbiased, "attn1.to_v"),
    ("attn_1/to_out", linear, "attn1.to_out.0"),
    ("norm_2/norm", norm, "norm2"),
    ("attn_2/to_q", _unbiased, "attn2.to_q"),
    ("attn_2/to_k", _unbiased, "attn2.to_k"),
    ("attn_2/to_v", _unbiased, "attn2.to_v"),
    ("attn_2/to_out", linear, "attn2.to_out.0"),
    ("norm_3/norm", norm, "norm3"),
    ("ff/proj_in", linear, "ff.net.0.proj"),
    ("ff/proj_out", linear, "ff.net.2"),
  )
)
SPATIAL = (
  Layer("norm/norm", norm, "norm"),
  Layer("proj_in", linear, "proj_in"),
  *_BLOCK,
  Layer("proj_out", linear, "proj_out"),
)
TEMPORAL = (
  Layer("norm/norm", norm, "norm"),
  Layer("proj_in", linear, "proj_in", ldm_kind=_conv1d),
  *_BLOCK,
  Layer("proj_out", linear, "proj_out", ldm_kind=_conv1d),
)

# What follows has its place in the U-Net in its name.
TIME = (
  Layer(
    "time_embedding/linear_1", linear, "time_embedding.linear_1", "time_embed.0"
  ),
  Layer(
    "time_embedding/linear_2", linear, "time_embedding.linear_2", "time_embed.2"
  ),
)
ENDS = (
  Layer("conv_in", conv2d, "conv_in", "input_blocks.0.0"),
  Layer("norm_out/norm", norm, "conv_norm_out", "out.0"),
  Layer("conv_out", conv2d, "conv_out", "out.2"),
)
FPS = (
  Layer("fps_embedding/linear_1", linear, "fps_embedding.0"),
  Layer("fps_embedding/linear_2", linear, "fps_embedding.2"),
)
IMAGE_EMBEDS = (
  Layer("embeds_tokens/mlp/linear_1", linear, "context_embedding.0"),
  Layer("embeds_tokens/mlp/linear_2", linear, "context_embedding.2"),
)


def _placed(
  ours: str, diffusers: str, ldm: str, layers: Iterable[Layer]
) -> tuple[Layer, ...]:
  """The layers with their places in front of their names."""
  return tuple(
    dataclasses.replace(
      layer,
      ours=f"{ours}/{layer.ours}",
      diffusers=f"{diffusers}.{layer.diffusers}",
      ldm=f"{ldm}.{layer.ldm or layer.diffusers}",
    )
    for layer in layers
  )


LOCAL_IMAGE = (
  *_placed(
    "local_image/proj",
    "image_latents_proj_in",
    "local_image_concat",
    (
      Layer("conv_1", conv2d, "0"),
      Layer("conv_2", conv2d, "2"),
      Layer("conv_3", conv2d, "4"),
    ),
  ),
  *_placed(
    "image_tokens",
    "image_latents_context_embedding",
    "local_image_embedding",
    (
      Layer("conv_1", conv2d, "0"),
      Layer("conv_2", conv2d, "3"),
      Layer("conv_3", conv2d, "5"),
    ),
  ),
  *_placed(
    "local_image/temporal_encoder",
    "image_latents_temporal_encoder",
    "local_temporal_encoder.layers.0",
    (
      Layer("norm/norm", norm, "norm1", "0.norm"),
      Layer("attn/to_q", _unbiased, "attn1.to_q", "0.fn.to_qkv", _third(0)),
      Layer("attn/to_k", _unbiased, "attn1.to_k", "0.fn.to_qkv", _third(1)),
      Layer("attn/to_v", _unbiased, "attn1.to_v", "0.fn.to_qkv", _third(2)),
      Layer("attn/to_out", linear, "attn1.to_out.0", "0.fn.to_out.0"),
      Layer("ff_1", linear, "ff.net.0.proj", "1.net.0.0"),
      Layer("ff_2", linear, "ff.net.2", "1.net.2"),
    ),
  ),
)
