"""Attention over the pixels of a frame, and over the frames of a pixel."""

import flax.linen as nn
from jaxtyping import Float

from i2vgen_jax.models.attention import TransformerBlock
from i2vgen_jax.models.layers import Layer, VideoNorm, zeros
from i2vgen_jax.types import Array


class SpatialTransformer(Layer):
  """Self-attention within each frame and cross-attention to the context."""

  head_dim: int
  norm_groups: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w c"], context: Float[Array, "b n d"]
  ) -> Float[Array, "b f h w c"]:
    b, f, h, w, c = x.shape
    y = self.part(VideoNorm, "norm", self.norm_groups, 1e-6, True)(x)
    y = self.dense(c, "proj_in")(y.reshape(b * f, h * w, c))
    heads = (c // self.head_dim, self.head_dim)
    y = self.part(TransformerBlock, "block", *heads)(y, context)
    y = self.dense(c, "proj_out", kernel_init=zeros)(y)
    return x + y.reshape(x.shape)


class TemporalTransformer(Layer):
  """Self-attention over the frames, at each pixel separately.

  There is no position embedding in time: the order of frames follows from the
  zero padding of the temporal convolutions and the mask frames of the local
  image path. The inner width is `num_heads` * `head_dim`, which differs from
  the channels in the transformer after the first convolution.
  """

  num_heads: int
  head_dim: int
  norm_groups: int

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    b, f, h, w, c = x.shape
    y = self.part(VideoNorm, "norm", self.norm_groups, 1e-6, False)(x)
    y = y.reshape(b, f, h * w, c).swapaxes(1, 2).reshape(b * h * w, f, c)
    heads = (self.num_heads, self.head_dim)
    y = self.dense(self.num_heads * self.head_dim, "proj_in")(y)
    y = self.part(TransformerBlock, "block", *heads)(y)
    y = self.dense(c, "proj_out", kernel_init=zeros)(y)
    y = y.reshape(b, h * w, f, c).swapaxes(1, 2).reshape(x.shape)
    return x + y
