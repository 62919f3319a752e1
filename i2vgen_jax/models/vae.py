"""The autoencoder of Stable Diffusion 2.1, applied to each frame separately.

The public weights of all variants share this network (`first_stage_model`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from i2vgen_jax.errors import InputError
from i2vgen_jax.kernels.group_norm import apply_factors
from i2vgen_jax.models.attention import Attention
from i2vgen_jax.models.layers import (
  GroupNorm,
  Layer,
  plain_normalise_silu,
  to_pixels,
  zeros,
)
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
    return GroupNorm(self.norm_groups, 1e-6, True, self.param_dtype, name=name)

  def norm_silu(
    self, x: Float[Array, "n h w c"], name: str
  ) -> Float[Array, "n h w c"]:
    # Pictures are clips of one frame. The compiler computes this within the
    # convolutions around it, which a kernel would keep it from.
    pixels = to_pixels(x[:, None])
    y = plain_normalise_silu(pixels, self.norm(name)(pixels))
    return y.reshape(x.shape)


class VAEResnetBlock(VAELayer):
  """Two 3x3 convolutions, each after a norm and SiLU, and a skip connection."""

  channels: int

  @nn.compact
  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
    h = self.norm_silu(x, "norm_1")
    h = self.conv(self.channels, "conv_1")(h)
    h = self.norm_silu(h, "norm_2")
    h = self.conv(self.channels, "conv_2")(h)
    if x.shape[-1] != self.channels:
      x = self.conv(self.channels, "skip", 1)(x)
    return x + h


class VAEAttention(VAELayer):
  """One head over all positions of a frame."""

  @nn.compact
  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    c = x.shape[-1]
    pixels = to_pixels(x[:, None])
    tokens = apply_factors(pixels, self.norm("norm")(pixels))
    tokens = tokens[:, 0].astype(x.dtype)
    attend = Attention(c, 1, c, use_bias=True, **self.types)
    # The projections have the same parent as the norm.
    nn.share_scope(self, attend)
    return x + attend(tokens, tokens).reshape(x.shape)


class Coder(VAELayer):
  """Base of encoder and decoder.

  Attributes:
    block_channels: width of each level, finest first.
    layers_per_block: number of residual blocks at each level of the encoder.
    zero_head: start the last convolution at zero.
  """

  block_channels: Sequence[int]
  layers_per_block: int
  zero_head: bool

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
    init = zeros if self.zero_head else nn.initializers.lecun_normal()
    conv = self.conv(features, "conv_out", kernel_init=init)
    return conv(self.norm_silu(x, "norm_out"))


class Encoder(Coder):
  """Patches of frames to the channels of mean and log variance."""

  latent_channels: int

  @nn.compact
  def __call__(self, x: Float[Array, "n H W d"]) -> Float[Array, "n h w c"]:
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
  """Latents to patches of frames; `up_0` is the lowest resolution."""

  out_channels: int

  @nn.compact
  def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W d"]:
    x = self.middle(self.conv(self.block_channels[-1], "conv_in")(x))
    for i, channels in enumerate(reversed(self.block_channels)):
      for j in range(self.layers_per_block + 1):
        x = self.resnet(channels, f"up_{i}_resnet_{j}")(x)
      if i + 1 < len(self.block_channels):
        n, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c))
        x = x.reshape(n, 2 * h, 2 * w, c)
        x = self.conv(channels, f"up_{i}_upsample")(x)
    return self.head(x, self.out_channels)


class Shortcut(Layer):
  """Linear maps between squares of pixels and latents, beside the networks.

  As in DC-AE (Chen et al. 2024, Sec. 3.2), the networks learn only what a
  linear map leaves. It starts as the lowest frequencies of the cosine
  transform of each square, which is close to the best linear map for
  photographs.

  Attributes:
    size: side of the squares in pixels.
    latent_channels: number of channels of the latents.
  """

  size: int
  latent_channels: int

  def setup(self):
    into, back = _low_frequencies(self.size, self.latent_channels)
    self.analysis = self._linear(into, "analysis")
    self.synthesis = self._linear(back, "synthesis")

  def _linear(self, matrix: np.ndarray, name: str) -> nn.Dense:
    width = matrix.shape[1]
    return self.dense(
      width, name, use_bias=False, kernel_init=_constant(matrix)
    )

  def encode(self, x: Float[Array, "n H W 3"]) -> Float[Array, "n h w c"]:
    return self.analysis(_fold(x, self.size))

  def decode(self, z: Float[Array, "n h w c"]) -> Float[Array, "n H W 3"]:
    return _unfold(self.synthesis(z), self.size)


def _constant(value: np.ndarray) -> nn.initializers.Initializer:
  return lambda rng, shape, dtype: jnp.asarray(value, dtype).reshape(shape)


def _low_frequencies(
  size: int, count: int
) -> tuple[Float[np.ndarray, "d c"], Float[np.ndarray, "c d"]]:
  """Maps from the pixels of a square to cosine coefficients, and back.

  Colours are split into their sum and two differences. Coefficients are scaled
  by the root of their frequency, against the 1/f amplitudes of photographs.
  """
  k = np.arange(size)
  cosines = np.cos(np.pi * k[:, None] * (2 * k + 1) / (2 * size))
  cosines *= np.sqrt(np.where(k == 0, 1, 2) / size)[:, None]
  colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]])
  colours = colours / np.linalg.norm(colours, axis=1, keepdims=True)
  # Differences of colours have less energy, as if their frequency was higher.
  distance = np.hypot(k[:, None], k)[..., None]
  frequency = (distance * [1, 1.6, 1.6] + [0, 1.5, 2]).ravel()
  lowest = np.argsort(frequency, kind="stable")[:count]
  rows = np.kron(np.kron(cosines, cosines), colours)[lowest]
  gain = np.sqrt(1 + frequency[lowest])[:, None] / size
  return (rows * gain).T, rows / gain


def _fold(x: Float[Array, "n H W c"], size: int) -> Float[Array, "n h w d"]:
  """Squares of pixels as channels: row, column, channel."""
  n, h, w, c = x.shape
  x = x.reshape(n, h // size, size, w // size, size, c)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n, h // size, w // size, size * size * c)


def _unfold(x: Float[Array, "n h w d"], size: int) -> Float[Array, "n H W c"]:
  """The inverse of `_fold`."""
  n, h, w, _ = x.shape
  x = x.reshape(n, h, w, size, size, -1).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n, h * size, w * size, -1)


class AutoencoderKL(Layer, kw_only=True):
  """Frames in [-1, 1] to unscaled latents, and back.

  Use the methods through `module.apply({"params": p}, x, method="encode")`.

  Attributes:
    block_channels: width of each level; n of them shrink by 2^(n-1).
    layers_per_block: number of residual blocks per level of the encoder; the
      decoder has one more.
    latent_channels: number of channels of the latents.
    norm_groups: number of groups of every norm; divides all block_channels.
    patch_size: side of the squares of pixels that are folded into channels
      before the first level, and back after the last, as in LTX-Video. Above
      1 there is a `Shortcut` beside the networks. The public weights have 1.
    dtype: of the computation; norm moments and softmax stay float32.
    param_dtype: of the parameters.
  """

  block_channels: Sequence[int] = (128, 256, 512, 512)
  layers_per_block: int = 2
  latent_channels: int = 4
  norm_groups: int = 32
  patch_size: int = 1
  dtype: Any = jnp.float32

  def setup(self):
    if any(c % self.norm_groups for c in self.block_channels):
      raise InputError(
        f"norm_groups {self.norm_groups} does not divide all of "
        f"block_channels {tuple(self.block_channels)}, in AutoencoderKL; "
        "choose widths that are multiples of it"
      )
    channels, p = self.latent_channels, self.patch_size
    shape = {
      "block_channels": tuple(self.block_channels),
      "layers_per_block": self.layers_per_block,
      "norm_groups": self.norm_groups,
      "zero_head": p > 1,
    }
    self.encoder = Encoder(latent_channels=channels, **shape, **self.types)
    self.decoder = Decoder(out_channels=3 * p * p, **shape, **self.types)
    self.post_quant_conv = self.conv(channels, "post_quant_conv", 1)
    bias = zeros
    if p > 1:
      # Little noise: with the usual variance of 1 at the start, training would
      # first unlearn the shortcut.
      bias = _constant(np.repeat([0.0, -8.0], channels))
      self.shortcut = Shortcut(
        size=self.shrink, latent_channels=channels, **self.types
      )
    self.quant_conv = self.conv(2 * channels, "quant_conv", 1, bias_init=bias)

  @property
  def shrink(self) -> int:
    """Number of pixels of a frame per latent, along each side."""
    return self.patch_size * 2 ** (len(self.block_channels) - 1)

  def __call__(self, frames: Float[Array, "n H W 3"]) -> Array:
    """Encodes to the mean and decodes; `init` creates all parameters by it."""
    return self.decode(self.encode(frames).mean)

  def encode(self, frames: Float[Array, "n H W 3"]) -> Posterior:
    """The distribution of the unscaled latents of each frame.

    Raises:
      InputError: a side of the frames is not a multiple of the shrink factor.
    """
    factor = self.shrink
    height, width = frames.shape[1:3]
    if height % factor or width % factor:
      raise InputError(
        f"frames of {width}x{height} cannot be encoded, in AutoencoderKL; "
        f"make both sides multiples of {factor}"
      )
    patches = _fold(frames.astype(self.dtype), self.patch_size)
    moments = self.quant_conv(self.encoder(patches))
    posterior = Posterior.from_moments(moments)
    mean, logvar = posterior.mean, jnp.clip(posterior.logvar, -30.0, 20.0)
    if self.patch_size > 1:
      mean += self.shortcut.encode(frames)
    return Posterior(mean, logvar)

  def decode(self, latents: Float[Array, "n h w c"]) -> Float[Array, "n H W 3"]:
    """Frames of unscaled latents, float32, in about [-1, 1] but not clipped."""
    x = self.post_quant_conv(latents.astype(self.dtype))
    frames = _unfold(self.decoder(x), self.patch_size)
    if self.patch_size > 1:
      frames += self.shortcut.decode(latents)
    return frames.astype(jnp.float32)
