"""Public weights in every form, random and small enough for tests."""

import functools
import json

import numpy as np
from flax import traverse_util
from weight_helpers import tensors_of, unreadable

from i2vgen_jax import tokenizer
from i2vgen_jax.interop import mapping, stored
from i2vgen_jax.interop.formats import diffusers_folder
from i2vgen_jax.models import build
from i2vgen_jax.models.clip import CLIPTextModel, CLIPVisionModel
from i2vgen_jax.models.vae import AutoencoderKL
from i2vgen_jax.variants import VARIANTS

WIDTH = 64
# 514 symbols and marks, and what the words below add.
VOCABULARY = 519
TEXT = CLIPTextModel(
  vocab_size=VOCABULARY,
  width=WIDTH,
  num_layers=2,
  num_heads=1,
  mlp_width=40,
  max_length=77,
)
VISION = CLIPVisionModel(
  width=80,
  num_layers=2,
  num_heads=1,
  mlp_width=40,
  patch_size=4,
  image_size=12,
  projection_dim=WIDTH,
)
VAE = AutoencoderKL(block_channels=(32, 32), layers_per_block=1)
# The smallest that VGen allows.
SMALL_UNET = {
  "block_channels": (32, 32),
  "layers_per_block": 1,
  "head_dim": 4,
  "context_dim": WIDTH,
}
TOWERS = {"vae": VAE, "text_encoder": TEXT, "image_encoder": VISION}


def unet(variant="released", **fields):
  """A U-Net of a public variant; by default a small one."""
  return VARIANTS[variant].unet.clone(**SMALL_UNET | fields)


@functools.cache
def file_shapes(module, form):
  """Shapes of the tensors of a file with this network."""
  leaves = traverse_util.flatten_dict(build.abstract_params(module), sep="/")
  leaves = unreadable({path: leaf.shape for path, leaf in leaves.items()})
  return mapping.to_torch(leaves, stored.table_of(module, form)).shapes


def draw(module, form, seed=0):
  """The file of a network, with random values."""
  rng = np.random.default_rng(seed)
  return {
    key: 0.1 * rng.standard_normal(shape, "f")
    for key, shape in sorted(file_shapes(module, form).items())
  }


def write_repository(folder, base=None, dtype=np.float32):
  """A whole diffusers folder as on the Hub, except for the sizes."""
  base = base or unet()
  tokenizer.build_vocabulary(["kite", "dog"], folder / "words")
  forms = {"base": "diffusers", "vae": "diffusers"}
  parts = TOWERS | {"base": base}
  for seed, (name, module) in enumerate(parts.items()):
    form = forms.get(name, "transformers")
    arrays = {k: x.astype(dtype) for k, x in draw(module, form, seed).items()}
    config = {
      "module": {f: getattr(module, f) for f in type(module).__annotations__},
      "scaling_factor": 0.18125,
    }
    part = "unet" if name == "base" else name
    diffusers_folder.write_component(folder, part, config, tensors_of(arrays))
  config = VARIANTS["released"].config()
  config["sampling"]["to_clean"] = True
  words = folder / "words"
  vocab, _ = tokenizer.read_vocabulary(words)
  diffusers_folder.write_rest(folder, config, words, max(vocab.values()))
  for path in words.iterdir():
    path.unlink()
  words.rmdir()
  return folder


def rewrite_json(path, change):
  """Lets `change` edit a JSON file."""
  values = json.loads(path.read_text())
  change(values)
  path.write_text(json.dumps(values))
