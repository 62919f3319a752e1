"""Base class and small layers of all networks."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Num

from i2vgen_jax.kernels.blocks import in_kernel, matrix_product, on_blocks
from i2vgen_jax.kernels.group_norm import apply_factors, group_norm_factors
from i2vgen_jax.kernels.platform import for_platform
from i2vgen_jax.remat import layer_result
from i2vgen_jax.types import Array

zeros = nn.initializers.zeros

# Pixels of a picture up to which a CPU always convolves it as a matrix product.
MAX_PATCHED = 16


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

  def part(
    self, layer: Any, name: str | None, *args: Any, **kwargs: Any
  ) -> Any:
    """A submodule of type `layer` with these dtypes."""
    return layer(*args, name=name, **self.types, **kwargs)

  def dense(
    self, features: int, name: str | None = None, **kwargs: Any
  ) -> nn.Dense:
    """A linear layer with these dtypes; named by its attribute in `setup`."""
    return self.part(nn.Dense, name, features, dot_general=product, **kwargs)

  def in_blocks(
    self,
    method: str,
    clips: Sequence[Float[Array, "b f *_ n _"]],
    shared: Sequence[Float[Array, "b *_ c"]] = (),
    mixes_frames: bool = False,
  ) -> Any:
    """The result of a method of this module; see `kernels.blocks.on_blocks`.

    Args:
      method: name of a method that takes all clips and shared arrays.
      clips: arrays of which blocks are taken.
      shared: arrays that are whole in each block.
      mixes_frames: whether the method mixes frames.
    """
    if self.is_initializing():
      return getattr(self, method)(*clips, *shared)
    module = self.clone(parent=None, name=None)

    def cast(x: Array) -> Array:
      return x if self.dtype is None or x.ndim < 2 else x.astype(self.dtype)

    return on_blocks(
      lambda params, *arrays: module.apply(
        {"params": params}, *arrays, method=method
      ),
      jax.tree.map(cast, self.variables["params"]),
      clips,
      shared,
      mixes_frames=mixes_frames,
    )

  def conv(
    self, features: int, name: str, size: int = 3, **kwargs: Any
  ) -> nn.Conv:
    """A size x size convolution with these dtypes; zero-padded to `SAME`."""
    settings = {"conv_general_dilated": convolution, **kwargs}
    return self.part(nn.Conv, name, features, (size, size), **settings)


def product(x: Array, kernel: Array, dims: Any, precision: None) -> Array:
  """The `dot_general` of a dense layer, with the dtype of x.

  Sums are float32. The axes are always the last one of x and the first one of
  the kernel.
  """
  del dims, precision
  return matrix_product(x, kernel).astype(x.dtype)


def convolution(
  x: Float[Array, "n h w c"],
  kernel: Float[Array, "kh kw c d"],
  strides: Sequence[int],
  padding: Any,
  **kwargs: Any,
) -> Float[Array, "n h2 w2 d"]:
  """`lax.conv_general_dilated`, but fast on a CPU at the inner levels.

  There it runs at a fiftieth of the speed of a matrix product for 2x2 pixels
  of 2560 channels, and at half for any picture of which the kernel is larger
  than the input.
  """
  plain = functools.partial(
    lax.conv_general_dilated, window_strides=strides, padding=padding, **kwargs
  )
  few_pixels = x.shape[1] * x.shape[2] <= MAX_PATCHED
  if not few_pixels and kernel.size <= x.size:
    return layer_result(plain(x, kernel))

  def as_product(x: Array, kernel: Array) -> Array:
    size = kernel.shape[:2]
    pads = padding
    if isinstance(padding, str):
      pads = lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    # Without the last rows and columns from which no whole window starts.
    rows, columns = (
      slice(0, n - k + 1, step)
      for n, k, step in zip(x.shape[1:3], size, strides, strict=True)
    )
    patches = [
      x[:, i:, j:][:, rows, columns]
      for i in range(size[0])
      for j in range(size[1])
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])

  return layer_result(for_platform(x, kernel, cpu=as_product, default=plain))


def to_pixels(x: Float[Array, "b f h w c"]) -> Float[Array, "b f n c"]:
  """Joins the rows of each frame."""
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


class GroupNorm(nn.Module):
  """GroupNorm as factors for `apply_factors`, float32.

  Attributes:
    num_groups: number of channel groups, which are contiguous.
    epsilon: 1e-5 in residual blocks, temporal convolutions and before the
      last convolution; 1e-6 at the input of transformers and in the
      autoencoder.
    per_frame: True computes the moments of each frame; False those over all
      frames jointly, as every temporal layer does.
    param_dtype: of the parameters.
  """

  num_groups: int
  epsilon: float
  per_frame: bool
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b f n c"]) -> Float[Array, "b f 2 c"]:
    shape = (x.shape[-1],)
    return group_norm_factors(
      x,
      self.param("scale", nn.initializers.ones, shape, self.param_dtype),
      self.param("bias", zeros, shape, self.param_dtype),
      num_groups=self.num_groups,
      epsilon=self.epsilon,
      per_frame=self.per_frame,
    )


class VideoNorm(Layer):
  """`GroupNorm` of the U-Net; its parameters are under `norm`."""

  num_groups: int
  epsilon: float
  per_frame: bool

  @nn.compact
  def __call__(self, x: Float[Array, "b f n c"]) -> Float[Array, "b f 2 c"]:
    settings = (self.num_groups, self.epsilon, self.per_frame)
    return GroupNorm(*settings, param_dtype=self.param_dtype, name="norm")(x)


def plain_normalise_silu(
  x: Float[Array, "b f n c"], factors: Float[Array, "b f 2 c"]
) -> Float[Array, "b f n c"]:
  """`normalise_silu` without a kernel, for a compiler to fuse."""
  return nn.silu(apply_factors(x, factors)).astype(x.dtype)


def normalise_silu(
  x: Float[Array, "b f n c"], factors: Float[Array, "b f 2 c"]
) -> Float[Array, "b f n c"]:
  """SiLU of the normalised x, with the dtype of x."""
  return on_blocks(
    lambda _, *args: plain_normalise_silu(*args),
    {},
    (x,),
    (factors,),
    mixes_frames=False,
  )


def norm_silu(
  norm: nn.Module, x: Float[Array, "b f h w c"]
) -> Float[Array, "b f h w c"]:
  """SiLU of x after a `GroupNorm` or `VideoNorm`."""
  clips = to_pixels(x)
  return normalise_silu(clips, norm(clips)).reshape(x.shape)


class LayerNorm(nn.LayerNorm):
  """LayerNorm with float32 moments; the output has the dtype of x."""

  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  use_fast_variance: bool = False

  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    return super().__call__(x).astype(x.dtype)


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
  dropout: float = 0.0
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  def normalised(
    self, x: Float[Array, "b f n c"], factors: Float[Array, "b f 2 c"]
  ) -> Float[Array, "b f n d"]:
    """The convolution of `normalise_silu`."""
    return self(normalise_silu(x, factors))

  def dropped(
    self,
    x: Float[Array, "b f n c"],
    kept: Float[Array, "b f n c"],
    factors: Float[Array, "b f 2 c"],
  ) -> Float[Array, "b f n d"]:
    """The same, after dropout: `kept` is 1 for values to keep, or else 0."""
    y = normalise_silu(x, factors)
    return self((y * kept / (1 - self.dropout)).astype(y.dtype))

  @nn.compact
  def __call__(self, x: Float[Array, "b f n c"]) -> Float[Array, "b f n d"]:
    shape = (3, x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
    bias = self.param("bias", zeros, (self.features,), self.param_dtype)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    if in_kernel():
      y = _shifted_products(x, kernel)
    else:
      y = for_platform(
        x, kernel, cpu=_product_of_taps, default=_shifted_products
      )
    return (y + bias).astype(x.dtype)


def _neighbours(
  before: Float[Array, "b f n c"],
  at: Float[Array, "b f n c"],
  after: Float[Array, "b f n c"],
) -> list[Float[Array, "b f n c"]]:
  """For each frame, `before` of the frame before it, `at`, `after` of the next.

  They are zero where there is no such frame.
  """
  edge = jnp.zeros_like(at[:, :1])
  return [
    jnp.concatenate([edge, before[:, :-1]], axis=1),
    at,
    jnp.concatenate([after[:, 1:], edge], axis=1),
  ]


def _shifted_products(
  x: Float[Array, "b f n c"], kernel: Float[Array, "3 c d"]
) -> Float[Array, "b f n d"]:
  """Products with whole frames, which are then shifted.

  Compilers transpose the array for a convolution over this axis.
  """
  before, at, after = (matrix_product(x, kernel[i]) for i in range(3))
  before, at, after = _neighbours(before, at, after)
  return before + at + after


def _product_of_taps(
  x: Float[Array, "b f n c"], kernel: Float[Array, "3 c d"]
) -> Float[Array, "b f n d"]:
  """The same as one product, without copies of parts of the kernel.

  Those take a CPU as long as the products with few pixels.
  """
  taps = jnp.concatenate(_neighbours(x, x, x), axis=-1)
  return matrix_product(taps, kernel.reshape(-1, kernel.shape[-1]))


class FeedForward(Layer):
  """Two linear layers with GEGLU in between: value times GELU(gate)."""

  @nn.compact
  def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    width = x.shape[-1]
    x = self.dense(8 * width, "proj_in")(x)
    value, gate = jnp.split(x, 2, axis=-1)
    # The exact GELU. That of JAX uses erfc, which kernels do not have.
    gate = gate.astype(jnp.float32)
    gelu = gate * 0.5 * (1 + lax.erf(gate * np.float32(0.5**0.5)))
    return self.dense(width, "proj_out")((value * gelu).astype(x.dtype))


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
