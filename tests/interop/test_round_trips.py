"""Conversions from form to form and back are exact to the bit."""

import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import public_standin
import pytest
import torch
from public_standin import TOWERS, draw, file_shapes, unet
from weight_helpers import arrays_of, save_torch

from i2vgen_jax.interop import open_weights, write
from i2vgen_jax.interop.formats import native, safetensors_files, torch_files

LOCAL = "input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def ours(repository, tmp_path_factory):
  """The repository as a native cascade."""
  folder = tmp_path_factory.mktemp("ours") / "cascade"
  to_orbax(repository, folder)
  return folder


def to_orbax(source, folder, dtype=None, choices=None):
  write.write(open_weights(source, choices=choices), folder, "orbax", dtype)


def to_diffusers(source, folder, dtype=None):
  weights = open_weights(source)
  write.check(weights.networks, "diffusers")
  write.write(weights, folder, "diffusers", dtype)


def to_torch(source, path, form, dtype=None):
  weights = open_weights(source)
  unet = weights.one("unet")
  weights = dataclasses.replace(weights, networks={unet.name: unet})
  write.check(weights.networks, form)
  write.write(weights, path, form, dtype)


def bits(array):
  """Compares NaN as equal, and -0 as different from 0."""
  return array.dtype, array.shape, array.tobytes()


def assert_equal_bits(one, other):
  assert one.keys() == other.keys()
  for key, array in one.items():
    assert bits(array) == bits(np.ascontiguousarray(other[key])), key


def files_of(folder):
  return {
    str(path.relative_to(folder)): arrays_of(safetensors_files.read(path))
    for path in sorted(folder.rglob("*.safetensors"))
  }


def state_of(module):
  return {key: x.numpy() for key, x in module.state_dict().items()}


def test_diffusers_and_back(repository, ours, tmp_path):
  to_diffusers(ours, tmp_path / "back")
  before, after = files_of(repository), files_of(tmp_path / "back")
  assert len(before) == 4 and before.keys() == after.keys()
  for name, arrays in before.items():
    assert_equal_bits(arrays, after[name])
  for name in ("unet/config.json", "vae/config.json"):
    texts = [(f / name).read_text() for f in (repository, tmp_path / "back")]
    assert json.loads(texts[0]) == json.loads(texts[1])
  for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
    one, other = (
      (f / "tokenizer" / name).read_text()
      for f in (repository, tmp_path / "back")
    )
    assert one == other


def test_diffusers_opens_the_result(repository, ours, tmp_path):
  to_diffusers(ours, tmp_path / "back")
  pipes = [
    diffusers.I2VGenXLPipeline.from_pretrained(folder, local_files_only=True)
    for folder in (repository, tmp_path / "back")
  ]
  for part in ("unet", "vae", "text_encoder", "image_encoder"):
    states = [state_of(getattr(pipe, part)) for pipe in pipes]
    assert_equal_bits(*states)
  pipe = pipes[1]
  arrays = draw(unet(), "diffusers", 3)
  assert_equal_bits(arrays, state_of(pipe.unet))
  assert pipe.vae.config.scaling_factor == 0.18125
  assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
  assert pipe.scheduler.config.set_alpha_to_one is True
  assert pipe.tokenizer.pad_token == "<|endoftext|>"
  ids = pipe.tokenizer("a kite", padding="max_length").input_ids
  assert len(ids) == 77 and ids[-1] == public_standin.VOCABULARY - 1


@pytest.mark.parametrize(
  ("variant", "form"),
  [
    ("released", "vgen"),
    ("image_to_video", "modelscope"),
    ("refine", "modelscope"),
  ],
)
def test_original_unet_and_back(variant, form, tmp_path):
  arrays = draw(unet(variant), "vgen")
  save_torch(tmp_path / "a.pth", arrays, step=7)
  to_orbax(tmp_path / "a.pth", tmp_path / "ours")
  name = "refine" if variant == "refine" else "base"
  assert [path.name for path in (tmp_path / "ours").iterdir()] == [name]
  to_torch(tmp_path / "ours" / name, tmp_path / "b.pth", form)
  assert_equal_bits(arrays, arrays_of(torch_files.read(tmp_path / "b.pth")))
  # As the original code opens it.
  file = torch.load(tmp_path / "b.pth", weights_only=True)
  assert set(file) == {"state_dict"} | ({"step"} if form == "vgen" else set())


def test_original_towers_become_those_of_diffusers(tmp_path):
  """Without loss: arrays that are stacked there are separate here."""
  arrays = draw(TOWERS["vae"], "ldm")
  arrays = {f"first_stage_model.{key}": x for key, x in arrays.items()}
  save_torch(tmp_path / "a.ckpt", arrays)
  to_orbax(tmp_path / "a.ckpt", tmp_path / "ours")
  to_diffusers(tmp_path / "ours", tmp_path / "theirs")
  vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "theirs" / "vae")
  state = state_of(vae)
  assert len(state) == len(arrays)
  pairs = {
    "encoder.conv_in.weight": "encoder.conv_in.weight",
    "decoder.up_blocks.0.resnets.1.conv2.bias": (
      "decoder.up.1.block.1.conv2.bias"
    ),
    "decoder.mid_block.attentions.0.to_q.weight": (
      "decoder.mid.attn_1.q.weight"
    ),
  }
  for theirs, original in pairs.items():
    there = arrays[f"first_stage_model.{original}"]
    assert bits(state[theirs]) == bits(there.reshape(state[theirs].shape))
  assert vae.config.scaling_factor == 0.18215


def test_diffusers_to_vgen_and_back(repository, tmp_path):
  to_torch(repository, tmp_path / "unet.pth", "vgen")
  to_diffusers(tmp_path / "unet.pth", tmp_path / "back")
  (before,) = files_of(repository / "unet").values()
  (after,) = files_of(tmp_path / "back").values()
  assert_equal_bits(before, after)
  vgen = arrays_of(torch_files.read(tmp_path / "unet.pth"))
  assert {k: x.shape for k, x in vgen.items()} == file_shapes(unet(), "vgen")
  ours, theirs = vgen[LOCAL], before["conv_in.weight"]
  np.testing.assert_array_equal(ours[:, :4], theirs[:, :4])
  np.testing.assert_array_equal(2 * ours[:, 4:], theirs[:, 4:])
  assert np.abs(theirs[:, 4:]).min() > 0


def test_both_files_give_the_same_prediction(repository, tmp_path):
  to_torch(repository, tmp_path / "unet.pth", "vgen")
  rng = np.random.default_rng(0)
  latents, image = rng.standard_normal((2, 1, 2, 8, 8, 4), "f")
  words = rng.standard_normal((1, 5, public_standin.WIDTH), "f")
  answers, gains = [], []
  for path in (repository, tmp_path / "unet.pth"):
    network = open_weights(path).one("unet").load()
    gains.append(network.module.concat_gain)
    with jax.disable_jit():
      answers.append(
        network.module.apply(
          {"params": network.params},
          latents,
          np.array([300.0]),
          fps=np.array([16.0]),
          image_latents=image[:, 0],
          image_embeds=words[:, 0],
          text_context=words,
        )
      )
  assert gains == [1.0, 2.0]
  assert np.abs(answers[0]).max() > 0.1
  np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


def test_config_contains_the_choices(ours, repository, tmp_path):
  base = native.load_config(ours / "base")
  assert base["module"]["concat_gain"] == 1.0
  assert base["sampling"]["to_clean"] is True
  assert base["sampling"]["black_edge"] is False
  assert base["source"] == {"form": "diffusers"}
  assert base["diffusion"] == {
    "schedule": "cosine",
    "zero_terminal_snr": True,
    "prediction_type": "v",
  }
  vae = native.load_config(ours / "vae")
  assert vae["scaling_factor"] == 0.18125
  text = native.load_config(ours / "text_encoder")
  assert text["pad_token_id"] == public_standin.VOCABULARY - 1
  assert text["source"] == {"form": "transformers"}

  chosen = {"scaling_factor": 0.18215, "concat_gain": 4.0, "pad_token_id": 0}
  to_orbax(repository, tmp_path / "ours", choices=chosen)
  base, vae, text = (
    native.load_config(tmp_path / "ours" / name)
    for name in ("base", "vae", "text_encoder")
  )
  assert base["module"]["concat_gain"] == 4.0
  assert vae["scaling_factor"] == 0.18215
  assert text["pad_token_id"] == 0


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_dtype(name, repository, ours, tmp_path):
  to_diffusers(ours, tmp_path / "half", name)
  dtype = jnp.dtype(name)
  for file, arrays in files_of(repository).items():
    half = arrays_of(safetensors_files.read(tmp_path / "half" / file))
    assert {x.dtype for x in half.values()} == {dtype}
    assert_equal_bits({k: x.astype(dtype) for k, x in arrays.items()}, half)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_files_of_half_precision(name, repository, tmp_path):
  """Half precision is kept, to the bit."""
  dtype = jnp.dtype(name)
  to_torch(repository, tmp_path / "a.pth", "vgen", name)
  arrays = arrays_of(torch_files.read(tmp_path / "a.pth"))
  assert {x.dtype for x in arrays.values()} == {dtype}
  to_orbax(tmp_path / "a.pth", tmp_path / "ours")
  stored = native.read(tmp_path / "ours" / "base")
  assert set(stored.dtypes.values()) == {dtype}
  to_torch(tmp_path / "ours", tmp_path / "b.pth", "vgen")
  assert_equal_bits(arrays, arrays_of(torch_files.read(tmp_path / "b.pth")))
  to_diffusers(tmp_path / "ours", tmp_path / "theirs")
  (theirs,) = files_of(tmp_path / "theirs").values()
  assert {x.dtype for x in theirs.values()} == {dtype}


def test_networks_are_added_to_a_cascade(repository, tmp_path):
  """Networks are added to a cascade folder one after another."""
  for part in ("vae", "text_encoder", "unet"):
    to_orbax(repository / part, tmp_path / "ours")
  names = {path.name for path in (tmp_path / "ours").iterdir()}
  assert names == {"vae", "text_encoder", "base"}
