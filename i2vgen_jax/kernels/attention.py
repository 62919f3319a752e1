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
# by `python -m launch.benchmarks.splash` for v5e, v5p, v6e and v7x. Fewer keys
# at a time, as some block sizes would need, take up to 40 % longer.
SPLASH_QUERIES = 1536
SPLASH_KEYS = 2048
SPLASH_STEP = 256
# Starting a block takes as long as so many more of its rows.
SPLASH_START = 512
# Wider heads need smaller blocks to fit in the memory of a core.
SPLASH_BLOCK_ELEMENTS = 2**17


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
  shape, pairs = q.shape, q.shape[-2] * k.shape[-2]
  q, k, v = (x.reshape(*x.shape[:-1], num_heads, -1) for x in (q, k, v))
  if causal:
    return _plain(q, k, v, is_causal=True).reshape(shape)
  kernels = {"tpu": _splash} if pairs >= MIN_SPLASH_PAIRS else {}
  if _fits_cudnn(q):
    kernels["cuda"] = functools.partial(_plain, implementation="cudnn")
  y = for_platform(q, k, v, **kernels, default=_in_blocks)
  return y.reshape(shape)


# ---- CPU and GPU ----


def _plain(q: Array, k: Array, v: Array, **kwargs: Any) -> Array:
  """All scores at once, unless the implementation does otherwise."""
  flat = [x.reshape(-1, *x.shape[-3:]) for x in (_fold(q, k), k, v)]
  return jax.nn.dot_product_attention(*flat, **kwargs).reshape(q.shape)


def _fold(q: Array, k: Array) -> Array:
  """Joins the queries that share their keys: [*d n' h dim]."""
  return q.reshape(*k.shape[:-3], -1, *q.shape[-2:])


def _fits_cudnn(q: Array) -> bool:
  head_dim = q.shape[-1]
  return q.dtype.itemsize == 2 and head_dim <= 128 and head_dim % 8 == 0


def _in_blocks(q: Array, k: Array, v: Array) -> Array:
  """Plain attention of one sequence and of few queries at a time.

  The backward pass computes the scores of each block again.
  """
  shape, q = q.shape, _fold(q, k)
  n, heads, m = q.shape[-3], q.shape[-2], k.shape[-3]
  if math.prod(q.shape[:-1]) * m <= MAX_SCORES:
    return _plain(q, k, v).reshape(shape)
  count = -(-n * heads * m // MAX_SCORES)
  size = -(-n // count)

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

  flat = tuple(x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
  return jax.lax.map(sequence, flat).reshape(shape)


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
  return on_each_device(_splash_on_device, (q, k, v), axes)


def _splash_on_device(q: Array, k: Array, v: Array) -> Array:
  """The kernel on [h n d], with n and m padded to whole blocks."""
  shape, dim = q.shape, q.shape[-1]
  q = _fold(q, k)
  n, m, heads = q.shape[-3], k.shape[-3], q.shape[-2]
  kernel, padded = splash_kernel(n, m, heads, *splash_blocks(n, m, dim))

  def heads_first(x: Array, length: int) -> Array:
    x = x.reshape(-1, *x.shape[-3:])
    x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
    return x.swapaxes(1, 2)

  q = heads_first(q * np.float32(dim**-0.5).astype(q.dtype), padded[0])
  k, v = heads_first(k, padded[1]), heads_first(v, padded[1])
  y = jax.vmap(kernel)(q, k, v).swapaxes(1, 2)[:, :n]
  return y.reshape(shape)


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
  # The tokens of keys and values along the lanes, of which 64 channels would
  # use half: the transposes before the kernel are faster.
  tokens_last = splash.QKVLayout.SEQ_MINOR
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
      k_layout=tokens_last,
      v_layout=tokens_last,
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
