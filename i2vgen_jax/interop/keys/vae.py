"""Keys of the autoencoder in its public forms."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from i2vgen_jax.interop.keys.layouts import CONV1X1, LINEAR, Layout
from i2vgen_jax.interop.keys.table import (
  Row,
  Table,
  conv2d,
  norm,
  weight_and_bias,
)


@dataclasses.dataclass(frozen=True)
class _Names:
  """Keys of a form for the parts of an encoder or decoder.

  In the first two, {way} is down or up, {run} the level in execution order,
  and {fine} the level counted from the highest resolution.

  Attributes:
    resnet: residual block number {layer} of a level.
    sampler: convolution that ends a level.
    middle: residual block, attention, residual block.
    skip: skip convolution in a residual block.
    norm_out: last norm.
    attention: our names in the attention -> spellings of theirs.
    projection: layout of the layers in the attention.
  """

  resnet: str
  sampler: str
  middle: tuple[str, str, str]
  skip: str
  norm_out: str
  attention: Mapping[str, tuple[str, ...]]
  projection: Layout


_DIFFUSERS = _Names(
  resnet="{way}_blocks.{run}.resnets.{layer}",
  sampler="{way}_blocks.{run}.{way}samplers.0.conv",
  middle=(
    "mid_block.resnets.0",
    "mid_block.attentions.0",
    "mid_block.resnets.1",
  ),
  skip="conv_shortcut",
  norm_out="conv_norm_out",
  # The second names are those of early versions of diffusers.
  attention={
    "norm": ("group_norm",),
    "to_q": ("to_q", "query"),
    "to_k": ("to_k", "key"),
    "to_v": ("to_v", "value"),
    "to_out": ("to_out.0", "proj_attn"),
  },
  projection=LINEAR,
)

_LDM = _Names(
  resnet="{way}.{fine}.block.{layer}",
  sampler="{way}.{fine}.{way}sample.conv",
  middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
  skip="nin_shortcut",
  norm_out="norm_out",
  attention={
    "norm": ("norm",),
    "to_q": ("q",),
    "to_k": ("k",),
    "to_v": ("v",),
    "to_out": ("proj_out",),
  },
  projection=CONV1X1,
)


def diffusers_table(
  block_channels: Sequence[int], layers_per_block: int
) -> Table:
  """The form of diffusers' `AutoencoderKL`, for any width and depth."""
  return _table(block_channels, layers_per_block, _DIFFUSERS)


def ldm_table(block_channels: Sequence[int], layers_per_block: int) -> Table:
  """The form in `v2-1_512-ema-pruned.ckpt` of Stable Diffusion 2.1.

  Its keys follow the prefix `first_stage_model.` there.
  """
  return _table(block_channels, layers_per_block, _LDM)


def _table(channels: Sequence[int], layers: int, names: _Names) -> Table:
  rows = [
    *_side("encoder", "down", channels, layers, names),
    *_side("decoder", "up", channels[::-1], layers + 1, names),
    *conv2d("quant_conv", "quant_conv"),
    *conv2d("post_quant_conv", "post_quant_conv"),
  ]
  return Table(tuple(rows))


def _side(
  side: str, way: str, channels: Sequence[int], layers: int, names: _Names
) -> Iterable[Row]:
  """Rows of the encoder or decoder, with `channels` in execution order."""
  yield from conv2d(f"{side}/conv_in", f"{side}.conv_in")
  # The first level has the width of what precedes it, so it needs no skip
  # convolution.
  before = channels[0]
  last = len(channels) - 1
  for i, width in enumerate(channels):
    ours = f"{side}/{way}_{i}"
    level = {"way": way, "run": i, "fine": i if way == "down" else last - i}
    for j in range(layers):
      skip = j == 0 and width != before
      key = names.resnet.format(layer=j, **level)
      yield from _resnet(f"{ours}_resnet_{j}", f"{side}.{key}", skip, names)
    if i < last:
      key = names.sampler.format(**level)
      yield from conv2d(f"{ours}_{way}sample", f"{side}.{key}")
    before = width
  first, attention, second = (f"{side}.{key}" for key in names.middle)
  yield from _resnet(f"{side}/mid_resnet_0", first, False, names)
  yield from _attention(f"{side}/mid_attention", attention, names)
  yield from _resnet(f"{side}/mid_resnet_1", second, False, names)
  yield from norm(f"{side}/norm_out", f"{side}.{names.norm_out}")
  yield from conv2d(f"{side}/conv_out", f"{side}.conv_out")


def _resnet(path: str, key: str, skip: bool, names: _Names) -> Iterable[Row]:
  for i in (1, 2):
    yield from norm(f"{path}/norm_{i}", f"{key}.norm{i}")
    yield from conv2d(f"{path}/conv_{i}", f"{key}.conv{i}")
  if skip:
    yield from conv2d(f"{path}/skip", f"{key}.{names.skip}")


def _attention(path: str, key: str, names: _Names) -> Iterable[Row]:
  for ours, theirs in names.attention.items():
    keys = tuple(f"{key}.{name}" for name in theirs)
    if ours == "norm":
      yield from norm(f"{path}/{ours}", *keys)
    else:
      yield from weight_and_bias(f"{path}/{ours}", keys, names.projection)
