"""Our CLIP towers against transformers' on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from weight_helpers import arrays_of, leaves_of, load, tensors_of

from i2vgen_jax.interop.keys.clip import text_table, vision_table
from i2vgen_jax.interop.mapping import compare, to_torch
from i2vgen_jax.models.clip import CLIPTextModel, CLIPVisionModel

TOLERANCE = 1e-4
LAYERS = 4
BEGIN, END = 97, 98


def text_reference(
  vocab_size=49408, width=1024, layers=24, heads=16, mlp=4096, end=49407
):
  config = transformers.CLIPTextConfig(
    vocab_size=vocab_size,
    hidden_size=width,
    intermediate_size=mlp,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    max_position_embeddings=77,
    hidden_act="gelu",
    eos_token_id=end,
  )
  return transformers.CLIPTextModel(config)


def vision_reference(
  width=1280,
  layers=32,
  heads=16,
  mlp=5120,
  patch=14,
  image=224,
  projection=1024,
):
  config = transformers.CLIPVisionConfig(
    hidden_size=width,
    intermediate_size=mlp,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    patch_size=patch,
    image_size=image,
    projection_dim=projection,
    hidden_act="gelu",
  )
  return transformers.CLIPVisionModelWithProjection(config)


def abstract(model, x):
  return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


def captions(batch, length):
  """Random tokens between BEGIN and END, then padding of 0."""
  rng = np.random.default_rng(length)
  ids = rng.integers(1, BEGIN, (batch, length))
  ids[:, 0] = BEGIN
  for row, end in zip(ids, rng.integers(2, length, batch), strict=True):
    row[end] = END
    row[end + 1 :] = 0
  return ids.astype(np.int32)


@pytest.fixture(scope="module")
def text(randomised, state_arrays):
  sizes = {"vocab_size": 99, "width": 48}
  theirs = randomised(
    text_reference(**sizes, layers=LAYERS, heads=6, mlp=80, end=END)
  )
  ours = CLIPTextModel(**sizes, num_layers=LAYERS, num_heads=6, mlp_width=80)
  params = load(
    tensors_of(state_arrays(theirs)),
    text_table("transformers", LAYERS),
    abstract(ours, captions(1, 77)),
  )
  return (
    theirs,
    jax.jit(lambda ids: ours.apply({"params": params}, ids)),
    params,
  )


@pytest.mark.parametrize(("batch", "length"), [(1, 77), (3, 77), (2, 13)])
def test_text(text, relative_error, batch, length):
  theirs, ours, _ = text
  ids = captions(batch, length)
  out = theirs(torch.from_numpy(ids).long(), output_hidden_states=True)
  norm = theirs.get_submodule(
    next(n for n, _ in theirs.named_modules() if n.endswith("final_layer_norm"))
  )
  result = ours(ids)
  context = norm(out.hidden_states[-2])
  assert relative_error(result.context, context) <= TOLERANCE
  assert relative_error(result.pooled, out.pooler_output) <= TOLERANCE
  # The layer left out does make a difference.
  assert relative_error(result.context, out.last_hidden_state) > 0.05


@pytest.mark.parametrize(("patch", "image"), [(14, 42), (7, 35), (4, 64)])
@pytest.mark.parametrize("batch", [1, 3])
def test_vision(randomised, state_arrays, relative_error, patch, image, batch):
  theirs = randomised(
    vision_reference(
      width=60,
      layers=3,
      heads=6,
      mlp=100,
      patch=patch,
      image=image,
      projection=20,
    )
  )
  ours = CLIPVisionModel(
    width=60,
    num_layers=3,
    num_heads=6,
    mlp_width=100,
    patch_size=patch,
    image_size=image,
    projection_dim=20,
  )
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, image, image, 3)).astype(np.float32)
  params = load(
    tensors_of(state_arrays(theirs)),
    vision_table("transformers", 3),
    abstract(ours, x),
  )
  expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
  result = jax.jit(ours.apply)({"params": params}, x)
  assert relative_error(result, expected.image_embeds) <= TOLERANCE


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_text_keys_with_and_without_prefix(text, state_arrays, prefix):
  theirs, _, params = text
  bare = {
    key.removeprefix("text_model."): value
    for key, value in state_arrays(theirs).items()
  }
  tensors = {prefix + key: value for key, value in bare.items()}
  again = load(tensors_of(tensors), text_table("transformers", LAYERS), params)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  returned = arrays_of(
    to_torch(leaves_of(params), text_table("transformers", LAYERS))
  )
  assert returned.keys() == {"text_model." + key for key in bare}
  for key, value in bare.items():
    np.testing.assert_array_equal(returned["text_model." + key], value)


def test_full_size_text_has_the_same_tensors(meta_arrays):
  tensors = meta_arrays(text_reference)
  ids = jnp.zeros((1, 77), jnp.int32)
  compare(
    tensors_of(tensors),
    text_table("transformers", 24),
    abstract(CLIPTextModel(), ids),
  ).check()


def test_full_size_vision_has_the_same_tensors(meta_arrays):
  tensors = meta_arrays(vision_reference)
  x = jnp.zeros((1, 224, 224, 3))
  compare(
    tensors_of(tensors),
    vision_table("transformers", 32),
    abstract(CLIPVisionModel(), x),
  ).check()
