"""A LoRA of ours in diffusers' U-Net: the same change of the output."""

import jax
import numpy as np
import torch
from safetensors.torch import load_file
from test_unet import (
  TOLERANCE,
  TWO_LEVELS,
  abstract,
  draw_inputs,
  reference,
  table,
  their_output,
)
from weight_helpers import load, tensors_of

from i2vgen_jax import lora
from i2vgen_jax.interop import lora_files
from i2vgen_jax.models.unet import I2VGenUNet


def test_forward(randomised, state_arrays, relative_error, tmp_path):
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
