"""Keys of the autoencoder in its public forms.

`diffusers` is the form of its `AutoencoderKL`, `ldm` that of
`v2-1_512-ema-pruned.ckpt` of Stable Diffusion 2.1 after the prefix
`first_stage_model.`.
"""

from collections.abc import Iterator, Sequence

from i2vgen_jax.interop.keys import kinds
from i2vgen_jax.interop.keys.table import Part, Table, rows


def table(
  form: str, block_channels: Sequence[int], layers_per_block: int
) -> Table:
  """The table of an autoencoder of any width and depth.

  Args:
    form: diffusers or ldm.
    block_channels: field of the autoencoder.
    layers_per_block: field of the autoencoder.
  """
  encoder = _side("down", block_channels, layers_per_block)
  decoder = _side("up", block_channels[::-1], layers_per_block + 1)
  parts = [
    Part("encoder", encoder),
    Part("decoder", decoder),
    Part("quant_conv", kinds.conv2d),
    Part("post_quant_conv", kinds.conv2d),
  ]
  return Table(tuple(rows(parts, form)))


def _side(way: str, channels: Sequence[int], layers: int) -> Iterator[Part]:
  """Parts of the encoder or decoder, with `channels` in execution order."""
  yield Part("conv_in", kinds.conv2d)
  last = len(channels) - 1
  for i, width in enumerate(channels):
    # LDM numbers the levels from the highest resolution.
    level = f"{way}.{i if way == 'down' else last - i}"
    for j in range(layers):
      # The first level has the width of what precedes it.
      skip = j == 0 and width != channels[max(i - 1, 0)]
      theirs = f"{way}_blocks.{i}.resnets.{j}", f"{level}.block.{j}"
      yield Part(f"{way}_{i}_resnet_{j}", _RESNET + _SKIP * skip, *theirs)
    if i < last:
      theirs = f"{way}_blocks.{i}.{way}samplers.0.conv"
      key = f"{level}.{way}sample.conv"
      yield Part(f"{way}_{i}_{way}sample", kinds.conv2d, theirs, key)
  yield Part("mid_resnet_0", _RESNET, "mid_block.resnets.0", "mid.block_1")
  yield Part(
    "mid_attention", _ATTENTION, "mid_block.attentions.0", "mid.attn_1"
  )
  yield Part("mid_resnet_1", _RESNET, "mid_block.resnets.1", "mid.block_2")
  yield Part("norm_out", kinds.norm, "conv_norm_out", "norm_out")
  yield Part("conv_out", kinds.conv2d)


_RESNET = (
  Part("norm_1", kinds.norm, "norm1"),
  Part("conv_1", kinds.conv2d, "conv1"),
  Part("norm_2", kinds.norm, "norm2"),
  Part("conv_2", kinds.conv2d, "conv2"),
)
_SKIP = (Part("skip", kinds.conv2d, "conv_shortcut", "nin_shortcut"),)

# The second names are those of early versions of diffusers.
_ATTENTION = (
  Part("norm", kinds.norm, "group_norm", "norm"),
  Part("to_q", kinds.linear, "to_q|query", "q", kinds.conv1x1),
  Part("to_k", kinds.linear, "to_k|key", "k", kinds.conv1x1),
  Part("to_v", kinds.linear, "to_v|value", "v", kinds.conv1x1),
  Part("to_out", kinds.linear, "to_out.0|proj_attn", "proj_out", kinds.conv1x1),
)
