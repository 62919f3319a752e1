"""The figures of an evaluation, on clips whose quality is known."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines.procedural import world
from launch import evaluate

SMALL, LARGE, FRAMES = (64, 64), (128, 128), 8


def make_case(number):
  scene = world.numbered_scene(0, number, "test")
  return evaluate.Case(
    scene,
    *(world.render(scene, size, FRAMES) for size in (SMALL, LARGE)),
    *(world.object_mask(scene, size, FRAMES) for size in (SMALL, LARGE)),
  )


@pytest.fixture(scope="module")
def cases():
  return [make_case(number) for number in range(6)]


def noisy(clips, amplitude):
  noise = np.random.default_rng(0).normal(0, amplitude, np.shape(clips))
  return np.clip(np.rint(clips + noise), 0, 255).astype(np.uint8)


def test_true_clips_have_the_prompted_motion_and_reversed_clips_do_not(cases):
  clips = np.stack([case.small for case in cases])
  forwards = evaluate.motions(cases, clips, small=True)
  assert evaluate.accuracy(cases, forwards) == 1
  backwards = evaluate.motions(cases, clips[:, ::-1], small=True)
  assert evaluate.accuracy(cases, backwards) < 0.5
  counts = evaluate.by_motion(cases, backwards)
  assert counts.keys() == set(world.MOTIONS)
  hits, clips = np.sum(
    [np.array(v.split(" of "), int) for v in counts.values()], 0
  )
  assert clips == len(cases)
  assert hits == evaluate.accuracy(cases, backwards) * len(cases)


def test_nearly_true_refined_clips_are_better_than_bilinear(cases):
  base = noisy([case.small for case in cases], 2)
  refined = noisy([case.large for case in cases], 2)
  figures = evaluate.measure(cases, base, refined)
  assert figures["clips"] == len(cases)
  assert figures["motion_base"] == figures["motion_refined"] == 1
  # Noise of two levels.
  assert figures["first_frame_psnr"][0] == pytest.approx(42, abs=0.5)
  for name in ("spatial_distance", "temporal_distance"):
    assert figures[name]["refined"] < figures[name]["bilinear"]
    assert figures[name]["clips_better"] > 0.5
  assert figures["object_psnr"]["refined"] == pytest.approx(42, abs=0.7)
  assert figures["object_psnr"]["bilinear"] < 35
  # The other way round every share turns.
  blurred = np.stack([evaluate.bilinear(c, LARGE[::-1]) for c in base])
  worse = evaluate.measure(cases, base, noisy(blurred, 20))
  assert worse["object_psnr"]["clips_better"] == 0


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
