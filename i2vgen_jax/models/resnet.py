"""Residual blocks over space, residual convolutions over time, resampling."""

import flax.linen as nn
import jax
from jaxtyping import Float

from i2vgen_jax.models.layers import (
  Layer,
  TemporalConv,
  VideoNorm,
  norm_silu,
  to_pixels,
  zeros,
)
from i2vgen_jax.sharding import split_clips
from i2vgen_jax.types import Array


class ResnetBlock(Layer):
  """GN-SiLU-conv, plus the time embedding, GN-SiLU-dropout-conv, plus skip.

  Each frame is normalised separately. The second convolution is initialised to
  zero.
  """

  features: int
  norm_groups: int
  dropout: float

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b f h w c"],
    temb: Float[Array, "b e"],
    deterministic: bool,
  ) -> Float[Array, "b f h w d"]:
    norm = (self.norm_groups, 1e-5, True)
    h = norm_silu(self.part(VideoNorm, "norm_1", *norm), x)
    h = self.conv(self.features, "conv_1")(h)
    shift = self.dense(self.features, "temb_proj")(nn.silu(temb))
    h = h + shift[:, None, None, None]
    h = norm_silu(self.part(VideoNorm, "norm_2", *norm), h)
    h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
    h = self.conv(self.features, "conv_2", kernel_init=zeros)(h)
    if x.shape[-1] != self.features:
      x = self.conv(self.features, "skip", 1)(x)
    return x + h


class TemporalConvBlock(Layer):
  """x plus four GN-SiLU-convolutions over frames; the last is initialised to 0.

  Moments are computed over all frames jointly; all layers but the first have
  dropout.
  """

  norm_groups: int
  dropout: float

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w c"], deterministic: bool
  ) -> Float[Array, "b f h w c"]:
    drops = self.dropout > 0 and not deterministic
    y = to_pixels(x)
    for i in range(1, 5):
      norm = (self.norm_groups, 1e-5, False)
      factors = self.part(VideoNorm, f"norm_{i}", *norm)(y)
      init = zeros if i == 4 else nn.initializers.lecun_normal()
      rate = self.dropout if i > 1 and drops else 0.0
      conv = self.part(TemporalConv, f"conv_{i}", x.shape[-1], rate, init)
      method, clips = "normalised", (y,)
      if rate:
        rng = self.make_rng("dropout")
        kept = jax.random.bernoulli(rng, 1 - rate, y.shape).astype(y.dtype)
        method, clips = "dropped", (y, kept)
      y = conv.in_blocks(method, clips, (factors,), mixes_frames=True)
    # Here, as parts of pixels are no whole rows.
    return x + split_clips(y).reshape(x.shape)


class Downsample(Layer):
  """Convolution of stride 2.

  `height_padding` is 1, or 2 in the public refine variant (b), whose latent
  heights are 2 (mod 8): 90, 46, 24, 13.
  """

  height_padding: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w c"]
  ) -> Float[Array, "b f h2 w2 c"]:
    pad = (self.height_padding, self.height_padding)
    halve = {"strides": 2, "padding": (pad, (1, 1))}
    return self.conv(x.shape[-1], "conv", **halve)(x)


class Upsample(Layer):
  """Nearest-neighbour doubling, cut to the size of the skip, convolution.

  Inverts the sizes of a `Downsample` of the same `height_padding`: padding
  beyond 1 is cut from the top, any other excess from the bottom and right.
  """

  height_padding: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w c"], size: tuple[int, int]
  ) -> Float[Array, "b f h2 w2 c"]:
    top = self.height_padding - 1
    x = x.repeat(2, axis=2).repeat(2, axis=3)
    x = x[:, :, top : top + size[0], : size[1]]
    return self.conv(x.shape[-1], "conv")(x)
