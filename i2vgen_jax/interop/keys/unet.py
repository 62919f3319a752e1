"""Where the diffusers form of the U-Net keeps each of our parameters."""

from collections.abc import Iterable, Iterator, Sequence

from i2vgen_jax.interop.keys import unet_names as names
from i2vgen_jax.interop.keys.table import Row, Table
from i2vgen_jax.interop.keys.unet_names import spell
from i2vgen_jax.interop.keys.unet_parts import Unit, outer_layers, units

# Each level keeps its parts in lists; {} is the layer.
_LISTS = {
  "resnet": "resnets.{}",
  "temporal_conv": "temp_convs.{}",
  "spatial": "attentions.{}",
  "temporal": "temp_attentions.{}",
  "downsample": "downsamplers.0",
  "upsample": "upsamplers.0",
}


def diffusers_table(
  block_channels: Sequence[int],
  layers_per_block: int,
  *,
  fps: bool = True,
  image_embeds: bool = True,
  local_image: bool = True,
) -> Table:
  """The form of diffusers' `I2VGenXLUNet`, of any size.

  Widths must not fall from one level to the next lower one.

  Args:
    block_channels: of the U-Net.
    layers_per_block: of the U-Net.
    fps: whether the U-Net has `use_fps`. Theirs is public variant (c), which
      has all three; the switches let its relatives be written as well.
    image_embeds: `use_image_embeds`.
    local_image: `local_image` is `concat`.
  """
  outer = outer_layers(fps, image_embeds, local_image)
  rows = [
    *spell(outer, "diffusers"),
    *spell(names.TEMPORAL, "diffusers", "temporal_in/", "transformer_in."),
    *listed_rows(units(block_channels, layers_per_block)),
  ]
  return Table(tuple(rows))


def listed_rows(some: Iterable[Unit]) -> Iterator[Row]:
  """Rows of the units, in lists by level."""
  for unit in some:
    level = "mid_block"
    if unit.side != "mid":
      level = f"{unit.side}_blocks.{unit.level}"
    for part in unit.parts:
      key = f"{level}.{_LISTS[part.kind].format(unit.layer)}"
      yield from spell(part.layers, "diffusers", f"{part.path}/", f"{key}.")
