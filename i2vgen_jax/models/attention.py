"""Multi-head attention and the pre-norm block that every transformer uses."""

import flax.linen as nn
import jax
from jaxtyping import Float

from i2vgen_jax.models.layers import FeedForward, Layer, TokenNorm
from i2vgen_jax.types import Array


def dot_product_attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "b m h d"],
  v: Float[Array, "b m h d"],
  causal: bool = False,
) -> Float[Array, "b n h d"]:
  """softmax(q k^T / sqrt(d)) v for each head.

  All attention of the U-Net, the autoencoder and CLIP goes through this
  function, so that a different kernel has one place to go. Scores and softmax
  are float32, whatever the dtype of the inputs.
  """
  return jax.nn.dot_product_attention(q, k, v, is_causal=causal)


class Attention(Layer):
  """Multi-head attention.

  Channels split as (head, dim), head outermost.

  Attributes:
    num_heads: number of heads.
    head_dim: width of each head.
    use_bias: whether the projections of q, k and v have a bias; the output
      projection always has one.
    causal: whether a token attends only to itself and earlier ones.
  """

  num_heads: int
  head_dim: int
  use_bias: bool = False
  causal: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n c"], context: Float[Array, "b m d"]
  ) -> Float[Array, "b n c"]:
    def heads(y: Array, name: str) -> jax.Array:
      inner = self.num_heads * self.head_dim
      y = self.dense(inner, name, use_bias=self.use_bias)(y)
      return y.reshape(*y.shape[:-1], self.num_heads, self.head_dim)

    q, k, v = heads(x, "to_q"), heads(context, "to_k"), heads(context, "to_v")
    y = dot_product_attention(q, k, v, self.causal)
    return self.dense(x.shape[-1], "to_out")(y.reshape(*x.shape[:-1], -1))


class TransformerBlock(Layer):
  """x += attn(LN x); x += attn(LN x, context); x += FF(LN x)."""

  num_heads: int
  head_dim: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "n t c"], context: Float[Array, "b m d"] | None = None
  ) -> Float[Array, "n t c"]:
    """Runs the block on sequences of tokens.

    Args:
      x: n sequences of t tokens.
      context: tokens of b samples; n is a multiple of b, and the sequences of
        a sample are adjacent. None means self-attention.
    """
    heads = (self.num_heads, self.head_dim)
    y = self.part(TokenNorm, "norm_1")(x)
    x = x + self.part(Attention, "attn_1", *heads)(y, y)
    y = self.part(TokenNorm, "norm_2")(x)
    attend = self.part(Attention, "attn_2", *heads)
    if context is None:
      x = x + attend(y, y)
    else:
      # Every frame sees the same context: folding the frames of a sample into
      # its queries projects keys and values once instead of once per frame.
      folded = y.reshape(context.shape[0], -1, y.shape[-1])
      x = x + attend(folded, context).reshape(x.shape)
    y = self.part(TokenNorm, "norm_3")(x)
    return x + self.part(FeedForward, "ff")(y)
