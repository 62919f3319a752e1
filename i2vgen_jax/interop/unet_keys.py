"""Where the public forms of the U-Net keep each of our parameters."""

from collections.abc import Iterable, Sequence

from i2vgen_jax.interop.layouts import TEMPORAL_CONV
from i2vgen_jax.interop.table import (
  Row,
  Table,
  conv2d,
  linear,
  norm,
  weight_and_bias,
)


def diffusers_table(
  block_channels: Sequence[int], layers_per_block: int
) -> Table:
  """The form of diffusers' `I2VGenXLUNet`: public variant (c), any size.

  Widths must not fall from one level to the next lower one.
  """
  rows = [
    *_mlp("time_embedding", "time_embedding", ("linear_1", "linear_2")),
    *_mlp("fps_embedding", "fps_embedding", ("0", "2")),
    *_mlp("embeds_tokens/mlp", "context_embedding", ("0", "2")),
    *_convs("image_tokens", "image_latents_context_embedding", (0, 3, 5)),
    *_convs("local_image/proj", "image_latents_proj_in", (0, 2, 4)),
    *_local_encoder(
      "local_image/temporal_encoder", "image_latents_temporal_encoder"
    ),
    *conv2d("conv_in", "conv_in"),
    *_transformer("temporal_in", "transformer_in"),
    *_down(block_channels, layers_per_block),
    *_block("mid_0", "mid_block", 0, skip=False, transformers=True),
    *_block("mid_1", "mid_block", 1, skip=False, transformers=False),
    *_up(len(block_channels), layers_per_block + 1),
    *norm("norm_out/norm", "conv_norm_out"),
    *conv2d("conv_out", "conv_out"),
  ]
  return Table(tuple(rows))


def _down(channels: Sequence[int], layers: int) -> Iterable[Row]:
  lowest = len(channels) - 1
  for i, width in enumerate(channels):
    key = f"down_blocks.{i}"
    for j in range(layers):
      skip = j == 0 and width != channels[max(i - 1, 0)]
      yield from _block(f"down_{i}_{j}", key, j, skip, i < lowest)
    if i < lowest:
      yield from conv2d(
        f"down_{i}_downsample/conv", f"{key}.downsamplers.0.conv"
      )


def _up(levels: int, layers: int) -> Iterable[Row]:
  """They number the levels as they run, we from the finest on."""
  for i in range(levels):
    key = f"up_blocks.{levels - 1 - i}"
    for j in range(layers):
      # The encoder's channels, appended, always leave more than come out.
      yield from _block(f"up_{i}_{j}", key, j, True, i < levels - 1)
    if i > 0:
      yield from conv2d(f"up_{i}_upsample/conv", f"{key}.upsamplers.0.conv")


def _block(
  path: str, key: str, index: int, skip: bool, transformers: bool
) -> Iterable[Row]:
  """Rows of a `SpaceTimeBlock`, whose parts they keep in four lists."""
  yield from _resnet(f"{path}/resnet", f"{key}.resnets.{index}", skip)
  yield from _temporal_conv(
    f"{path}/temporal_conv", f"{key}.temp_convs.{index}"
  )
  if transformers:
    yield from _transformer(f"{path}/spatial", f"{key}.attentions.{index}")
    yield from _transformer(
      f"{path}/temporal", f"{key}.temp_attentions.{index}"
    )


def _resnet(path: str, key: str, skip: bool) -> Iterable[Row]:
  for i in (1, 2):
    yield from norm(f"{path}/norm_{i}/norm", f"{key}.norm{i}")
    yield from conv2d(f"{path}/conv_{i}", f"{key}.conv{i}")
  yield from linear(f"{path}/temb_proj", f"{key}.time_emb_proj")
  if skip:
    yield from conv2d(f"{path}/skip", f"{key}.conv_shortcut")


def _temporal_conv(path: str, key: str) -> Iterable[Row]:
  """Each layer is a sequence; from the second on it holds a dropout too."""
  for i, last in ((1, 2), (2, 3), (3, 3), (4, 3)):
    yield from norm(f"{path}/norm_{i}/norm", f"{key}.conv{i}.0")
    conv = (f"{key}.conv{i}.{last}",)
    yield from weight_and_bias(f"{path}/conv_{i}", conv, TEMPORAL_CONV)


def _transformer(path: str, key: str) -> Iterable[Row]:
  yield from norm(f"{path}/norm/norm", f"{key}.norm")
  yield from linear(f"{path}/proj_in", f"{key}.proj_in")
  block = f"{key}.transformer_blocks.0"
  for i in (1, 2, 3):
    yield from norm(f"{path}/block/norm_{i}/norm", f"{block}.norm{i}")
  for i in (1, 2):
    yield from _attention(f"{path}/block/attn_{i}", f"{block}.attn{i}")
  yield from linear(f"{path}/block/ff/proj_in", f"{block}.ff.net.0.proj")
  yield from linear(f"{path}/block/ff/proj_out", f"{block}.ff.net.2")
  yield from linear(f"{path}/proj_out", f"{key}.proj_out")


def _local_encoder(path: str, key: str) -> Iterable[Row]:
  yield from norm(f"{path}/norm/norm", f"{key}.norm1")
  yield from _attention(f"{path}/attn", f"{key}.attn1")
  yield from linear(f"{path}/ff_1", f"{key}.ff.net.0.proj")
  yield from linear(f"{path}/ff_2", f"{key}.ff.net.2")


def _attention(path: str, key: str) -> Iterable[Row]:
  for name in ("to_q", "to_k", "to_v"):
    yield from linear(f"{path}/{name}", f"{key}.{name}", bias=False)
  yield from linear(f"{path}/to_out", f"{key}.to_out.0")


def _mlp(path: str, key: str, names: tuple[str, str]) -> Iterable[Row]:
  for i, name in enumerate(names, 1):
    yield from linear(f"{path}/linear_{i}", f"{key}.{name}")


def _convs(path: str, key: str, indices: Iterable[int]) -> Iterable[Row]:
  for i, index in enumerate(indices, 1):
    yield from conv2d(f"{path}/conv_{i}", f"{key}.{index}")
