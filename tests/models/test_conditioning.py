"""What the picture becomes before the U-Net sees it."""

import jax
import numpy as np
import pytest

from i2vgen_jax.models.conditioning import (
  ContentEncoder,
  ImageEmbedsTokens,
  ImageLatentsTokens,
  LocalImageChannels,
)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (9, 13), (88, 160)])
@pytest.mark.parametrize("grid", [8, 4])
def test_pictures_of_any_size_give_equally_many_tokens(size, grid):
  tokens = ImageLatentsTokens(context_dim=12, grid=grid)
  x = np.zeros((2, *size, 4), np.float32)
  y, _ = jax.eval_shape(tokens.init_with_output, jax.random.key(0), x)
  assert y.shape == (2, grid**2, 12)


def test_vector_is_cut_into_tokens(random_params):
  """Token k is the k-th quarter; no picture is a vector of zeros."""
  x = np.stack([np.zeros(6, np.float32), draw(6)])
  tokens = ImageEmbedsTokens(context_dim=3, hidden=5)
  params = random_params(tokens, x)
  y = np.asarray(tokens.apply({"params": params}, x))
  assert y.shape == (2, 4, 3)
  assert (np.abs(y[0]) > 0).all()
  last = params["mlp"]["linear_2"]
  last["bias"][3:6] += 1
  moved = tokens.apply({"params": params}, x) - y
  np.testing.assert_allclose(moved[:, 1], 1, atol=1e-6)
  np.testing.assert_array_equal(moved[:, [0, 2, 3]], 0)


@pytest.fixture(scope="module")
def channels(random_params):
  x = draw(2, 3, 5, 4)
  params = random_params(LocalImageChannels(1.0), x, 3, True)

  def apply(x, num_frames, gain=1.0):
    module = LocalImageChannels(gain)
    return module.apply({"params": params}, x, num_frames, True)

  return x, apply


def test_picture_enters_frame_0_and_a_clock_the_others(channels):
  """Where nothing is mixed over frames, the clock alone tells them apart."""
  x, apply = channels
  y = np.asarray(apply(x, 4))
  assert y.shape == (2, 4, 3, 5, 4)
  assert all(
    np.abs(y[:, i] - y[:, j]).max() > 1e-3 for i, j in ((1, 2), (2, 3))
  )
  # The clock looks the same at every pixel that zero padding does not reach;
  # attention over frames carries the picture there, and nothing else.
  wide = np.broadcast_to(x[:, :1, :1], (2, 9, 9, 4))
  y = np.asarray(apply(wide, 4))
  np.testing.assert_allclose(y[:, :, 3, 3], y[:, :, 5, 5], atol=1e-5)


def test_one_frame_is_the_picture_alone(channels):
  x, apply = channels
  y = np.asarray(apply(x, 1))
  assert y.shape == (2, 1, 3, 5, 4)
  assert np.isfinite(y).all()


def test_gain_scales_the_channels(channels):
  x, apply = channels
  np.testing.assert_allclose(apply(x, 3, 2.0), 2 * apply(x, 3), rtol=1e-6)


def test_content_encoder_gives_details_and_a_vector():
  encoder = ContentEncoder(embed_dim=12)
  x = np.zeros((2, 9, 13, 4), np.float32)
  (details, content), _ = jax.eval_shape(
    encoder.init_with_output, jax.random.key(0), x
  )
  assert details.shape == x.shape
  assert content.shape == (2, 12)
