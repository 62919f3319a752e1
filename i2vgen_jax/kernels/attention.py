"""Attention over the tokens of a picture or a text, of any length.

Plain attention writes a score for each pair of tokens: 120 GB at the first
level of the released U-Net at 1280x704. Where that is too much, or slow, this
module uses

- on a TPU, a flash attention kernel, on each device's part of the arrays;
- on a GPU, cuDNN's fused kernel, in half precision;
- elsewhere, blocks of queries, one after another.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.kernels import blocks
from i2vgen_jax.kernels.flash_attention import flash_attention
from i2vgen_jax.kernels.frame_attention import attend_rows
from i2vgen_jax.kernels.platform import for_platform
from i2vgen_jax.remat import layer_result
from i2vgen_jax.sharding import ROWS, on_each_device
from i2vgen_jax.types import Array

# Plain attention holds at most so many scores: 512 MB in float32.
MAX_SCORES = 2**27
# Queries x keys of a head from which on the flash kernel is used.
MIN_FLASH_PAIRS = 2**17


def dot_product_attention(
  q: Float[Array, "*b n c"],
  k: Float[Array, "*d m c"],
  v: Float[Array, "*d m c"],
  num_heads: int,
  causal: bool = False,
) -> Float[Array, "*b n c"]:
  """softmax(q k^T / sqrt(dim)) v for each head.

  Scores and softmax are float32, whatever the dtype of the inputs.

  Args:
    q: queries, for example [b f n c] for the frames of clips. Channels split as
      (head, dim), head outermost.
    k: keys. The axes `d` are the first axes of `b`; sequences of queries along
      the other axes of `b` share their keys and values.
    v: values.
    num_heads: number of heads.
    causal: whether a token attends only to itself and earlier ones; for short
      texts, as all scores are computed.
  """
  if blocks.in_kernel():
    # The keys of one clip, shared by all its pixels.
    rows = [x.reshape(-1, x.shape[-1]) for x in (q, k, v)]
    return attend_rows(*rows, num_heads).reshape(q.shape)
  heads = [split_heads(x, num_heads) for x in (q, k, v)]
  return join_heads(attend_heads(*heads, causal))


def split_heads(
  x: Float[Array, "*b n c"], num_heads: int
) -> Float[Array, "*b h n dim"]:
  """The channels of each head, the heads first."""
  if blocks.in_kernel():
    return jnp.stack(jnp.split(x, num_heads, axis=-1), axis=-3)
  return x.reshape(*x.shape[:-1], num_heads, -1).swapaxes(-3, -2)


def join_heads(x: Float[Array, "*b h n dim"]) -> Float[Array, "*b n c"]:
  """The inverse of `split_heads`."""
  if blocks.in_kernel():
    heads = [x[..., head, :, :] for head in range(x.shape[-3])]
    return jnp.concatenate(heads, axis=-1)
  x = x.swapaxes(-3, -2)
  return x.reshape(*x.shape[:-2], -1)


def attend_heads(
  q: Float[Array, "*b h n dim"],
  k: Float[Array, "*d h m dim"],
  v: Float[Array, "*d h m dim"],
  causal: bool = False,
) -> Float[Array, "*b h n dim"]:
  """`dot_product_attention` of heads, as the kernel of a TPU takes them."""
  if causal:
    return _of_sequences(functools.partial(_plain, is_causal=True), q, k, v)
  kernels = {}
  if q.shape[-2] * k.shape[-2] >= MIN_FLASH_PAIRS:
    kernels["tpu"] = functools.partial(_on_devices, flash_attention)
  if _fits_cudnn(q):
    kernels["cuda"] = functools.partial(_on_devices, _of_even_lengths)
  plain = functools.partial(_on_devices, _in_blocks)
  return layer_result(for_platform(q, k, v, **kernels, default=plain))


def _on_devices(
  attend: Callable[..., Array], q: Array, k: Array, v: Array
) -> Array:
  """`attend` on each device's part of the sequences.

  The compiler cannot split a kernel, and blocks of all sequences one after
  another would be gathered on all devices.
  """
  axes = [(ROWS, "frames")[: x.ndim - 3] for x in (q, k, v)]
  of_part = functools.partial(_of_sequences, attend)
  return on_each_device(of_part, (q, k, v), axes)


def _of_sequences(
  attend: Callable[..., Array], q: Array, k: Array, v: Array
) -> Array:
  """attend of arrays [d h n dim] and [d h m dim].

  Queries that share their keys are joined to one sequence.
  """
  place = k.ndim - 3
  joined = jnp.moveaxis(q, -3, place)
  heads, dim = k.shape[-3], k.shape[-1]
  flat = [x.reshape(-1, *x.shape[-3:]) for x in (k, v)]
  y = attend(joined.reshape(len(flat[0]), heads, -1, dim), *flat)
  return jnp.moveaxis(y.reshape(joined.shape), place, -3)


# ---- CPU and GPU ----


def _plain(q: Array, k: Array, v: Array, **kwargs: Any) -> Array:
  """All scores at once, unless the implementation does otherwise.

  The compiler removes the transposes, which undo those of `split_heads`.
  """
  tokens_first = [x.swapaxes(1, 2) for x in (q, k, v)]
  return jax.nn.dot_product_attention(*tokens_first, **kwargs).swapaxes(1, 2)


def _of_even_lengths(
  q: Array, k: Array, v: Array, implementation: str = "cudnn"
) -> Array:
  """`_plain`, with a token that is not seen where a length is odd.

  JAX refuses gradients of cuDNN's attention for odd lengths.
  """
  (rows, *_, n, _), m = q.shape, k.shape[-2]
  q, k, v = (
    jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[-2] % 2), (0, 0)))
    for x in (q, k, v)
  )
  seen = {}
  if m % 2:
    seen["key_value_seq_lengths"] = jnp.full(rows, m, jnp.int32)
  y = _plain(q, k, v, implementation=implementation, **seen)
  return y[..., :n, :]


def _fits_cudnn(q: Array) -> bool:
  head_dim = q.shape[-1]
  return q.dtype.itemsize == 2 and head_dim <= 128 and head_dim % 8 == 0


def _in_blocks(q: Array, k: Array, v: Array) -> Array:
  """Plain attention of one sequence and of few queries at a time.

  The backward pass computes the scores of each block again.
  """
  (_, heads, n, _), m = q.shape, k.shape[2]
  if math.prod(q.shape[:-1]) * m <= MAX_SCORES:
    return _plain(q, k, v)
  count = -(-n * heads * m // MAX_SCORES)
  size = -(-n // count)
  # Tokens first, as the projections before and after have them.
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))

  @jax.checkpoint
  def block(queries: Array, keys: Array, values: Array) -> Array:
    args = (queries[None], keys[None], values[None])
    return jax.nn.dot_product_attention(*args)[0]

  def sequence(args: tuple[Array, Array, Array]) -> Array:
    queries, keys, values = args
    queries = jnp.pad(queries, ((0, count * size - n), (0, 0), (0, 0)))
    queries = queries.reshape(count, size, *queries.shape[1:])
    y = jax.lax.map(lambda part: block(part, keys, values), queries)
    return y.reshape(-1, *y.shape[2:])[:n]

  return jax.lax.map(sequence, (q, k, v)).swapaxes(1, 2)
