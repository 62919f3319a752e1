"""Keys of the U-Net in its public forms.

There are two spellings. One is that of diffusers. The other is that of LDM,
the original latent diffusion code: Stable Diffusion's own files have it, and
VGen and ModelScope extended it for video. Widths of a U-Net must not decrease
from one level to the next lower one.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from i2vgen_jax.interop.keys.layouts import CONV1D, LINEAR, TEMPORAL_CONV
from i2vgen_jax.interop.keys.table import (
  Row,
  Table,
  conv2d,
  linear,
  norm,
  weight_and_bias,
)

Spelling = Literal["diffusers", "ldm"]
Kind = Callable[[str, str], Iterable[Row]]


# ---- Tables ----


def vgen_table(
  block_channels: Sequence[int],
  layers_per_block: int,
  *,
  fps: bool,
  image_embeds: bool,
  local_image: bool,
) -> Table:
  """The form of VGen and ModelScope, for a U-Net of any size.

  | variant | fps | image_embeds | local_image |
  |---|---|---|---|
  | (a) ModelScope image to video | yes | yes | no |
  | (b) ModelScope video to video | no | no | no |
  | (c) VGen `UNetSD_I2VGen` | yes | yes | yes |

  Args:
    block_channels: field of the U-Net.
    layers_per_block: field of the U-Net.
    fps: whether the U-Net has `use_fps`.
    image_embeds: whether it has `use_image_embeds`.
    local_image: whether its `local_image` is `concat`.
  """
  parts = _video_parts(block_channels, layers_per_block)
  return _table("ldm", _outer(fps, image_embeds, local_image), parts)


def diffusers_table(
  block_channels: Sequence[int],
  layers_per_block: int,
  *,
  fps: bool = True,
  image_embeds: bool = True,
  local_image: bool = True,
) -> Table:
  """The form of diffusers' `I2VGenXLUNet`, for a U-Net of any size.

  Arguments as `vgen_table`. The class of diffusers is variant (c).
  """
  parts = _video_parts(block_channels, layers_per_block)
  return _table("diffusers", _outer(fps, image_embeds, local_image), parts)


def stable_diffusion_table(
  block_channels: Sequence[int], layers_per_block: int, form: Spelling
) -> Table:
  """The U-Net of Stable Diffusion 2.1, from which the video U-Net starts.

  The table has no rows for temporal layers and conditions. `conv_in` takes
  the 4 channels of the noisy latents, without those of a local image.

  Args:
    block_channels: field of the U-Net.
    layers_per_block: field of the U-Net.
    form: `diffusers` is that of its `UNet2DConditionModel` with linear
      projections, `ldm` that of `v2-1_512-ema-pruned.ckpt` after the prefix
      `model.diffusion_model.`.
  """
  parts = _parts(block_channels, layers_per_block, video=False)
  return _table(form, _TIME + _ENDS, parts)


def _table(
  spelling: Spelling, outer: Iterable["_Layer"], parts: Iterable["_Part"]
) -> Table:
  rows = [row for layer in outer for row in layer.rows(spelling)]
  for part in parts:
    key = part.diffusers if spelling == "diffusers" else part.ldm
    for layer in part.layers:
      rows += layer.rows(spelling, f"{part.path}/", f"{key}.")
  return Table(tuple(rows))


def _outer(
  fps: bool, image_embeds: bool, local_image: bool
) -> Iterator["_Layer"]:
  """The layers around the levels, with the conditions that there are."""
  yield from _TIME + _ENDS
  if fps:
    yield from _FPS
  if image_embeds:
    yield from _IMAGE_EMBEDS
  if local_image:
    yield from _LOCAL_IMAGE


# ---- Parts of the levels ----


@dataclasses.dataclass(frozen=True)
class _Part:
  """A submodule of our U-Net: its path, layers and keys in both spellings."""

  path: str
  layers: tuple["_Layer", ...]
  diffusers: str
  ldm: str


def _video_parts(channels: Sequence[int], layers: int) -> Iterator[_Part]:
  yield _Part("temporal_in", _TEMPORAL, "transformer_in", "input_blocks.0.1")
  yield from _parts(channels, layers, video=True)


def _parts(
  channels: Sequence[int], layers: int, video: bool
) -> Iterator[_Part]:
  """Everything between the first and the last convolution, in order."""
  lowest = len(channels) - 1
  for i, width in enumerate(channels):
    # LDM numbers blocks; block 0 is the first convolution.
    number = 1 + i * (layers + 1)
    theirs = f"down_blocks.{i}"
    for j in range(layers):
      skip = j == 0 and width != channels[max(i - 1, 0)]
      block = _Block(skip, i < lowest, video)
      yield from block.parts(
        f"down_{i}_{j}", theirs, j, f"input_blocks.{number + j}"
      )
    if i < lowest:
      # In video U-Nets the convolution is the block itself.
      key = f"input_blocks.{number + layers}" + ("" if video else ".0")
      yield _Part(
        f"down_{i}_downsample", _DOWNSAMPLE, f"{theirs}.downsamplers.0", key
      )

  first, second = _Block(False, True, video), _Block(False, False, video)
  yield from first.parts("mid_0", "mid_block", 0, "middle_block")
  yield from second.parts("mid_1", "mid_block", 1, "middle_block", first.length)

  for n, i in enumerate(reversed(range(lowest + 1))):
    for j in range(layers + 1):
      # The skip connection always adds channels, so every block has a skip.
      block = _Block(True, i < lowest, video)
      key = f"output_blocks.{n * (layers + 1) + j}"
      yield from block.parts(f"up_{i}_{j}", f"up_blocks.{n}", j, key)
    if i > 0:
      yield _Part(
        f"up_{i}_upsample",
        _UPSAMPLE,
        f"up_blocks.{n}.upsamplers.0",
        f"{key}.{block.length}",
      )


@dataclasses.dataclass(frozen=True)
class _Block:
  """A `SpaceTimeBlock`.

  Attributes:
    skip: whether its residual block changes the width.
    attention: whether it has transformers.
    video: whether it has the temporal parts.
  """

  skip: bool
  attention: bool
  video: bool

  @property
  def length(self) -> int:
    """Number of LDM's modules; the temporal convolutions are inside one."""
    return 1 + (1 + self.video if self.attention else 0)

  def parts(
    self, path: str, theirs: str, j: int, key: str, first: int = 0
  ) -> Iterator[_Part]:
    """Its parts.

    Args:
      path: path of the block in our U-Net.
      theirs: diffusers' key of the level, which keeps its parts in lists.
      j: index in the lists.
      key: LDM's key of the sequence of modules.
      first: index of the first module in it.
    """
    resnet = _RESNET + _SKIP if self.skip else _RESNET
    parts = [("resnet", resnet, "resnets", f"{first}")]
    if self.video:
      # The spelling is theirs.
      name = f"{first}.temopral_conv"
      parts.append(("temporal_conv", _TEMPORAL_CONVS, "temp_convs", name))
    if self.attention:
      parts.append(("spatial", _SPATIAL, "attentions", f"{first + 1}"))
    if self.attention and self.video:
      parts.append(("temporal", _TEMPORAL, "temp_attentions", f"{first + 2}"))
    for name, layers, kind, number in parts:
      yield _Part(
        f"{path}/{name}", layers, f"{theirs}.{kind}.{j}", f"{key}.{number}"
      )


# ---- Names of the layers ----


@dataclasses.dataclass(frozen=True)
class _Layer:
  """A layer with its names in our tree and in both spellings.

  Attributes:
    ours: path inside the part.
    kind: makes the rows of such a layer from its path and its key.
    diffusers: key inside the part.
    ldm: the same; None where the two agree.
    ldm_kind: kind in LDM, where it has another layout.
  """

  ours: str
  kind: Kind
  diffusers: str
  ldm: str | None = None
  ldm_kind: Kind | None = None

  def rows(
    self, spelling: Spelling, path: str = "", key: str = ""
  ) -> Iterable[Row]:
    """Its rows; `path` and `key` are prefixes."""
    kind, name = self.kind, self.diffusers
    if spelling == "ldm":
      kind, name = self.ldm_kind or kind, self.ldm or name
    return kind(path + self.ours, key + name)


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

_RESNET = (
  _Layer("norm_1/norm", norm, "norm1", "in_layers.0"),
  _Layer("conv_1", conv2d, "conv1", "in_layers.2"),
  _Layer("temb_proj", linear, "time_emb_proj", "emb_layers.1"),
  _Layer("norm_2/norm", norm, "norm2", "out_layers.0"),
  _Layer("conv_2", conv2d, "conv2", "out_layers.3"),
)
_SKIP = (_Layer("skip", conv2d, "conv_shortcut", "skip_connection"),)
_DOWNSAMPLE = (_Layer("conv", conv2d, "conv", "op"),)
_UPSAMPLE = (_Layer("conv", conv2d, "conv"),)

# Each is a sequence of norm, SiLU and convolution, from the second on with a
# dropout before the convolution.
_TEMPORAL_CONVS = tuple(
  layer
  for n in range(1, 5)
  for layer in (
    _Layer(f"norm_{n}/norm", norm, f"conv{n}.0"),
    _Layer(f"conv_{n}", _temporal_conv, f"conv{n}.{2 if n == 1 else 3}"),
  )
)

_TRANSFORMER = tuple(
  _Layer(f"block/{ours}", kind, f"transformer_blocks.0.{theirs}")
  for ours, kind, theirs in (
    *((f"norm_{n}/norm", norm, f"norm{n}") for n in (1, 2, 3)),
    *(
      (f"attn_{n}/to_{name}", _unbiased, f"attn{n}.to_{name}")
      for n in (1, 2)
      for name in "qkv"
    ),
    *((f"attn_{n}/to_out", linear, f"attn{n}.to_out.0") for n in (1, 2)),
    ("ff/proj_in", linear, "ff.net.0.proj"),
    ("ff/proj_out", linear, "ff.net.2"),
  )
)
_SPATIAL = (
  _Layer("norm/norm", norm, "norm"),
  _Layer("proj_in", linear, "proj_in"),
  *_TRANSFORMER,
  _Layer("proj_out", linear, "proj_out"),
)
_TEMPORAL = (
  _Layer("norm/norm", norm, "norm"),
  _Layer("proj_in", linear, "proj_in", ldm_kind=_conv1d),
  *_TRANSFORMER,
  _Layer("proj_out", linear, "proj_out", ldm_kind=_conv1d),
)

# The rest has complete names.
_TIME = tuple(
  _Layer(
    f"time_embedding/linear_{n}",
    linear,
    f"time_embedding.linear_{n}",
    f"time_embed.{2 * n - 2}",
  )
  for n in (1, 2)
)
_ENDS = (
  _Layer("conv_in", conv2d, "conv_in", "input_blocks.0.0"),
  _Layer("norm_out/norm", norm, "conv_norm_out", "out.0"),
  _Layer("conv_out", conv2d, "conv_out", "out.2"),
)
_FPS = (
  _Layer("fps_embedding/linear_1", linear, "fps_embedding.0"),
  _Layer("fps_embedding/linear_2", linear, "fps_embedding.2"),
)
_IMAGE_EMBEDS = (
  _Layer("embeds_tokens/mlp/linear_1", linear, "context_embedding.0"),
  _Layer("embeds_tokens/mlp/linear_2", linear, "context_embedding.2"),
)
_LOCAL_IMAGE = (
  *(
    _Layer(
      f"local_image/proj/conv_{n}",
      conv2d,
      f"image_latents_proj_in.{i}",
      f"local_image_concat.{i}",
    )
    for n, i in ((1, 0), (2, 2), (3, 4))
  ),
  *(
    _Layer(
      f"image_tokens/conv_{n}",
      conv2d,
      f"image_latents_context_embedding.{i}",
      f"local_image_embedding.{i}",
    )
    for n, i in ((1, 0), (2, 3), (3, 5))
  ),
  *(
    _Layer(
      f"local_image/temporal_encoder/{ours}",
      kind,
      f"image_latents_temporal_encoder.{theirs}",
      f"local_temporal_encoder.layers.0.{ldm}",
      *rest,
    )
    for ours, kind, theirs, ldm, *rest in (
      ("norm/norm", norm, "norm1", "0.norm"),
      ("attn/to_q", _unbiased, "attn1.to_q", "0.fn.to_qkv", _third(0)),
      ("attn/to_k", _unbiased, "attn1.to_k", "0.fn.to_qkv", _third(1)),
      ("attn/to_v", _unbiased, "attn1.to_v", "0.fn.to_qkv", _third(2)),
      ("attn/to_out", linear, "attn1.to_out.0", "0.fn.to_out.0"),
      ("ff_1", linear, "ff.net.0.proj", "1.net.0.0"),
      ("ff_2", linear, "ff.net.2", "1.net.2"),
    )
  ),
)
