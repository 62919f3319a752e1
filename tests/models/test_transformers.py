"""Along what the transformers attend, and what a fresh one does."""

import jax
import numpy as np
from model_testing import draw

from i2vgen_jax.models.attention import Attention, TransformerBlock
from i2vgen_jax.models.transformers import (
  SpatialTransformer,
  TemporalTransformer,
)

TEMPORAL = TemporalTransformer(8, num_heads=3, head_dim=4, norm_groups=4)
SPATIAL = SpatialTransformer(8, head_dim=4, norm_groups=4)


def jitted(module, params):
  return jax.jit(lambda *args: module.apply({"params": params}, *args))


def test_attention_of_one_key_returns_its_value(random_params):
  x, context = draw(2, 5, 8), draw(2, 1, 6, seed=1)
  attention = Attention(8, num_heads=2, head_dim=4)
  params = random_params(attention, x, context)
  y = jitted(attention, params)(x, context)
  out = params["to_out"]
  value = context @ params["to_v"]["kernel"] @ out["kernel"] + out["bias"]
  np.testing.assert_allclose(y, np.repeat(value, 5, 1), atol=1e-5)


def test_frames_of_a_sample_share_its_context(random_params):
  """As if every frame were a sample that brings the context along."""
  x, context = draw(2, 3, 5, 8), draw(2, 3, 7, seed=1)
  block = TransformerBlock(8, num_heads=2, head_dim=4)
  apply = jitted(block, random_params(block, x, context))
  alone = apply(x.reshape(6, 1, 5, 8), np.repeat(context, 3, axis=0))
  alone = alone.reshape(x.shape)
  np.testing.assert_allclose(apply(x, context), alone, atol=1e-5)
  swapped = apply(x, context[::-1])
  assert np.abs(swapped - alone).max(axis=(2, 3)).min() > 1e-2


def test_spatial_transformer_frames_are_independent(random_params):
  x, context = draw(1, 4, 3, 5, 8), draw(1, 3, 6, seed=1)
  apply = jitted(SPATIAL, random_params(SPATIAL, x, context))
  other = x.copy()
  other[:, 2, 0, 0] += 1
  difference = np.abs(apply(other, context) - apply(x, context))
  assert (difference[:, 2].min(axis=-1) > 0).any()
  assert (difference[:, 2].max(axis=-1) > 0).all()
  np.testing.assert_array_equal(difference[:, [0, 1, 3]], 0)


def test_temporal_transformer_is_permutation_equivariant(random_params):
  x = draw(2, 5, 3, 4, 8)
  apply = jitted(TEMPORAL, random_params(TEMPORAL, x))
  order = [3, 0, 4, 1, 2]
  np.testing.assert_allclose(apply(x[:, order]), apply(x)[:, order], atol=1e-5)


def test_temporal_transformer_mixes_frames(random_params):
  x = draw(1, 5, 3, 4, 8)
  apply = jitted(TEMPORAL, random_params(TEMPORAL, x))
  other = x.copy()
  other[:, 0] = draw(1, 3, 4, 8, seed=1)
  assert np.abs(apply(other) - apply(x)).max((0, 2, 3, 4)).min() > 1e-3


def test_transformers_are_the_identity_at_initialisation():
  x, context = draw(2, 3, 3, 4, 8), draw(2, 3, 6, seed=1)

  @jax.jit
  def fresh():
    key = jax.random.key(0)
    return (
      TEMPORAL.init_with_output(key, x)[0],
      SPATIAL.init_with_output(key, x, context)[0],
    )

  for y in fresh():
    np.testing.assert_array_equal(y, x)
