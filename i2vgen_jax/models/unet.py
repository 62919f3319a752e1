"""The spatio-temporal U-Net of every stage and public variant."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from i2vgen_jax import remat
from i2vgen_jax.errors import InputError
from i2vgen_jax.models.conditioning import (
  ContentEncoder,
  ImageEmbedsTokens,
  ImageLatentsTokens,
  LocalImageChannels,
)
from i2vgen_jax.models.layers import (
  EmbeddingMLP,
  Layer,
  VideoNorm,
  norm_silu,
  sinusoidal_embedding,
  zeros,
)
from i2vgen_jax.models.resnet import (
  Downsample,
  ResnetBlock,
  TemporalConvBlock,
  Upsample,
)
from i2vgen_jax.models.transformers import (
  SpatialTransformer,
  TemporalTransformer,
)
from i2vgen_jax.remat import Policy
from i2vgen_jax.sharding import split_clips
from i2vgen_jax.types import Array


class SpaceTimeBlock(Layer):
  """ResNet block, temporal convolutions, spatial and temporal transformer.

  With `context` None there are no transformers, as at the lowest level.
  """

  features: int
  head_dim: int
  norm_groups: int
  dropout: float

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b f h w c"],
    temb: Float[Array, "b e"],
    context: Float[Array, "b n d"] | None,
    deterministic: bool,
  ) -> Float[Array, "b f h w c2"]:
    # Layers over time exchange the frames of their device for pixels. Without
    # `split_clips` the compiler would split pixels in the others as well.
    shape = (self.norm_groups, self.dropout)
    resnet = self.part(ResnetBlock, "resnet", self.features, *shape)
    x = split_clips(resnet(x, temb, deterministic))
    x = self.part(TemporalConvBlock, "temporal_conv", *shape)(x, deterministic)
    if context is None:
      return x
    shape = (self.head_dim, self.norm_groups)
    over_space = (self.features, *shape)
    spatial = self.part(SpatialTransformer, "spatial", *over_space)
    x = split_clips(spatial(x, context))
    over_time = (self.features, self.features // self.head_dim, *shape)
    return self.part(TemporalTransformer, "temporal", *over_time)(x)


class I2VGenUNet(Layer):
  """Denoiser of video latents; its fields select the model variant.

  | member | text | image_embeds | local_image | fps | height_padding |
  |---|---|---|---|---|---|
  | base (the paper's) | no | yes | content | yes | 1 |
  | refine (variant b) | yes | no | none | no | 2 |
  | released (variant c) | yes | yes | concat | yes | 1 |
  | image_to_video (variant a) | no | yes | none | yes | 1 |

  The context of cross-attention is [text | image latents | CLIP embedding].

  Attributes:
    latent_channels: channels of the noisy latents and of the output.
    block_channels: width of each level, finest first. All levels but the
      lowest have transformers.
    layers_per_block: number of residual blocks per level of the encoder; the
      decoder has one more.
    head_dim: width of an attention head at every level.
    input_heads: number of heads of the temporal transformer after the first
      convolution.
    context_dim: width of text tokens and CLIP embeddings.
    norm_groups: number of groups of every GroupNorm.
    dropout: dropout rate in residual blocks and temporal convolutions.
    local_image: how the image latents are used. `concat`: as extra channels and
      context tokens, as released. `content`: by the paper's D.Enc and G.Enc.
    image_grid: side of the grid of context tokens of `concat`.
    concat_gain: factor on the extra channels, see `LocalImageChannels`.
    height_padding: see `Downsample`.
    remat: compute again in the backward pass, to save memory.
    remat_policy: what is computed again; see `i2vgen_jax.remat`.
  """

  latent_channels: int = 4
  block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  layers_per_block: int = 2
  head_dim: int = 64
  input_heads: int = 8
  context_dim: int = 1024
  norm_groups: int = 32
  dropout: float = 0.1
  use_text: bool = True
  use_image_embeds: bool = True
  use_fps: bool = True
  local_image: Literal["none", "concat", "content"] = "concat"
  image_grid: int = 8
  concat_gain: float = 1.0
  height_padding: int = 1
  remat: bool = False
  remat_policy: Policy = "nothing"

  @nn.compact
  def __call__(
    self,
    latents: Float[Array, "b f h w c"],
    timesteps: Num[Array, "b"],
    *,
    fps: Num[Array, "b"] | None = None,
    image_latents: Float[Array, "b h w c"] | None = None,
    image_embeds: Float[Array, "b e"] | None = None,
    text_context: Float[Array, "b n e"] | None = None,
    deterministic: bool = True,
    features: Float[Array, "b f h w d"] | None = None,
    with_features: bool = False,
  ) -> (
    Float[Array, "b f h w c"]
    | tuple[Float[Array, "b f h w c"], Float[Array, "b f h w d"]]
  ):
    """Predicts v (or whatever the weights were trained to) from `latents`.

    Args:
      latents: noisy, scaled latents.
      timesteps: noise level, 0 to 999; may be fractional.
      fps: frames per second of the clip.
      image_latents: scaled latents of the first frame.
      image_embeds: projected CLIP embedding of the first frame; zero for the
        unconditional image.
      text_context: CLIP text tokens.
      deterministic: False enables dropout and needs a `dropout` rng.
      features: output of the inner layers at a near noise level. Only the
        outermost layers then run (DeepCache, Ma et al. 2024): the first
        convolution, the last block and the head.
      with_features: also return the features, given or new.

    Raises:
      InputError: a condition that the variant uses is missing, one that it
        does not use is given, or the size does not fit the levels.
    """
    self._check_conditions(
      fps=fps,
      image_latents=image_latents,
      image_embeds=image_embeds,
      text_context=text_context,
    )
    self.check_size(latents.shape[3], latents.shape[2])
    temb = self._time_embedding(timesteps, fps)

    x = jnp.asarray(latents)
    tokens = [] if text_context is None else [text_context]
    if self.local_image == "concat":
      local = self.part(LocalImageChannels, "local_image", self.concat_gain)
      channels = local(image_latents, x.shape[1], deterministic)
      x = jnp.concatenate([x, channels.astype(x.dtype)], axis=-1)
      shape = (self.context_dim, self.image_grid)
      to_tokens = self.part(ImageLatentsTokens, "image_tokens", *shape)
      tokens.append(to_tokens(image_latents))
    elif self.local_image == "content":
      encode = self.part(ContentEncoder, "content_encoder", self.context_dim)
      details, content = encode(image_latents)
      x = x.at[:, 0].add(details.astype(x.dtype))
      # Without the CLIP vector there is no picture; see `ContentEncoder`.
      present = jnp.any(image_embeds != 0, axis=-1, keepdims=True)
      image_embeds = image_embeds + present * content
    if self.use_image_embeds:
      shape = (self.context_dim, temb.shape[-1])
      to_tokens = self.part(ImageEmbedsTokens, "embeds_tokens", *shape)
      tokens.append(to_tokens(image_embeds))
    tokens = [t.astype(self.dtype or jnp.float32) for t in tokens]
    context = jnp.concatenate(tokens, axis=1)

    with remat.of_layers(self._policy):
      y, features = self._trunk(x, temb, context, deterministic, features)
    return (y, features) if with_features else y

  def _trunk(self, x, temb, context, deterministic, features):
    """Encoder, middle and decoder between first and last convolution."""
    block_type = SpaceTimeBlock
    if policy := remat.of_blocks(self._policy):
      block_type = nn.remat(SpaceTimeBlock, policy=policy, static_argnums=(4,))
    shape = (self.head_dim, self.norm_groups)

    def block(x, features, context, name):
      run = self.part(block_type, name, features, *shape, self.dropout)
      return run(x, temb, context, deterministic)

    x = self.conv(self.block_channels[0], "conv_in")(x)
    over_time = (self.block_channels[0], self.input_heads, *shape)
    x = self.part(TemporalTransformer, "temporal_in", *over_time)(x)

    if features is None:
      features = self._inside(x, block, context)
    name = f"up_0_{self.layers_per_block}"
    x = jnp.concatenate([features, x], axis=-1)
    x = block(x, self.block_channels[0], self._contexts(context)[0], name)

    norm = self.part(VideoNorm, "norm_out", self.norm_groups, 1e-5, True)
    x = norm_silu(norm, x)
    y = self.conv(self.latent_channels, "conv_out", kernel_init=zeros)(x)
    return y, features

  def _contexts(self, context):
    """The context of each level; without it a level has no transformers."""
    return [context] * (len(self.block_channels) - 1) + [None]

  def _inside(self, x, block, context):
    """All blocks but the last of the decoder."""
    contexts, skips = self._contexts(context), [x]
    for i, features in enumerate(self.block_channels):
      for j in range(self.layers_per_block):
        x = block(x, features, contexts[i], f"down_{i}_{j}")
        skips.append(x)
      if i < len(self.block_channels) - 1:
        name = f"down_{i}_downsample"
        x = self.part(Downsample, name, self.height_padding)(x)
        skips.append(x)

    x = block(x, self.block_channels[-1], context, "mid_0")
    x = block(x, self.block_channels[-1], None, "mid_1")

    for i, features in reversed([*enumerate(self.block_channels)]):
      # The first skip belongs to the last block.
      for j in range(min(self.layers_per_block + 1, len(skips) - 1)):
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = block(x, features, contexts[i], f"up_{i}_{j}")
      if i > 0:
        enlarge = self.part(Upsample, f"up_{i}_upsample", self.height_padding)
        x = enlarge(x, skips[-1].shape[2:4])
    return x

  def _time_embedding(self, timesteps: Array, fps: Array | None) -> jax.Array:
    width = self.block_channels[0]
    widths = (4 * width, 4 * width)
    embed = self.part(EmbeddingMLP, "time_embedding", *widths)
    temb = embed(sinusoidal_embedding(timesteps, width))
    if self.use_fps:
      embed = self.part(EmbeddingMLP, "fps_embedding", *widths, zero_init=True)
      temb += embed(sinusoidal_embedding(fps, width))
    return temb

  @property
  def _policy(self) -> Policy | None:
    return self.remat_policy if self.remat else None

  @property
  def conditions(self) -> tuple[str, ...]:
    """Names of the conditions that this variant takes."""
    uses = {
      "fps": self.use_fps,
      "image_latents": self.local_image != "none",
      "image_embeds": self.use_image_embeds,
      "text_context": self.use_text,
    }
    return tuple(name for name, is_used in uses.items() if is_used)

  def _check_conditions(self, **given: Array | None) -> None:
    for name, value in given.items():
      if name in self.conditions and value is None:
        raise InputError(f"this U-Net needs {name}; pass it")
      if name not in self.conditions and value is not None:
        raise InputError(f"this U-Net has no input for {name}; leave it out")

  def nearest_size(
    self, width: float | int, height: float | int
  ) -> tuple[int, int]:
    """The size of latents nearest to this one that fits all levels.

    Only `height_padding` 2 restricts the size.
    """
    if self.height_padding == 1:
      return max(round(width), 1), max(round(height), 1)
    factor = 2 ** (len(self.block_channels) - 1)
    columns = max(round(width / factor), 1)
    # Each level maps h to (h + 1) // 2 + 1, whose fixed point is 2.
    rows = max(round((height - 2) / factor), 0)
    return factor * columns, factor * rows + 2

  def check_size(self, width: int, height: int) -> None:
    """Raises InputError unless latents of this size fit all levels."""
    near = self.nearest_size(width, height)
    if near != (width, height):
      factor = 2 ** (len(self.block_channels) - 1)
      raise InputError(
        f"latents of {width}x{height} do not fit this refine U-Net: its widths "
        f"are multiples of {factor} and its heights are such multiples plus 2; "
        f"the nearest is {near[0]}x{near[1]}"
      )
