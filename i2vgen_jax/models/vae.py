"""The autoencoder between pixels and latents: SD 2.1's, frame by frame.

Facts: the public weights of all variants share this network
(`first_stage_model` of Stable Diffusion 2.1). A clip is a batch of frames
here; nothing in it looks along time.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array

EPSILON = 1e-6


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


def _norm(x: Array, groups: int, param_dtype: Any, name: str) -> Array:
  """GroupNorm with float32 moments, back in the dtype of x."""
  norm = nn.GroupNorm(
    num_groups=groups,
    epsilon=EPSILON,
    dtype=jnp.float32,
    param_dtype=param_dtype,
    use_fast_variance=False,
    name=name,
  )
  return norm(x).astype(x.dtype)


class VAEResnetBlock(nn.Module):
  """Two 3x3 convolutions, each after a norm and SiLU, and a skip."""

  channels: int
  norm_groups: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
    kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    h = nn.silu(_norm(x, self.norm_groups, self.param_dtype, "norm_1"))
    h = nn.Conv(self.channels, (3, 3), padding=1, name="conv_1", **kw)(h)
    h = nn.silu(_norm(h, self.norm_groups, self.param_dtype, "norm_2"))
    h = nn.Conv(self.channels, (3, 3), padding=1, name="conv_2", **kw)(h)
    if x.shape[-1] != self.channels:
      x = nn.Conv(self.channels, (1, 1), name="skip", **kw)(x)
    return x + h


class VAEAttention(nn.Module):
  """One head over all positions of a frame.

  A full-size frame of 1280x720 has 14,400 positions at this depth, so its
  scores take 0.8 GB in float32: encode and decode few frames at a time.
  """

  norm_groups: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    n, height, width, c = x.shape

    def dense(name: str) -> nn.Dense:
      return nn.Dense(
        c, dtype=self.dtype, param_dtype=self.param_dtype, name=name
      )

    h = _norm(x, self.norm_groups, self.param_dtype, "norm")
    tokens = h.reshape(n, height * width, 1, c)
    # Scores and softmax are float32 inside, whatever the dtype.
    h = jax.nn.dot_product_attention(
      dense("to_q")(tokens), dense("to_k")(tokens), dense("to_v")(tokens)
    )
    return x + dense("to_out")(h).reshape(x.shape)


class Encoder(nn.Module):
  """Frames to the channels of mean and log variance."""

  block_channels: Sequence[int]
  layers_per_block: int
  latent_channels: int
  norm_groups: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n H W 3"]) -> Float[Array, "n h w c"]:
    kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    first, last = self.block_channels[0], self.block_channels[-1]
    x = nn.Conv(first, (3, 3), padding=1, name="conv_in", **kw)(x)
    for i, channels in enumerate(self.block_channels):
      for j in range(self.layers_per_block):
        name = f"down_{i}_resnet_{j}"
        x = VAEResnetBlock(channels, self.norm_groups, name=name, **kw)(x)
      if i + 1 < len(self.block_channels):
        # Zeros on the right and bottom only, as the public weights expect.
        x = nn.Conv(
          channels,
          (3, 3),
          strides=2,
          padding=((0, 1), (0, 1)),
          name=f"down_{i}_downsample",
          **kw,
        )(x)
    x = VAEResnetBlock(last, self.norm_groups, name="mid_resnet_0", **kw)(x)
    x = VAEAttention(self.norm_groups, name="mid_attention", **kw)(x)
    x = VAEResnetBlock(last, self.norm_groups, name="mid_resnet_1", **kw)(x)
    x = nn.silu(_norm(x, self.norm_groups, self.param_dtype, "norm_out"))
    out = 2 * self.latent_channels
    return nn.Conv(out, (3, 3), padding=1, name="conv_out", **kw)(x)


class Decoder(nn.Module):
  """Latents to frames; `up_0` is the lowest resolution."""

  block_channels: Sequence[int]
  layers_per_block: int
  norm_groups: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W 3"]:
    kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    last = self.block_channels[-1]
    x = nn.Conv(last, (3, 3), padding=1, name="conv_in", **kw)(x)
    x = VAEResnetBlock(last, self.norm_groups, name="mid_resnet_0", **kw)(x)
    x = VAEAttention(self.norm_groups, name="mid_attention", **kw)(x)
    x = VAEResnetBlock(last, self.norm_groups, name="mid_resnet_1", **kw)(x)
    for i, channels in enumerate(reversed(self.block_channels)):
      for j in range(self.layers_per_block + 1):
        name = f"up_{i}_resnet_{j}"
        x = VAEResnetBlock(channels, self.norm_groups, name=name, **kw)(x)
      if i + 1 < len(self.block_channels):
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        name = f"up_{i}_upsample"
        x = nn.Conv(channels, (3, 3), padding=1, name=name, **kw)(x)
    x = nn.silu(_norm(x, self.norm_groups, self.param_dtype, "norm_out"))
    return nn.Conv(3, (3, 3), padding=1, name="conv_out", **kw)(x)


class AutoencoderKL(nn.Module):
  """Frames in [-1, 1] to unscaled latents, and back.

  Use the methods through `module.apply({"params": p}, x, method="encode")`.

  Attributes:
    block_channels: width of each level; n of them shrink by 2^(n-1).
    layers_per_block: residual blocks of a level (the decoder has one more).
    latent_channels: channels of the latents.
    norm_groups: groups of every norm; divides all of `block_channels`.
    dtype: of the computation; norm moments and softmax stay float32.
    param_dtype: of the parameters.
  """

  block_channels: Sequence[int] = (128, 256, 512, 512)
  layers_per_block: int = 2
  latent_channels: int = 4
  norm_groups: int = 32
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    if any(c % self.norm_groups for c in self.block_channels):
      raise InputError(
        f"norm_groups {self.norm_groups} does not divide all of "
        f"block_channels {tuple(self.block_channels)}, in AutoencoderKL; "
        "choose widths that are multiples of it"
      )
    kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    shape = {
      "block_channels": tuple(self.block_channels),
      "layers_per_block": self.layers_per_block,
      "norm_groups": self.norm_groups,
    }
    moments = 2 * self.latent_channels
    self.encoder = Encoder(
      latent_channels=self.latent_channels, name="encoder", **shape, **kw
    )
    self.decoder = Decoder(name="decoder", **shape, **kw)
    self.quant_conv = nn.Conv(moments, (1, 1), name="quant_conv", **kw)
    self.post_quant_conv = nn.Conv(
      self.latent_channels, (1, 1), name="post_quant_conv", **kw
    )

  def __call__(self, frames: Float[Array, "n H W 3"]) -> Array:
    """Through the mean and back; what `init` runs to make all parameters."""
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
    """Frames of unscaled latents, float32, about [-1, 1] and not clipped."""
    x = self.post_quant_conv(latents.astype(self.dtype))
    return self.decoder(x).astype(jnp.float32)
