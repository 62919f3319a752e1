"""The whole of a picture's way against diffusers' I2VGenXLPipeline."""

import types

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

import i2vgen_jax
from i2vgen_jax import tokenizer
from i2vgen_jax.cascade import clip_keys
from i2vgen_jax.stage import initial_noise

WIDTH = 32
STEPS, GUIDANCE, FPS, FRAMES = 20, 9.0, 16, 3
PROMPTS = ["a red kite over the sea", "two dogs run along a river"]
NEGATIVE = "blurry, still"


def small_pipeline(vocabulary):
  """Random weights in every part; nothing is at its initial value."""
  words = transformers.CLIPTokenizer.from_pretrained(
    vocabulary, pad_token="<|endoftext|>"
  )
  text = transformers.CLIPTextModel(
    transformers.CLIPTextConfig(
      vocab_size=len(words),
      hidden_size=WIDTH,
      projection_dim=WIDTH,
      intermediate_size=48,
      num_hidden_layers=3,
      num_attention_heads=1,
      max_position_embeddings=77,
      hidden_act="gelu",
      bos_token_id=words.bos_token_id,
      eos_token_id=words.eos_token_id,
      pad_token_id=words.pad_token_id,
    )
  )
  vision = transformers.CLIPVisionModelWithProjection(
    transformers.CLIPVisionConfig(
      hidden_size=80,
      projection_dim=WIDTH,
      intermediate_size=48,
      num_hidden_layers=2,
      num_attention_heads=1,
      image_size=56,
      patch_size=14,
      hidden_act="gelu",
    )
  )
  return diffusers.I2VGenXLPipeline(
    vae=diffusers.AutoencoderKL(
      block_out_channels=(8, 8, 16, 16),
      down_block_types=("DownEncoderBlock2D",) * 4,
      up_block_types=("UpDecoderBlock2D",) * 4,
      layers_per_block=1,
      norm_num_groups=4,
      latent_channels=4,
      scaling_factor=0.18125,
    ),
    text_encoder=text,
    tokenizer=words,
    image_encoder=vision,
    feature_extractor=transformers.CLIPImageProcessor(
      crop_size={"width": 56, "height": 56}
    ),
    unet=diffusers.I2VGenXLUNet(
      down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
      up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
      block_out_channels=(16, 24),
      layers_per_block=1,
      norm_num_groups=4,
      cross_attention_dim=WIDTH,
      attention_head_dim=4,
    ),
    scheduler=diffusers.DDIMScheduler(
      beta_schedule="squaredcos_cap_v2",
      rescale_betas_zero_snr=True,
      prediction_type="v_prediction",
      timestep_spacing="leading",
      steps_offset=1,
      set_alpha_to_one=True,
      clip_sample=False,
    ),
  )


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, randomised):
  folder = tmp_path_factory.mktemp("vocabulary")
  tokenizer.build_vocabulary(["red", "kite", "dogs", "blurry"], folder)
  pipe = small_pipeline(folder)
  for part in ("vae", "text_encoder", "image_encoder", "unet"):
    randomised(getattr(pipe, part))
  # As far as a trained one stays within the range of pixels.
  pipe.unet.conv_out.weight.data *= 0.3
  pipe.vae.decoder.conv_out.weight.data *= 0.3
  # The pipeline looks for the norm where transformers 4 had it.
  pipe.text_encoder.text_model = types.SimpleNamespace(
    final_layer_norm=pipe.text_encoder.final_layer_norm
  )
  pipe.set_progress_bar_config(disable=True)
  return pipe


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
  folder = tmp_path_factory.mktemp("repository") / "i2vgen-xl"
  theirs.save_pretrained(folder)
  return i2vgen_jax.load(folder, choices={"black_edge": True})


def photos(count, width, height):
  y, x = np.mgrid[:height, :width] / 40
  waves = [np.sin(x + y), np.cos(y * 2 - x), np.sin(x * y)]
  for i in range(count):
    rgb = np.stack(np.roll(waves, i, axis=0), axis=-1)
    yield np.rint(127.5 + 127.5 * rgb).astype(np.uint8)


def noises(seed, rows, frames, height, width):
  """The draws of a seed: noise of the picture's latents, initial noise."""
  split = jax.vmap(jax.random.split)
  keys = split(clip_keys("base", seed, rows))
  shape = (height // 8, width // 8, 4)
  return tuple(
    torch.from_numpy(np.array(initial_noise(key, (f, *shape))))
    .permute(0, 4, 1, 2, 3)
    .contiguous()
    for key, f in ((keys[:, 0], 1), (split(keys[:, 1])[:, 0], frames))
  )


@pytest.mark.parametrize(
  ("rows", "size", "negative"),
  [
    (1, (96, 64), NEGATIVE),
    (1, (64, 104), None),  # portrait
    (2, (72, 72), NEGATIVE),
  ],
)
def test_pipeline(theirs, ours, monkeypatch, rows, size, negative):
  images = list(photos(rows, 150, 131))
  prompts = PROMPTS[:rows]
  width, height = size
  encode_noise, first = noises(5, rows, FRAMES, height, width)

  def sample(self, generator=None):
    return self.mean + self.std * encode_noise[:, :, 0]

  monkeypatch.setattr(DiagonalGaussianDistribution, "sample", sample)
  call = {
    "height": height,
    "width": width,
    "target_fps": FPS,
    "num_frames": FRAMES,
    "num_inference_steps": STEPS,
    "guidance_scale": GUIDANCE,
    "negative_prompt": negative and [negative] * rows,
  }
  pictures = [Image.fromarray(image) for image in images]
  latents = theirs(
    prompts, pictures, latents=first, output_type="latent", **call
  ).frames
  frames = theirs.decode_latents(latents, decode_chunk_size=2)
  frames = np.rint((frames / 2 + 0.5).clamp(0, 1).numpy() * 255)

  settings = {
    "size": size,
    "num_frames": FRAMES,
    "fps": FPS,
    "num_steps": STEPS,
    "guidance_scale": GUIDANCE,
    "negative_prompt": negative or "",
  }
  base = ours.plan(**settings)["base"]
  result = ours.run(base, images, prompts, seed=5, decode=False)
  expected = latents.permute(0, 2, 3, 4, 1).numpy()
  assert expected.std() > 0.1
  error = np.abs(result - expected).max() / np.abs(expected).max()
  assert error <= 1e-3

  if rows == 1 and negative:
    clips = ours(images, prompts, seed=5, **settings)
  else:  # The latents are known: a second whole program would tell no more.
    clips = np.asarray(
      base.decode({"vae": ours.networks["vae"].params}, result)
    )
  expected = frames.transpose(0, 2, 3, 4, 1)
  assert clips.dtype == np.uint8 and clips.shape == expected.shape
  assert np.unique(expected).size > 20
  assert np.abs(clips.astype(int) - expected).max() <= 1
