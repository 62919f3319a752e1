"""The parts of our U-Net, in the order in which it runs them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from i2vgen_jax.interop.keys import unet_names as names
from i2vgen_jax.interop.keys.unet_names import Layer

_LAYERS = {
  "resnet": names.RESNET,
  "temporal_conv": names.TEMPORAL_CONVS,
  "spatial": names.SPATIAL,
  "temporal": names.TEMPORAL,
  "downsample": names.DOWNSAMPLE,
  "upsample": names.UPSAMPLE,
}


@dataclasses.dataclass(frozen=True)
class Part:
  """A submodule of our U-Net.

  Attributes:
    kind: a key of `_LAYERS`.
    path: of the submodule.
    layers: what it holds.
  """

  kind: str
  path: str
  layers: tuple[Layer, ...]


@dataclasses.dataclass(frozen=True)
class Unit:
  """Parts that run one after the other, up to the next skip connection.

  Attributes:
    side: where it is.
    level: of that side, counted from 0 as they run.
    layer: of that level, counted from 0.
    parts: in the order in which they run.
  """

  side: Literal["down", "mid", "up"]
  level: int
  layer: int
  parts: tuple[Part, ...]


def outer_layers(
  fps: bool, image_embeds: bool, local_image: bool
) -> tuple[Layer, ...]:
  """Those around the levels, the conditions that the U-Net has included."""
  return (
    *names.TIME,
    *names.ENDS,
    *(names.FPS if fps else ()),
    *(names.IMAGE_EMBEDS if image_embeds else ()),
    *(names.LOCAL_IMAGE if local_image else ()),
  )


def units(
  block_channels: Sequence[int], layers_per_block: int, *, video: bool = True
) -> Iterator[Unit]:
  """All that lies between the first and the last convolution.

  Args:
    block_channels: of the U-Net; widths must not fall from one level to the
      next lower one.
    layers_per_block: of the U-Net.
    video: False leaves the temporal parts out.
  """
  lowest = len(block_channels) - 1
  for i, width in enumerate(block_channels):
    for j in range(layers_per_block):
      skip = j == 0 and width != block_channels[max(i - 1, 0)]
      block = _block(f"down_{i}_{j}", skip, i < lowest, video)
      yield Unit("down", i, j, block)
    if i < lowest:
      down = _part("downsample", f"down_{i}_downsample")
      yield Unit("down", i, layers_per_block, (down,))

  yield Unit("mid", 0, 0, _block("mid_0", False, True, video))
  yield Unit("mid", 0, 1, _block("mid_1", False, False, video))

  for i in reversed(range(lowest + 1)):
    for j in range(layers_per_block + 1):
      # The encoder's channels, appended, always leave more than come out.
      block = _block(f"up_{i}_{j}", True, i < lowest, video)
      if j == layers_per_block and i > 0:
        block += (_part("upsample", f"up_{i}_upsample"),)
      yield Unit("up", lowest - i, j, block)


def _block(
  path: str, skip: bool, transformers: bool, video: bool
) -> tuple[Part, ...]:
  """Parts of a `SpaceTimeBlock`."""
  resnet = _part("resnet", f"{path}/resnet")
  if skip:
    resnet = dataclasses.replace(resnet, layers=resnet.layers + names.SKIP)
  parts = [resnet]
  if video:
    parts.append(_part("temporal_conv", f"{path}/temporal_conv"))
  if transformers:
    parts.append(_part("spatial", f"{path}/spatial"))
  if transformers and video:
    parts.append(_part("temporal", f"{path}/temporal"))
  return tuple(parts)


def _part(kind: str, path: str) -> Part:
  return Part(kind, path, _LAYERS[kind])
