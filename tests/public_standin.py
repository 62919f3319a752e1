"""Public weights in every form, random and small enough for tests."""

import contextlib
import functools
import json

import numpy as np
import pytest
from flax import traverse_util

from i2vgen_jax import tokenizer
from i2vgen_jax.interop import convert, stored
from i2vgen_jax.interop.formats import diffusers_folder
from i2vgen_jax.interop.formats.tensors import Tensors
from i2vgen_jax.models import build
from i2vgen_jax.models.clip import CLIPTextModel, CLIPVisionModel
from i2vgen_jax.models.unet import I2VGenUNet
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
TOWERS = {"vae": VAE, "text_encoder": TEXT, "image_encoder": VISION}


def unet(variant="released", **fields):
  """Of a public variant; without other fields, the smallest VGen allows."""
  small = {
    "block_channels": (32, 32),
    "layers_per_block": 1,
    "head_dim": 4,
    "context_dim": WIDTH,
  }
  return I2VGenUNet(**VARIANTS[variant].unet | small | fields)


abstract = functools.cache(build.abstract_params)


@contextlib.contextmanager
def traced_once():
  """Shapes take a second to trace, and most tests look at the same network."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, "abstract_params", abstract)
    yield


@functools.cache
def file_shapes(module, form):
  """Shapes of the tensors of a file with this network."""
  leaves = traverse_util.flatten_dict(abstract(module), sep="/")
  leaves = hollow({path: leaf.shape for path, leaf in leaves.items()})
  return convert.to_torch(leaves, stored.table_of(module, form)).shapes


def hollow(shapes, where="file.pth"):
  """Tensors of these shapes that nobody can read."""
  dtypes = dict.fromkeys(shapes, np.dtype("f"))

  def read(key):
    raise AssertionError(f"{key} was read")

  return Tensors(where, dict(shapes), dtypes, read)


def draw(module, form, seed=0):
  """The file of a network: no two values alike, nothing at its default."""
  rng = np.random.default_rng(seed)
  return {
    key: 0.1 * rng.standard_normal(shape, "f")
    for key, shape in sorted(file_shapes(module, form).items())
  }


def write_repository(folder, base=None, dtype=np.float32):
  """A whole diffusers folder, as on the Hub but for the sizes."""
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
    diffusers_folder.write_component(folder, part, config, Tensors.of(arrays))
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
