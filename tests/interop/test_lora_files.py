"""A LoRA in the layout of diffusers: written, read, merged and refused."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from public_standin import unet
from safetensors.numpy import load_file, save_file
from weight_helpers import arrays_of, assert_refused

from i2vgen_jax import lora, trees
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.interop import lora_files, open_weights
from i2vgen_jax.interop.lora_files import open_lora
from i2vgen_jax.interop.stored import table_of
from i2vgen_jax.models import build

UNET = unet()
TABLE = table_of(UNET, "diffusers")
SHAPES = trees.shapes_of(build.abstract_params(UNET))
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KERNEL = "mid_0/spatial/block/attn_1/to_q/kernel"


@pytest.fixture(scope="module")
def tree():
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    lambda: lora.init(jax.random.key(0), build.abstract_params(UNET), 3)
  )
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes)


@pytest.fixture(scope="module")
def folder(tree, tmp_path_factory):
  folder = tmp_path_factory.mktemp("lora") / "lora"
  lora_files.save(folder, tree, 2.0, TABLE, {"stage": "base", "rank": 3})
  return folder


@pytest.fixture
def rewritten(folder, tmp_path):
  """Another file with the tensors after a change."""

  def rewrite(change, metadata=None):
    tensors = load_file(folder / lora_files.FILE)
    tensors = change(tensors) or tensors
    save_file(tensors, tmp_path / "changed.safetensors", metadata)
    return tmp_path / "changed.safetensors"

  return rewrite


def load(path):
  return open_lora(path).load(TABLE, SHAPES)


def test_what_is_written_is_read_again(tree, folder):
  flat, pairs = flatten_dict(tree, sep="/"), load(folder)
  assert len(pairs) == len(flat) / 2
  for kernel, (a, b) in pairs.items():
    paths = lora.paths(kernel)
    np.testing.assert_array_equal(a, flat[paths[0]])
    np.testing.assert_array_equal(b, 2 * flat[paths[1]])


def test_the_keys_name_linear_layers_of_diffusers(folder):
  others = len(UNET.block_channels) - 1
  with torch.device("meta"):
    theirs = diffusers.I2VGenXLUNet(
      down_block_types=("CrossAttnDownBlock3D",) * others + ("DownBlock3D",),
      up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * others,
      block_out_channels=UNET.block_channels,
      layers_per_block=UNET.layers_per_block,
      cross_attention_dim=UNET.context_dim,
      attention_head_dim=UNET.head_dim,
    )
  modules = dict(theirs.named_modules())
  for key, array in load_file(folder / lora_files.FILE).items():
    layer, matrix, _ = key.rsplit(".", 2)
    module = modules[layer.removeprefix("unet.")]
    assert isinstance(module, torch.nn.Linear)
    size = module.in_features if matrix == "lora_A" else module.out_features
    assert array.shape == ((3, size) if matrix == "lora_A" else (size, 3))


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_other_prefixes_are_read(folder, rewritten, prefix):
  def change(tensors):
    return {prefix + k.removeprefix("unet."): x for k, x in tensors.items()}

  expected, pairs = load(folder), load(rewritten(change))
  for kernel, pair in expected.items():
    jax.tree.map(np.testing.assert_array_equal, pairs[kernel], pair)


def test_a_file_may_have_some_layers_and_ranks_of_their_own(rewritten):
  def change(tensors):
    return {
      f"unet.{LAYER}.lora_A.weight": np.ones((2, 32), "f"),
      f"unet.{LAYER}.lora_B.weight": np.ones((32, 2), "f"),
    }

  pairs = load(rewritten(change))
  assert [*pairs] == [KERNEL]
  assert pairs[KERNEL][0].shape == (32, 2)


def test_alpha_in_a_tensor_scales_its_layer(folder, rewritten):
  def change(tensors):
    tensors[f"unet.{LAYER}.alpha"] = np.asarray(1.5, "f")

  expected, pairs = load(folder), load(rewritten(change))
  np.testing.assert_allclose(pairs[KERNEL][1], 0.5 * expected[KERNEL][1])
  other = KERNEL.replace("to_q", "to_k")
  np.testing.assert_array_equal(pairs[other][1], expected[other][1])


def test_alpha_in_the_settings_of_peft_scales_all(folder, rewritten):
  settings = json.dumps({"unet.r": 3, "unet.lora_alpha": 6})
  file = rewritten(lambda _: None, {"lora_adapter_metadata": settings})
  expected, pairs = load(folder), load(file)
  for kernel, (_, b) in pairs.items():
    np.testing.assert_allclose(b, 2 * expected[kernel][1])


def test_weights_are_read_with_it(repository, folder):
  weights = open_weights(repository)
  changed = weights.with_lora(folder, 0.5).one("unet").leaves()
  before, pairs = arrays_of(weights.one("unet").leaves()), load(folder)
  for path, array in arrays_of(changed).items():
    expected = before[path]
    if path in pairs:
      a, b = pairs[path]
      expected = expected + 0.5 * (a @ b)
    np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
    assert array.dtype == before[path].dtype


def test_a_cascade_is_loaded_with_it(repository, folder):
  cascade = Cascade.load(repository, lora=folder, lora_scale=-1)
  expected = open_weights(repository).with_lora(folder, -1).one("unet").load()
  jax.tree.map(
    np.testing.assert_array_equal,
    cascade.networks["base"].params,
    expected.params,
  )


class TestRefused:
  def test_of_a_wider_unet(self, folder):
    other = unet(block_channels=(64, 64))
    shapes = trees.shapes_of(build.abstract_params(other))
    line = assert_refused(
      lambda: open_lora(folder).load(table_of(other, "diffusers"), shapes),
      "no LoRA of this U-Net",
    )
    assert "wrong shapes" in line

  def test_of_a_layer_that_is_not_linear(self, rewritten):
    def change(tensors):
      tensors["unet.conv_in.lora_A.weight"] = np.ones((3, 4, 3, 3), "f")

    file = rewritten(change)
    assert_refused(lambda: load(file), r"unexpected.*conv_in\.lora_A")

  def test_half_of_a_pair(self, rewritten):
    def change(tensors):
      del tensors[f"unet.{LAYER}.lora_B.weight"]

    file = rewritten(change)
    assert_refused(lambda: load(file), r"missing.*lora_B")

  def test_weights_of_a_network(self, repository):
    file = repository / "unet" / "diffusion_pytorch_model.safetensors"
    assert_refused(lambda: load(file), "no LoRA of this U-Net.*unexpected")

  @pytest.mark.parametrize("name", ["use_rslora", "use_dora"])
  def test_of_another_kind(self, rewritten, name):
    settings = json.dumps({"unet.r": 3, f"unet.{name}": True})
    file = rewritten(lambda _: None, {"lora_adapter_metadata": settings})
    assert_refused(lambda: open_lora(file), f"LoRA with {name}")

  def test_a_missing_file(self, tmp_path):
    assert_refused(lambda: open_lora(tmp_path), "pytorch_lora_weights")

  def test_of_a_stage_that_is_not_used(self, weights, folder):
    assert_refused(
      lambda: Cascade.load(weights, stages=["refine"], lora=folder),
      "LoRA of a base stage, and none is used",
    )
