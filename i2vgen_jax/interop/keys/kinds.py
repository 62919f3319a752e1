"""Layouts of torch's arrays, and the rows of each kind of layer.

Flax puts channels last and input before output; torch does the reverse.
"""

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from i2vgen_jax.interop.keys.table import Layout, Part, Row

# Biases, norm scales, embeddings, transposed projections.
PLAIN = Layout(lambda x: x, lambda x: x)

# [O I] <-> [I O]
LINEAR = Layout(np.transpose, np.transpose)

# [O I H W] <-> [H W I O]
CONV2D = Layout(
  lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)

# [O I 3 1 1] <-> [3 I O]: a 3-D convolution over time only.
TEMPORAL_CONV = Layout(
  lambda x: x[..., 0, 0].transpose(2, 1, 0),
  lambda x: x.transpose(2, 1, 0)[..., None, None],
)

# [O I 1] <-> [I O]: a 1-D convolution of width 1 is a linear layer.
CONV1D = Layout(lambda x: x[..., 0].T, lambda x: x.T[..., None])

# [O I 1 1] <-> [I O]: so is a 2-D convolution of size 1.
CONV1X1 = Layout(lambda x: x[..., 0, 0].T, lambda x: x.T[..., None, None])


def layer(
  path: str,
  keys: Iterable[str],
  layout: Layout,
  bias: bool = True,
  part: tuple[int, int] = (0, 1),
  dot: str = ".",
  name: str = "kernel",
) -> Iterable[Row]:
  """Rows of a layer with a kernel or scale, torch's `weight`, and a bias."""
  weights = tuple(f"{key}{dot}weight" for key in keys)
  yield Row(f"{path}/{name}", weights, layout, part)
  if bias:
    biases = tuple(f"{key}{dot}bias" for key in keys)
    yield Row(f"{path}/bias", biases, PLAIN, part)


def stacked(
  path: str, key: str, original: str, bias: bool = True, dot: str = "."
) -> Iterator[Part]:
  """Query, key and value, which the original code stacks in one matrix.

  Args:
    path, key: names with the place of "q", "k" or "v".
    original: name of the stack.
    bias: whether the layers have one.
    dot: what separates `original` from "weight" and "bias".
  """
  one = functools.partial(layer, layout=LINEAR, bias=bias)
  for i, x in enumerate("qkv"):
    stack = functools.partial(one, part=(i, 3), dot=dot)
    yield Part(path.format(x), one, key.format(x), original, stack)


linear = functools.partial(layer, layout=LINEAR)
unbiased = functools.partial(layer, layout=LINEAR, bias=False)
conv2d = functools.partial(layer, layout=CONV2D)
patches = functools.partial(layer, layout=CONV2D, bias=False)
temporal_conv = functools.partial(layer, layout=TEMPORAL_CONV)
conv1d = functools.partial(layer, layout=CONV1D)
conv1x1 = functools.partial(layer, layout=CONV1X1)
norm = functools.partial(layer, layout=PLAIN, name="scale")


def plain(path: str, keys: tuple[str, ...]) -> Iterable[Row]:
  """The row of a single array, whose key is complete."""
  yield Row(path, keys, PLAIN)


def transposed(path: str, keys: tuple[str, ...]) -> Iterable[Row]:
  """The row of a matrix that torch multiplies from the right, as Flax does."""
  yield Row(f"{path}/kernel", keys, PLAIN)
