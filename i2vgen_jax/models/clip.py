"""The two CLIP towers that condition the denoiser: OpenCLIP ViT-H/14.

The defaults are those of `laion2b_s32b_b79k`. Pre-norm transformers with the
exact (erf) GELU. Both towers are frozen when a denoiser is trained.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from i2vgen_jax.errors import InputError
from i2vgen_jax.kernels.attention import dot_product_attention
from i2vgen_jax.models.attention import Attention
from i2vgen_jax.models.layers import Layer, LayerNorm
from i2vgen_jax.types import Array

small_normal = nn.initializers.normal(0.02)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextOutput:
  """Output of the text tower.

  Attributes:
    context: `b n d`, all tokens after the second-to-last layer and the final
      norm; the context of the denoiser.
    pooled: `b d`, the end-of-text token after the last layer and the final
      norm; used by contrastive training.
  """

  # Any, because JAX rebuilds pytrees around leaves that are not arrays.
  context: Any
  pooled: Any


class CLIPLayer(Layer):
  """x += attention(LN x); x += MLP(LN x)."""

  num_heads: int
  mlp_width: int
  causal: bool

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    width = x.shape[-1]
    heads = (width, self.num_heads, width // self.num_heads)
    h = LayerNorm(param_dtype=self.param_dtype, name="norm_1")(x)
    attend = functools.partial(dot_product_attention, causal=self.causal)
    x = x + self.part(Attention, "attn", *heads, True, attend)(h, h)
    h = LayerNorm(param_dtype=self.param_dtype, name="norm_2")(x)
    h = nn.gelu(self.dense(self.mlp_width, "mlp_in")(h), approximate=False)
    return x + self.dense(width, "mlp_out")(h)


class CLIPTextModel(Layer, kw_only=True):
  """Token ids to the context of the denoiser.

  The mask is causal and padding is not masked: the denoiser attends to padded
  positions, so the padding id matters (0 in OpenCLIP).

  Attributes:
    max_length: number of position embeddings.
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

  @nn.compact
  def __call__(self, token_ids: Int[Array, "b n"]) -> TextOutput:
    """Runs the tower; outputs are float32.

    The end of a text is the first position of its largest id, since the
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
    shape = (self.vocab_size, self.width)
    embed = self.part(
      nn.Embed, "token_embedding", *shape, embedding_init=small_normal
    )
    x = embed(token_ids)
    shape = (self.max_length, self.width)
    positions = self.param(
      "position_embedding", small_normal, shape, self.param_dtype
    )
    x = x + positions[:length].astype(self.dtype)
    layer = (self.num_heads, self.mlp_width, True)
    for i in range(self.num_layers):
      before_last = x
      x = self.part(CLIPLayer, f"layer_{i}", *layer)(x)
    norm = LayerNorm(param_dtype=self.param_dtype, name="final_norm")
    end = jnp.argmax(token_ids, axis=1)[:, None, None]
    last = jnp.take_along_axis(x, end, axis=1)[:, 0]
    return TextOutput(
      context=norm(before_last.astype(jnp.float32)),
      pooled=norm(last.astype(jnp.float32)),
    )


class CLIPVisionModel(Layer, kw_only=True):
  """Normalised pictures to their projected embeddings.

  Attributes:
    image_size: side of the square input, in pixels.
    projection_dim: width of the embedding.
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
    x = self._embed(images.astype(self.dtype))
    x = LayerNorm(param_dtype=self.param_dtype, name="norm_in")(x)
    layer = (self.num_heads, self.mlp_width, False)
    for i in range(self.num_layers):
      x = self.part(CLIPLayer, f"layer_{i}", *layer)(x)
    x = LayerNorm(param_dtype=self.param_dtype, name="norm_out")(x[:, 0])
    x = self.dense(self.projection_dim, "projection", use_bias=False)(x)
    return x.astype(jnp.float32)

  def _embed(self, images: Array) -> Array:
    """Class token and patches in row-major order, plus their positions."""
    size = self.patch_size
    patch = {"strides": size, "padding": "VALID", "use_bias": False}
    x = self.conv(self.width, "patch_embedding", size, **patch)(images)
    b = images.shape[0]
    x = x.reshape(b, -1, self.width)
    token = self.param(
      "class_embedding", small_normal, (self.width,), self.param_dtype
    )
    token = jnp.broadcast_to(token.astype(self.dtype), (b, 1, self.width))
    x = jnp.concatenate([token, x], axis=1)
    positions = self.param(
      "position_embedding", small_normal, x.shape[1:], self.param_dtype
    )
    return x + positions.astype(self.dtype)


def _check_heads(model: str, width: int, num_heads: int) -> None:
  if width % num_heads:
    raise InputError(
      f"width {width} does not divide into {num_heads} heads, in {model}; "
      "choose a multiple"
    )
