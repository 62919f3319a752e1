"""Multi-head attention and the pre-norm block that every transformer uses."""

from collections.abc import Callable

from jaxtyping import Float

from i2vgen_jax.kernels.attention import dot_product_attention
from i2vgen_jax.models.layers import FeedForward, Layer, TokenNorm
from i2vgen_jax.types import Array


class Attention(Layer):
  """Multi-head attention, in the three parts that kernels divide it into.

  Channels split as (head, dim), head outermost.

  Attributes:
    features: channels of the output.
    num_heads: number of heads.
    head_dim: width of each head.
    use_bias: whether the projections of q, k and v have a bias; the output
      projection always has one.
    attend: softmax(q k^T / sqrt(d)) v; decides along which axis tokens attend
      to each other.
  """

  features: int
  num_heads: int
  head_dim: int
  use_bias: bool = False
  attend: Callable[..., Array] = dot_product_attention

  def setup(self):
    inner = self.num_heads * self.head_dim
    self.to_q = self.dense(inner, use_bias=self.use_bias)
    self.to_k = self.dense(inner, use_bias=self.use_bias)
    self.to_v = self.dense(inner, use_bias=self.use_bias)
    self.to_out = self.dense(self.features)

  def __call__(
    self, x: Float[Array, "*b n c"], context: Float[Array, "*d m e"]
  ) -> Float[Array, "*b n c"]:
    keys_values = self.keys_values(context)
    return self.to_out(self.attend(self.to_q(x), *keys_values, self.num_heads))

  def keys_values(
    self, context: Float[Array, "*d m e"]
  ) -> tuple[Float[Array, "*d m i"], Float[Array, "*d m i"]]:
    return self.to_k(context), self.to_v(context)


class TransformerBlock(Layer):
  """x += attn(LN x); x += attn(LN x, context); x += FF(LN x).

  Attributes:
    width: channels of x.
    num_heads: number of heads.
    head_dim: width of each head.
    attend: attention of both layers.
  """

  width: int
  num_heads: int
  head_dim: int
  attend: Callable[..., Array] = dot_product_attention

  def setup(self):
    heads = (self.width, self.num_heads, self.head_dim, False, self.attend)
    self.norm_1 = TokenNorm(**self.types)
    self.attn_1 = Attention(*heads, **self.types)
    self.norm_2 = TokenNorm(**self.types)
    self.attn_2 = Attention(*heads, **self.types)
    self.norm_3 = TokenNorm(**self.types)
    self.ff = FeedForward(**self.types)

  def __call__(
    self,
    x: Float[Array, "b f n w"],
    context: Float[Array, "b m e"] | None = None,
  ) -> Float[Array, "b f n w"]:
    """Runs the block on n pixels of the frames of clips.

    Args:
      x: clips.
      context: tokens of each clip, which all its frames see. None means that
        the second attention is a self-attention, too.
    """
    attended = self.attend(*self.before(x), self.num_heads)
    shared = () if context is None else self.attn_2.keys_values(context)
    return self.after(x, attended, *shared)

  def before(self, x: Float[Array, "b f n w"]) -> tuple[Array, Array, Array]:
    """Queries, keys and values of the first attention."""
    y = self.norm_1(x)
    return self.attn_1.to_q(y), *self.attn_1.keys_values(y)

  def after(
    self,
    x: Float[Array, "b f n w"],
    attended: Float[Array, "b f n i"],
    *keys_values: Float[Array, "b m i"],
  ) -> Float[Array, "b f n w"]:
    """The rest of the block, given the heads of the first attention."""
    x = x + self.attn_1.to_out(attended)
    y = self.norm_2(x)
    q = self.attn_2.to_q(y)
    keys_values = keys_values or self.attn_2.keys_values(y)
    x = x + self.attn_2.to_out(self.attend(q, *keys_values, self.num_heads))
    return x + self.ff(self.norm_3(x))
