"""LPIPS: how different two pictures look, by the features of a network.

Zhang et al. 2018 (arXiv 1801.03924), section 3.1 and equation 1, as version 0.1
of its public code has it with AlexNet: squared differences of the normalised
features of five layers, weighted by channel, averaged over the pixels, summed
over the layers. The weights are not part of this package.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array


class _Layer(NamedTuple):
  """A convolution of AlexNet, as `features` of torchvision numbers it."""

  number: int
  shape: tuple[int, int, int, int]  # Of the kernel, (out, in, height, width).
  stride: int
  padding: int
  pools: bool  # Whether a maximum over 3x3 comes before it.


_LAYERS = (
  _Layer(0, (64, 3, 11, 11), 4, 2, False),
  _Layer(3, (192, 64, 5, 5), 1, 2, True),
  _Layer(6, (384, 192, 3, 3), 1, 1, True),
  _Layer(8, (256, 384, 3, 3), 1, 1, False),
  _Layer(10, (256, 256, 3, 3), 1, 1, False),
)
# The "scaling layer": mean and deviation of ImageNet for pixels in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_EPSILON = 1e-10
# With fewer pixels a layer has none.
_SMALLEST = 31
# Keys of the `lpips` package, alone or inside of another module; of torchvision
# the convolutions are `features.NUMBER`.
_CONV = re.compile(r"(?:^|\.)(?:slice\d|features)\.(\d+)\.(weight|bias)$")
_HEAD = re.compile(r"(?:^|\.)lin(?:s\.)?(\d)\.model\.\d\.weight$")


class Weights(NamedTuple):
  """Of one layer.

  Attributes:
    kernel: of the convolution.
    bias: of the convolution.
    head: weight of each channel.
  """

  kernel: Float[Array, "h w i o"]
  bias: Float[Array, "o"]
  head: Float[Array, "o"]


def from_state_dict(
  keys: Iterable[str], read: Callable[[str], np.ndarray], where: str
) -> tuple[Weights, ...]:
  """The weights of the layers, from those of PyTorch.

  Args:
    keys: names in the state dict of `lpips.LPIPS(net="alex")`, or in one with
      the convolutions of torchvision's AlexNet (`features.0.weight`) and the
      `lin0.model.1.weight` of the package. Others are passed over.
    read: returns the array of a key.
    where: the file, for messages.

  Raises:
    InputError: an array is missing, or is of another network.
  """
  found = {}
  for key in keys:
    if match := _CONV.search(key):
      found[int(match[1]), match[2]] = key
    elif match := _HEAD.search(key):
      found[int(match[1]), "head"] = key

  def array(number: int, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    key = found.get((number, kind))
    if key is None:
      name = f"lin{number}" if kind == "head" else f"features.{number}.{kind}"
      raise InputError(
        f"no {name} of LPIPS in {where}; give the state dict of "
        "lpips.LPIPS(net='alex')"
      )
    values = read(key)
    if values.shape != shape:
      raise InputError(
        f"{key} has the shape {values.shape} in place of {shape}, in {where}; "
        "give the weights of LPIPS with AlexNet"
      )
    return values.astype(np.float32)

  return tuple(
    Weights(
      array(layer.number, "weight", layer.shape).transpose(2, 3, 1, 0),
      array(layer.number, "bias", layer.shape[:1]),
      array(n, "head", (1, layer.shape[0], 1, 1)).reshape(-1),
    )
    for n, layer in enumerate(_LAYERS)
  )


def lpips(
  weights: tuple[Weights, ...],
  a: UInt8[np.ndarray, "h w 3"],
  b: UInt8[np.ndarray, "h w 3"],
) -> float:
  """Distance of two pictures, 0 for equal ones; below 1 for most pairs.

  Args:
    weights: from `from_state_dict`.
    a: a picture.
    b: the same shape.

  Raises:
    InputError: a side is too short for the network.
  """
  height, width = a.shape[:2]
  if min(height, width) < _SMALLEST:
    raise InputError(
      f"pictures of {width}x{height} are too small for LPIPS; compare sides of "
      f"at least {_SMALLEST} pixels"
    )
  return float(_distance(weights, np.stack([a, b])))


@jax.jit
def _distance(weights, pictures):
  x = (pictures / np.float32(127.5) - 1 - _SHIFT) / _SCALE
  total = 0.0
  for (kernel, bias, head), layer in zip(weights, _LAYERS, strict=True):
    if layer.pools:
      window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
      x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, window, strides, "VALID"
      )
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      (layer.stride,) * 2,
      [(layer.padding,) * 2] * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=jax.lax.Precision.HIGHEST,
    )
    x = jax.nn.relu(x + bias)
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    one, other = x / (length + _EPSILON)
    total += jnp.mean(jnp.sum(jnp.square(one - other) * head, axis=-1))
  return total
