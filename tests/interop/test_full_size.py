"""Time and memory of using weights of variant (c) at their real size.

    pytest -m slow -s tests/interop/test_full_size.py

needs 15 GB of disk and memory, and some minutes.
"""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from flax import traverse_util

from i2vgen_jax.interop import mapping
from i2vgen_jax.interop.formats import safetensors_files
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.interop.keys import unet
from i2vgen_jax.models import build
from i2vgen_jax.models.unet import I2VGenUNet

pytestmark = pytest.mark.slow

BYTES = 4 * 1_420_469_224

CONVERT = """
import resource, sys
from launch import convert
convert.main([sys.argv[1], sys.argv[2], "--to=orbax"])
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("peak", peak, file=sys.stderr)
"""

FORWARD = """
import resource, sys, time
import jax, jax.numpy as jnp, numpy as np
from i2vgen_jax import interop

start = time.time()
module, params = interop.load_unet(sys.argv[1], dtype="bfloat16")
assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
print("load", time.time() - start)
draw = lambda *shape: jax.random.normal(jax.random.key(0), shape)
conditions = {
  "fps": jnp.array([16.0]),
  "image_latents": draw(1, 32, 32, 4),
  "image_embeds": draw(1, 1024),
  "text_context": draw(1, 77, 1024),
}
forward = jax.jit(
  lambda params, x: module.apply(
    {"params": params}, x, jnp.array([500]), **conditions
  )
)
latents = draw(1, 16, 32, 32, 4)
start = time.time()
compiled = forward.lower(params, latents).compile()
print("compile", time.time() - start)
start = time.time()
out = np.asarray(compiled(params, latents), np.float32)
print("forward", time.time() - start)
assert out.shape == latents.shape and np.isfinite(out).all()
print("spread", out.std())
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("peak", peak)
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A random diffusers file of 5.68 GB; its scale preserves signals."""
  module, rng = I2VGenUNet(), np.random.default_rng(0)
  abstract = build.abstract_params(module)
  leaves = traverse_util.flatten_dict(abstract, sep="/")

  def read(path):
    shape = leaves[path].shape
    array = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
      return (array / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
    return 1 + 0.1 * array if path.endswith("scale") else 0.05 * array

  tensors = Tensors(
    "random",
    {path: leaf.shape for path, leaf in leaves.items()},
    dict.fromkeys(leaves, np.dtype(np.float32)),
    read,
  )
  table = unet.table(
    "diffusers", module.block_channels, module.layers_per_block
  )
  folder = tmp_path_factory.mktemp("full")
  path = folder / "unet" / "diffusion_pytorch_model.safetensors"
  path.parent.mkdir()
  safetensors_files.write(path, mapping.to_torch(tensors, table))
  assert BYTES < path.stat().st_size < BYTES + 2**20
  yield path
  shutil.rmtree(folder)


def figures(program, *args):
  """The lines `name number` that a program prints, run in its own process."""
  done = subprocess.run(
    [sys.executable, "-c", program, *map(str, args)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = re.findall(r"^(\w+) ([\d.]+)$", done.stdout + done.stderr, re.M)
  return {name: float(number) for name, number in found}


def test_convert_then_one_forward(weights, capsys):
  ours = weights.parent.parent / "ours"
  converted = figures(CONVERT, weights, ours)
  weights.unlink()
  used = figures(FORWARD, ours / "base")
  with capsys.disabled():
    print(f"\nconvert: peak {converted['peak'] / BYTES:.2f} copies")
    for name in ("load", "compile", "forward"):
      print(f"{name}: {used[name]:.0f} s")
    print(f"load and forward: peak {used['peak'] / 1e9:.1f} GB")
  assert converted["peak"] < 1.3 * BYTES
  assert 0.01 < used["spread"] < 100
