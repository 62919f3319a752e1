"""LoRA as trees: which kernels it changes, and by how much."""

import jax
import numpy as np
import pytest
from cascade_standin import get_config, random_params
from flax.traverse_util import flatten_dict

from i2vgen_jax import lora
from i2vgen_jax.models import build
from i2vgen_jax.models.unet import I2VGenUNet

UNET = I2VGenUNet(
  block_channels=(8, 16),
  layers_per_block=1,
  head_dim=8,
  input_heads=1,
  context_dim=8,
  norm_groups=4,
  image_grid=2,
)
RNG = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
  return random_params(UNET, 0)


def flat(tree):
  return flatten_dict(jax.device_get(tree), sep="/")


def test_all_attention_of_space_text_and_time_is_changed(params):
  changed = {
    path.rpartition("/lora_")[0] for path in flat(lora.init(RNG, params, 2))
  }
  blocks = ("down_0_0", "mid_0", "up_0_0", "up_0_1")
  places = [f"{b}/{over}" for b in blocks for over in ("spatial", "temporal")]
  assert changed == {
    f"{place}/block/{layer}/to_{x}"
    for place in (*places, "temporal_in")
    for layer in ("attn_1", "attn_2")
    for x in ("q", "k", "v", "out")
  }


def test_a_new_lora_changes_nothing(params):
  merged = lora.merge(params, lora.init(RNG, params, 2), 8.0)
  for path, array in flat(merged).items():
    np.testing.assert_array_equal(array, flat(params)[path])


def test_the_product_is_added_to_its_kernel(params):
  tree = lora.init(RNG, params, 2)
  tree = jax.tree.map(lambda x: x + 1.0, tree)
  merged, before, pairs = map(
    flat, (lora.merge(params, tree, 0.5), params, tree)
  )
  changed = [
    path for path in before if not np.all(merged[path] == before[path])
  ]
  assert len(changed) == len(pairs) / 2
  for path in changed:
    layer = path.removesuffix("/kernel")
    a, b = (pairs[f"{layer}/lora_{x}/kernel"] for x in "AB")
    np.testing.assert_allclose(
      merged[path], before[path] + 0.5 * (a @ b), rtol=1e-5, atol=1e-6
    )


def test_small_changes_of_half_precision_weights_are_kept(params):
  half = jax.tree.map(lambda x: x.astype("bfloat16"), params)
  tree = jax.tree.map(lambda x: x + 1e-3, lora.init(RNG, params, 2))
  (path, *_) = (p for p in flat(half) if lora.ATTENTION.search(p))
  merged, before = flat(lora.merge(half, tree, 1e-3))[path], flat(half)[path]
  assert merged.dtype == np.float32
  assert np.any(merged != before.astype(np.float32))


@pytest.mark.parametrize("name", ["released_lora", "tiny_lora"])
def test_it_has_less_than_five_percent_of_the_parameters(name):
  config = get_config(name)
  unet = build.make_module("base", config.unet.to_dict(), name)
  whole = build.abstract_params(unet)
  rank = config.lora.rank
  part = jax.eval_shape(lambda: lora.init(RNG, whole, rank))
  sizes = [sum(x.size for x in jax.tree.leaves(t)) for t in (part, whole)]
  assert 0.001 < sizes[0] / sizes[1] < 0.05
