"""Attention over the frames of a clip, at each pixel separately.

There are as many short sequences as pixels. In a kernel, the frames of some
pixels are joined to one sequence of about 128 tokens as they lie in memory, and
the scores between different pixels are masked.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from i2vgen_jax.kernels import blocks
from i2vgen_jax.types import Array

# Tokens of a joined sequence: the width of a matrix unit.
TOKENS = 128


def frame_attention(
  q: Float[Array, "b f n c"],
  k: Float[Array, "b f n c"],
  v: Float[Array, "b f n c"],
  num_heads: int,
) -> Float[Array, "b f n c"]:
  """softmax(q k^T / sqrt(d)) v over f, for each n and head.

  Channels split as (head, d), head outermost. Scores and softmax are float32,
  whatever the dtype of the inputs.
  """
  return blocks.on_blocks(
    lambda _, *args: _attend(*args, num_heads), {}, (q, k, v), mixes_frames=True
  )


def _attend(q: Array, k: Array, v: Array, num_heads: int) -> Array:
  attend = _joined if blocks.in_kernel() else _plain
  return attend(q, k, v, num_heads)


def _plain(q: Array, k: Array, v: Array, num_heads: int) -> Array:
  b, f, n, c = q.shape
  shape = (b * n, f, num_heads, c // num_heads)
  flat = [x.swapaxes(1, 2).reshape(shape) for x in (q, k, v)]
  y = jax.nn.dot_product_attention(*flat, implementation="xla")
  return y.reshape(b, n, f, c).swapaxes(1, 2)


def _joined(q: Array, k: Array, v: Array, num_heads: int) -> Array:
  """Attention of a block, some of its pixels at a time."""
  _, f, n, c = q.shape
  few, _ = blocks.split(n, TOKENS // f)
  shape = (f * few, f * few)
  pixel = [jax.lax.broadcasted_iota(jnp.int32, shape, i) % few for i in (0, 1)]
  same = pixel[0] == pixel[1]
  results = []
  for start in range(0, n, few):
    part = slice(start, start + few)
    rows = [x[0, :, part].reshape(f * few, c) for x in (q, k, v)]
    y = attend_rows(*rows, num_heads, same)
    results.append(y.reshape(1, f, few, c))
  return jnp.concatenate(results, axis=2)


def attend_rows(
  q: Float[Array, "n c"],
  k: Float[Array, "m c"],
  v: Float[Array, "m c"],
  num_heads: int,
  mask: Array | None = None,
) -> Float[Array, "n c"]:
  """Attention of one sequence, one head after another."""
  dim = q.shape[-1] // num_heads
  results = []
  for head in range(num_heads):
    part = slice(head * dim, (head + 1) * dim)
    scores = blocks.contract(q[:, part], 1, k[:, part], 1) * dim**-0.5
    if mask is not None:
      scores = jnp.where(mask, scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    y = blocks.contract(weights.astype(v.dtype), 1, v[:, part], 0)
    results.append(y / weights.sum(axis=1, keepdims=True))
  return jnp.concatenate(results, axis=1).astype(q.dtype)
