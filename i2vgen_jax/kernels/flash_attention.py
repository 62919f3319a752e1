"""Attention over long sequences on a TPU, heads first.

Two kernels. That of sampling holds all keys and values of a head in the memory
of a core, takes lengths that no block divides, and lets the matrix unit sum the
weights of the softmax. Under differentiation, JAX's splash attention runs
forward and backward, with sequences padded to whole blocks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
from jaxtyping import Float

from i2vgen_jax.kernels import blocks
from i2vgen_jax.kernels.platform import forward_only
from i2vgen_jax.remat import LAYER
from i2vgen_jax.types import Array

# Most queries in a block, and keys that are computed at a time: the fastest by
# `python -m launch.benchmarks.attention` for v5e, v5p and v6e.
QUERIES = 1408
STEP = 1280
# Keys and values of a head that take more are left to splash attention.
MAX_KEY_BYTES = 2**24
# The same of splash attention, and most keys in a block, at head_dim 64. Fewer
# keys at a time, as some block sizes would need, take up to 40 % longer.
SPLASH_QUERIES = 1408
SPLASH_KEYS = 2816
SPLASH_STEP = 256
# Wider heads need smaller blocks to fit in the memory of a core.
SPLASH_BLOCK_ELEMENTS = SPLASH_KEYS * 64
# Starting a block takes as long as so many more of its rows.
BLOCK_START = 512


def flash_attention(
  q: Float[Array, "b h n dim"],
  k: Float[Array, "b h m dim"],
  v: Float[Array, "b h m dim"],
) -> Float[Array, "b h n dim"]:
  """softmax(q k^T / sqrt(dim)) v, which never writes the scores.

  Flash attention (Dao et al. 2022, arXiv 2205.14135, algorithm 1).
  """
  m, dim = k.shape[2:]
  lanes = pl.cdiv(dim, blocks.LANES) * blocks.LANES
  size = 2 * m * lanes * k.dtype.itemsize
  if size > MAX_KEY_BYTES:
    return splash_attention(q, k, v)
  block_q, step = flash_blocks(q.shape[2])
  kernel = functools.partial(forward, block_q=block_q, step=step)
  return forward_only(kernel, splash_attention)(q, k, v)


# ---- All keys of a head at once ----


def forward(q: Array, k: Array, v: Array, block_q: int, step: int) -> Array:
  """The kernel, of arrays as in `flash_attention`.

  Args:
    q: queries.
    k: keys.
    v: values.
    block_q: queries in a block; those after the last one are not written.
    step: keys that are computed at a time.
  """
  b, heads, n, dim = q.shape

  def queries(rows: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, rows, dim), lambda i, j, block: (i, j, block, 0))

  keys = pl.BlockSpec((1, 1, *k.shape[2:]), lambda i, j, block: (i, j, 0, 0))
  return pl.pallas_call(
    functools.partial(_block_of_queries, step=step),
    grid=(b, heads, pl.cdiv(n, block_q)),
    in_specs=[queries(block_q), keys, keys],
    out_specs=queries(block_q),
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    compiler_params=blocks.compiler_params(*["parallel"] * 3),
    name="flash_attention",
  )(q, k, v)


def _block_of_queries(
  q_ref: Any, k_ref: Any, v_ref: Any, y_ref: Any, *, step: int
) -> None:
  m, dim = k_ref.shape[2:]
  q = q_ref[0, 0] * np.float32(dim**-0.5).astype(q_ref.dtype)
  highest = jnp.full((len(q), 1), -jnp.inf, jnp.float32)
  total = 0.0
  for start in range(0, m, step):
    keys = slice(start, min(start + step, m))
    scores = blocks.contract(q, 1, k_ref[0, 0, keys], 1)
    before = highest
    highest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
    weights = jnp.exp(scores - highest)
    # The matrix unit has columns to spare, in which ones sum the weights.
    values = v_ref[0, 0, keys]
    ones = jnp.ones((len(values), blocks.LANES - dim % blocks.LANES), q.dtype)
    values = jnp.concatenate([values, ones], axis=1)
    part = blocks.contract(weights.astype(q.dtype), 1, values, 0)
    total = total * jnp.exp(before - highest) + part
  y_ref[0, 0] = (total[:, :dim] / total[:, dim : dim + 1]).astype(y_ref.dtype)


def flash_blocks(n: int) -> tuple[int, int]:
  """Queries in a block, and keys that are computed at a time."""
  return block_of(n, QUERIES, blocks.LANES), STEP


# ---- Splash attention ----


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


def splash_attention(q: Array, k: Array, v: Array) -> Array:
  """The same as `flash_attention`."""
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
    residual_checkpoint_name=LAYER,
  )
  return kernel, padded


def splash_blocks(n: int, m: int, dim: int) -> tuple[int, int, int]:
  """Queries, keys, and keys at a time of a block, for heads of `dim`."""
  most = max(blocks.LANES, SPLASH_BLOCK_ELEMENTS // dim)
  step = min(SPLASH_STEP, most, -(-m // blocks.LANES) * blocks.LANES)
  return (
    block_of(n, min(most, SPLASH_QUERIES), blocks.LANES),
    block_of(m, min(most, SPLASH_KEYS), step),
    step,
  )


def block_of(length: int, most: int, unit: int) -> int:
  """The fastest block of up to `most` rows, a multiple of `unit`."""
  sizes = range(unit, most + 1, unit)
  return min(sizes, key=lambda size: -(-length // size) * (size + BLOCK_START))
