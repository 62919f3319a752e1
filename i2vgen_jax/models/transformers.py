"""Attention over the pixels of a frame, and over the frames of a pixel."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.models.attention import TransformerBlock
from i2vgen_jax.models.layers import GroupNorm, zeros
from i2vgen_jax.types import Array


class SpatialTransformer(nn.Module):
  """Self-attention within each frame and cross-attention to the context."""

  head_dim: int
  norm_groups: int
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w c"], context: Float[Array, "b n d"]
  ) -> Float[Array, "b f h w c"]:
    b, f, h, w, c = x.shape
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    y = GroupNorm(self.norm_groups, 1e-6, True, name="norm", **types)(x)
    y = nn.Dense(c, name="proj_in", **types)(y.reshape(b * f, h * w, c))
    y = TransformerBlock(
      c // self.head_dim, self.head_dim, name="block", **types
    )(y, context)
    y = nn.Dense(c, kernel_init=zeros, name="proj_out", **types)(y)
    return x + y.reshape(x.shape)


class TemporalTransformer(nn.Module):
  """Self-attention over the frames, at each pixel by itself.

  There is no position code along time: order is known from the zero padding
  of the temporal convolutions and the mask frames of the local image path.
  The inner width is `num_heads` * `head_dim`, which differs from the channels
  in the transformer that follows the first convolution.
  """

  num_heads: int
  head_dim: int
  norm_groups: int
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    b, f, h, w, c = x.shape
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    y = GroupNorm(self.norm_groups, 1e-6, False, name="norm", **types)(x)
    y = y.reshape(b, f, h * w, c).swapaxes(1, 2).reshape(b * h * w, f, c)
    inner = self.num_heads * self.head_dim
    y = nn.Dense(inner, name="proj_in", **types)(y)
    y = TransformerBlock(self.num_heads, self.head_dim, name="block", **types)(
      y
    )
    y = nn.Dense(c, kernel_init=zeros, name="proj_out", **types)(y)
    y = y.reshape(b, h * w, f, c).swapaxes(1, 2).reshape(x.shape)
    return x + y
