"""The autoencoder of Stable Diffusion 2.1, applied to each frame separately.

The public weights of all variants share this network (`first_stage_model`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.errors import InputError
from i2vgen_jax.models.attention import Attention
from i2vgen_jax.models.layers import GroupNorm, Layer
from i2vgen_jax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior:
  """The encoder's Gaussian over unscaled latents.

  Attributes:
    mean: its mean, `... h w c`, float32.
    logvar: log of its variance, within [-30, 20], float32.
  """

  # Any, because JAX rebuilds pytrees around leaves that are not arrays.
  mean: Any
  logvar: Any

  def sample(self, noise: Float[Array, "*n h w c"]) -> Float[Array, "*n h w c"]:
    """The latents that a standard normal draw `noise` selects."""
    return self.mean + jnp.exp(0.5 * self.logvar) * noise

  @property
  def moments(self) -> Float[Array, "*n h w c2"]:
    """Mean and log variance joined on channels, as they are stored."""
    return jnp.concatenate([self.mean, self.logvar], axis=-1)

  @classmethod
  def from_moments(cls, moments: Float[Array, "*n h w c2"]) -> "Posterior":
    """The inverse of `moments`, in float32."""
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return cls(mean, logvar)


class VAELayer(Layer):
  """A layer of the autoencoder.

  Attributes:
    norm_groups: number of groups of every norm.
  """

  norm_groups: int

  def norm(self, name: str) -> GroupNorm:
    return GroupNorm(
      self.norm_groups, epsilon=1e-6, param_dtype=self.param_dtype, name=name
    )


class VAEResnetBlock(VAELayer):
  """Two 3x3 convolutions, each after a norm and SiLU, and a skip connection."""

  channels: int

  @nn.compact
  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
    h = nn.silu(self.norm("norm_1")(x))
    h = self.conv(self.channels, "conv_1")(h)
    h = nn.silu(self.norm("norm_2")(h))
    h = self.conv(self.channels, "conv_2")(h)
    if x.shape[-1] != self.channels:
      x = self.conv(self.channels, "skip", 1)(x)
    return x + h


class VAEAttention(VAELayer):
  """One head over all positions of a frame.

  A full-size frame of 1280x720 has 14,400 positions at this depth, so its
  scores take 0.8 GB in float32: encode and decode few frames at a time.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    n, _, _, c = x.shape
    tokens = self.norm("norm")(x).reshape(n, -1, c)
    attend = Attention(1, c, use_bias=True, **self.types)
    # The projections have the same parent as the norm.
    nn.share_scope(self, attend)
    return x + attend(tokens, tokens).reshape(x.shape)


class Coder(VAELayer):
  """Base of encoder and decoder.

  Attributes:
    block_channels: width of each level, finest first.
    layers_per_block: number of residual blocks at each level of the encoder.
  """

  block_channels: Sequence[int]
  layers_per_block: int

  def resnet(self, channels: int, name: str) -> VAEResnetBlock:
    return self.part(VAEResnetBlock, name, self.norm_groups, channels)

  def middle(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """The blocks at the lowest resolution."""
    x = self.resnet(x.shape[-1], "mid_resnet_0")(x)
    x = self.part(VAEAttention, "mid_attention", self.norm_groups)(x)
    return self.resnet(x.shape[-1], "mid_resnet_1")(x)

  def head(
    self, x: Float[Array, "n h w c"], features: int
  ) -> Float[Array, "n h w d"]:
    """The last norm and convolution."""
    return self.conv(features, "conv_out")(nn.silu(self.norm("norm_out")(x)))


class Encoder(Coder):
  """Frames to the channels of mean and log variance."""

  latent_channels: int

  @nn.compact
  def __call__(self, x: Float[Array, "n H W 3"]) -> Float[Array, "n h w c"]:
    x = self.conv(self.block_channels[0], "conv_in")(x)
    for i, channels in enumerate(self.block_channels):
      for j in range(self.layers_per_block):
        x = self.resnet(channels, f"down_{i}_resnet_{j}")(x)
      if i + 1 < len(self.block_channels):
        # Zeros on the right and bottom only, as the public weights expect.
        halve = {"strides": 2, "padding": ((0, 1), (0, 1))}
        x = self.conv(channels, f"down_{i}_downsample", **halve)(x)
    return self.head(self.middle(x), 2 * self.latent_channels)


class Decoder(Coder):
  """Latents to frames; `up_0` is the lowest resolution."""

  @nn.compact
  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W 3"]:
    x = self.middle(self.conv(self.block_channels[-1], "conv_in")(x))
    for i, channels in enumerate(reversed(self.block_channels)):
      for j in range(self.layers_per_block + 1):
        x = self.resnet(channels, f"up_{i}_resnet_{j}")(x)
      if i + 1 < len(self.block_channels):
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        x = self.conv(channels, f"up_{i}_upsample")(x)
    return self.head(x, 3)


class AutoencoderKL(Layer, kw_only=True):
  """Frames in [-1, 1] to unscaled latents, and back.

  Use the methods through `module.apply({"params": p}, x, method="encode")`.

  Attributes:
    block_channels: width of each level; n of them shrink by 2^(n-1).
    layers_per_block: number of residual blocks per level of the encoder; the
      decoder has one more.
    latent_channels: number of channels of the latents.
    norm_groups: number of groups of every norm; divides all block_channels.
    dtype: of the computation; norm moments and softmax stay float32.
    param_dtype: of the parameters.
  """

  block_channels: Sequence[int] = (128, 256, 512, 512)
  layers_per_block: int = 2
  latent_channels: int = 4
  norm_groups: int = 32
  dtype: Any = jnp.float32

  def setup(self):
    if any(c % self.norm_groups for c in self.block_channels):
      raise InputError(
        f"norm_groups {self.norm_groups} does not divide all of "
        f"block_channels {tuple(self.block_channels)}, in AutoencoderKL; "
        "choose widths that are multiples of it"
      )
    shape = {
      "block_channels": tuple(self.block_channels),
      "layers_per_block": self.layers_per_block,
      "norm_groups": self.norm_groups,
    }
    channels = self.latent_channels
    self.encoder = Encoder(latent_channels=channels, **shape, **self.types)
    self.decoder = Decoder(**shape, **self.types)
    self.quant_conv = self.conv(2 * channels, "quant_conv", 1)
    self.post_quant_conv = self.conv(channels, "post_quant_conv", 1)

  def __call__(self, frames: Float[Array, "n H W 3"]) -> Array:
    """Encodes to the mean and decodes; `init` creates all parameters by it."""
    return self.decode(self.encode(frames).mean)

  def encode(self, frames: Float[Array, "n H W 3"]) -> Posterior:
    """The distribution of the unscaled latents of each frame.

    Raises:
      InputError: a side of the frames is not a multiple of the shrink factor.
    """
    factor = 2 ** (len(self.block_channels) - 1)
    height, width = frames.shape[1:3]
    if height % factor or width % factor:
      raise InputError(
        f"frames of {width}x{height} cannot be encoded, in AutoencoderKL; "
        f"make both sides multiples of {factor}"
      )
    moments = self.quant_conv(self.encoder(frames.astype(self.dtype)))
    posterior = Posterior.from_moments(moments)
    logvar = jnp.clip(posterior.logvar, -30.0, 20.0)
    return dataclasses.replace(posterior, logvar=logvar)

  def decode(self, latents: Float[Array, "n h w c"]) -> Float[Array, "n H W 3"]:
    """Frames of unscaled latents, float32, in about [-1, 1] but not clipped."""
    x = self.post_quant_conv(latents.astype(self.dtype))
    return self.decoder(x).astype(jnp.float32)
