"""A whole cascade folder of random weights, small enough for tests."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np

from i2vgen_jax import tokenizer
from i2vgen_jax.interop.formats import native
from i2vgen_jax.models import build

CONFIGS = Path(__file__).parents[1] / "configs" / "i2vgen_xl.py"
# Makes `i2vgen train` of `tiny` small: every process compiles it.
SMALL_TRAINING = (
  "--config.data.size=(32, 32)",
  "--config.unet.block_channels=(8,)",
  "--config.unet.head_dim=8",
  "--config.unet.input_heads=1",
  "--config.unet.context_dim=16",
  "--config.unet.use_text=False",
  "--config.unet.local_image=none",
  "--config.train.optimizer=adamw",
  "--config.train.warmup_steps=0",
  "--config.train.log_every=1",
  "--config.train.sample_every=0",
  "--config.sampling.size=(32, 32)",
)
BASE_SIZE, REFINED_SIZE = (32, 32), (64, 64)
NUM_FRAMES = 2
# Byte symbols, inside and at the end of a word, and the two marks.
_BARE_VOCABULARY = 514
_WIDTH = 16


def get_config(arg):
  """A config of this repository, loaded by path as a launcher does."""
  spec = importlib.util.spec_from_file_location("i2vgen_xl", CONFIGS)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def write_cascade(folder, seed=0):
  """Writes the bundled cascade's structure at the smallest widths."""
  tokenizer.build_vocabulary([], folder / "tokenizer")
  vae, clip = get_config("tiny_vae"), get_config("tiny_clip")
  fields = {
    "vae": vae.vae.to_dict() | {"block_channels": [8]},
    "text_encoder": clip.text_encoder.to_dict()
    | {"vocab_size": _BARE_VOCABULARY, "width": _WIDTH, "mlp_width": 16}
    | {"max_length": 32},
    "image_encoder": clip.image_encoder.to_dict()
    | {"width": _WIDTH, "mlp_width": 16, "projection_dim": _WIDTH}
    | {"num_layers": 1, "image_size": 32},
  }
  notes = {"vae": {"scaling_factor": 1.0}}
  for name, size in (("base", BASE_SIZE), ("refine", REFINED_SIZE)):
    config = get_config("tiny" if name == "base" else "tiny_refine")
    fields[name] = config.unet.to_dict() | {
      "block_channels": [8],
      "head_dim": 8,
      "context_dim": _WIDTH,
      "input_heads": 1,
    }
    sampling = config.sampling.to_dict()
    sampling |= {"size": size, "num_frames": NUM_FRAMES, "num_steps": 2}
    if name == "refine":
      sampling |= {"start_timestep": 300, "guidance_scale": 1.0}
    notes[name] = {
      "diffusion": config.diffusion.to_dict(),
      "sampling": sampling,
    }
  for number, (name, values) in enumerate(fields.items()):
    module = build.make_module(name, values, folder)
    native.save(
      folder / name,
      {"module": values} | notes.get(name, {}),
      random_params(module, 10 * seed + number),
    )
  return folder


def random_params(module, seed):
  """Noise everywhere: a fresh U-Net answers zero, and compiles for minutes."""
  shapes = jax.eval_shape(lambda: build.init_params(module, jax.random.key(0)))
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    scale = path[-1].key == "scale"  # of a norm
    values = scale + 0.1 * rng.standard_normal(leaf.shape)
    return values.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def rewrite_config(folder, change):
  """Lets `change` edit the config of one network on disk."""
  path = folder / "config.json"
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))
