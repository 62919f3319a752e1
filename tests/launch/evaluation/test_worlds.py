"""The figures of the procedural worlds, on clips of known quality."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.procedural import camera, world
from data_pipelines.procedural.photographs import Photographs
from i2vgen_jax import autoencoding
from i2vgen_jax.cascade import Cascade
from launch.evaluation import worlds
from launch.evaluation.generation import bilinear

SMALL, LARGE, FRAMES = (96, 64), (192, 128), 8


@pytest.fixture(scope="module", params=["objects", "camera"])
def draw(request, photographs):
  pool = Photographs(photographs, "test")
  return worlds.held_out(request.param, pool, 0, 6, FRAMES)


def true_clips(draw, size):
  return np.stack([clip.frames for clip in draw(size)])


def noisy(clips, amplitude):
  noise = np.random.default_rng(0).normal(0, amplitude, np.shape(clips))
  return np.clip(np.rint(clips + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_true_clips_have_the_prompted_motion_and_reversed_clips_do_not(
  draw, size
):
  clips = true_clips(draw, size)
  assert worlds.has_motion(draw, clips).mean() == 1
  backwards = worlds.has_motion(draw, clips[:, ::-1])
  assert backwards.mean() < 0.5
  counts = worlds.by_motion(draw(size), backwards)
  assert counts.keys() in (set(world.MOTIONS), set(camera.MOVES))
  hits, clips = np.sum(
    [np.array(v.split(" of "), int) for v in counts.values()], 0
  )
  assert clips == 6
  assert hits == backwards.mean() * 6


def test_nearly_true_refined_clips_are_better_than_bilinear(draw):
  base = noisy(true_clips(draw, SMALL), 2)
  refined = noisy(true_clips(draw, LARGE), 2)
  figures = worlds.measure(draw, base, refined)
  assert figures["clips"] == 6
  assert figures["motion_base"] == figures["motion_refined"] == 1
  # Noise of two levels.
  assert figures["first_frame_psnr"][0] == pytest.approx(42, abs=0.5)
  for name in ("spatial_distance", "temporal_distance"):
    assert figures[name]["refined"] < figures[name]["bilinear"]
    assert figures[name]["clips_better"] > 0.5
  assert figures["moving_region_psnr"]["refined"] == pytest.approx(42, abs=0.7)
  assert figures["moving_region_psnr"]["bilinear"] < 35
  # The other way round every share turns.
  blurred = bilinear(base, refined)
  worse = worlds.measure(draw, base, noisy(blurred, 20))
  assert worse["moving_region_psnr"]["clips_better"] == 0


def test_untrained_clips_are_those_of_random_denoisers(weights):
  """Like a new denoiser: random weights, and a last convolution of zeros."""
  cascade = Cascade.load(weights)
  params = dict(cascade.networks["base"].params)
  params["conv_out"] = jax.tree.map(jnp.zeros_like, params["conv_out"])
  network = dataclasses.replace(cascade.networks["base"], params=params)
  drawn = dataclasses.replace(
    cascade, networks={**cascade.networks, "base": network}
  )
  pictures = [world.render(world.numbered_scene(0, 0, "test"), LARGE, 1)[0]]
  made, expected = (
    some.run(some.stage("base"), pictures, ["a disc"])
    for some in (worlds.untrain(cascade), drawn)
  )
  np.testing.assert_array_equal(made, expected)


def test_autoencoded_clips_are_those_of_the_stage(weights):
  cascade = Cascade.load(weights)
  clips = np.random.default_rng(0).integers(0, 256, (17, 1, 16, 16, 3))
  clips = clips.astype(np.uint8)
  stage, params = cascade.stage("base"), {"vae": cascade.networks["vae"].params}
  frames = autoencoding.to_unit_range(jnp.asarray(clips))
  side = 16 // stage.shrink
  zeros = jnp.zeros((17, 1, side, side, stage.vae.latent_channels))
  expected = stage.decode(params, stage.encode(params, frames, zeros))
  made = worlds.autoencoded(cascade, clips, 16).astype(int)
  np.testing.assert_allclose(made, expected, atol=1)
