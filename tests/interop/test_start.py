"""Initial weights from an image model, or from another video U-Net."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util

from i2vgen_jax import interop
from i2vgen_jax.errors import InputError
from i2vgen_jax.interop.formats import native
from i2vgen_jax.models import build
from i2vgen_jax.models.unet import I2VGenUNet

SIZES = {
  "block_channels": (16, 32),
  "layers_per_block": 1,
  "head_dim": 8,
  "norm_groups": 4,
  "context_dim": 20,
  "input_heads": 8,
}
KEY = jax.random.key(0)
TEXT_ONLY = I2VGenUNet(
  **SIZES, use_image_embeds=False, use_fps=False, local_image="none"
)


@pytest.fixture(scope="module")
def image_model():
  torch.manual_seed(0)
  model = diffusers.UNet2DConditionModel(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=SIZES["block_channels"],
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=20,
    # In this class, the number of heads.
    attention_head_dim=(2, 4),
    use_linear_projection=True,
  )
  return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(image_model, tmp_path_factory):
  path = tmp_path_factory.mktemp("image")
  image_model.save_pretrained(path / "unet")
  return path


@pytest.fixture(scope="module")
def params(folder):
  return interop.initial_params(folder, TEXT_ONLY, jax.random.key(0))[0]


def test_initial_video_equals_images_of_the_image_model(image_model, params):
  rng = np.random.default_rng(0)
  latents = rng.normal(size=(1, 3, 8, 12, 4)).astype("f")
  text = rng.normal(size=(1, 7, 20)).astype("f")
  frames = TEXT_ONLY.apply(
    {"params": params}, latents, jnp.array([400]), text_context=text
  )
  for frame, noisy in zip(frames[0], latents[0], strict=True):
    expected = image_model(
      torch.from_numpy(noisy.transpose(2, 0, 1).copy())[None],
      400,
      encoder_hidden_states=torch.from_numpy(text),
    ).sample[0]
    error = np.abs(frame - expected.permute(1, 2, 0).numpy()).max()
    assert error <= 1e-4 * np.abs(expected.numpy()).max()


def test_torch_file_of_the_image_model(image_model, params, tmp_path):
  path = tmp_path / "unet.bin"
  torch.save(image_model.state_dict(), path)
  other, _ = interop.initial_params(path, TEXT_ONLY, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, other)


def test_channels_of_the_local_image_start_at_zero(folder):
  unet = I2VGenUNet(**SIZES)
  params, _ = interop.initial_params(folder, unet, jax.random.key(0))
  kernel = np.asarray(params["conv_in"]["kernel"])
  assert kernel.shape == (3, 3, 8, 16)
  assert np.abs(kernel[:, :, :4]).min() > 0
  np.testing.assert_array_equal(kernel[:, :, 4:], 0)


def test_another_size_is_refused(folder):
  unet = TEXT_ONLY.clone(context_dim=24)
  with pytest.raises(InputError, match=r"attn2\.to_k\.weight is"):
    interop.initial_params(folder, unet, jax.random.key(0))


@pytest.fixture
def with_gain(tmp_path):
  """Weights of a U-Net with a gain of 2, and its first kernel."""
  shapes = build.abstract_params(I2VGenUNet(**SIZES))
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  kernel = np.arange(3 * 3 * 8 * 16, dtype="f").reshape(3, 3, 8, 16)
  params["conv_in"]["kernel"] = kernel
  config = {"module": {**SIZES, "concat_gain": 2.0}}
  native.save(tmp_path / "base", config, params)
  return tmp_path / "base", kernel


def test_another_gain_rescales_the_weights(with_gain):
  path, kernel = with_gain
  found, _ = interop.initial_params(
    path, I2VGenUNet(**SIZES, concat_gain=1.0), KEY
  )
  new = np.asarray(found["conv_in"]["kernel"])
  np.testing.assert_array_equal(new[:, :, :4], kernel[:, :, :4])
  np.testing.assert_array_equal(new[:, :, 4:], 2 * kernel[:, :, 4:])


@pytest.mark.parametrize("change", [{"norm_groups": 8}, {"image_grid": 4}])
def test_field_that_shapes_do_not_determine(with_gain, change):
  with pytest.raises(InputError, match=rf"{next(iter(change))} is .* there"):
    interop.initial_params(with_gain[0], I2VGenUNet(**SIZES | change), KEY)


@pytest.mark.parametrize("name", ["block_channels", "context_dim"])
def test_a_unet_of_another_size_is_refused(with_gain, name):
  changed = {"block_channels": (16, 64), "context_dim": 24}[name]
  with pytest.raises(InputError, match=rf"{name} is .* in config\.unet"):
    interop.initial_params(
      with_gain[0], I2VGenUNet(**SIZES | {name: changed}), KEY
    )


def save_random(unet, folder, fields):
  """Random weights of a U-Net, saved, by path."""
  rng = np.random.default_rng(0)
  shapes = build.abstract_params(unet)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes)
  native.save(folder, {"module": {**SIZES, **fields}}, params)
  return traverse_util.flatten_dict(params, sep="/")


def test_weights_of_a_video_unet(params, tmp_path):
  module = {**SIZES, "use_image_embeds": False, "use_fps": False}
  config = {"module": {**module, "local_image": "none"}}
  halves = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
  native.save(tmp_path / "base", config, halves)
  found, differences = interop.initial_params(
    tmp_path / "base", TEXT_ONLY, jax.random.key(0)
  )
  jax.tree.map(np.testing.assert_array_equal, found, halves)
  assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}
  assert not str(differences)


def test_refine_starts_from_base(tmp_path):
  """The conditions that it does not have are left out, and nothing is new."""
  theirs = save_random(I2VGenUNet(**SIZES), tmp_path / "base", {})
  # As the config `refine`, of 90 rows of latents.
  refine = TEXT_ONLY.clone(height_padding=2)
  found, differences = interop.initial_params(tmp_path / "base", refine, KEY)
  found = traverse_util.flatten_dict(found, sep="/")
  assert differences.missing == ()
  assert set(differences.unexpected) == theirs.keys() - found.keys()
  theirs["conv_in/kernel"] = theirs["conv_in/kernel"][:, :, :4]
  for name, array in found.items():
    np.testing.assert_array_equal(array, theirs[name])


def test_a_unet_with_more_conditions_draws_their_layers(tmp_path):
  fields = {"use_image_embeds": False, "use_fps": False, "local_image": "none"}
  theirs = save_random(TEXT_ONLY, tmp_path / "refine", fields)
  found, differences = interop.initial_params(
    tmp_path / "refine", I2VGenUNet(**SIZES), KEY
  )
  found = traverse_util.flatten_dict(found, sep="/")
  assert differences.unexpected == ()
  assert set(differences.missing) == found.keys() - theirs.keys() != set()
  drawn = traverse_util.flatten_dict(
    build.init_params(I2VGenUNet(**SIZES), KEY), sep="/"
  )
  for name in differences.missing:
    np.testing.assert_allclose(found[name], drawn[name], rtol=1e-6)
  kernel = found.pop("conv_in/kernel")
  np.testing.assert_array_equal(kernel[:, :, :4], theirs["conv_in/kernel"])
  np.testing.assert_array_equal(kernel[:, :, 4:], 0)
