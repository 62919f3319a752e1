"""Where the public forms of the autoencoder keep each of our parameters."""

from collections.abc import Iterable, Sequence

from i2vgen_jax.interop.table import Row, Table, conv2d, linear, norm


def diffusers_table(
  block_channels: Sequence[int], layers_per_block: int
) -> Table:
  """The form of diffusers' `AutoencoderKL`, of any width and depth."""
  rows = [
    *_side("encoder", block_channels, layers_per_block, "down", "downsample"),
    *_side(
      "decoder", block_channels[::-1], layers_per_block + 1, "up", "upsample"
    ),
    *conv2d("quant_conv", "quant_conv"),
    *conv2d("post_quant_conv", "post_quant_conv"),
  ]
  return Table(tuple(rows))


def _side(
  side: str, channels: Sequence[int], layers: int, way: str, sampler: str
) -> Iterable[Row]:
  """Rows of the encoder or the decoder, `channels` in the order it runs."""
  yield from conv2d(f"{side}/conv_in", f"{side}.conv_in")
  # The encoder's first level takes its width from conv_in, the decoder's
  # from the middle: no skip convolution in either.
  before = channels[0]
  for i, width in enumerate(channels):
    ours, theirs = f"{side}/{way}_{i}", f"{side}.{way}_blocks.{i}"
    for j in range(layers):
      skip = j == 0 and width != before
      yield from _resnet(f"{ours}_resnet_{j}", f"{theirs}.resnets.{j}", skip)
    if i + 1 < len(channels):
      yield from conv2d(f"{ours}_{sampler}", f"{theirs}.{sampler}rs.0.conv")
    before = width
  middle = f"{side}.mid_block"
  for j in range(2):
    yield from _resnet(
      f"{side}/mid_resnet_{j}", f"{middle}.resnets.{j}", skip=False
    )
  yield from _attention(f"{side}/mid_attention", f"{middle}.attentions.0")
  yield from norm(f"{side}/norm_out", f"{side}.conv_norm_out")
  yield from conv2d(f"{side}/conv_out", f"{side}.conv_out")


def _resnet(path: str, key: str, skip: bool) -> Iterable[Row]:
  for i in (1, 2):
    yield from norm(f"{path}/norm_{i}", f"{key}.norm{i}")
    yield from conv2d(f"{path}/conv_{i}", f"{key}.conv{i}")
  if skip:
    yield from conv2d(f"{path}/skip", f"{key}.conv_shortcut")


def _attention(path: str, key: str) -> Iterable[Row]:
  """Files written by early versions of diffusers carry the second names."""
  yield from norm(f"{path}/norm", f"{key}.group_norm")
  yield from linear(f"{path}/to_q", f"{key}.to_q", f"{key}.query")
  yield from linear(f"{path}/to_k", f"{key}.to_k", f"{key}.key")
  yield from linear(f"{path}/to_v", f"{key}.to_v", f"{key}.value")
  yield from linear(f"{path}/to_out", f"{key}.to_out.0", f"{key}.proj_attn")
