"""Attention over the pixels of a frame, and over the frames of a pixel."""

from jaxtyping import Float

from i2vgen_jax.kernels.attention import (
  attend_heads,
  dot_product_attention,
  join_heads,
  split_heads,
)
from i2vgen_jax.kernels.frame_attention import frame_attention
from i2vgen_jax.kernels.group_norm import apply_factors
from i2vgen_jax.models.attention import TransformerBlock
from i2vgen_jax.models.layers import Layer, VideoNorm, to_pixels, zeros
from i2vgen_jax.sharding import split_clips
from i2vgen_jax.types import Array


class SpatialTransformer(Layer):
  """Self-attention within each frame and cross-attention to the context."""

  features: int
  head_dim: int
  norm_groups: int

  def setup(self):
    width = self.features
    heads = (width, width // self.head_dim, self.head_dim)
    self.norm = VideoNorm(self.norm_groups, 1e-6, True, **self.types)
    self.proj_in = self.dense(width)
    self.block = TransformerBlock(*heads, dot_product_attention, **self.types)
    self.proj_out = self.dense(width, kernel_init=zeros)

  def __call__(
    self, x: Float[Array, "b f h w c"], context: Float[Array, "b n d"]
  ) -> Float[Array, "b f h w c"]:
    clips = to_pixels(x)
    factors = self.norm(clips)
    y, q, k, v = self.in_blocks("before", (clips,), (factors,))
    attended = attend_heads(q, k, v)
    shared = self.block.attn_2.keys_values(context)
    return self.in_blocks("after", (clips, y, attended), shared).reshape(
      x.shape
    )

  def before(
    self, x: Float[Array, "b f n c"], factors: Float[Array, "b f 2 c"]
  ) -> tuple[Array, Array, Array, Array]:
    """What is done to each pixel before self-attention."""
    y = self.proj_in(apply_factors(x, factors).astype(x.dtype))
    num_heads = self.features // self.head_dim
    # Split here, as the kernel of attention takes them.
    return y, *(split_heads(part, num_heads) for part in self.block.before(y))

  def after(
    self,
    x: Float[Array, "b f n c"],
    y: Float[Array, "b f n c"],
    attended: Float[Array, "b f h n d"],
    *keys_values: Float[Array, "b m c"],
  ) -> Float[Array, "b f n c"]:
    """What is done to each pixel after self-attention."""
    attended = join_heads(attended)
    return x + self.proj_out(self.block.after(y, attended, *keys_values))


class TemporalTransformer(Layer):
  """Self-attention over the frames, at each pixel separately.

  There is no position embedding in time: the order of frames follows from the
  zero padding of the temporal convolutions and the mask frames of the local
  image path. The inner width is `num_heads` * `head_dim`, which differs from
  the channels in the transformer after the first convolution.
  """

  features: int
  num_heads: int
  head_dim: int
  norm_groups: int

  def setup(self):
    inner = self.num_heads * self.head_dim
    heads = (inner, self.num_heads, self.head_dim)
    self.norm = VideoNorm(self.norm_groups, 1e-6, False, **self.types)
    self.proj_in = self.dense(inner)
    self.block = TransformerBlock(*heads, frame_attention, **self.types)
    self.proj_out = self.dense(self.features, kernel_init=zeros)

  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    clips = to_pixels(x)
    shared = (self.norm(clips),)
    y = self.in_blocks("inner", (clips,), shared, mixes_frames=True)
    # Here, as parts of pixels are no whole rows.
    return split_clips(y).reshape(x.shape)

  def inner(
    self, x: Float[Array, "b f n c"], factors: Float[Array, "b f 2 c"]
  ) -> Float[Array, "b f n c"]:
    """All but the moments of the norm."""
    y = self.proj_in(apply_factors(x, factors).astype(x.dtype))
    return x + self.proj_out(self.block(y))
