"""The two CLIP towers that condition the denoiser: OpenCLIP ViT-H/14.

Facts: `laion2b_s32b_b79k`, whose defaults these are. Pre-norm transformers
with the erf form of GELU. Both towers are frozen wherever a denoiser trains.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from i2vgen_jax.errors import InputError
from i2vgen_jax.types import Array

EPSILON = 1e-5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextOutput:
  """What a caption becomes.

  Attributes:
    context: `b n d`, all tokens after the last layer but one and the final
      norm; what the denoiser attends to.
    pooled: `b d`, the end-of-text token after the last layer and the final
      norm; what contrastive training compares.
  """

  # Any, because JAX rebuilds pytrees around leaves that are not arrays.
  context: Any
  pooled: Any


def _layer_norm(param_dtype: Any, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(
    epsilon=EPSILON,
    dtype=jnp.float32,
    param_dtype=param_dtype,
    use_fast_variance=False,
    name=name,
  )


class CLIPAttention(nn.Module):
  """Multi-head self-attention; every projection has a bias."""

  num_heads: int
  causal: bool
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    b, n, width = x.shape
    kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def heads(name: str) -> Array:
      y = nn.Dense(width, name=name, **kw)(x)
      return y.reshape(b, n, self.num_heads, width // self.num_heads)

    # Scores and softmax are float32 inside, whatever the dtype.
    y = jax.nn.dot_product_attention(
      heads("to_q"), heads("to_k"), heads("to_v"), is_causal=self.causal
    )
    return nn.Dense(width, name="to_out", **kw)(y.reshape(b, n, width))


class CLIPLayer(nn.Module):
  """x += attention(LN x); x += MLP(LN x)."""

  num_heads: int
  mlp_width: int
  causal: bool
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    h = _layer_norm(self.param_dtype, "norm_1")(x)
    x = x + CLIPAttention(self.num_heads, self.causal, name="attn", **kw)(h)
    h = _layer_norm(self.param_dtype, "norm_2")(x)
    h = nn.Dense(self.mlp_width, name="mlp_in", **kw)(h)
    h = nn.gelu(h, approximate=False)
    return x + nn.Dense(x.shape[-1], name="mlp_out", **kw)(h)


class CLIPTextModel(nn.Module):
  """Token ids to the context of the denoiser.

  The mask is causal and knows no padding: padded positions have values and
  the denoiser attends to them, so the padding id matters (0 at OpenCLIP).

  Attributes:
    max_length: positions that the tower has an embedding for.
    dtype: of the computation; norms and softmax stay float32.
    param_dtype: of the parameters.
  """

  vocab_size: int = 49408
  width: int = 1024
  num_layers: int = 24
  num_heads: int = 16
  mlp_width: int = 4096
  max_length: int = 77
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, token_ids: Int[Array, "b n"]) -> TextOutput:
    """Runs the tower; outputs are float32.

    The end of a text is the first place of its largest id, since the
    end-of-text token is the last of the vocabulary.

    Raises:
      InputError: more tokens than `max_length`.
    """
    _check_heads("CLIPTextModel", self.width, self.num_heads)
    length = token_ids.shape[1]
    if length > self.max_length:
      raise InputError(
        f"{length} tokens are too many, in CLIPTextModel; "
        f"cut the text to {self.max_length}"
      )
    kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    small = nn.initializers.normal(0.02)
    x = nn.Embed(
      self.vocab_size,
      self.width,
      embedding_init=small,
      name="token_embedding",
      **kw,
    )(token_ids)
    shape = (self.max_length, self.width)
    positions = self.param("position_embedding", small, shape, self.param_dtype)
    x = x + positions[:length].astype(self.dtype)
    for i in range(self.num_layers):
      before_last = x
      x = CLIPLayer(
        self.num_heads, self.mlp_width, True, name=f"layer_{i}", **kw
      )(x)
    norm = _layer_norm(self.param_dtype, "final_norm")
    end = jnp.argmax(token_ids, axis=1)[:, None, None]
    last = jnp.take_along_axis(x, end, axis=1)[:, 0]
    return TextOutput(context=norm(before_last), pooled=norm(last))


class CLIPVisionModel(nn.Module):
  """The CLIP view of a picture to its projected embedding.

  Attributes:
    image_size: side of the square that the tower takes, in pixels.
    projection_dim: width of the embedding shared with the text side.
    dtype: of the computation; norms and softmax stay float32.
    param_dtype: of the parameters.
  """

  width: int = 1280
  num_layers: int = 32
  num_heads: int = 16
  mlp_width: int = 5120
  patch_size: int = 14
  image_size: int = 224
  projection_dim: int = 1024
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b d"]:
    """The embedding, not normalised to unit length, float32.

    Raises:
      InputError: the pictures are not of `image_size`.
    """
    _check_heads("CLIPVisionModel", self.width, self.num_heads)
    side = images.shape[1]
    if side != self.image_size:
      raise InputError(
        f"pictures of {side}x{side} do not fit, in CLIPVisionModel; "
        f"resize them to {self.image_size}x{self.image_size}"
      )
    kw = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = self._embed(images.astype(self.dtype))
    x = _layer_norm(self.param_dtype, "norm_in")(x).astype(self.dtype)
    for i in range(self.num_layers):
      x = CLIPLayer(
        self.num_heads, self.mlp_width, False, name=f"layer_{i}", **kw
      )(x)
    x = _layer_norm(self.param_dtype, "norm_out")(x[:, 0])
    project = nn.Dense(
      self.projection_dim, use_bias=False, name="projection", **kw
    )
    return project(x).astype(jnp.float32)

  def _embed(self, images: Array) -> Array:
    """Class token and patches, row by row, with their position added."""
    small = nn.initializers.normal(0.02)
    patches = nn.Conv(
      self.width,
      (self.patch_size, self.patch_size),
      strides=self.patch_size,
      padding="VALID",
      use_bias=False,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="patch_embedding",
    )(images)
    b = images.shape[0]
    x = patches.reshape(b, -1, self.width)
    token = self.param(
      "class_embedding", small, (self.width,), self.param_dtype
    )
    token = jnp.broadcast_to(token.astype(self.dtype), (b, 1, self.width))
    x = jnp.concatenate([token, x], axis=1)
    shape = (x.shape[1], self.width)
    positions = self.param("position_embedding", small, shape, self.param_dtype)
    return x + positions.astype(self.dtype)


def _check_heads(model: str, width: int, num_heads: int) -> None:
  if width % num_heads:
    raise InputError(
      f"width {width} does not divide into {num_heads} heads, in {model}; "
      "choose a multiple"
    )
