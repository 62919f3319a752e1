"""Our U-Net against diffusers' on random weights: public variant (c)."""

import functools
import re

import diffusers
import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from unet_reference import draw_inputs, their_output
from weight_helpers import arrays_of, leaves_of, load, tensors_of

from i2vgen_jax import lora
from i2vgen_jax.interop import lora_files, mapping
from i2vgen_jax.interop.keys import unet
from i2vgen_jax.interop.mapping import to_torch
from i2vgen_jax.models import build
from i2vgen_jax.models.unet import I2VGenUNet

TOLERANCE = 1e-4
# All four levels; unequal widths put skip convolutions in some blocks only,
# and 8 heads of 4 differ from the width at the mouth.
SMALL = {
  "block_channels": (16, 24, 32, 32),
  "layers_per_block": 1,
  "norm_groups": 4,
  "context_dim": 20,
  "head_dim": 4,
}
# Where the number of levels does not matter.
TWO_LEVELS = {**SMALL, "block_channels": (16, 24)}
FULL = {
  "block_channels": (320, 640, 1280, 1280),
  "layers_per_block": 2,
  "norm_groups": 32,
  "context_dim": 1024,
  "head_dim": 64,
}
# Layers whose output is normalised next, straight or by way of a sum.
BEFORE_NORMS = re.compile(
  r"conv_in$|(resnets|temp_convs).*(conv|proj)|proj_(in|out)$|to_out\.0$"
  r"|ff\.net\.2$|image_latents_proj_in\.4$"
)


def reference(
  block_channels, layers_per_block, norm_groups, context_dim, head_dim
):
  others = len(block_channels) - 1
  return diffusers.I2VGenXLUNet(
    down_block_types=("CrossAttnDownBlock3D",) * others + ("DownBlock3D",),
    up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * others,
    block_out_channels=block_channels,
    layers_per_block=layers_per_block,
    norm_num_groups=norm_groups,
    cross_attention_dim=context_dim,
    # Theirs is the width of a head, whatever the name of the other one says.
    attention_head_dim=head_dim,
  )


def abstract(sizes):
  return jax.eval_shape(
    lambda: build.init_params(I2VGenUNet(**sizes), jax.random.key(0))
  )


def table(sizes):
  return unet.table(
    "diffusers", sizes["block_channels"], sizes["layers_per_block"]
  )


@pytest.fixture(scope="module")
def compare(state_arrays, relative_error):
  """The relative error between a module of theirs and its copy of ours."""

  # LLVM's later passes take most of the time and change nothing here.
  @functools.partial(
    jax.jit,
    static_argnums=0,
    compiler_options={
      "xla_backend_optimization_level": 0,
      "xla_llvm_disable_expensive_passes": True,
    },
  )
  def run(module, params, inputs):
    return module.apply({"params": params}, **inputs)

  def error(theirs, inputs, sizes=SMALL):
    arrays = tensors_of(state_arrays(theirs))
    params = load(arrays, table(sizes), abstract(sizes))
    ours = run(I2VGenUNet(**sizes), params, inputs)
    return relative_error(ours, their_output(theirs, **inputs))

  return error


# Halves that are odd; sides below and above the 32 of the pool, whose bins
# repeat pixels and overlap.
@pytest.mark.parametrize(
  ("sizes", "batch", "frames", "height", "width"),
  [
    (SMALL, 2, 1, 11, 20),
    (SMALL, 2, 2, 9, 13),
    (TWO_LEVELS, 1, 5, 22, 40),
    (TWO_LEVELS, 1, 16, 16, 12),
  ],
)
def test_forward(randomised, compare, sizes, batch, frames, height, width):
  theirs = randomised(reference(**sizes))
  inputs = draw_inputs(batch, frames, height, width)
  assert compare(theirs, inputs, sizes) <= TOLERANCE


def test_forward_of_faint_features(randomised, compare):
  """Small variances show which epsilon every norm adds."""
  module = randomised(reference(**SMALL))
  for name, layer in module.named_modules():
    norm = isinstance(layer, torch.nn.GroupNorm | torch.nn.LayerNorm)
    if BEFORE_NORMS.search(name) and not norm:
      for p in layer.parameters(recurse=False):
        p.data *= 3e-3
  assert compare(module, draw_inputs(2, 2, 9, 13)) <= TOLERANCE


def test_weights_go_back_unchanged(randomised, state_arrays):
  sizes = {**SMALL, "layers_per_block": 2}
  expected = state_arrays(randomised(reference(**sizes)))
  params = load(expected, table(sizes), abstract(sizes))
  returned = arrays_of(to_torch(leaves_of(params), table(sizes)))
  assert returned.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(returned[key], value)


def test_full_size_has_the_same_tensors(meta_arrays):
  tensors = meta_arrays(lambda: reference(**FULL))
  assert len(tensors) == len(table(FULL).rows) == 1511
  assert sum(x.size for x in tensors.values()) == 1_420_469_224
  mapping.compare(tensors_of(tensors), table(FULL), abstract(FULL)).check()


def test_a_lora_changes_the_output_as_in_diffusers(
  randomised, state_arrays, relative_error, tmp_path
):
  theirs, inputs = randomised(reference(**TWO_LEVELS)), draw_inputs(1, 3, 8, 8)
  shapes = abstract(TWO_LEVELS)
  params = load(tensors_of(state_arrays(theirs)), table(TWO_LEVELS), shapes)
  rng = np.random.default_rng(0)
  tree = jax.tree.map(
    lambda x: (0.4 * rng.normal(size=x.shape)).astype("f"),
    jax.eval_shape(lambda: lora.init(jax.random.key(0), shapes, 4)),
  )
  scale = 1.5
  lora_files.save(tmp_path / "lora", tree, scale, table(TWO_LEVELS), {})
  before = their_output(theirs, **inputs)

  tensors = load_file(tmp_path / "lora" / lora_files.FILE)
  for key, b in tensors.items():
    if ".lora_B." in key:
      layer = key.removeprefix("unet.").removesuffix(".lora_B.weight")
      a = tensors[key.replace("lora_B", "lora_A")]
      theirs.get_submodule(layer).weight.data += b @ a
  after = their_output(theirs, **inputs)

  unet = I2VGenUNet(**TWO_LEVELS)
  merged = lora.merge(params, tree, scale)
  ours = jax.jit(
    unet.apply, compiler_options={"xla_backend_optimization_level": 0}
  )({"params": merged}, **inputs)
  assert relative_error(ours, after) <= TOLERANCE
  assert torch.abs(after - before).max() > 0.05 * torch.abs(before).max()
