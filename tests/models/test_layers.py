"""Small layers against torch's, and against what defines them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from model_testing import draw
from torch.nn import functional

from i2vgen_jax.kernels.group_norm import apply_factors
from i2vgen_jax.models.layers import (
  EmbeddingMLP,
  FeedForward,
  TemporalConv,
  TokenNorm,
  VideoNorm,
  adaptive_average_pool,
  convolution,
  normalise_silu,
  sinusoidal_embedding,
  to_pixels,
)


def torch_group_norm(x, groups, epsilon, per_frame):
  """Float64, on [b f h w c]; the scale is 1 and the bias 0."""
  first = torch.from_numpy(x).double().permute(0, 4, 1, 2, 3)
  if per_frame:
    frames = [
      functional.group_norm(frame, groups, eps=epsilon)
      for frame in first.unbind(2)
    ]
    first = torch.stack(frames, 2)
  else:
    first = functional.group_norm(first, groups, eps=epsilon)
  return first.permute(0, 2, 3, 4, 1).numpy()


def normalised(norm, x):
  """x after a fresh `VideoNorm`."""
  clips = to_pixels(x)
  factors, _ = norm.init_with_output(jax.random.key(0), clips)
  return apply_factors(clips, factors).reshape(x.shape)


@pytest.mark.parametrize("per_frame", [True, False])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_group_norm(per_frame, epsilon):
  # Faint, so that epsilon counts, and every frame and channel at a level of
  # its own, so that it shows over what the moments are taken.
  x = 3e-3 * (draw(2, 3, 4, 5, 12) + draw(2, 3, 1, 1, 12, seed=1))
  y = normalised(VideoNorm(3, epsilon, per_frame), x)
  expected = torch_group_norm(x, 3, epsilon, per_frame)
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_group_norm_far_from_zero():
  x = 3000 + draw(1, 2, 8, 8, 8)
  y = normalised(VideoNorm(2, 1e-5, False), x)
  expected = torch_group_norm(x, 2, 1e-5, False)
  np.testing.assert_allclose(y, expected, atol=1e-2)


def test_layer_norm():
  x = 3e-3 * (draw(2, 7, 12) + draw(2, 7, 1, seed=1))
  y, _ = TokenNorm().init_with_output(jax.random.key(0), x)
  expected = functional.layer_norm(torch.from_numpy(x).double(), (12,))
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_layer_norm_of_bfloat16_has_float32_moments():
  x = jnp.asarray(30 + draw(1, 2, 8, 8, 8), jnp.bfloat16)
  norm = TokenNorm()
  params = norm.init(jax.random.key(0), x)
  rough, exact = norm.apply(params, x), norm.apply(params, x.astype(np.float32))
  assert rough.dtype == jnp.bfloat16
  np.testing.assert_allclose(rough.astype(np.float32), exact, rtol=2**-8)


def test_factors_of_bfloat16_are_those_of_its_values():
  x = jnp.asarray(30 + draw(1, 2, 8, 8, 8), jnp.bfloat16)
  norm = VideoNorm(2, 1e-5, True)
  np.testing.assert_allclose(
    normalised(norm, x), normalised(norm, x.astype(np.float32)), atol=1e-5
  )
  clips = to_pixels(x)
  factors, _ = norm.init_with_output(jax.random.key(0), clips)
  assert normalise_silu(clips, factors).dtype == jnp.bfloat16


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_temporal_conv(random_params, frames):
  x = draw(2, frames, 12, 6)
  conv = TemporalConv(5)
  params = random_params(conv, x)
  kernel = params["kernel"].transpose(2, 1, 0)[..., None].copy()
  expected = functional.conv2d(
    torch.from_numpy(x).permute(0, 3, 1, 2),
    torch.from_numpy(kernel),
    torch.from_numpy(params["bias"]),
    padding=(1, 0),
  )
  np.testing.assert_allclose(
    conv.apply({"params": params}, x),
    expected.permute(0, 2, 3, 1),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ("size", "strides", "padding", "window"),
  [
    ((2, 2), (1, 1), "SAME", 3),
    ((1, 1), (1, 1), "SAME", 3),
    ((3, 5), (1, 1), "SAME", 2),
    ((3, 3), (2, 2), ((2, 2), (1, 1)), 3),
    ((4, 4), (2, 2), ((0, 1), (0, 1)), 3),
    ((4, 4), (4, 4), "VALID", 4),
    ((3, 5), (2, 2), "VALID", 2),
    # More than 16 pixels, but fewer values than the kernel has.
    ((8, 6), (1, 1), "SAME", 3),
    ((7, 9), (2, 2), ((1, 1), (1, 1)), 3),
  ],
)
def test_convolution_with_few_values_is_a_product(
  size, strides, padding, window
):
  x, kernel = draw(2, *size, 5), draw(window, window, 5, 16, seed=1)
  args = (x, kernel, strides, padding)
  settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
  jaxpr = jax.make_jaxpr(lambda: convolution(*args, **settings))()
  assert "dot_general" in str(jaxpr)
  np.testing.assert_allclose(
    convolution(*args, **settings),
    jax.lax.conv_general_dilated(*args, **settings),
    atol=1e-5,
  )


def test_convolution_with_many_values_is_not_a_product():
  settings = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
  args = (draw(2, 8, 6, 5), draw(3, 3, 5, 4), (1, 1), "SAME")
  jaxpr = jax.make_jaxpr(lambda: convolution(*args, **settings))()
  assert "dot_general" not in str(jaxpr)


def test_feed_forward_is_geglu():
  """Values of 1 leave the gate, which must be the exact GELU."""
  x = np.linspace(-4, 4, 99, dtype=np.float32)[:, None]
  values, gates = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
  params = {
    "proj_in": {
      "kernel": np.concatenate([values, gates], 1),
      "bias": np.repeat(np.float32([1, 0]), 4),
    },
    "proj_out": {
      "kernel": np.full((4, 1), 0.25, np.float32),
      "bias": np.zeros(1, np.float32),
    },
  }
  y = FeedForward().apply({"params": params}, x)
  np.testing.assert_allclose(y, functional.gelu(torch.tensor(x)), atol=1e-6)


def test_embedding_that_starts_at_zero():
  x = draw(3, 6)
  key = jax.random.key(0)
  y, _ = EmbeddingMLP(8, 5, zero_init=True).init_with_output(key, x)
  np.testing.assert_array_equal(y, np.zeros((3, 5)))
  y, _ = EmbeddingMLP(8, 5).init_with_output(key, x)
  assert (np.abs(y) > 0).all()


def test_sinusoids_are_rotations_at_decreasing_rates():
  """As complex numbers they turn sums into products; one period is one."""
  width, half = 20, 10

  def rotation(*values):
    y = np.asarray(sinusoidal_embedding(np.float32(values), width))
    np.testing.assert_allclose(
      y[:, :half] ** 2 + y[:, half:] ** 2, 1, atol=1e-6
    )
    return y[:, :half] + 1j * y[:, half:]

  a, b, both = rotation(3, 4.25, 7.25)
  np.testing.assert_allclose(a * b, both, atol=1e-6)
  one = rotation(1)[0]
  np.testing.assert_allclose(np.angle(one[0]), 1, atol=1e-6)
  # Ten rates from 1 down, ten steps short of 1/10000.
  ratio = np.angle(one[1:]) / np.angle(one[:-1])
  np.testing.assert_allclose(ratio**half, 1e-4, rtol=1e-4)


def test_integer_and_float_timesteps_have_equal_embeddings():
  np.testing.assert_array_equal(
    sinusoidal_embedding(np.array([0, 981]), 8),
    sinusoidal_embedding(np.float32([0, 981]), 8),
  )


@pytest.mark.parametrize(
  "size", [(88, 160), (32, 56), (11, 20), (9, 13), (33, 47), (32, 64), (1, 3)]
)
def test_adaptive_pool(size):
  x = draw(2, *size, 3)
  expected = functional.adaptive_avg_pool2d(
    torch.from_numpy(x).permute(0, 3, 1, 2), 32
  )
  y = adaptive_average_pool(x, 32)
  np.testing.assert_allclose(y, expected.permute(0, 2, 3, 1), atol=1e-6)
