"""Clips through the autoencoder, a few frames at a time on each device."""

import jax
import numpy as np
import pytest
from model_testing import draw, equations

from i2vgen_jax import autoencoding, sharding
from i2vgen_jax.models.vae import AutoencoderKL

VAE = AutoencoderKL(block_channels=(8, 16), layers_per_block=1, norm_groups=4)


@pytest.fixture
def params(random_params):
  return random_params(VAE, draw(1, 8, 8, 3))


@pytest.mark.parametrize("layout", [{"frames": 8}, {"data": 2, "fsdp": 2}])
def test_devices_share_the_frames_of_few_clips(params, layout):
  """15 frames, which neither the devices nor the passes divide."""
  clips = draw(3, 5, 8, 12, 3)
  latents = draw(3, 5, 4, 6, 4)
  encode = jax.jit(lambda p, x: autoencoding.encode_clips(VAE, p, x, 2).mean)
  decode = jax.jit(lambda p, x: autoencoding.decode_clips(VAE, p, x, 2))
  wanted = encode(params, clips), decode(params, latents)
  count = np.prod([*layout.values()])
  mesh = sharding.make_mesh(**layout, devices=jax.devices()[:count])
  with jax.set_mesh(mesh):
    found = encode(params, clips), decode(params, latents)
  for x, y in zip(found, wanted, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_each_device_decodes_its_part_of_one_clip(params):
  # So large that a CPU convolves one frame as it convolves eight.
  latents = draw(1, 8, 16, 16, 4)

  def work():
    decode = jax.jit(lambda p, x: autoencoding.decode_clips(VAE, p, x, 8))
    return decode.lower(params, latents).compile().cost_analysis()["flops"]

  alone = work()
  with jax.set_mesh(sharding.make_mesh(data=2, frames=4)):
    assert work() < 1.1 * alone / 8


@pytest.mark.parametrize(("chunk", "at_once"), [(2, 1), (7, 1), (8, 8)])
def test_a_tpu_takes_eight_frames_or_one(params, monkeypatch, chunk, at_once):
  clips = draw(2, 5, 8, 12, 3)

  def encode(params, clips):
    return autoencoding.encode_clips(VAE, params, clips, chunk).mean

  wanted = encode(params, clips)

  def on_tpu(*args, default, tpu=None):
    return (tpu or default)(*args)

  monkeypatch.setattr(autoencoding, "for_platform", on_tpu)
  np.testing.assert_allclose(encode(params, clips), wanted, atol=1e-5)
  program = jax.make_jaxpr(encode)(params, clips)
  sizes = {
    e.invars[0].aval.shape[0]
    for e in equations(program.jaxpr)
    if e.primitive.name == "conv_general_dilated"
  }
  assert sizes == {at_once}
