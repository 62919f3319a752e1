"""Where image models keep the spatial parameters of our U-Net."""

from collections.abc import Sequence
from typing import Literal

from i2vgen_jax.interop.keys import unet_names as names
from i2vgen_jax.interop.keys.table import Table
from i2vgen_jax.interop.keys.unet import listed_rows
from i2vgen_jax.interop.keys.unet_names import spell
from i2vgen_jax.interop.keys.unet_parts import units
from i2vgen_jax.interop.keys.unet_vgen import numbered_rows


def stable_diffusion_table(
  block_channels: Sequence[int],
  layers_per_block: int,
  form: Literal["diffusers", "ldm"],
) -> Table:
  """The U-Net of Stable Diffusion 2.1, from which the video U-Net starts.

  The table has no rows for temporal layers and conditions. `conv_in` takes
  the 4 channels of the noisy latents: without those of a local image.

  Args:
    block_channels: of the U-Net; widths must not fall from one level to the
      next lower one.
    layers_per_block: of the U-Net.
    form: `diffusers` is that of its `UNet2DConditionModel` with linear
      projections, `ldm` that of `v2-1_512-ema-pruned.ckpt` after the prefix
      `model.diffusion_model.`.
  """
  parts = units(block_channels, layers_per_block, video=False)
  rows = (
    listed_rows(parts)
    if form == "diffusers"
    else numbered_rows(parts, bare_downsample=False)
  )
  return Table((*spell(names.TIME + names.ENDS, form), *rows))
