"""What the picture becomes before the U-Net sees it."""

import jax
import numpy as np
import pytest
from model_testing import draw

from i2vgen_jax.models.conditioning import (
  ContentEncoder,
  ImageEmbedsTokens,
  ImageLatentsTokens,
)


@pytest.mark.parametrize("size", [(1, 1), (9, 13), (88, 160)])
@pytest.mark.parametrize("grid", [8, 4])
def test_number_of_tokens_is_independent_of_the_picture_size(size, grid):
  tokens = ImageLatentsTokens(context_dim=12, grid=grid)
  x = np.zeros((2, *size, 4), np.float32)
  y, _ = jax.eval_shape(tokens.init_with_output, jax.random.key(0), x)
  assert y.shape == (2, grid**2, 12)


def test_embedding_vector_is_split_into_tokens(random_params):
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


def test_content_encoder_returns_details_and_a_vector():
  encoder = ContentEncoder(embed_dim=12)
  x = np.zeros((2, 9, 13, 4), np.float32)
  (details, content), _ = jax.eval_shape(
    encoder.init_with_output, jax.random.key(0), x
  )
  assert details.shape == x.shape
  assert content.shape == (2, 12)
