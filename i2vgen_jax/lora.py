"""Low-rank adapters (LoRA, Hu et al. 2021) as trees of weights.

A LoRA adds scale·A·B to the kernels of some linear layers. It is a tree of its
own, at the paths of these layers:

    .../attn_1/to_q/lora_A/kernel  [in, rank]
    .../attn_1/to_q/lora_B/kernel  [rank, out]

The networks do not know it: `merge` gives them the kernels with the sum.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from i2vgen_jax.types import Array, Params

# Projections of self-attention in space, cross-attention and attention in time.
ATTENTION = re.compile(r"/attn_[12]/to_(q|k|v|out)/kernel$")


def paths(kernel: str) -> tuple[str, str]:
  """Paths of A and B, from that of the kernel that they change."""
  layer = kernel.removesuffix("kernel")
  return f"{layer}lora_A/kernel", f"{layer}lora_B/kernel"


def init(rng: jax.Array, params: Params, rank: int) -> Params:
  """A LoRA of all attention layers, which changes nothing yet; traceable.

  Args:
    rng: key of A; B is zero.
    params: weights of a U-Net, or their shapes.
    rank: number of columns of A, and of rows of B.
  """
  lora = {}
  flat = traverse_util.flatten_dict(params, sep="/")
  kernels = sorted(filter(ATTENTION.search, flat))
  for number, kernel in enumerate(kernels):
    key, (a, b) = jax.random.fold_in(rng, number), paths(kernel)
    width, features = flat[kernel].shape
    lora[a] = jax.random.normal(key, (width, rank)) / np.sqrt(width)
    lora[b] = jnp.zeros((rank, features))
  return traverse_util.unflatten_dict(lora, sep="/")


def merge(params: Params, lora: Params, scale: float) -> Params:
  """The weights of a network with a LoRA of it; traceable.

  Args:
    params: weights of the network, in any dtype.
    lora: float32.
    scale: factor on A·B: alpha / rank.

  Returns:
    `params` with the changed kernels in float32.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  pairs = traverse_util.flatten_dict(lora, sep="/")
  with jax.default_matmul_precision("highest"):
    for kernel in flat:
      a, b = paths(kernel)
      if a in pairs:
        flat[kernel] = add(flat[kernel], pairs[a], pairs[b], scale)
  return traverse_util.unflatten_dict(flat, sep="/")


def add(kernel: Array, a: Array, b: Array, scale: float) -> Any:
  """kernel + scale·A·B, in float32."""
  return kernel.astype(np.float32) + scale * (a @ b)
