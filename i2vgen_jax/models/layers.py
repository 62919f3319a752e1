"""Base class and small layers of all networks."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Num

from i2vgen_jax.types import Array

zeros = nn.initializers.zeros


class Layer(nn.Module, kw_only=True):
  """Base of all our modules.

  Attributes:
    dtype: of the computation; None promotes the inputs and parameters. Norm
      moments, attention scores and softmax are float32 in any case.
    param_dtype: of the parameters.
  """

  dtype: Any = None
  param_dtype: Any = jnp.float32

  @property
  def types(self) -> dict[str, Any]:
    """Both dtypes as keyword arguments for a submodule."""
    return {"dtype": self.dtype, "param_dtype": self.param_dtype}

  def part(self, layer: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """A submodule of type `layer` with these dtypes."""
    return layer(*args, name=name, **self.types, **kwargs)

  def dense(self, features: int, name: str, **kwargs: Any) -> nn.Dense:
    """A linear layer with these dtypes."""
    return self.part(nn.Dense, name, features, **kwargs)

  def conv(
    self, features: int, name: str, size: int = 3, **kwargs: Any
  ) -> nn.Conv:
    """A size x size convolution with these dtypes; zero-padded to `SAME`."""
    return self.part(nn.Conv, name, features, (size, size), **kwargs)


class GroupNorm(nn.GroupNorm):
  """GroupNorm with float32 moments; the output has the dtype of x."""

  dtype: Any = jnp.float32
  use_fast_variance: bool = False

  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    return super().__call__(x).astype(x.dtype)


class LayerNorm(nn.LayerNorm):
  """LayerNorm with float32 moments; the output has the dtype of x."""

  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  use_fast_variance: bool = False

  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    return super().__call__(x).astype(x.dtype)


class VideoNorm(Layer):
  """`GroupNorm` of clips.

  Attributes:
    num_groups: number of channel groups, which are contiguous.
    epsilon: 1e-5 in residual blocks, temporal convolutions and before the
      last convolution; 1e-6 at the input of transformers.
    per_frame: True computes the moments of each frame; False those over all
      frames jointly, as every temporal layer does.
  """

  num_groups: int
  epsilon: float
  per_frame: bool

  @nn.compact
  def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    return GroupNorm(
      self.num_groups,
      epsilon=self.epsilon,
      reduction_axes=(2, 3, 4) if self.per_frame else (1, 2, 3, 4),
      param_dtype=self.param_dtype,
      name="norm",
    )(x)


class TokenNorm(Layer):
  """`LayerNorm` of the U-Net's tokens; its parameters are under `norm`."""

  @nn.compact
  def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    return LayerNorm(param_dtype=self.param_dtype, name="norm")(x)


class TemporalConv(Layer):
  """Convolution of width 3 over frames, zero-padded, at each pixel separately.

  The kernel is [3, in, out]; torch stores it as [out, in, 3, 1, 1].
  """

  features: int
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

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


class FeedForward(Layer):
  """Two linear layers with GEGLU in between: value times GELU(gate)."""

  @nn.compact
  def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    width = x.shape[-1]
    x = self.dense(8 * width, "proj_in")(x)
    value, gate = jnp.split(x, 2, axis=-1)
    x = value * nn.gelu(gate, approximate=False)
    return self.dense(width, "proj_out")(x)


class EmbeddingMLP(Layer):
  """Linear, SiLU, linear: embeddings of time, fps and CLIP vectors."""

  hidden: int
  features: int
  zero_init: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
    last = zeros if self.zero_init else nn.initializers.lecun_normal()
    x = nn.silu(self.dense(self.hidden, "linear_1")(x))
    return self.dense(self.features, "linear_2", kernel_init=last)(x)


def sinusoidal_embedding(
  values: Num[Array, "b"], width: int
) -> Float[Array, "b {width}"]:
  """Cosines, then sines, of `values` at `width`/2 decreasing frequencies.

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

  Bins overlap if the input is not a multiple of `size`, and repeat pixels if it
  is smaller. Each axis is pooled by one matrix.
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
