"""Residual blocks over space, residual convolutions over time, resampling."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.models.layers import GroupNorm, TemporalConv, zeros
from i2vgen_jax.types import Array


class ResnetBlock(nn.Module):
  """GN-SiLU-conv, plus the time embedding, GN-SiLU-dropout-conv, plus skip.

  Each frame is normalised by itself. The second convolution starts at zero.
  """

  features: int
  norm_groups: int
  dropout: float
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b f h w c"],
    temb: Float[Array, "b e"],
    deterministic: bool,
  ) -> Float[Array, "b f h w d"]:
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    norm = {"epsilon": 1e-5, "per_frame": True, **types}
    h = GroupNorm(self.norm_groups, name="norm_1", **norm)(x)
    h = nn.Conv(self.features, (3, 3), name="conv_1", **types)(nn.silu(h))
    shift = nn.Dense(self.features, name="temb_proj", **types)(nn.silu(temb))
    h = h + shift[:, None, None, None]
    h = nn.silu(GroupNorm(self.norm_groups, name="norm_2", **norm)(h))
    h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
    h = nn.Conv(
      self.features, (3, 3), kernel_init=zeros, name="conv_2", **types
    )(h)
    if x.shape[-1] != self.features:
      x = nn.Conv(self.features, (1, 1), name="skip", **types)(x)
    return x + h


class TemporalConvBlock(nn.Module):
  """x plus four GN-SiLU-convolutions over frames; the last starts at zero.

  Moments are taken over all frames jointly; dropout from the second layer on.
  """

  norm_groups: int
  dropout: float
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w c"], deterministic: bool
  ) -> Float[Array, "b f h w c"]:
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    y = x
    for i in range(1, 5):
      y = GroupNorm(
        self.norm_groups, 1e-5, per_frame=False, name=f"norm_{i}", **types
      )(y)
      y = nn.silu(y)
      if i > 1:
        y = nn.Dropout(self.dropout)(y, deterministic=deterministic)
      init = zeros if i == 4 else nn.initializers.lecun_normal()
      y = TemporalConv(
        x.shape[-1], kernel_init=init, name=f"conv_{i}", **types
      )(y)
    return x + y


class Downsample(nn.Module):
  """Convolution of stride 2.

  `height_padding` is 1, or 2 in the public refine variant (b), whose latent
  heights are 2 (mod 8): 90, 46, 24, 13.
  """

  height_padding: int
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w c"]
  ) -> Float[Array, "b f h2 w2 c"]:
    pad = (self.height_padding, self.height_padding)
    return nn.Conv(
      x.shape[-1],
      (3, 3),
      strides=2,
      padding=(pad, (1, 1)),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="conv",
    )(x)


class Upsample(nn.Module):
  """Nearest-neighbour doubling, cut to the size of the skip, convolution.

  Undoes a `Downsample` of the same `height_padding`: the padding beyond 1 is
  cut from the top; whatever else is too much goes from the bottom and right.
  """

  height_padding: int
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w c"], size: tuple[int, int]
  ) -> Float[Array, "b f h2 w2 c"]:
    top = self.height_padding - 1
    x = x.repeat(2, axis=2).repeat(2, axis=3)
    x = x[:, :, top : top + size[0], : size[1]]
    return nn.Conv(
      x.shape[-1],
      (3, 3),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="conv",
    )(x)
