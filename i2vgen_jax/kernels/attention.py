"""Attention over the tokens of a picture or a text, of any length.

Plain attention writes a score for each pair of tokens: 120 GB at the first
level of the released U-Net at 1280x704. Where that is too much, or slow, this
module uses

- on a TPU, JAX's splash attention kernel, on each device's part of the arrays;
- on a GPU, cuDNN's fused kernel, in half precision;
- elsewhere, blocks of queries, one after another.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
from jaxtyping import Float

from i2vgen_jax.kernels import blocks
from i2vgen_jax.kernels.frame_attention import attend_rows
from i2vgen_jax.kernels.platform import for_platform
from i2vgen_jax.sharding import ROWS, on_each_device
from i2vgen_jax.types import Array

# Plain attention holds at most so many scores: 512 MB in float32.
MAX_SCORES = 2**27
# Queries x keys of a head from which on the splash kernel is used.
MIN_SPLASH_PAIRS = 2**17
# Most queries and most keys in a block of the splash kernel at head_dim 64, and
# keys that it computes at a time: the fastest that fit in the memory of a core,
# by `python -m launch.benchmarks.splash` for v5e, v5p and v6e. Fewer keys at a
# time, as some block sizes would need, take up to 40 % longer.
SPLASH_QUERIES = 1408
SPLASH_KEYS = 2816
SPLASH_STEP = 256
# Starting a block takes as long as so many more of its rows.
SPLASH_START = 512
# Wider heads need smaller blocks to fit in the memory of a core.
SPLASH_BLOCK_ELEMENTS = SPLASH_KEYS * 64


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
  if q.shape[-2] * k.shape[-2] >= MIN_SPLASH_PAIRS:
    kernels["tpu"] = _splash
  if _fits_cudnn(q):
    cudnn = functools.partial(_plain, implementation="cudnn")
    kernels["cuda"] = functools.partial(_of_sequences, cudnn)
  plain = functools.partial(_of_sequences, _in_blocks)
  return for_platform(q, k, v, **kernels, default=plain)


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


# ---- TPU ----


class _ValidKeys(masks._ComputableMask):
  """Masks the keys that pad a sequence to whole blocks.

  The kernel computes it in the last block of keys only. The public masks have
  no such form: a stored one takes n x m bytes, and segment ids are compared in
  every block.
  """

  def __init__(self, shape: tuple[int, int], length: int):
    self.length = length
    super().__init__(shape, lambda _, key: key < length)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _ValidKeys) and (self.shape, self.length) == (
      other.shape,
      other.length,
    )

  def __hash__(self) -> int:
    return hash((self.shape, self.length))


def _splash(q: Array, k: Array, v: Array) -> Array:
  axes = [(ROWS, "frames")[: x.ndim - 3] for x in (q, k, v)]
  on_device = functools.partial(_of_sequences, _splash_sequences)
  return on_each_device(on_device, (q, k, v), axes)


def _splash_sequences(q: Array, k: Array, v: Array) -> Array:
  """The kernel, with n and m padded to whole blocks."""
  (_, heads, n, dim), m = q.shape, k.shape[2]
  kernel, padded = splash_kernel(n, m, heads, *splash_blocks(n, m, dim))
  pad = blocks.pad_pixels
  q = pad(q * np.float32(dim**-0.5).astype(q.dtype), padded[0])
  return jax.vmap(kernel)(q, pad(k, padded[1]), pad(v, padded[1]))[:, :, :n]


def splash_kernel(
  n: int, m: int, heads: int, block_q: int, block_kv: int, step: int
) -> tuple[Callable[..., Array], tuple[int, int]]:
  """Splash attention of n queries and m keys, and both in whole blocks.

  Args:
    n: number of queries.
    m: number of keys.
    heads: number of heads.
    block_q: queries in a block.
    block_kv: keys in a block.
    step: keys that are computed at a time.
  """
  padded = -(-n // block_q) * block_q, -(-m // block_kv) * block_kv
  kernel = splash.make_splash_mha_single_device(
    mask=masks.MultiHeadMask([_ValidKeys(padded, m)] * heads),
    block_sizes=splash.BlockSizes(
      block_q=block_q,
      block_kv=block_kv,
      block_kv_compute=step,
      block_q_dkv=block_q,
      block_kv_dkv=block_kv,
      block_kv_dkv_compute=step,
      use_fused_bwd_kernel=True,
    ),
  )
  return kernel, padded


def splash_blocks(n: int, m: int, dim: int) -> tuple[int, int, int]:
  """Queries, keys, and keys at a time of a block, for heads of `dim`."""
  most = max(blocks.LANES, SPLASH_BLOCK_ELEMENTS // dim)
  step = min(SPLASH_STEP, most, -(-m // blocks.LANES) * blocks.LANES)
  return (
    _block(n, min(most, SPLASH_QUERIES), blocks.LANES),
    _block(m, min(most, SPLASH_KEYS), step),
    step,
  )


def _block(length: int, most: int, unit: int) -> int:
  """The fastest block of up to `most` rows, a multiple of `unit`."""
  sizes = range(unit, most + 1, unit)
  return min(sizes, key=lambda size: -(-length // size) * (size + SPLASH_START))
