"""Multi-head attention and the pre-norm block that every transformer uses."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.models.layers import FeedForward, LayerNorm
from i2vgen_jax.types import Array


class Attention(nn.Module):
  """softmax(q k^T / sqrt(head_dim)) v; projections in carry no bias.

  Channels split as (head, dim), head outermost. Scores and softmax are
  float32.
  """

  num_heads: int
  head_dim: int
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n c"], context: Float[Array, "b m d"]
  ) -> Float[Array, "b n c"]:
    inner = self.num_heads * self.head_dim
    dense = {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def heads(y: Array, name: str) -> jax.Array:
      y = nn.Dense(inner, use_bias=False, name=name, **dense)(y)
      return y.reshape(*y.shape[:-1], self.num_heads, self.head_dim)

    y = jax.nn.dot_product_attention(
      heads(x, "to_q"), heads(context, "to_k"), heads(context, "to_v")
    )
    y = y.reshape(*x.shape[:-1], inner)
    return nn.Dense(x.shape[-1], name="to_out", **dense)(y)


class TransformerBlock(nn.Module):
  """x += attn(LN x); x += attn(LN x, context); x += FF(LN x)."""

  num_heads: int
  head_dim: int
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "n t c"],
    context: Float[Array, "b m d"] | None = None,
  ) -> Float[Array, "n t c"]:
    """Runs the block on sequences of tokens.

    Args:
      x: n sequences of t tokens.
      context: for b samples; n is a multiple of b and sequences of one sample
        lie together. None means self-attention.
    """
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    heads = (self.num_heads, self.head_dim)
    y = LayerNorm(name="norm_1", **types)(x)
    x = x + Attention(*heads, name="attn_1", **types)(y, y)
    y = LayerNorm(name="norm_2", **types)(x)
    attend = Attention(*heads, name="attn_2", **types)
    if context is None:
      x = x + attend(y, y)
    else:
      # Every frame sees the same context: folding the frames of a sample into
      # its queries projects keys and values once instead of once per frame.
      folded = y.reshape(context.shape[0], -1, y.shape[-1])
      x = x + attend(folded, context).reshape(x.shape)
    y = LayerNorm(name="norm_3", **types)(x)
    return x + FeedForward(name="ff", **types)(y)
