"""Image conditioning of the U-Net: tokens, extra channels, content path."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from i2vgen_jax.kernels.frame_attention import frame_attention
from i2vgen_jax.models.attention import Attention
from i2vgen_jax.models.layers import (
  EmbeddingMLP,
  Layer,
  TokenNorm,
  adaptive_average_pool,
  to_pixels,
)
from i2vgen_jax.types import Array


class ImageEmbedsTokens(Layer):
  """CLIP image embedding -> 4 context tokens (public variants (a) and (c)).

  A zero embedding, the unconditional image, gives the biases, not zeros.
  """

  context_dim: int
  hidden: int
  num_tokens: int = 4

  @nn.compact
  def __call__(
    self, image_embeds: Float[Array, "b e"]
  ) -> Float[Array, "b n d"]:
    widths = (self.hidden, self.num_tokens * self.context_dim)
    y = self.part(EmbeddingMLP, "mlp", *widths)(image_embeds)
    return y.reshape(-1, self.num_tokens, self.context_dim)


class ImageLatentsTokens(Layer):
  """Image latents -> `grid` x `grid` context tokens, row by row.

  64 tokens from a pool of 32 x 32 in public variant (c).
  """

  context_dim: int
  grid: int = 8

  @nn.compact
  def __call__(
    self, image_latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b n d"]:
    halve = {"strides": 2, "padding": 1}
    c = image_latents.shape[-1]
    y = self.conv(8 * c, "conv_1")(image_latents)
    y = adaptive_average_pool(nn.silu(y), 4 * self.grid)
    y = nn.silu(self.conv(16 * c, "conv_2", **halve)(y))
    y = self.conv(self.context_dim, "conv_3", **halve)(y)
    return y.reshape(y.shape[0], -1, self.context_dim)


class LatentsProjection(Layer):
  """Three 3x3 convolutions with SiLU in between, c -> 4c -> 4c -> c."""

  @nn.compact
  def __call__(self, x: Float[Array, "... h w c"]) -> Float[Array, "... h w c"]:
    c = x.shape[-1]
    x = nn.silu(self.conv(4 * c, "conv_1")(x))
    x = nn.silu(self.conv(4 * c, "conv_2")(x))
    return self.conv(c, "conv_3")(x)


class LocalTemporalEncoder(Layer):
  """A narrow attention block over frames; its MLP has neither norm nor gate."""

  num_heads: int = 2
  dropout: float = 0.05

  @nn.compact
  def __call__(
    self, x: Float[Array, "b f h w c"], deterministic: bool
  ) -> Float[Array, "b f h w c"]:
    c = x.shape[-1]
    drop = nn.Dropout(self.dropout, deterministic=deterministic)
    y = to_pixels(x)
    z = self.part(TokenNorm, "norm")(y)
    heads = (c, self.num_heads, c)
    attend = self.part(Attention, "attn", *heads, attend=frame_attention)
    y = y + drop(attend(z, z))
    z = nn.gelu(self.dense(4 * c, "ff_1")(y), approximate=False)
    y = y + self.dense(c, "ff_2")(drop(z))
    return y.reshape(x.shape)


class LocalImageChannels(Layer):
  """Image latents as extra input channels of every frame.

  Public variant (c). The input of frame 0 is the latents; that of frame j > 0
  is the constant j / (F - 1), which marks the time.

  Attributes:
    gain: factor on the result: 2 in the original code, which adds it twice, 1
      in diffusers. Weights need the one that they were trained with.
  """

  gain: float

  @nn.compact
  def __call__(
    self,
    image_latents: Float[Array, "b h w c"],
    num_frames: int,
    deterministic: bool,
  ) -> Float[Array, "b f h w c"]:
    first = image_latents[:, None]
    clock = np.linspace(0, 1, num_frames, dtype=np.float32)[1:]
    masks = jnp.ones_like(first) * clock[:, None, None, None]
    frames = jnp.concatenate([first, masks.astype(first.dtype)], axis=1)
    y = self.part(LatentsProjection, "proj")(frames)
    temporal = self.part(LocalTemporalEncoder, "temporal_encoder")
    return self.gain * temporal(y, deterministic)


class ContentEncoder(Layer):
  """The paper's learnable content path: D.Enc and G.Enc (Fig. 2, Table 1).

  The paper does not give the widths; these are our choice. D.Enc is the frozen
  VAE encoder followed by a learned projection in latent space; its features
  are added to the noise of the first frame only. G.Enc is the token pyramid of
  variant (c), averaged to one vector, which is added to the CLIP embedding. The
  sum is the condition of cross-attention: the U-Net adds nothing to a zero CLIP
  embedding, so that the unconditional image is that of variant (a).
  """

  embed_dim: int

  @nn.compact
  def __call__(
    self, image_latents: Float[Array, "b h w c"]
  ) -> tuple[Float[Array, "b h w c"], Float[Array, "b e"]]:
    details = self.part(LatentsProjection, "detail_encoder")(image_latents)
    pyramid = self.part(ImageLatentsTokens, "global_encoder", self.embed_dim)
    return details, pyramid(details).mean(axis=1)
