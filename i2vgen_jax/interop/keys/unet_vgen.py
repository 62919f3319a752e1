"""Where VGen and ModelScope keep each of our parameters of the U-Net."""

from collections.abc import Iterable, Iterator, Sequence

from i2vgen_jax.interop.keys import unet_names as names
from i2vgen_jax.interop.keys.table import Row, Table
from i2vgen_jax.interop.keys.unet_names import spell
from i2vgen_jax.interop.keys.unet_parts import Part, Unit, outer_layers, units


def vgen_table(
  block_channels: Sequence[int],
  layers_per_block: int,
  *,
  fps: bool,
  image_embeds: bool,
  local_image: bool,
) -> Table:
  """The form of the original code, of any size.

  | variant | fps | image_embeds | local_image |
  |---|---|---|---|
  | (a) ModelScope image to video | yes | yes | no |
  | (b) ModelScope video to video | no | no | no |
  | (c) VGen `UNetSD_I2VGen` | yes | yes | yes |

  Widths must not fall from one level to the next lower one.

  Args:
    block_channels: of the U-Net.
    layers_per_block: of the U-Net.
    fps: whether the U-Net has `use_fps`.
    image_embeds: `use_image_embeds`.
    local_image: `local_image` is `concat`.
  """
  outer = outer_layers(fps, image_embeds, local_image)
  parts = units(block_channels, layers_per_block)
  rows = [
    *spell(outer, "ldm"),
    *spell(names.TEMPORAL, "ldm", "temporal_in/", "input_blocks.0.1."),
    *numbered_rows(parts, bare_downsample=True),
  ]
  return Table(tuple(rows))


def numbered_rows(
  some: Iterable[Unit], *, bare_downsample: bool
) -> Iterator[Row]:
  """Rows of the units, numbered from the first convolution on.

  Args:
    some: the units of the whole U-Net.
    bare_downsample: whether the downsampling convolution is a unit itself,
      not the only part of one.
  """
  for key, parts in _sequences(some):
    number = -1
    for part in parts:
      if part.kind == "temporal_conv":
        # It belongs to the residual block before it. Their spelling.
        place = f"{key}.{number}.temopral_conv"
      else:
        number += 1
        place = f"{key}.{number}"
      if part.kind == "downsample" and bare_downsample:
        place = key
      yield from spell(part.layers, "ldm", f"{part.path}/", f"{place}.")


def _sequences(some: Iterable[Unit]) -> Iterator[tuple[str, tuple[Part, ...]]]:
  """Every unit is a sequence of its parts, the middle one for both of its."""
  sides = {side: [] for side in ("down", "mid", "up")}
  for unit in some:
    sides[unit.side].append(unit.parts)
  # Unit 0 is the first convolution.
  for i, parts in enumerate(sides["down"], 1):
    yield f"input_blocks.{i}", parts
  yield "middle_block", sum(sides["mid"], ())
  for i, parts in enumerate(sides["up"]):
    yield f"output_blocks.{i}", parts
