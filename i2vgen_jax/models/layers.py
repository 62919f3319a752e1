"""Small layers that flax.linen lacks or whose defaults differ from ours."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Num

from i2vgen_jax.types import Array

zeros = nn.initializers.zeros


class GroupNorm(nn.Module):
  """GroupNorm whose moments are taken in float32.

  Attributes:
    num_groups: channel groups, contiguous blocks.
    epsilon: 1e-5 in residual blocks, temporal convolutions and the head;
      1e-6 at the mouth of transformers.
    per_frame: True takes the moments of every frame by itself; False takes
      them over all frames jointly, as every temporal layer does.
  """

  num_groups: int
  epsilon: float
  per_frame: bool
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    axes = (2, 3, 4) if self.per_frame else (1, 2, 3, 4)
    y = nn.GroupNorm(
      self.num_groups,
      epsilon=self.epsilon,
      dtype=jnp.float32,
      param_dtype=self.param_dtype,
      reduction_axes=axes,
      use_fast_variance=False,
      name="norm",
    )(x)
    return y.astype(self.dtype or x.dtype)


class LayerNorm(nn.Module):
  """LayerNorm in float32 with the epsilon of the references, 1e-5."""

  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    y = nn.LayerNorm(
      epsilon=1e-5,
      dtype=jnp.float32,
      param_dtype=self.param_dtype,
      use_fast_variance=False,
      name="norm",
    )(x)
    return y.astype(self.dtype or x.dtype)


class TemporalConv(nn.Module):
  """Convolution of width 3 over frames, zero-padded, at each pixel alone.

  The kernel is [3, in, out]; torch stores it as [out, in, 3, 1, 1].
  """

  features: int
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w d"]:
    kernel = self.param(
      "kernel",
      self.kernel_init,
      (3, x.shape[-1], self.features),
      self.param_dtype,
    )
    bias = self.param("bias", zeros, (self.features,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    b, f, h, w, c = x.shape
    y = lax.conv_general_dilated(
      x.reshape(b, f, h * w, c),
      kernel[:, None],
      window_strides=(1, 1),
      padding=((1, 1), (0, 0)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(b, f, h, w, self.features) + bias


class FeedForward(nn.Module):
  """Two linear layers with a GEGLU between: value times GELU(gate)."""

  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    width = x.shape[-1]
    dense = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = nn.Dense(8 * width, name="proj_in", **dense)(x)
    value, gate = jnp.split(x, 2, axis=-1)
    x = value * nn.gelu(gate, approximate=False)
    return nn.Dense(width, name="proj_out", **dense)(x)


class EmbeddingMLP(nn.Module):
  """Linear, SiLU, linear: time, FPS and CLIP-vector embeddings."""

  hidden: int
  features: int
  zero_init: bool = False
  dtype: Any = None
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
    dense = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    last = zeros if self.zero_init else nn.initializers.lecun_normal()
    x = nn.silu(nn.Dense(self.hidden, name="linear_1", **dense)(x))
    return nn.Dense(self.features, kernel_init=last, name="linear_2", **dense)(
      x
    )


def sinusoidal_embedding(
  values: Num[Array, "b"], width: int
) -> Float[Array, "b {width}"]:
  """Cosines, then sines, of `values` at `width`/2 falling frequencies.

  Frequencies are 10000^(-i / (width/2)); no half-period shift.
  """
  half = width // 2
  frequencies = np.exp(-np.log(10000.0) * np.arange(half) / half)
  angles = values.astype(jnp.float32)[:, None] * frequencies.astype(np.float32)
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def adaptive_average_pool(
  x: Float[Array, "b h w c"], size: int
) -> Float[Array, "b {size} {size} c"]:
  """Average pooling to size x size; bin i is [floor(i n/s), ceil((i+1) n/s)).

  Bins overlap where the input is not a multiple of `size`, and repeat pixels
  where it is smaller. One matrix for each axis says it exactly.
  """
  rows = _pooling_matrix(x.shape[1], size)
  columns = _pooling_matrix(x.shape[2], size)
  y = jnp.einsum(
    "ph,bhwc,qw->bpqc",
    rows,
    x.astype(jnp.float32),
    columns,
    precision=lax.Precision.HIGHEST,
  )
  return y.astype(x.dtype)


def _pooling_matrix(length: int, size: int) -> np.ndarray:
  matrix = np.zeros((size, length), np.float32)
  for i in range(size):
    start, stop = i * length // size, -(-(i + 1) * length // size)
    matrix[i, start:stop] = 1.0 / (stop - start)
  return matrix
