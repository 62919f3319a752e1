"""The CLIP towers by themselves: what may depend on what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_testing import count

from i2vgen_jax.errors import InputError
from i2vgen_jax.models.clip import CLIPTextModel, CLIPVisionModel

TEXT = CLIPTextModel(
  vocab_size=32,
  width=16,
  num_layers=3,
  num_heads=4,
  mlp_width=32,
  max_length=9,
)
VISION = CLIPVisionModel(
  width=16,
  num_layers=2,
  num_heads=4,
  mlp_width=32,
  patch_size=4,
  image_size=12,
  projection_dim=8,
)
END = 31
IDS = jnp.array(
  [[30, 4, 7, 7, END, 0, 0, 0, 0], [30, 2, END, 0, 0, 0, 0, 0, 0]]
)


@pytest.fixture(scope="module")
def text_params(random_params):
  return random_params(TEXT, IDS)


@pytest.fixture(scope="module")
def vision_params(random_params):
  return random_params(VISION, jnp.zeros((1, 12, 12, 3)))


@functools.partial(jax.jit, static_argnames="dtype")
def text(params, ids, dtype=jnp.float32):
  return TEXT.clone(dtype=dtype).apply({"params": params}, ids)


def test_parameter_counts_at_full_size():
  ids = jnp.zeros((1, 77), jnp.int32)
  shapes = jax.eval_shape(CLIPTextModel().init, jax.random.key(0), ids)
  assert count(shapes) == 352_984_064
  images = jnp.zeros((1, 224, 224, 3))
  shapes = jax.eval_shape(CLIPVisionModel().init, jax.random.key(0), images)
  assert count(shapes) == 632_076_800


@pytest.mark.parametrize("place", [1, 3, 8])
def test_text_attention_is_causal(text_params, place):
  before = text(text_params, IDS).context
  after = text(text_params, IDS.at[:, place].set(11)).context
  moved = np.abs(after - before).max(axis=(0, 2)) > 1e-4
  np.testing.assert_array_equal(moved, np.arange(9) >= place)


def test_padding_id_changes_the_context_but_not_the_pooled_text(text_params):
  padded = jnp.where(IDS == 0, END, IDS)
  zero, end = text(text_params, IDS), text(text_params, padded)
  np.testing.assert_allclose(zero.pooled, end.pooled, atol=1e-6)
  assert np.abs(zero.context - end.context).max() > 1e-2


def test_context_does_not_use_the_last_layer(text_params):
  def reach(member):
    def total(params):
      # Squares, since the mean of a normalised token is constant.
      return jnp.sum(getattr(text(params, IDS), member)[..., 0] ** 2)

    grads = jax.jit(jax.grad(total))(text_params)
    return [
      float(jnp.abs(grads[f"layer_{i}"]["mlp_out"]["kernel"]).max()) > 0
      for i in range(3)
    ]

  assert reach("context") == [True, True, False]
  assert reach("pooled") == [True, True, True]


def test_short_texts_use_the_first_positions(text_params):
  short = text(text_params, IDS[:, :5]).context
  np.testing.assert_allclose(
    short, text(text_params, IDS).context[:, :5], atol=1e-5
  )


def test_embedding_depends_on_patch_positions(vision_params):
  image = jax.random.normal(jax.random.key(1), (1, 12, 12, 3))
  swapped = jnp.concatenate([image[:, 4:8], image[:, :4], image[:, 8:]], axis=1)
  both = jnp.concatenate([image, swapped])
  one, other = jax.jit(VISION.apply)({"params": vision_params}, both)
  assert one.shape == (8,)
  assert np.abs(one - other).max() > 1e-3


def test_bfloat16_gives_float32_near_the_exact_result(text_params):
  rough = text(text_params, IDS, dtype=jnp.bfloat16)
  exact = text(text_params, IDS)
  for a, b in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
    assert a.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(b).max()


def test_too_many_tokens_are_refused(text_params):
  with pytest.raises(InputError, match="cut the text to 9"):
    text(text_params, jnp.zeros((1, 10), jnp.int32))


@pytest.mark.parametrize("size", [(8, 8), (16, 16)])
def test_pictures_of_another_size_are_refused(vision_params, size):
  with pytest.raises(InputError, match="12x12"):
    VISION.apply({"params": vision_params}, jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize(
  ("model", "x"),
  [(TEXT, IDS), (VISION, jnp.zeros((1, 12, 12, 3)))],
)
def test_widths_that_heads_do_not_divide_are_refused(model, x):
  with pytest.raises(InputError, match="5 heads"):
    model.clone(num_heads=5).init(jax.random.key(0), x)
