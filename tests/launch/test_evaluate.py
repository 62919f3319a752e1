"""The figures of an evaluation, on clips whose quality is known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.procedural import camera, world
from data_pipelines.procedural.photographs import Photographs
from i2vgen_jax import autoencoding
from i2vgen_jax.cascade import Cascade
from launch import evaluate

SMALL, LARGE, FRAMES = (96, 64), (192, 128), 8


@pytest.fixture(scope="module", params=["objects", "camera"])
def draw(request, photographs):
  pool = Photographs(photographs, "test")
  return evaluate.held_out(request.param, pool, 0, 6, FRAMES)


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
  assert evaluate.has_motion(draw, clips).mean() == 1
  backwards = evaluate.has_motion(draw, clips[:, ::-1])
  assert backwards.mean() < 0.5
  counts = evaluate.by_motion(draw(size), backwards)
  assert counts.keys() in (set(world.MOTIONS), set(camera.MOVES))
  hits, clips = np.sum(
    [np.array(v.split(" of "), int) for v in counts.values()], 0
  )
  assert clips == 6
  assert hits == backwards.mean() * 6


def test_nearly_true_refined_clips_are_better_than_bilinear(draw):
  base = noisy(true_clips(draw, SMALL), 2)
  refined = noisy(true_clips(draw, LARGE), 2)
  figures = evaluate.measure(draw, base, refined)
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
  blurred = evaluate.bilinear(base, refined)
  worse = evaluate.measure(draw, base, noisy(blurred, 20))
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
    for some in (evaluate.untrain(cascade), drawn)
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
  made = evaluate.autoencoded(cascade, clips).astype(int)
  np.testing.assert_allclose(made, expected, atol=1)


def test_table_has_every_figure():
  figures = {"clips": 3, "first_frame_psnr": [42.0, 40.25]}
  figures["by_name"] = {"grows": "1 of 2"}
  lines = [line.split() for line in evaluate.table(figures)]
  assert lines == [
    ["clips", "3"],
    ["first", "frame", "psnr", "42.000", "40.250"],
    ["by", "name"],
    ["grows", "1", "of", "2"],
  ]


def test_command(run, weights, photographs, tmp_path):
  status, _ = run(
    *("evaluate", "--weights", weights, "--num-clips", 2),
    *("--photographs", photographs, "--output", tmp_path / "made"),
  )
  assert status == 0
  figures = json.loads((tmp_path / "made" / "figures.json").read_text())
  chance = {"objects": 1 / 12, "camera": 1 / 15}
  for shows, expected in chance.items():
    assert figures[shows]["clips"] == 2
    assert figures[shows]["motion_chance"] == pytest.approx(expected)
    assert len(figures[shows]["first_frame_psnr_autoencoder"]) == 2
    for name in (f"{shows}.png", f"{shows}_spectra.png"):
      assert min(Image.open(tmp_path / "made" / name).size) > 100


def test_bad_output_is_refused_first(refused, weights, tmp_path):
  (tmp_path / "file").write_text("")
  line = refused(
    *("evaluate", "--weights", weights, "--output", tmp_path / "file")
  )
  assert str(tmp_path / "file") in line
