"""What a path holds, and the config and parameters that it becomes."""

import shutil
from pathlib import Path

import cascade_standin
import jax
import jax.numpy as jnp
import numpy as np
import public_standin
import pytest
import torch
from flax import traverse_util
from public_standin import TEXT, VAE, VISION, draw, rewrite_json, unet
from weight_helpers import arrays_of, save_torch, tensors_of

from i2vgen_jax import sharding, tokenizer
from i2vgen_jax.cascade import Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop import (
  load_text_encoder,
  load_unet,
  load_vae,
  open_weights,
)
from i2vgen_jax.interop.choices import Choices
from i2vgen_jax.interop.formats import native
from i2vgen_jax.interop.formats.safetensors_files import write
from i2vgen_jax.models import build

UNET_FILE = "diffusion_pytorch_model.safetensors"
NETWORKS = {"base", "vae", "text_encoder", "image_encoder"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  """The files that VGen reads: U-Net, both towers, autoencoder."""
  folder = tmp_path_factory.mktemp("models")
  towers = draw(TEXT, "openclip")
  towers |= {f"visual.{k}": x for k, x in draw(VISION, "openclip").items()}
  vae = draw(VAE, "ldm")
  vae = {f"first_stage_model.{key}": x for key, x in vae.items()}
  files = {
    "i2vgen_xl_00854500.pth": draw(unet(), "vgen"),
    "open_clip_pytorch_model.bin": towers,
    "v2-1_512-ema-pruned.ckpt": vae,
  }
  for name, arrays in files.items():
    save_torch(folder / name, arrays)
  (folder / "notes.txt").write_text("not weights")
  return folder


def find(path, choices=None):
  return open_weights(path, choices=choices).networks


@pytest.fixture
def copied(repository, tmp_path):
  """A repository that a test may change."""
  return shutil.copytree(repository, tmp_path / "repository")


def flat(params):
  return traverse_util.flatten_dict(params, sep="/")


def choices_of(found):
  """The choices that the configs contain."""
  configs = {name: source.config for name, source in found.items()}
  return Choices.of(configs)


# ---- Every kind of path ----


def test_native_cascade(weights):
  found = find(weights)
  assert set(found) == {*NETWORKS, "refine"}
  for name, source in found.items():
    assert (source.name, source.form) == (name, "orbax")
    assert source.config == native.load_config(weights / name)
    shapes = {k: x.shape for k, x in flat(source.abstract_params).items()}
    assert source.tensors.shapes == shapes
    source.report().check()
  params = cascade_standin.random_params(found["vae"].module, 0)
  loaded = found["vae"].load()
  assert loaded.config == found["vae"].config
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_one_native_network(weights):
  found = find(weights / "vae")
  assert set(found) == {"vae"}
  assert found["vae"].form == "orbax"


def test_repository(repository):
  found = find(repository)
  assert set(found) == NETWORKS
  forms = {name: source.form for name, source in found.items()}
  assert forms.pop("base") == forms.pop("vae") == "diffusers"
  assert set(forms.values()) == {"transformers"}
  assert found["base"].variant == "released"
  modules = {"base": unet(), **public_standin.TOWERS}
  for name, source in found.items():
    assert source.module == modules[name]
    report = source.report()
    assert set(report.mapped) == set(source.tensors.shapes)
    assert source.config["source"] == {"form": source.form}
  assert open_weights(repository).tokenizer == repository / "tokenizer"


@pytest.mark.parametrize(
  ("part", "name"),
  [
    ("unet", "base"),
    ("vae", "vae"),
    ("text_encoder", "text_encoder"),
    ("image_encoder", "image_encoder"),
  ],
)
def test_component(repository, part, name):
  assert set(find(repository / part)) == {name}
  file = next((repository / part).glob("*.safetensors"))
  assert set(find(file)) == {name}


def test_original_files(original):
  found = find(original)
  assert set(found) == NETWORKS
  assert {found[n].form for n in ("text_encoder", "image_encoder")} == {
    "openclip"
  }
  assert (found["base"].form, found["vae"].form) == ("vgen", "ldm")
  modules = {"base": unet(concat_gain=2.0), **public_standin.TOWERS}
  for name, module in modules.items():
    assert found[name].module == module
    found[name].report().check()
  assert open_weights(original).tokenizer is None


def test_one_file_with_two_networks(original):
  found = find(original / "open_clip_pytorch_model.bin")
  assert set(found) == {"text_encoder", "image_encoder"}


def test_one_of_several(original, weights):
  assert open_weights(original).one("unet").name == "base"
  assert open_weights(original).one("vae").name == "vae"
  with pytest.raises(InputError, match="more than one unet in"):
    open_weights(weights).one("unet")
  with pytest.raises(InputError, match=r"no refine in .*, which holds vae"):
    open_weights(weights / "vae").one("refine")


def test_values(original):
  arrays = draw(VAE, "ldm")
  _, params = load_vae(original / "v2-1_512-ema-pruned.ckpt")
  kernel = arrays["encoder.conv_in.weight"].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(params["encoder"]["conv_in"]["kernel"], kernel)
  _, params = load_unet(original)
  arrays = draw(unet(), "vgen")
  kernel = arrays["input_blocks.0.0.weight"].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(params["conv_in"]["kernel"], kernel)


# ---- The config ----


def test_choices_of_a_repository(repository):
  assert choices_of(find(repository)) == {
    "scaling_factor": 0.18125,
    "pad_token_id": public_standin.VOCABULARY - 1,
    "to_clean": True,
    "black_edge": False,
    "concat_gain": 1.0,
  }


def test_choices_of_original_files(original):
  assert choices_of(find(original)) == {
    "scaling_factor": 0.18215,
    "pad_token_id": 0,
    "to_clean": False,
    "black_edge": False,
    "concat_gain": 2.0,
  }


def test_settings_of_a_repository_are_used(copied):
  rewrite_json(
    copied / "vae" / "config.json", lambda c: c.update(scaling_factor=0.3)
  )
  rewrite_json(
    copied / "scheduler" / "scheduler_config.json",
    lambda c: c.update(
      set_alpha_to_one=False,
      beta_schedule="scaled_linear",
      prediction_type="epsilon",
      rescale_betas_zero_snr=False,
    ),
  )
  for name in ("special_tokens_map.json", "tokenizer_config.json"):
    rewrite_json(
      copied / "tokenizer" / name,
      lambda c: c.update(pad_token={"content": "!"}),
    )
  found = find(copied)
  taken = choices_of(found)
  assert taken["scaling_factor"] == 0.3
  assert taken["to_clean"] is False
  # The first of the printable bytes.
  assert taken["pad_token_id"] == 0
  assert found["base"].config["diffusion"] == {
    "schedule": "linear_sd",
    "zero_terminal_snr": False,
    "prediction_type": "eps",
  }


def test_fields_that_shapes_do_not_determine(copied):
  rewrite_json(
    copied / "unet" / "config.json",
    lambda c: c.update(norm_num_groups=16, attention_head_dim=8),
  )
  rewrite_json(
    copied / "vae" / "config.json", lambda c: c.update(norm_num_groups=8)
  )
  rewrite_json(
    copied / "text_encoder" / "config.json",
    lambda c: c.update(num_attention_heads=4),
  )
  rewrite_json(
    copied / "image_encoder" / "config.json",
    lambda c: c.update(num_attention_heads=5),
  )
  found = {
    name: find(copied / part)[name].module
    for name, part in (
      ("vae", "vae"),
      ("text_encoder", "text_encoder"),
      ("image_encoder", "image_encoder"),
    )
  }
  assert found["vae"].norm_groups == 8
  assert found["text_encoder"].num_heads == 4
  assert found["image_encoder"].num_heads == 5
  base = find(copied / "unet")["base"].module
  assert base.norm_groups == 16


@pytest.mark.parametrize(
  ("name", "value", "read"),
  [
    ("scaling_factor", "0.5", 0.5),
    ("pad_token_id", 7, 7),
    ("to_clean", "false", False),
    ("black_edge", True, True),
    ("concat_gain", 3, 3.0),
  ],
)
def test_explicit_choice_overrides_the_form(repository, name, value, read):
  found = find(repository, {name: value})
  before = choices_of(find(repository))
  assert choices_of(found) == before | {name: read}
  assert before[name] != read


def test_reference_start_belongs_to_the_refine_stage(tmp_path):
  save_torch(tmp_path / "b.pth", draw(unet("refine"), "vgen"))

  def of(choices):
    return find(tmp_path, choices)["refine"].config["sampling"]

  assert of({})["reference_start"] is True
  assert of({"reference_start": "false"})["reference_start"] is False


@pytest.mark.parametrize(
  ("choices", "message"),
  [
    ({"to_clear": 1}, "unknown choice 'to_clear'; known are concat_gain, "),
    ({"to_clean": "maybe"}, "choice to_clean cannot be 'maybe'; give true or"),
    (
      {"pad_token_id": "x"},
      "choice pad_token_id cannot be 'x'; give an integer",
    ),
    ({"pad_token_id": -1}, "choice pad_token_id cannot be -1; give an integer"),
    ({"scaling_factor": None}, "choice scaling_factor cannot be None"),
    ({"scaling_factor": 0}, "scaling_factor cannot be 0; give a number above"),
    ({"concat_gain": "nan"}, "choice concat_gain cannot be 'nan'; give a n"),
  ],
)
def test_bad_choice(original, choices, message):
  with pytest.raises(InputError) as raised:
    find(original / "i2vgen_xl_00854500.pth", choices)
  assert message in str(raised.value)


# ---- Refusals ----


def test_path_without_weights(tmp_path):
  with pytest.raises(InputError, match=r"no weights at .*absent"):
    find(tmp_path / "absent")
  with pytest.raises(InputError, match="neither a cascade, nor a diffusers"):
    find(tmp_path)


def damaged(folder, part, change):
  """Changes the weights of a component."""
  file = next((folder / part).glob("*.safetensors"))
  source = next(iter(find(folder / part).values()))
  arrays = {k: x.copy() for k, x in arrays_of(source.tensors).items()}
  change(arrays)
  write(file, tensors_of(arrays), {"format": "pt"})
  return find(folder / part), str(file)


def test_nan(copied):
  def change(arrays):
    arrays["post_quant_conv.bias"][1] = np.nan

  found, file = damaged(copied, "vae", change)
  with pytest.raises(InputError) as raised:
    found["vae"].load()
  assert "1 of 4 values of 'post_quant_conv.bias'" in str(raised.value)
  assert file in str(raised.value)


def test_key_missing(copied):
  found, file = damaged(
    copied, "unet", lambda a: a.pop("mid_block.resnets.0.norm1.bias")
  )
  with pytest.raises(InputError) as raised:
    found["base"].load()
  assert "1 missing: mid_block.resnets.0.norm1.bias" in str(raised.value)
  assert file in str(raised.value)


def test_wrong_shape(copied):
  def change(arrays):
    arrays["conv_norm_out.weight"] = np.zeros(5, "f")

  found, _ = damaged(copied, "unet", change)
  with pytest.raises(InputError) as raised:
    found["base"].load()
  assert "conv_norm_out.weight is (5,) and should be (32,)" in str(raised.value)


def test_pipeline_of_another_class(copied):
  rewrite_json(
    copied / "model_index.json",
    lambda c: c.update(_class_name="StableDiffusionPipeline"),
  )
  with pytest.raises(InputError, match="of class StableDiffusionPipeline; use"):
    find(copied)


def test_component_is_missing(copied):
  shutil.rmtree(copied / "image_encoder")
  with pytest.raises(InputError, match="no image_encoder in"):
    find(copied)


@pytest.mark.parametrize(
  "change",
  [
    {"beta_schedule": "linear"},
    {"prediction_type": "flow"},
    {"_class_name": "EulerDiscreteScheduler"},
    {"timestep_spacing": "linspace"},
    {"num_train_timesteps": 500},
    {"steps_offset": 0},
    {"clip_sample": True},
    {"beta_end": 0.02, "beta_schedule": "scaled_linear"},
  ],
)
def test_unknown_schedule(copied, change):
  path = copied / "scheduler" / "scheduler_config.json"
  rewrite_json(path, lambda c: c.update(change))
  with pytest.raises(InputError) as raised:
    find(copied)
  assert repr(next(iter(change.values()))) in str(raised.value)
  assert str(path) in str(raised.value)


def test_trailing_steps(copied):
  rewrite_json(
    copied / "scheduler" / "scheduler_config.json",
    lambda c: c.update(timestep_spacing="trailing"),
  )
  base = find(copied)["base"]
  assert base.config["sampling"]["spacing"] == "trailing"


def test_parts_of_a_repository(copied):
  """As a conversion writes it that lacked the other parts."""
  (copied / "model_index.json").unlink()
  for part in ("unet", "image_encoder"):
    shutil.rmtree(copied / part)
  assert set(find(copied)) == {"vae", "text_encoder"}
  assert load_vae(copied)[0] == VAE


def test_weights_of_another_component(copied):
  shutil.copy(copied / "vae" / UNET_FILE, copied / "unet" / UNET_FILE)
  with pytest.raises(InputError, match=r"weights of vae in .*unet; copy"):
    find(copied)


def test_prefix_of_data_parallel_training(tmp_path):
  arrays = draw(unet("refine"), "vgen")
  save_torch(
    tmp_path / "a.pth", {f"module.{key}": x for key, x in arrays.items()}
  )
  (source,) = find(tmp_path / "a.pth").values()
  report = source.report()
  report.check()
  assert report.ignored == ()


def test_keys_of_other_networks_are_reported_as_ignored(original, tmp_path):
  vae = {f"first_stage_model.{k}": x for k, x in draw(VAE, "ldm").items()}
  others = ["cond_stage_model.x", "model.diffusion_model.x"]
  save_torch(tmp_path / "a.ckpt", vae | dict.fromkeys(others, np.ones(1)))
  (source,) = find(tmp_path / "a.ckpt").values()
  assert source.report().ignored == tuple(others)
  source.report().check()


def test_config_next_to_several_files_is_not_used(original, tmp_path):
  file = original / "v2-1_512-ema-pruned.ckpt"
  shutil.copy(file, tmp_path)
  (tmp_path / "config.json").write_text('{"norm_num_groups": 7}')
  assert find(tmp_path)["vae"].module == VAE


# ---- Native weights ----


def test_choices_of_a_native_cascade(weights):
  choices = {"pad_token_id": "7", "scaling_factor": 2, "black_edge": True}
  found = find(weights, choices)
  assert found["text_encoder"].config["pad_token_id"] == 7
  assert found["vae"].config["scaling_factor"] == 2.0
  assert found["base"].config["sampling"]["black_edge"] is True
  with pytest.raises(InputError, match="unknown choice 'nonsense'"):
    find(weights, {"nonsense": 3})
  with pytest.raises(
    InputError, match="pad_token_id 9999 is not one of the 514"
  ):
    find(weights, {"pad_token_id": 9999})


def test_tokenizer_of_another_text_tower(weights, tmp_path):
  copied = shutil.copytree(weights, tmp_path / "copied")
  shutil.rmtree(copied / "tokenizer")
  tokenizer.build_vocabulary(["kite"], copied / "tokenizer")
  with pytest.raises(InputError, match=r"token \d+ of .* none of the 514 that"):
    Cascade.load(copied)


def test_unet_without_text_needs_no_tokenizer(original, tmp_path):
  for file in original.iterdir():
    if file.suffix != ".pth":
      shutil.copy(file, tmp_path)
  save_torch(tmp_path / "a.pth", draw(unet("image_to_video"), "vgen"))
  loaded = Cascade.load(tmp_path)
  assert loaded.tokenizer is None and "text_encoder" not in loaded.networks
  assert loaded.networks["image_encoder"].module == VISION


@pytest.mark.parametrize("name", ["base", "refine", "vae", "text_encoder"])
def test_renamed_native_folder(weights, tmp_path, name, monkeypatch):
  renamed = shutil.copytree(weights / name, tmp_path / "mine")
  assert set(find(renamed)) == {name}
  monkeypatch.chdir(weights / name)
  assert set(find(Path(""))) == {name}


def test_native_folder_with_missing_array(weights, tmp_path):
  found = find(weights / "vae")["vae"]
  params = flat(found.load().params)
  params.pop(max(params))
  name = min(params)
  params[name] = np.zeros((3, 3), "f")
  tree = traverse_util.unflatten_dict(params, sep="/")
  native.save(tmp_path / "vae", found.config, tree)
  report = find(tmp_path / "vae")["vae"].report()
  assert len(report.missing) == 1 and set(report.wrong_shapes) == {name}
  with pytest.raises(InputError, match=r"1 missing: .*1 wrong shapes"):
    load_vae(tmp_path / "vae")


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_damaged_index(copied, text):
  (copied / "model_index.json").write_text(text)
  with pytest.raises(InputError, match="model_index"):
    find(copied)


@pytest.mark.parametrize(
  ("part", "change", "message"),
  [
    ("text_encoder", {"hidden_act": "quick_gelu"}, "hidden_act quick_gelu"),
    ("image_encoder", {"hidden_act": "quick_gelu"}, "hidden_act quick_gelu"),
    ("image_encoder", {"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-06"),
    ("text_encoder", {"num_attention_heads": 0}, "num_heads cannot be 0"),
    ("vae", {"norm_num_groups": 0}, "norm_groups cannot be 0"),
    ("vae", {"norm_num_groups": 7}, "no vae can have the sizes"),
    ("text_encoder", {"num_attention_heads": 7}, "no text_encoder can have"),
    ("vae", {"scaling_factor": 0}, "scaling_factor cannot be 0, in .*config"),
  ],
)
def test_config_of_another_network(copied, part, change, message):
  rewrite_json(copied / part / "config.json", lambda c: c.update(change))
  with pytest.raises(InputError, match=message):
    find(copied / part)


def test_padding_must_be_a_token(copied):
  for name in ("special_tokens_map.json", "tokenizer_config.json"):
    rewrite_json(
      copied / "tokenizer" / name, lambda c: c.update(pad_token="[PAD]")
    )
  with pytest.raises(InputError, match=r"padding '\[PAD\]' is not a token"):
    find(copied)


def test_same_network_twice(original, tmp_path):
  for name in ("a.pth", "b.pth"):
    shutil.copy(original / "i2vgen_xl_00854500.pth", tmp_path / name)
  with pytest.raises(InputError) as raised:
    find(tmp_path)
  assert "two files with a base" in str(raised.value)
  assert str(tmp_path / "a.pth") in str(raised.value)
  assert str(tmp_path / "b.pth") in str(raised.value)


def image_unet():
  """The keys that identify Stable Diffusion's U-Net."""
  return {
    "down_blocks.0.attentions.0.proj_in.weight": np.zeros((8, 8), "f"),
    "down_blocks.0.resnets.0.conv1.weight": np.zeros((8, 8, 3, 3), "f"),
    "time_embedding.linear_1.weight": np.zeros((8, 8), "f"),
  }


@pytest.mark.parametrize("given", ["file", "component"])
def test_image_unet_alone(tmp_path, given):
  file = tmp_path / "diffusion_pytorch_model.safetensors"
  write(file, tensors_of(image_unet()))
  (tmp_path / "config.json").write_text(
    '{"_class_name": "UNet2DConditionModel"}'
  )
  path = file if given == "file" else tmp_path
  with pytest.raises(InputError, match="image U-Net of Stable Diffusion alone"):
    find(path)


# ---- Into memory ----


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(data=1, fsdp=8)


def test_shards(repository, mesh):
  """The small stand-in has few arrays that are large enough to be split."""
  _, whole = load_text_encoder(repository)
  split_module, split = load_text_encoder(repository, mesh=mesh)
  assert split_module == TEXT
  abstract = build.abstract_params(TEXT)
  wanted = flat(sharding.param_shardings(abstract, mesh))
  for path, leaf in flat(split).items():
    assert leaf.sharding == wanted[path], path
    assert len(leaf.sharding.device_set) == 8
  jax.tree.map(np.testing.assert_array_equal, split, whole)


def test_large_arrays_are_split(repository, mesh, monkeypatch):
  monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 2**10)
  _, params = load_text_encoder(repository, mesh=mesh)
  leaf = params["token_embedding"]["embedding"]
  assert not leaf.is_fully_replicated
  parts = {shard.data.shape for shard in leaf.addressable_shards}
  assert parts == {(public_standin.VOCABULARY, public_standin.WIDTH // 8)}
  assert params["final_norm"]["scale"].is_fully_replicated
  arrays = draw(
    TEXT, "transformers", list(public_standin.TOWERS).index("text_encoder")
  )
  key = "text_model.embeddings.token_embedding.weight"
  np.testing.assert_array_equal(leaf, arrays[key])


def test_one_device_without_a_mesh(repository):
  _, params = load_vae(repository)
  for leaf in flat(params).values():
    assert leaf.devices() == {jax.devices()[0]}
    assert leaf.dtype == np.float32


@pytest.mark.parametrize("dtype", ["int8", "foo", torch.float16, "float64"])
def test_dtype_that_weights_cannot_have(repository, dtype):
  with pytest.raises(
    InputError, match=r"weights cannot have dtype .*; use float32, "
  ):
    load_vae(repository, dtype)


@pytest.mark.parametrize("of_mesh", [False, True])
def test_dtype(repository, mesh, of_mesh):
  _, exact = load_vae(repository)
  module, params = load_vae(
    repository, jnp.bfloat16, mesh=mesh if of_mesh else None
  )
  assert module.dtype == jnp.bfloat16
  assert flat(params).keys() == flat(exact).keys()
  for path, leaf in flat(params).items():
    assert leaf.dtype == jnp.bfloat16
    rounded = flat(exact)[path].astype(jnp.bfloat16)
    np.testing.assert_array_equal(leaf, rounded)


def test_dtype_of_native_weights(weights):
  module, params = load_vae(weights, jnp.bfloat16)
  assert module.dtype == jnp.bfloat16
  assert {x.dtype for x in flat(params).values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
  ("part", "key"),
  [
    ("text_encoder", "text_model.embeddings.token_embedding.weight"),
    ("text_encoder", "text_model.embeddings.position_embedding.weight"),
    ("image_encoder", "visual_projection.weight"),
  ],
)
def test_wrong_shape_of_a_tensor_that_alone_decides_a_size(copied, part, key):
  def change(arrays):
    arrays[key] = arrays[key][:-1]

  found, file = damaged(copied, part, change)
  with pytest.raises(InputError, match=f"1 wrong shapes: {key} is") as raised:
    found[part].load()
  assert file in str(raised.value)
