"""How torch and Flax store the same numbers, in both directions.

Flax puts channels last and input before output; torch does the reverse.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """A pair of inverse functions on NumPy arrays; neither copies.

  Attributes:
    to_flax: torch's array to ours.
    to_torch: our array to torch's.
  """

  to_flax: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray], np.ndarray]


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
