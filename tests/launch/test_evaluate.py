"""The figures of an evaluation, on clips whose quality is known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.procedural import world
from i2vgen_jax.cascade import Cascade
from launch import evaluate

SMALL, LARGE, FRAMES = (64, 64), (128, 128), 8


@pytest.fixture(scope="module")
def scenes():
  return [world.numbered_scene(0, number, "test") for number in range(6)]


def true_clips(scenes, size):
  return np.stack([world.render(scene, size, FRAMES) for scene in scenes])


def noisy(clips, amplitude):
  noise = np.random.default_rng(0).normal(0, amplitude, np.shape(clips))
  return np.clip(np.rint(clips + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_true_clips_have_the_prompted_motion_and_reversed_clips_do_not(
  scenes, size
):
  clips = true_clips(scenes, size)
  assert evaluate.has_motion(scenes, clips).mean() == 1
  backwards = evaluate.has_motion(scenes, clips[:, ::-1])
  assert backwards.mean() < 0.5
  counts = evaluate.by_motion(scenes, backwards)
  assert counts.keys() == set(world.MOTIONS)
  hits, clips = np.sum(
    [np.array(v.split(" of "), int) for v in counts.values()], 0
  )
  assert clips == len(scenes)
  assert hits == backwards.mean() * len(scenes)


def test_nearly_true_refined_clips_are_better_than_bilinear(scenes):
  base = noisy(true_clips(scenes, SMALL), 2)
  refined = noisy(true_clips(scenes, LARGE), 2)
  figures = evaluate.measure(scenes, base, refined)
  assert figures["clips"] == len(scenes)
  assert figures["motion_base"] == figures["motion_refined"] == 1
  # Noise of two levels.
  assert figures["first_frame_psnr"][0] == pytest.approx(42, abs=0.5)
  for name in ("spatial_distance", "temporal_distance"):
    assert figures[name]["refined"] < figures[name]["bilinear"]
    assert figures[name]["clips_better"] > 0.5
  assert figures["object_psnr"]["refined"] == pytest.approx(42, abs=0.7)
  assert figures["object_psnr"]["bilinear"] < 35
  # The other way round every share turns.
  blurred = evaluate.bilinear(base, refined)
  worse = evaluate.measure(scenes, base, noisy(blurred, 20))
  assert worse["object_psnr"]["clips_better"] == 0


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


def test_command(run, weights, tmp_path, capsys):
  status, _ = run(
    *("evaluate", "--weights", weights, "--num-clips", 2),
    *("--output", tmp_path / "made"),
  )
  assert status == 0
  figures = json.loads((tmp_path / "made" / "figures.json").read_text())
  assert figures["clips"] == 2
  assert figures["motion_chance"] == pytest.approx(1 / 12)
  for name in ("clips.png", "spectra.png"):
    assert min(Image.open(tmp_path / "made" / name).size) > 100


def test_bad_output_is_refused_first(refused, weights, tmp_path):
  (tmp_path / "file").write_text("")
  line = refused(
    *("evaluate", "--weights", weights, "--output", tmp_path / "file")
  )
  assert str(tmp_path / "file") in line
